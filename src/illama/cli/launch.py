"""`illama launch`: torchrun, with illama's exit codes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import Parameter

from illama.errors import Stopped, UserError


def launch_command(*words: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> None:
    """Start a command on several devices: illama launch --nproc-per-node 8 train imagenet1k_base --data PATH

    Takes torchrun's own options, then an illama command with its words. Unlike torchrun it ends with the exit code that
    the processes agreed on: 75 when a signal stopped them after saving, 2 with one line for something to fix.

    Args:
        words: torchrun's options (--nproc-per-node, --nnodes, --rdzv-endpoint, ...; torchrun --help lists them), then
            the command.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import determine_local_world_size, run

    options = _parsed(words)
    share_cores(determine_local_world_size(options.nproc_per_node))
    try:
        run(options)
    except ChildFailedError as failed:
        _raise_for({rank: failure.exitcode for rank, failure in failed.failures.items()})
    except SignalException:
        raise Stopped("stopped by a signal; `illama runs` says what was saved, the same command goes on") from None


def share_cores(processes: int) -> None:
    """Give each process on this machine its share of the cores; torchrun would give it one."""
    if "OMP_NUM_THREADS" not in os.environ:
        from illama.data.memory import cpu_count

        os.environ["OMP_NUM_THREADS"] = str(max(1, cpu_count() // processes))


def _parsed(words: Sequence[str]) -> Any:
    """torchrun's options and, behind them, `-m illama COMMAND ...`."""
    from torch.distributed.run import get_args_parser

    from illama.cli.main import COMMANDS

    at = next((i for i, word in enumerate(words) if word in COMMANDS), None)
    if at is None:
        raise UserError(
            "launch needs a command behind torchrun's options: illama launch --nproc-per-node 2 train digits_micro"
        )
    try:
        return get_args_parser().parse_args([*words[:at], "-m", "illama", *words[at:]])
    except SystemExit as end:
        if end.code == 0:
            raise
        raise UserError(f"torchrun does not take the options {' '.join(words[:at])}; see torchrun --help") from None


def _raise_for(codes: dict[int, int]) -> None:
    """One end for all processes: that of the one that knew why, rather than of those that were ended with it."""
    from illama.cli.main import STOPPED, USER_ERROR

    found = set(codes.values())
    if USER_ERROR in found:
        raise UserError("the run ended for the reason above; the last checkpoint is untouched")
    if STOPPED in found:
        raise Stopped("all processes stopped and saved; the same command goes on")
    died = ", ".join(
        f"process {rank} by signal {-code}" if code < 0 else f"process {rank} with exit code {code}"
        for rank, code in sorted(codes.items())
    )
    raise UserError(f"lost {died}; run the same command again to go on from the last checkpoint")
