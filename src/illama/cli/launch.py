"""`illama launch`: torchrun, with illama's exit codes and one line for an error."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NoReturn

from cyclopts import Parameter

from illama.errors import Stopped, UserError

BUG = 1
_EXAMPLE = "illama launch --nproc-per-node 2 train digits_micro"
# They report each process that ends with an error, in torch's words, after the process has told it in ours.
_REPORTERS = ("agent.server.api", "multiprocessing.api")


def launch_command(*words: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> None:
    """Start a command on several devices: illama launch --nproc-per-node 8 train imagenet1k_base --data PATH

    Takes torchrun's own options, then an illama command with its words. Unlike torchrun it ends with the exit code that
    the processes agreed on: 75 when a signal stopped them after saving, 2 with one line for something to fix.

    Args:
        words: torchrun's options (--nproc-per-node, --nnodes, --rdzv-endpoint, ...; torchrun --help lists them), then
            the command.
    """
    options = _parsed(words)
    if _answered_at_once(options.training_script_args):
        return
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import config_from_args, determine_local_world_size, run

    try:
        share_cores(determine_local_world_size(options.nproc_per_node))
        config_from_args(options)
    except (ValueError, AssertionError) as error:
        _refuse(str(error))
    if "--debug" in sys.argv:  # `main` has taken it out of the words
        options.training_script_args.append("--debug")
    else:
        for name in _REPORTERS:
            logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    try:
        run(options)
    except ChildFailedError as failed:
        end_like({rank: failure.exitcode for rank, failure in failed.failures.items()})
    except SignalException:
        raise Stopped("all processes were stopped; the same command goes on from what `illama runs` shows") from None


def share_cores(processes: int) -> None:
    """Give each process on this machine its share of the cores; torchrun would give it one."""
    if "OMP_NUM_THREADS" not in os.environ:
        from illama.system.processes import cpu_count

        os.environ["OMP_NUM_THREADS"] = str(max(1, cpu_count() // processes))


def end_like(codes: Mapping[int, int]) -> NoReturn:
    """End as the processes did: as the one that knew why, rather than as those that were ended with it.

    Args:
        codes: Exit code of each process that failed, by rank; negative for the number of a signal.

    Raises:
        UserError: Processes were killed, which they could not tell themselves.
        SystemExit: With their exit code; a process has told why.
    """
    from illama.cli.main import STOPPED, USER_ERROR

    ours = (BUG, USER_ERROR, STOPPED)
    # SIGTERM is what the launcher sends to the rest
    lost = {rank: code for rank, code in codes.items() if code not in (*ours, -signal.SIGTERM)}
    if not lost:
        for code in ours:
            if code in codes.values():
                raise SystemExit(code)
    ends = ", ".join(_in_words(rank, code) for rank, code in sorted((lost or codes).items()))
    raise UserError(f"{ends}; run the same command again: it goes on from the last checkpoint")


def _in_words(rank: int, code: int) -> str:
    if code >= 0:
        return f"process {rank} ended with exit code {code}"
    why = ", as when memory runs out" if code == -signal.SIGKILL else ""
    return f"process {rank} was ended by signal {-code} ({signal.Signals(-code).name}{why})"


def _parsed(words: Sequence[str]) -> Any:
    """torchrun's options, and `-m illama COMMAND ...` as what it is to start."""
    from torch.distributed.run import get_args_parser

    from illama.cli.main import SHARED

    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    options = parser.parse_args(words)
    command = options.training_script
    if command not in SHARED:
        raise UserError(f"launch starts {' or '.join(SHARED)}, given {command}; type for example {_EXAMPLE}")
    options.training_script_args = [command, *options.training_script_args]
    options.training_script, options.module = "illama", True
    return options


def _refuse(message: str) -> NoReturn:
    if "training_script" in message:
        raise UserError(f"launch needs a command behind torchrun's options: {_EXAMPLE}")
    raise UserError(f"torchrun does not take these options: {message}; see torchrun --help, or type {_EXAMPLE}")


def _answered_at_once(words: Sequence[str]) -> bool:
    """Whether nothing needs to be started. What every process would refuse is refused here, once."""
    from illama.cli.main import app
    from illama.cli.train import train_command
    from illama.recipes import load_recipe

    command, given, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    if command is not train_command:
        return False
    load_recipe(given.arguments["recipe"], given.arguments.get("overrides", ()))
    if given.arguments.get("print_only"):
        command(*given.args, **given.kwargs)
        return True
    return False
