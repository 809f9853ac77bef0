"""How groups of processes end, many times over, on a machine that has other things to do.

    python tests/end_to_end/process_ends.py --repeats 200 --processes 2 --burners 4

Each process is a fork of this one, which has imported everything, and ends as an interpreter does. Prints each end that
is not the expected one, then their number by kind; with a hang, where each of the threads was.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo
import torch.distributed.fsdp
import torch.utils.tensorboard

from illama.distributed import join_world
from illama.errors import Stopped, ToldElsewhere, UserError
from illama.recipes import Recipe, load_recipe
from illama.training.loop import Run, train
from tests.training.conftest import TOY

PREPARED = (torch._dynamo, torch.distributed.fsdp, torch.utils.tensorboard)  # for the forks
HANGS_AFTER_S = 60.0
STOPPED = 75


def gather(folder: Path) -> None:
    """Words between processes, and an end right behind the last one."""
    with join_world("cpu") as (world, _):
        for number in range(20):
            world.gather(number)
            world.sum_(torch.ones(3))


def finish(folder: Path, parallel: str = "ddp") -> None:
    train(recipe(parallel), folder / "run", device="cpu")


def stop(folder: Path, parallel: str = "ddp") -> None:
    """A signal in the second step."""
    step = Run._step

    def signalled(self: Run, batches: object) -> float:
        if self.state.progress.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batches)  # type: ignore[arg-type]

    Run._step = signalled  # type: ignore[method-assign,assignment]
    train(recipe(parallel), folder / "run", device="cpu")


def fail(folder: Path, parallel: str = "ddp") -> None:
    """A loss that is not finite."""
    train(recipe(parallel, "optimizer.lr=1e30", "train.log_every_steps=1"), folder / "run", device="cpu")


def finish_sharded(folder: Path) -> None:
    finish(folder, "fsdp")


def stop_sharded(folder: Path) -> None:
    stop(folder, "fsdp")


ENDS: dict[Callable[[Path], None], int] = {gather: 0, finish: 0, stop: 75, finish_sharded: 0, stop_sharded: 75, fail: 2}


def recipe(parallel: str, *changes: str) -> Recipe:
    """Six steps."""
    toy = ("schedule.epochs=1", "schedule.warmup_epochs=0", "schedule.softness.cutoff_epochs=0", "train.ema_decay=0.9")
    shared = ("train.total_batch=24", "optimizer.lr_batch=24")  # by two and by three
    return load_recipe("digits_micro", [*TOY, *toy, *shared, f"train.parallel={parallel}", *changes])


def one(work: Callable[[Path], None], folder: Path) -> int:
    """The exit code of a process, as `illama.cli.main` gives it."""
    Run._draw = lambda self: None  # type: ignore[method-assign]
    try:
        work(folder)
    except Stopped:
        return STOPPED
    except ToldElsewhere:
        return 2
    except UserError:
        return 2
    return 0


def rank(number: int, size: int, port: int, work: Callable[[Path], None], folder: Path) -> None:
    """What a process does; does not return."""
    os.environ |= {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    said = os.open(folder / f"said{number}", os.O_WRONLY | os.O_CREAT)
    os.dup2(said, 1)
    os.dup2(said, 2)
    faulthandler.enable()
    faulthandler.dump_traceback_later(HANGS_AFTER_S - 5)
    torch.set_num_threads(1)
    sys.exit(one(work, folder))


def repeat(work: Callable[[Path], None], size: int) -> str | None:
    """Start the processes once; what is wrong with their ends, if anything."""
    folder = Path(tempfile.mkdtemp(prefix="process_ends"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pids = []
    for number in range(size):
        pid = os.fork()
        if pid == 0:
            rank(number, size, port, work, folder)
        pids.append(pid)
    codes: dict[int, int | str] = {}
    until = time.monotonic() + HANGS_AFTER_S
    while len(codes) < size:
        for pid in set(pids) - codes.keys():
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > until:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                codes[pid] = "hangs"
        time.sleep(0.002)
    ends = [codes[pid] for pid in pids]
    words = "\n".join(file.read_text(errors="replace")[-3000:] for file in sorted(folder.glob("said*")))
    shutil.rmtree(folder, ignore_errors=True)
    return None if ends == [ENDS[work]] * size else f"{work.__name__}: {ends} instead of {ENDS[work]}\n{words}"


def main() -> int:
    """Exit code 1 if any end was another one than expected."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--repeats", type=int, default=200)
    options.add_argument("--processes", type=int, default=2)
    options.add_argument("--burners", type=int, default=2 * (os.cpu_count() or 1))
    options.add_argument("--only", nargs="*", default=[work.__name__ for work in ENDS])
    given = options.parse_args()
    works = [work for work in ENDS if work.__name__ in given.only]
    burn = "import os\nwhile os.getppid() == int(os.sys.argv[1]): pass"  # not longer than this process
    burners = [subprocess.Popen([sys.executable, "-c", burn, str(os.getpid())]) for _ in range(given.burners)]
    gc.freeze()  # what is there now is no garbage, and the forks need not look at it
    wrong: Counter[str] = Counter()
    done: Counter[str] = Counter()
    try:
        for number in range(given.repeats):
            work = works[number % len(works)]
            problem = repeat(work, given.processes)
            done[work.__name__] += 1
            if problem is not None:
                wrong[work.__name__] += 1
                print(problem, flush=True)
            if number % 20 == 19:
                print(f"{number + 1} repeats, {sum(wrong.values())} wrong", flush=True)
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
    print(f"{sum(done.values())} repeats, {sum(wrong.values())} wrong: {dict(done)}, wrong {dict(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
