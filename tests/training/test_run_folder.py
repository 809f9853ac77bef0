"""The run folder: begun as a whole or not at all, and one process at a time in it."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from illama.checkpoint import saver
from illama.checkpoint.folder import has_checkpoint
from illama.errors import UserError
from illama.recipes import Recipe, load_recipe
from illama.system import lock as run_lock
from illama.system.lock import LOCK_FILE, RunLock, lock_holder
from illama.training import run_folder
from illama.training.log import RunLog
from illama.training.loop import Run, train
from illama.training.run_folder import check_run_folder, write_run_folder
from tests.pictures import paint, tiny
from tests.runs import records, same_weights

CPU = torch.device("cpu")


class Crash(BaseException):
    """The process ends here."""


def test_a_second_process_is_told_who_trains_there(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "x"
    with RunLock(run):
        holder = lock_holder(run)
        assert holder is not None
        assert (holder["pid"], holder["host"]) == (os.getpid(), socket.gethostname())
        with pytest.raises(UserError, match=rf"process {os.getpid()} on {socket.gethostname()}.*--out") as caught:
            RunLock(run).__enter__()
        assert "\n" not in str(caught.value)
        script = f"from illama.system.lock import RunLock; RunLock({str(run)!r}).__enter__()"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert f"process {os.getpid()} on" in done.stderr
    assert lock_holder(run) is None
    with RunLock(run):
        pass


@pytest.mark.parametrize("content", ["", "no JSON", '{"pid": 1, "host": "elsewhere"}', "[]"])
def test_a_file_that_was_left_behind_blocks_nobody(tmp_path: Path, content: str) -> None:
    (tmp_path / LOCK_FILE).write_text(content)
    assert lock_holder(tmp_path) is None
    with RunLock(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
        (tmp_path / LOCK_FILE).write_text(content)
        with pytest.raises(UserError, match="is being trained by"):
            RunLock(tmp_path).__enter__()


def hold_and_fork(run: Path, pipe: Connection) -> None:
    """A run with a loader worker: the worker's number goes through the pipe, then both wait."""
    RunLock(run).__enter__()
    worker = os.fork()
    if worker == 0:
        time.sleep(120)
        os._exit(0)
    pipe.send(worker)
    time.sleep(120)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="kills forked processes")
def test_workers_that_outlive_a_killed_run_do_not_hold_its_lock(tmp_path: Path) -> None:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=hold_and_fork, args=(tmp_path, theirs))
    process.start()
    assert ours.poll(60)
    worker = ours.recv()
    try:
        assert lock_holder(tmp_path) is not None
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        os.kill(worker, 0)  # still there
        with RunLock(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_somebody_who_looks_does_not_stop_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / LOCK_FILE).touch()
    looking = os.open(tmp_path / LOCK_FILE, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    pauses = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        os.close(looking)

    monkeypatch.setattr(run_lock.time, "sleep", sleep)
    with RunLock(tmp_path):
        assert len(pauses) == 1


def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with RunLock(tmp_path):
        assert lock_holder(tmp_path) is None
    assert "cannot be locked" in caplog.text
    assert "No locks available" in caplog.text


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write the run folder .*--out"):
        RunLock(tmp_path / "file" / "run").__enter__()


def test_a_locked_folder_is_free_for_a_new_run(tmp_path: Path, toy: Callable[..., Recipe]) -> None:
    with RunLock(tmp_path):
        assert not check_run_folder(tmp_path, toy())
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="is not a run"):
        check_run_folder(tmp_path, toy())


def test_a_start_that_was_cut_short_can_be_repeated(
    tmp_path: Path, toy: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at any operation, the folder is no run yet or a whole one; the same command begins again."""
    original, recipe = run_folder.to_disk, toy()
    for good in range(20):
        run = tmp_path / str(good)
        left = iter(range(good))

        def dying(path: Path, left=left) -> None:
            if next(left, None) is None:
                raise Crash
            original(path)

        with monkeypatch.context() as patch, RunLock(run):
            patch.setattr(run_folder, "to_disk", dying)
            try:
                write_run_folder(run, recipe, ("a", "b"), CPU, {"origin.json": b"{}", "held_out.csv": b""})
            except Crash:
                crashed = True
            else:
                crashed = False
        assert not check_run_folder(run, recipe)
        if not crashed:
            break
    assert not crashed
    assert load_recipe(run / "recipe.yaml") == recipe
    assert json.loads((run / "classes.json").read_text()) == ["a", "b"]
    environment = json.loads((run / "environment.json").read_text())
    assert (environment["command"], environment["working_folder"]) == (sys.argv, str(Path.cwd()))
    assert (environment["processes"], environment["processes_per_machine"]) == (1, 1)


@pytest.fixture(scope="module")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return tiny(
        paint(tmp_path_factory.mktemp("pictures") / "d", {"train/cat": 8, "train/dog": 8, "val/cat": 4, "val/dog": 4}),
        "train.log_every_steps=1",
    )


@pytest.fixture(scope="module")
def undisturbed(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    train(tiny_recipe, out, device="cpu")
    return out


def disturbed(recipe: Recipe, run: Path, disturb: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Train, with something happening to the folder after the step that follows the first save."""
    end_of_step, begun = Run._end_of_step, []

    def ends(self: Run, at: int, *rest: Any) -> Any:
        evaluation = end_of_step(self, at, *rest)
        if has_checkpoint(run) and not begun:
            self.keeper.saver.close()
            begun.append(at)
            disturb()
        return evaluation

    monkeypatch.setattr(Run, "_end_of_step", ends)
    train(recipe, run, device="cpu")


@pytest.mark.parametrize("logs", [True, False])
def test_a_run_that_is_moved_while_it_trains_stops_and_goes_on_elsewhere(
    logs: bool, tiny_recipe: Recipe, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noticed with the next line of the log, or else with the next save; the old place is not begun anew."""
    run, moved = tmp_path / "run", tmp_path / "moved"
    with monkeypatch.context() as patch:
        if not logs:
            patch.setattr(RunLog, "write", lambda self, record: None)
        with pytest.raises(UserError, match="was moved or deleted while it was trained"):
            disturbed(tiny_recipe, run, lambda: run.rename(moved), patch)
    assert not run.exists()
    train(tiny_recipe, moved, device="cpu")
    assert same_weights(moved, undisturbed)
    assert not logs or records(moved) == records(undisturbed)


def test_a_run_that_is_moved_while_it_is_saved_says_so(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not what the disk says of a folder that is not there any more."""
    run = tmp_path / "run"

    def moved_meanwhile(*_: Any, **__: Any) -> None:
        run.rename(tmp_path / "moved")
        raise UserError("cannot save the checkpoint: No such file or directory; make room")

    monkeypatch.setattr(saver, "save_checkpoint", moved_meanwhile)
    with pytest.raises(UserError, match="was moved or deleted while it was trained"):
        train(tiny_recipe, run, device="cpu")
    assert not run.exists()


@pytest.mark.parametrize("anew", [False, True])
def test_a_run_that_is_deleted_while_it_trains_stops(
    anew: bool, tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"

    def delete() -> None:
        shutil.rmtree(run)
        if anew:
            run.mkdir()

    with pytest.raises(UserError, match="was moved or deleted while it was trained"):
        disturbed(tiny_recipe, run, delete, monkeypatch)
    assert run.exists() == anew
    assert not anew or not list(run.iterdir())


def test_a_lock_that_is_deleted_is_put_back(
    tiny_recipe: Recipe, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    run, refused = tmp_path / "run", []
    demand_held = RunLock.demand_held

    def held(self: RunLock) -> None:
        demand_held(self)
        if refused:
            return
        with pytest.raises(UserError, match="is being trained by") as caught:
            RunLock(run).__enter__()
        refused.append(caught.value)

    monkeypatch.setattr(RunLock, "demand_held", held)
    disturbed(tiny_recipe, run, (run / LOCK_FILE).unlink, monkeypatch)
    assert refused
    assert "leave it" in caplog.text
    assert same_weights(run, undisturbed)
    assert records(run) == records(undisturbed)


def test_a_lock_that_cannot_be_put_back_ends_the_run_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunLock(tmp_path) as lock:
        (tmp_path / LOCK_FILE).unlink()

        def full(*_: object) -> int:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")

        monkeypatch.setattr(run_lock, "open_regular", full)
        with pytest.raises(UserError, match="cannot be made again: Disk quota exceeded"):
            lock.demand_held()


def test_a_second_run_behind_a_deleted_lock_has_the_folder_for_itself(
    tiny_recipe: Recipe, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one stops before it writes another line, and the second one ends as if it had been alone."""
    run = tmp_path / "run"

    def second() -> None:
        (run / LOCK_FILE).unlink()
        (tmp_path / "recipe.yaml").write_text(tiny_recipe.to_yaml())
        command = (sys.executable, "-m", "illama", "train", tmp_path / "recipe.yaml", "--out", run, "--device", "cpu")
        alone = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, capture_output=True, env=alone)

    with pytest.raises(UserError, match=r"as well, for its \.lock was deleted: this one stops"):
        disturbed(tiny_recipe, run, second, monkeypatch)
    assert same_weights(run, undisturbed)
    assert records(run) == records(undisturbed)
