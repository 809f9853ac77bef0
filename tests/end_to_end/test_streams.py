"""Training outlives whoever watches it: a pipe that ends, a terminal that closes, a disk that is full."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.commands import needs_proc
from tests.pictures import paint, tiny_words
from tests.runs import records


@needs_proc
@pytest.mark.parametrize(
    ("streams", "codes"),
    [
        ("2>&1 | head -1", {0, 141}),  # 141 where the last line finds nobody, as of every command of a shell
        (">&- 2>&- <&-", {0}),
    ],
)
def test_a_run_finishes_whoever_watches(streams: str, codes: set[int], tmp_path: Path) -> None:
    data = paint(tmp_path / "d", {"train/cat": 4, "train/dog": 4, "val/cat": 2, "val/dog": 2})
    words = [*tiny_words(data, "schedule.epochs=2"), "--out", str(tmp_path / "run")]
    command = f"{shlex.join([sys.executable, '-m', 'illama', *words])} {streams}; echo ${{PIPESTATUS[0]}} > code"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert int((tmp_path / "code").read_text()) in codes, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert [record["step"] for record in records(tmp_path / "run") if record["kind"] == "eval"] == [4]
    assert (tmp_path / "run" / "curves.png").stat().st_size > 1000
