"""The command line: `illama`, `python -m illama`."""

import atexit
import contextlib
import os
import sys

from illama.system.processes import Interrupted, came, deaf, last_words, listen


def start() -> None:
    """Run the command that was typed, and end with its exit code. A signal is answered from here on."""
    try:
        listen()
        from illama.cli.main import main

        code = main()
    except Interrupted:
        code = last_words(sys.argv[1:])
    deaf()
    one_of_several = "torch.distributed" in sys.modules and os.environ.get("WORLD_SIZE", "1") != "1"
    if came():
        _end_children()
    if one_of_several or came():
        _end_at_once(code)
    sys.exit(code)


def _end_children() -> None:
    """End the processes that this one has started and would wait for.

    A signal may come between the start of a pool's processes and that of the thread which would tell them to end.
    """
    if "multiprocessing" in sys.modules:
        for child in sys.modules["multiprocessing"].active_children():
            child.kill()  # one that has just been forked loses SIGTERM


def _end_at_once(code: int) -> None:
    """End without taking the interpreter apart.

    Threads of a process group that something still holds (torch's own caches, a failed run's objects) may then let go
    of their tensors, for which they need an interpreter: they hang, or crash the process after all its work. A signal
    may leave threads of C++ that nobody joins, and these abort it.
    """
    atexit._run_exitfuncs()  # of decoding processes, temporary folders
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    start()
