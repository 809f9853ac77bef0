"""SIGTERM at any moment before there is anything to save: one line and a code that says what to do, never silence."""

from __future__ import annotations

import importlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from illama.system.processes import Interrupted, listening
from tests.end_to_end.commands import RUN, needs_proc, wait_until_gone
from tests.pictures import paint, tiny_words

pytestmark = needs_proc
MOMENTS = 10  # of the long form
GOES_ON = (75, "illama: stopped by a signal; run the same command again to go on")
INTERRUPTED = (130, "illama: interrupted")
SLOW = "import os, signal, time; os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.2); WHOLE = True"
_PATIENCE_S = 120.0


def start(words: Sequence[object], folder: Path, **environment: str) -> subprocess.Popen[bytes]:
    """The command as it is typed; what it says goes to files, which take it while it stands still."""
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        return subprocess.Popen(
            [sys.executable, "-m", "illama", *map(str, words)],
            stdout=out,
            stderr=err,
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        )


def listens(pid: int) -> bool:
    """Whether a process answers SIGTERM itself: the promise begins here, after the interpreter's own start."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")), "0")
    return bool(int(caught, 16) & 1 << (signal.SIGTERM - 1))


def until_it_listens(process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _PATIENCE_S
    while not listens(process.pid):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.0005)


def ended(process: subprocess.Popen[bytes], folder: Path) -> tuple[int, list[str]]:
    """Exit code, and the lines on stderr."""
    try:
        code = process.wait(_PATIENCE_S)
    finally:
        process.kill()
        process.wait()
    return code, (folder / "err").read_text().splitlines()


def seconds_to(process: subprocess.Popen[bytes], sign: Path) -> float:
    """From the first moment that a signal is heard to a file's appearance, or to the end."""
    until_it_listens(process)
    since = time.monotonic()
    while not sign.exists() and process.poll() is None:
        time.sleep(0.002)
    return time.monotonic() - since


def new_seed() -> random.Random:
    seed = random.randrange(2**32)
    print(f"moments of the signals: seed {seed}")
    return random.Random(seed)


def whole_start_s(folder: Path) -> float:
    """Seconds to the first step of a run."""
    first = folder / "first"
    first.mkdir()
    run = first / "run"
    process = start([*RUN, "train.log_every_steps=1", "--out", run], first)
    whole = seconds_to(process, run / "metrics.jsonl")
    process.kill()
    process.wait()
    return whole


def train_is_stopped(moment_s: float, folder: Path, number: signal.Signals = signal.SIGTERM) -> None:
    """Send a signal to a run that begins, so long after it has begun to listen."""
    folder.mkdir()
    process = start([*RUN, "--out", folder / "run"], folder)
    until_it_listens(process)
    time.sleep(moment_s)
    process.send_signal(number)
    code, lines = ended(process, folder)
    said = [line for line in lines if line.startswith("illama: ")]
    assert not [line for line in lines if "Traceback" in line or "Error" in line or "Exception" in line], lines
    assert len(said) == 1, (moment_s, code, lines)
    expected = GOES_ON if number == signal.SIGTERM else INTERRUPTED
    assert (code, said[0]) == expected or (code == 75 and "and saved; run the same command" in said[0]), lines
    print(f"{moment_s:.2f} s: {code} {said[0]}")


def test_a_run_that_begins_answers_at_once(tmp_path: Path) -> None:
    """At its first moment, and at one of those that follow."""
    train_is_stopped(0.0, tmp_path / "first moment")
    train_is_stopped(2 * new_seed().random(), tmp_path / "another")


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_begins_answers_at_every_moment(number: signal.Signals, tmp_path: Path) -> None:
    numbers, whole_s = new_seed(), whole_start_s(tmp_path)
    for i in range(MOMENTS):
        train_is_stopped((i + numbers.random()) / MOMENTS * whole_s, tmp_path / f"moment{i}", number)


def test_a_process_that_waits_for_the_others_answers(tmp_path: Path) -> None:
    """Nobody comes: torch's own waiting would hear no signal for half an hour."""
    waiting = []
    for rank in ("0", "1"):
        (folder := tmp_path / rank).mkdir()
        ranks = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        waiting.append((start([*RUN, "--out", "run"], folder, **ranks), folder))
    for process, _ in waiting:
        until_it_listens(process)
    time.sleep(4)  # about where they wait; before, they answer as well
    for (process, folder), expected in zip(waiting, ([GOES_ON[1]], []), strict=True):
        process.terminate()
        code, lines = ended(process, folder)
        assert (code, [line for line in lines if "waits at" not in line]) == (75, expected)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, and a run that has learnt them."""
    folder = tmp_path_factory.mktemp("signals")
    paint(folder / "data", {"train/cat": 300, "train/dog": 300, "val/cat": 300, "val/dog": 300})
    process = start([*tiny_words("data", "schedule.epochs=1", "schedule.warmup_epochs=0"), "--out", "run"], folder)
    assert ended(process, folder)[0] == 0
    return folder


OTHERS = (
    ("eval", "run"),
    ("analyze", "calibration", "run"),
    ("data", "check", "data"),
    ("data", "shard", "data", "shards"),
    ("predict", "run", "data/val"),
    ("features", "run", "--out", "features.safetensors"),
    ("bench", "model", "--device", "cpu", "--img-size", "32", "--batch", "1", "--rounds", "2"),
    ("bench", "model", "tiny"),  # an error of use, whose words take imports
)


@pytest.mark.faults
@pytest.mark.parametrize("words", OTHERS, ids=" ".join)
def test_other_commands_answer_in_one_line(words: tuple[str, ...], trained: Path) -> None:
    numbers, heard = new_seed(), 0
    process = start(words, trained)
    whole = seconds_to(process, trained / "never")
    code, lines = ended(process, trained)
    assert code in (0, 2), lines
    for i in range(MOMENTS // 2):
        process = start(words, trained)
        until_it_listens(process)
        time.sleep((i + numbers.random()) / (MOMENTS // 2) * whole * 0.9)
        process.terminate()
        code, lines = ended(process, trained)
        if code != INTERRUPTED[0]:
            assert code in (0, 2), lines  # it was faster
            continue
        heard += 1
        assert [line for line in lines if line.startswith("illama: ")][-1] == INTERRUPTED[1], lines
        assert not [line for line in lines if "Traceback" in line or "Exception" in line], lines
    assert heard >= 2
    print(f"{' '.join(words)}: {heard} of {MOMENTS // 2} in {whole:.1f} s")


@pytest.mark.parametrize("lies", ["at the top", "two imports below"])
def test_no_import_is_broken(lies: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C++ that sets a module up aborts the process at an exception; here the module says that it came to its end."""
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "above.py").write_text("import middle")
    (tmp_path / "middle.py").write_text("from slow import WHOLE")
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("slow", "above", "middle"):
        monkeypatch.delitem(sys.modules, module, raising=False)

    def work() -> None:
        importlib.import_module("slow" if lies == "at the top" else "above")
        time.sleep(_PATIENCE_S)

    with pytest.raises(Interrupted), listening():
        work()
    assert sys.modules["slow"].WHOLE
    for module in ("slow", "above", "middle"):
        monkeypatch.delitem(sys.modules, module, raising=False)


@pytest.mark.parametrize(("words", "expected"), [("train digits_micro", GOES_ON), ("eval run", INTERRUPTED)])
def test_an_import_before_the_command_ends_the_process(words: str, expected: tuple[int, str], tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    script = "from illama.system.processes import listen; listen(); import slow; print('went on')"
    done = subprocess.run(
        [sys.executable, "-c", script, *words.split()], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.strip(), done.stdout) == (*expected, "")


def test_processes_that_nobody_would_end_are_ended(tmp_path: Path) -> None:
    """A signal between the start of a pool's processes and that of the thread which tells them to end."""
    (tmp_path / "begun.py").write_text(
        "import multiprocessing, os, signal, sys, time\n"
        "import illama.cli.main, illama.__main__\n"
        "def command():\n"
        "    process = multiprocessing.get_context('fork').Process(target=time.sleep, args=(600,))\n"
        "    process.start()\n"
        "    print(process.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(600)\n"
        "illama.cli.main.main = command\n"
        "from illama.system.processes import listening\n"
        "with listening():\n"
        "    sys.argv = ['illama', 'data', 'check']\n"
        "    illama.__main__.start()\n"
    )
    done = subprocess.run([sys.executable, "begun.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.strip()) == INTERRUPTED
    wait_until_gone([int(done.stdout)])
