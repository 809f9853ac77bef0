"""SIGKILL at random moments, the same command again: the end is that of the undisturbed run, bit for bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from tests.end_to_end.commands import RUN, Command, Phase, assert_same_run, children, needs_proc, wait_until_gone

KILLS = 52  # of the long form
LONG_RUN = (*RUN, "schedule.epochs=12", "data.storage=stream", "data.workers=1")  # 120 steps
SAVE = "save"
# Upper ends, in seconds, of how long after the beginning of a phase the kill comes.
DELAYS_S: dict[Phase | str | None, float] = {
    None: 0.15,
    SAVE: 0.02,
    Phase.START: 0.3,
    Phase.DECODING: 0.05,
    Phase.STEP: 0.02,
    Phase.EVALUATION: 0.02,
    Phase.END: 0.02,
}


def start(*words: object) -> subprocess.Popen[str]:
    """The command as a user types it."""
    return subprocess.Popen(
        [sys.executable, "-m", "illama", *(str(word) for word in words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def wait_for_lines(process: subprocess.Popen[str], run: Path, more: int) -> None:
    """Wait until metrics.jsonl has so many lines more than it had."""

    def lines() -> int:
        """Whole ones: a reader may see the half of what is being written."""
        metrics = run / "metrics.jsonl"
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    wanted = lines() + more
    while lines() < wanted:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


def new_seed() -> random.Random:
    seed = random.randrange(2**32)
    print(f"moments of the kills: seed {seed}")
    return random.Random(seed)


def test_a_killed_run_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    """As a user types it; more kills, in forks of one process, are the long form."""
    numbers = new_seed()
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(*RUN, "--out", killed)
    wait_for_lines(process, killed, numbers.randrange(1, 16))
    time.sleep(numbers.random() * 0.1)
    process.kill()
    _, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, err
    out, err = (process := start(*RUN, "--out", killed)).communicate()
    assert process.returncode == 0, err
    assert "test top-1" in out
    Command(*RUN, "--out", whole, folder=tmp_path).end().fine()
    assert_same_run(whole, killed)


class Killing:
    """Kills commands at chosen moments and notes what it found them doing."""

    def __init__(self, numbers: random.Random) -> None:
        self.found: Counter[tuple[Phase, bool]] = Counter()
        self.decoders: list[int] = []
        self._numbers = numbers

    def __call__(self, command: Command, aim: Phase | str | None, from_step: int) -> bool:
        """Kill in a phase of a step that is not before `from_step`; without an aim, in whatever it does then.

        Returns:
            Whether it was killed; it may be faster.
        """

        def is_there() -> bool:
            if aim == Phase.START:
                return command.phase == aim
            is_aim = aim is None or (command.is_saving if aim == SAVE else command.phase == aim)
            return command.step >= from_step and is_aim

        delay = DELAYS_S.get(aim, 0.0)
        while command.is_alive:
            if not is_there():
                time.sleep(0.0003)
                continue
            time.sleep(self._numbers.random() * delay)
            delay /= 2
            with suppress(ProcessLookupError), command.frozen():
                if aim in (None, Phase.START) or is_there():  # a start does not come again
                    self.found[command.phase, command.is_saving] += 1
                    self.decoders += children(command.pid)
                    command.kill()
                    return True
        return False


def table(found: Counter[tuple[Phase, bool]]) -> str:
    """Kills by what the main thread did, alone or beside a save."""
    lines = [f"{sum(found.values())} kills{'':12}alone  beside a save"]
    lines += [f"  {phase.name.lower():<16}{found[phase, False]:>8}{found[phase, True]:>15}" for phase in Phase]
    return "\n".join(lines)


@needs_proc
@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_many_kills_of_one_run(tmp_path: Path) -> None:
    """Aimed at every phase in turn and at none, all along the run; images come from a decoding process."""
    whole, killed, kill = tmp_path / "whole", tmp_path / "killed", Killing(new_seed())
    aims = (
        None,
        Phase.STEP,
        SAVE,
        Phase.EVALUATION,
        Phase.START,
        SAVE,
        Phase.DECODING,
        None,
        Phase.STEP,
        Phase.BETWEEN,
    )
    for number in range(KILLS):
        aim = Phase.END if number == KILLS - 1 else aims[number % len(aims)]
        while not kill(command := Command(*LONG_RUN, "--out", killed, folder=tmp_path), aim, number * 80 // KILLS):
            assert aim == Phase.END, command.end()  # which a finished run reaches again
    for run in (killed, whole):
        assert "test top-1" in Command(*LONG_RUN, "--out", run, folder=tmp_path).end().fine().out
    print(table(kill.found))
    assert sum(kill.found.values()) >= 50
    assert all(kill.found[phase, False] + kill.found[phase, True] for phase in Phase)
    assert sum(kill.found[phase, True] for phase in Phase) >= KILLS // 10  # two of ten are aimed at a save
    assert_same_run(whole, killed)
    wait_until_gone(kill.decoders)


LAUNCH = ("launch", "--standalone", "--nproc-per-node", 2, *RUN)


@needs_proc
@pytest.mark.faults
@pytest.mark.parametrize("victim", ["worker", "launcher", "nobody"])
def test_a_launch_that_is_broken_off(victim: str, tmp_path: Path) -> None:
    """A process is killed, or the launcher gets SIGTERM twice: all end by themselves, and the same command goes on."""
    numbers = new_seed()
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(*LAUNCH, "--out", killed)
    wait_for_lines(process, killed, numbers.randrange(3, 12))
    workers = children(process.pid)
    assert len(workers) == 2
    if victim == "nobody":
        process.terminate()
        time.sleep(numbers.random() * 0.2)
        process.terminate()
    else:
        os.kill(numbers.choice(workers) if victim == "worker" else process.pid, signal.SIGKILL)
    out, err = process.communicate()
    told = [line for line in err.splitlines() if "error:" in line]
    assert process.returncode == {"worker": 2, "launcher": -signal.SIGKILL, "nobody": 75}[victim], err
    assert len(told) == (victim == "worker"), err
    assert all("was ended by signal 9" in line and "run the same command again" in line for line in told)
    assert "Traceback" not in err
    wait_until_gone(workers)
    for run in (killed, whole):
        out, err = (process := start(*LAUNCH, "--out", run)).communicate()
        assert process.returncode == 0, err
        assert "test top-1" in out
    assert_same_run(whole, killed)
