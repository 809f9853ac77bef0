"""Groups of processes end as they should: no thread outlives its group, no end hangs or crashes on a busy machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from illama.errors import Stopped, UserError
from illama.training.loop import Run
from tests.end_to_end import process_ends
from tests.end_to_end.commands import needs_proc
from tests.processes import in_processes

pytestmark = needs_proc
ROOT = Path(__file__).resolve().parents[2]


def threads_left(works: list[Callable[[Path], None]], folder: Path) -> list[tuple[type[Exception] | None, int]]:
    """How each ended, and the threads of its group that are there while its caller still has the error in hand."""
    Run._draw = lambda self: None  # type: ignore[method-assign]
    ends = []
    for work in works:
        end: Exception | None = None
        try:
            work(folder / work.__name__)
        except (UserError, Stopped) as error:
            end = error
        names = [file.read_text() for file in Path("/proc/self/task").glob("*/comm")]
        ends.append((None if end is None else type(end), sum("gloo" in name for name in names)))
    return ends


def test_no_thread_outlives_its_group(tmp_path: Path) -> None:
    """It would need an interpreter to let go of its last tensors, at a time when there is none."""
    works = [process_ends.gather, process_ends.finish, process_ends.fail, process_ends.stop]
    first, _ = in_processes(2, threads_left, works, tmp_path)
    assert [left for _, left in first] == [0] * 4
    assert [error is None for error, _ in first] == [process_ends.ENDS[work] == 0 for work in works]


@pytest.mark.faults
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("processes", "repeats"), [(2, 200), (3, 30)])
def test_many_ends_of_processes_on_a_busy_machine(processes: int, repeats: int) -> None:
    done = subprocess.run(
        [sys.executable, process_ends.__file__, "--repeats", str(repeats), "--processes", str(processes)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
