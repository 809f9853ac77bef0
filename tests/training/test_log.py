"""metrics.jsonl keeps every whole line whatever happens; nothing beside it can end a run."""

from __future__ import annotations

import io
import json
import math
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from illama.errors import UserError
from illama.training import log
from illama.training.log import MetricsFile, NoLog, RunLog

WRITER = """
import sys
from pathlib import Path
from illama.training.log import MetricsFile
file = MetricsFile(Path(sys.argv[1]), 0)
step = 0
while True:
    file.append({"kind": "train", "step": step, "text": "x" * 3000})
    print(step, flush=True)
    step += 1
"""


def record(step: int, **more: Any) -> dict[str, Any]:
    return {"kind": "train", "step": step, "loss": 1.0 / step} | more


def steps(run_dir: Path) -> list[int]:
    text = (run_dir / "metrics.jsonl").read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line)["step"] for line in text.splitlines()]


def open_log(run_dir: Path, **options: Any) -> RunLog:
    return RunLog(run_dir, **{"keep_bytes": 0, "step": 0, "total_steps": 10} | options)


def test_sigkill_in_the_middle_keeps_every_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    for _ in range(200):
        told = int(writer.stdout.readline())
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    whole, _, _ = path.read_text().rpartition("\n")  # the kernel may be killed between two pages of the last line
    found = [json.loads(line)["step"] for line in whole.splitlines()]
    assert found == list(range(len(found)))
    assert len(found) > told


def test_what_a_crash_left_behind_the_checkpoint_goes(tmp_path: Path) -> None:
    first = open_log(tmp_path)
    with first.progress():
        first.write(record(1))
        saved = first.bytes_written
        first.write(record(2))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    second = open_log(tmp_path, keep_bytes=saved, step=1)
    with second.progress():
        assert second.bytes_written == saved
        second.write(record(3))
    assert steps(tmp_path) == [1, 3]


def test_a_file_that_lost_its_end_goes_on_with_a_whole_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps(record(step)) + "\n" for step in (1, 2, 3)]
    path.write_text("".join(lines)[:-5])
    run = open_log(tmp_path, keep_bytes=sum(map(len, lines)), step=3)
    with run.progress():
        run.write(record(4))
    assert steps(tmp_path) == [1, 2, 4]
    assert f"metrics.jsonl is {len(lines[-1])} bytes shorter" in capsys.readouterr().err


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_no_json_are_refused(tmp_path: Path, value: float) -> None:
    run = open_log(tmp_path)
    with run.progress():
        run.write(record(1))
        with pytest.raises(ValueError, match="JSON"):
            run.write(record(2, loss=value))
        run.write(record(3))
    assert steps(tmp_path) == [1, 3]


def test_a_full_disk_leaves_whole_lines_and_says_so(tmp_path: Path) -> None:
    """Half of the second line fits. Closing the file must not bring the rest of it back, nor fail."""
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, 0)
    file.append(record(1))
    size, limits = path.stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl: File too large; .*make room"):
            file.append(record(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert steps(tmp_path) == [1]
    file.append(record(3))
    file.close()
    assert steps(tmp_path) == [1, 3]


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file or directory"):
        MetricsFile(tmp_path / "none" / "metrics.jsonl", 0)


def test_tensorboard_has_the_numbers(tmp_path: Path) -> None:
    run = open_log(tmp_path)
    with run.progress():
        run.write(record(1, mfu=None, note="text"))
        run.write({"kind": "eval", "step": 5, "top1": 50.0})
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(board.Tags()["scalars"]) == ["eval/top1", "train/loss"]
    assert [(event.step, event.value) for event in board.Scalars("eval/top1")] == [(5, 50.0)]


class Broken:
    """A tracker whose service is gone."""

    name = "Broken"

    def __init__(self, where: str) -> None:
        self.where, self.written = where, 0

    def write(self, record: dict[str, Any]) -> None:
        self.written += 1
        if self.where == "write":
            raise ConnectionError("nobody\nanswers")

    def close(self, failed: bool) -> None:
        if self.where == "close":
            raise TimeoutError


@pytest.mark.parametrize(("where", "reason"), [("write", "nobody answers"), ("close", "TimeoutError")])
def test_a_tracker_that_fails_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str, reason: str
) -> None:
    broken = Broken(where)
    run = open_log(tmp_path, tracker=broken)
    with run.progress():
        for step in (1, 2, 3):
            run.write(record(step))
    assert broken.written == (1 if where == "write" else 3)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"Broken failed, the run goes on without it (metrics.jsonl is complete): {reason}"
    assert steps(tmp_path) == [1, 2, 3]


def test_trackers_learn_how_the_sitting_ended(tmp_path: Path) -> None:
    ends = []
    tracker = Broken("nowhere")
    tracker.close = ends.append  # type: ignore[method-assign]
    with open_log(tmp_path, tracker=tracker).progress():
        pass
    with pytest.raises(UserError), open_log(tmp_path, tracker=tracker).progress():
        raise UserError("the loss is not finite")
    assert ends == [False, True]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard writes in a thread
def test_a_run_goes_on_without_tensorboard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its folder disappears; or was a file from the beginning."""
    run = open_log(tmp_path)
    with run.progress():
        run.write(record(1))
        # At one stroke: the thread may write at any moment, and a folder that grows cannot be removed.
        (tmp_path / "tensorboard").rename(tmp_path / "elsewhere")
        board = run._trackers[0]._board  # type: ignore[attr-defined]
        thread = board.file_writer.event_writer._async_writer._worker
        thread._next_flush_time = 0
        for step in range(2, 40):
            run.write(record(step))
    thread.join(60)
    assert steps(tmp_path) == list(range(1, 40))
    err = capsys.readouterr().err
    assert err.count("TensorBoard failed, the run goes on without it") == 1
    (tmp_path / "tensorboard").touch()
    run = open_log(tmp_path)
    with run.progress():
        run.write(record(1))
    assert steps(tmp_path) == [1]
    assert capsys.readouterr().err.count("TensorBoard failed, the run goes on without it") == 1


def test_without_a_terminal_a_line_every_ten_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 500.0
    monkeypatch.setattr(log.time, "monotonic", lambda: now)
    run = open_log(tmp_path, total_steps=100)
    with run.progress():
        for step in range(1, 31):
            now += 1.0
            run.advance(step, f"epoch {step}" if step % 2 == 0 else None)
    assert capsys.readouterr().err.splitlines() == [
        "step 12/100  epoch 12  ETA 88 s",
        "step 24/100  epoch 24  ETA 76 s",
    ]


@pytest.mark.parametrize("width", [30, 79, 140])
def test_on_a_terminal_no_line_is_wider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    drawn = io.StringIO()
    terminal = Console(file=drawn, force_terminal=True, color_system=None, width=width, height=20)
    monkeypatch.setattr(log, "Terminal", lambda stderr: terminal)
    run = open_log(tmp_path)
    with run.progress():
        run.advance(1)
        run.advance(2, "epoch 0.2/1  loss 2.302  812 images/s  data wait 2 %  MFU 23 %  1.4 GB  lr 3.1e-04")
        run.say("a word [in brackets]")
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.getvalue()))]
    assert max(map(len, lines)) <= width
    assert "a word [in brackets]" in lines
    last = lines[-2] if not lines[-1] else lines[-1]
    assert ("lr 3.1e-04" in last) == (width == 140)
    assert ("812 images/s" in last) == (width >= 79)
    if width >= 79:
        assert last.endswith("ETA 0.0 s")


def test_no_log_has_the_same_interface(tmp_path: Path) -> None:
    def public(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert public(NoLog) == public(RunLog)
    silent = NoLog()
    with silent.progress():
        silent.say("something", style="red")
        silent.say_skipped({"a": "b"}, "training")
        silent.write(record(1))
        silent.advance(1, "summary")
    assert silent.bytes_written == 0
