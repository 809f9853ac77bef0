"""The `illama` command: which commands there are, and what becomes of errors.

Commands are named by strings and imported when they run, so that help answers without importing torch.

Exit codes: 0 done; 1 a bug of ours (with traceback); 2 something the user can fix (one line on stderr, `--debug` adds
the traceback); 75 a run was stopped by a signal, after saving what there was, and the same command goes on; 130
interrupted with nothing to save (one line); 141 the reader of our output went away.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import sys
import time
import traceback
from collections.abc import Sequence

from cyclopts import App, CycloptsError

import illama
from illama.console import go_on_in_utf8, open_std_streams
from illama.console.text import as_message, safe_lines, shown
from illama.errors import Stopped, ToldElsewhere, UserError
from illama.system import processes
from illama.system.environment import asked
from illama.system.processes import ask_for_repeatable_products, keep_freed_memory

USER_ERROR, STOPPED, INTERRUPTED, PIPE_CLOSED = 2, processes.STOPPED, processes.INTERRUPTED, 141
SHARED = ("train", "eval")  # what several processes share; of any other command each would do the whole
# A launcher ends all processes as soon as one has gone: the one that tells why must not be ended before it has.
GOES_LAST_S = 5.0

app = App(
    name="illama",
    help="iLLaMA, the image LLaMA: train it, evaluate it, ask it what is in a picture.",
    help_epilogue="New here? Type: illama quickstart. With --debug every command shows the traceback of an error.",
    version=illama.__version__,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)
COMMANDS = {
    "quickstart": "Train on handwritten digits (under a minute) and say what to type next.",
    "train": "Train a recipe; the same command again continues a run that was stopped.",
    "launch": "Start a command on several devices or machines, as torchrun does.",
    "eval": "Accuracy and loss of a trained model.",
    "predict": "Class names with probabilities for image files.",
    "analyze": "Look inside: calibration, shape bias, attention, causality, loss landscape; one report of all.",
    "convert": "Weights of any origin (authors, timm, transformers) as .safetensors with a model card.",
    "verify": "Compare the accuracy of published weights with the paper's.",
    "info": "What weights are: parameters, arithmetic, classes, transform, origin.",
    "features": "Write frozen features of all images of a data set to a file.",
    "reproduce": "The paper's tables and ablations on any data set: paper beside ours, with curves.",
    "runs": "List runs: state, epoch, accuracy, what was changed in the recipe, how to go on.",
    "bench": "Measure speed side by side with timm's ViT or your own network.",
    "data": "Check a data set, or write it as WebDataset shards.",
    "recipes": "List the packaged recipes.",
    "version": "Versions of illama and of what it stands on.",
}
for _name, _help in COMMANDS.items():
    app.command(f"illama.cli.{_name}:{_name}_command", name=_name, help=_help)
app.register_install_completion_command(help="Have your shell complete commands and options (bash, zsh, fish).")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The words after `illama`; those of the process when None.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    with processes.listening():
        try:
            if arguments is None:
                go_on_in_utf8()
            open_std_streams()
            _log_to_stderr()
            _print_any_name()
            keep_freed_memory()
            ask_for_repeatable_products()
            return _outcome([word for word in words if word != "--debug"], "--debug" in words)
        except KeyboardInterrupt:
            processes.deaf()
            return processes.last_words(words)


def _outcome(words: Sequence[str], debug: bool) -> int:
    """Run one command; the exit code, after the last words."""
    try:
        with asked(words):
            app(words, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()  # here, where a full disk or a closed pipe is still an error of ours to tell
    except ToldElsewhere:
        return _go_last()
    except (UserError, CycloptsError) as error:
        _demand_no_signal(error)
        said = str(error)
        if isinstance(error, CycloptsError):
            said = f"{' '.join(said.split())}{_hint(words)} See illama {_command(words)}--help"
        told = _tell_the_others(said, words)
        _demand_no_signal(error)  # the lines above may import, and no signal breaks an import
        return _go_last() if isinstance(told, ToldElsewhere) else _fail(str(told), USER_ERROR, debug)
    except Stopped as stopped:
        if os.environ.get("RANK", "0") == "0":  # of several processes, which all stop, one says so
            with contextlib.suppress(OSError):
                print(f"illama: {safe_lines(str(stopped))}", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:
        _close_stdout()
        return PIPE_CLOSED
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return _fail(f"{shown(str(error.filename))}: {error.strerror}; give a shorter name", USER_ERROR, debug)
        if error.errno != errno.ENOSPC or error.filename is not None:
            traceback.print_exc()
            return 1
        _close_stdout()
        return _fail(f"the output cannot be written: {error.strerror}", USER_ERROR, debug)
    except Exception as error:
        _demand_no_signal(error)
        traceback.print_exc()
        return 1
    return 0


def _demand_no_signal(error: Exception) -> None:
    """Raise the interruption if a signal came: the error may be what became of its exception."""
    if processes.came():
        raise KeyboardInterrupt from error


def _go_last() -> int:
    """Another process tells what this one knows too."""
    with contextlib.suppress(KeyboardInterrupt):  # the launcher has seen the other one's end
        time.sleep(GOES_LAST_S)
    processes.deaf()
    return USER_ERROR


def _tell_the_others(said: str, words: Sequence[str]) -> UserError:
    """Of several processes, which wait for each other, all learn why one cannot begin; returns what this one does."""
    if os.environ.get("WORLD_SIZE", "1") == "1" or not words or words[0] not in SHARED:
        return UserError(said)
    from illama.distributed.rendezvous import has_met

    if has_met():
        return UserError(said)
    from illama.distributed import cannot_join

    return cannot_join(said)


def _close_stdout() -> None:
    """Python flushes stdout once more at its end, which would fail once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int, debug: bool) -> int:
    with contextlib.suppress(OSError):  # nobody reads
        if debug:
            traceback.print_exc()
        print(f"illama: error: {as_message(message)}", file=sys.stderr)
    return code


def _hint(words: Sequence[str]) -> str:
    """What to do about files that look like options, and about the sign that elsewhere stands for stdin."""
    if "-" in words:
        return " Nothing is read from stdin (-): give a file."
    from illama.data.sources.formats import picture_endings

    files = [word for word in words if word.startswith("-") and word.lower().endswith(tuple(picture_endings()))]
    return f" A file whose name begins with a dash is written ./{files[0]}." if files else ""


def _command(words: Sequence[str]) -> str:
    return f"{words[0]} " if words and words[0] in COMMANDS else ""


def _print_any_name() -> None:
    """File names need not be text: what cannot be encoded is written as an escape, instead of ending the command."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


class _Line(logging.Formatter):
    """Names of files in a line as a terminal may have them."""

    def format(self, record: logging.LogRecord) -> str:
        return as_message(super().format(record))


def _log_to_stderr() -> None:
    """Show what the package logs (which backend, which weights in a file) as lines of ours."""
    log = logging.getLogger("illama")
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(_Line("illama: %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
