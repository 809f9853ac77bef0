"""What befalls a run from outside: it goes on, or ends in one clear line with nothing lost."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from PIL import Image

from illama.checkpoint import load_checkpoint
from illama.data.decode.images import BrokenImage
from illama.data.loading.samples import TrainSamples
from illama.data.source import Source
from illama.errors import UserError
from illama.recipes import load_recipe
from tests.end_to_end.commands import RUN, Command, Phase, assert_same_run, children, needs_proc, wait_until_gone

pytestmark = needs_proc
STREAM = (*RUN, "data.storage=stream")


def train(folder: Path, *words: object, run: str = "run", mere_owner: bool = False) -> Command:
    """A run in folder/run."""
    return Command(*(words or RUN), "--out", folder / run, folder=folder, mere_owner=mere_owner)


def saved_step(run: Path) -> int:
    """Step of the last checkpoint, after a comparison with its checksums."""
    saved = load_checkpoint(run, "last")
    assert saved is not None
    return saved.meta.step


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing befell."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder).end().fine()
    return folder / "run"


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed half-way."""
    folder = tmp_path_factory.mktemp("killed")
    command = train(folder)
    command.until(lambda: command.step >= 25)
    command.kill()
    return folder / "run"


def catch(command: Command, aim: Phase | None, number: signal.Signals) -> None:
    """Send a signal in a phase; without one, beside a save."""

    def is_there() -> bool:
        return command.is_saving if aim is None else command.phase == aim

    while True:
        command.until(is_there)
        with command.frozen():
            if is_there():
                command.send(number)
                return


def stop(command: Command, aim: Phase | None, number: signal.Signals, run: Path) -> None:
    """Send a signal; the command saves and says so."""
    catch(command, aim, number)
    ended = command.end()
    assert ended.code == 75, ended.err
    assert f"stopped at step {saved_step(run)} and saved; run the same command again" in ended.err
    assert "Traceback" not in ended.err


def test_a_run_is_its_own_and_answers_signals_with_a_save(whole: Path, tmp_path: Path) -> None:
    """A second command in its folder is told who trains there; a signal in an evaluation, another beside a save."""
    command = train(tmp_path)
    command.until(lambda: command.step >= 1)
    with command.frozen():
        assert f"is being trained by process {command.pid}" in train(tmp_path).end().problem()
    stop(command, Phase.EVALUATION, signal.SIGINT, tmp_path / "run")
    stop(train(tmp_path), None, signal.SIGTERM, tmp_path / "run")
    train(tmp_path).end().fine()
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.faults
def test_more_signals_are_answered_with_a_save(whole: Path, tmp_path: Path) -> None:
    for number, aim in (
        (signal.SIGTERM, Phase.STEP),
        (signal.SIGINT, Phase.STEP),
        (signal.SIGTERM, Phase.EVALUATION),
        (signal.SIGINT, None),
    ):
        stop(train(tmp_path), aim, number, tmp_path / "run")
    train(tmp_path).end().fine()
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.parametrize(
    ("what", "overrides", "told"),
    [
        ("checkpoint", (), "cannot save the checkpoint"),
        pytest.param("log", ("train.save_every_steps=null",), "metrics.jsonl", marks=pytest.mark.faults),
    ],
)
def test_files_that_may_not_grow(what: str, overrides: tuple[str, ...], told: str, whole: Path, tmp_path: Path) -> None:
    """In the middle of a run, by the system's limit: the save in the background fails, or a line of the log."""
    run = tmp_path / "run"
    command = train(tmp_path, *RUN, *overrides)
    command.until(lambda: command.step >= 12 and not command.is_saving)
    limit = 20_000 if what == "checkpoint" else (run / "metrics.jsonl").stat().st_size + 10
    resource.prlimit(command.pid, resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    problem = command.end().problem()
    assert told in problem
    assert "File too large" in problem
    assert "untouched" in problem
    assert saved_step(run) >= 10
    train(tmp_path, *RUN, *overrides).end().fine()
    assert_same_run(whole, run)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no right to mount a file system: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """A file that takes all the space there is."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017 - nothing else ends the loop
    return filler


@pytest.mark.faults
def test_a_full_disk(small_disk: Path, whole: Path, tmp_path: Path) -> None:
    """At the start, then in the middle of the run; with room again it ends like an undisturbed one."""
    run, words = small_disk / "run", (*RUN, "--out", small_disk / "run")
    filler = fill(small_disk)
    problem = Command(*words, folder=tmp_path).end().problem()
    assert f"cannot write the run folder {run}: No space left on device" in problem
    filler.unlink()
    command = Command(*words, folder=tmp_path)
    command.until(lambda: command.step >= 12 and not command.is_saving)
    with command.frozen():
        filler = fill(small_disk)
    problem = command.end().problem()
    assert "No space left on device" in problem
    assert "untouched" in problem
    assert saved_step(run) >= 10
    filler.unlink()
    Command(*words, folder=tmp_path).end().fine()
    assert_same_run(whole, run)


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir(mode=0o555)
    problem = train(tmp_path, mere_owner=True).end().problem()
    assert f"cannot write the run folder {run}: Permission denied" in problem
    assert list(run.iterdir()) == []


@pytest.mark.faults
def test_a_folder_that_can_no_longer_be_written_to(whole: Path, tmp_path: Path) -> None:
    run, checkpoints = tmp_path / "run", tmp_path / "run" / "checkpoints"
    command = train(tmp_path, mere_owner=True)
    command.until(lambda: command.step >= 12 and not command.is_saving)
    checkpoints.chmod(0o555)
    for again in (False, True):
        problem = (train(tmp_path, mere_owner=True) if again else command).end().problem()
        assert "cannot save the checkpoint" in problem
        assert "Permission denied" in problem
        assert saved_step(run) >= 10
    checkpoints.chmod(0o755)
    train(tmp_path, mere_owner=True).end().fine()
    assert_same_run(whole, run)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        (cut, "training_state.pt"),
        pytest.param(flip, "model.safetensors", marks=pytest.mark.faults),
    ],
)
def test_a_damaged_checkpoint_has_one_before_it(
    damage: object, file: str, killed: Path, whole: Path, tmp_path: Path
) -> None:
    assert callable(damage)
    run = tmp_path / "run"
    shutil.copytree(killed, run)
    last, before = (load_checkpoint(run, tag).meta.step for tag in ("last", "previous"))
    assert before < last
    damage(run / "checkpoints" / "last" / file)
    said = train(tmp_path).end().fine().err
    assert f"ATTENTION: {run / 'checkpoints' / 'last' / file} differs from " in said
    assert f"the checkpoint of step {last} is damaged, taking the one before it, of step {before}" in said
    assert_same_run(whole, run)


def test_nothing_but_damaged_checkpoints(killed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(killed, run)
    cut(run / "checkpoints" / "last" / "model.safetensors")
    flip(run / "checkpoints" / "previous" / "training_state.pt")
    log = (run / "metrics.jsonl").read_bytes()
    problem = train(tmp_path).end().problem()
    assert f"both checkpoints that {run} could go on from are damaged" in problem
    assert f"rename {run}/checkpoints/best to last" in problem
    assert (run / "metrics.jsonl").read_bytes() == log


def test_decoding_processes_that_vanish_and_hang(tmp_path: Path) -> None:
    """One is killed and one stopped; without any, the images are the same."""
    train(tmp_path, *STREAM, "data.workers=0", run="whole").end().fine()
    command = train(tmp_path, *STREAM, "data.workers=2", "data.worker_timeout_s=4")
    command.until(lambda: command.step >= 5)
    command.until(lambda: len(children(command.pid)) == 2)  # on a busy machine one may just be replaced
    with command.frozen():
        vanishing, hanging = decoders = children(command.pid)
        os.kill(vanishing, signal.SIGKILL)
        os.kill(hanging, signal.SIGSTOP)
    said = command.end().fine().err
    assert "a decoding process was killed (signal 9" in said
    assert "a decoding process gave nothing for 4 s (data.worker_timeout_s)" in said
    wait_until_gone(decoders)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes of 24 tiny images."""
    numbers = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 4)):
        for name in ("ant", "bee"):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(numbers.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "pictures"


def on_pictures(pictures: Path, workers: int) -> tuple[str, ...]:
    """120 steps of 8 images; decoding is 512 images ahead of the model."""
    return (
        *(*STREAM, "data.name=folder", f"data.path={pictures}", f"data.workers={workers}", "model.num_classes=2"),
        *("data.max_train_images=null", "data.max_eval_images=null", "train.total_batch=8", "optimizer.lr_batch=8"),
        *("schedule.epochs=20", "train.eval_every_epochs=5"),
    )


@pytest.mark.faults
def test_a_data_set_that_loses_a_file(pictures: Path, tmp_path: Path) -> None:
    """Another image stands in for it, and it is counted."""
    command = train(tmp_path, *on_pictures(pictures, workers=1))
    command.until(lambda: command.step >= 2)
    lost = pictures / "train" / "bee" / "7.png"
    lost.unlink()
    said = command.end().fine().err
    assert f"1 unreadable training image(s) left out, the first: {lost}: No such file or directory" in said


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.faults), 1])
def test_a_data_set_that_goes_and_comes_back(workers: int, pictures: Path, tmp_path: Path) -> None:
    words = on_pictures(pictures, workers)
    train(tmp_path, *words, run="whole").end().fine()
    command = train(tmp_path, *words)
    command.until(lambda: command.step >= 12)
    pictures.rename(tmp_path / "elsewhere")
    problem = command.end().problem()
    assert f"48 training images in a row cannot be read, the first: {pictures / 'train'}" in problem
    assert "No such file or directory; see to it that the data set is there" in problem
    assert saved_step(tmp_path / "run") >= 9
    assert f"{pictures}, is not there; give its place with --data to go on" in train(tmp_path, *words).end().problem()
    (tmp_path / "elsewhere").rename(pictures)
    train(tmp_path, *words).end().fine()
    assert_same_run(tmp_path / "whole", tmp_path / "run")


class Vanished(Source):
    """A hundred million images on a disk that is no longer there."""

    def __len__(self) -> int:
        return 10**8

    def read(self, i: int) -> NoReturn:
        raise BrokenImage("", "No such file or directory")

    def location(self, i: int) -> str:
        return f"gone/{i}.jpg"


def test_a_large_data_set_that_is_gone_is_not_searched_to_its_end() -> None:
    recipe = load_recipe("digits_micro")
    samples = TrainSamples(recipe, Vanished(classes=(), labels=np.zeros(0, np.int64), description=""), "pad")
    with pytest.raises(
        UserError, match=r"10000 training images in a row cannot be read, the first: gone/7.jpg: No such"
    ):
        samples[0, 7]
