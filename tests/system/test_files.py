"""Files are written whole, and never through what somebody else has put in their place."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from illama.analysis.landscape.measures import fill_grid
from illama.cli.output import check_targets, write_result
from illama.errors import UserError
from illama.report import Document, write_document
from illama.system import files as disk
from illama.system.lock import LOCK_FILE, RunLock
from illama.training.log import MetricsFile
from illama.training.loop import train
from illama.training.run_folder import write_files
from tests.pictures import paint, tiny
from tests.runs import same_weights, stopped_run

posix = pytest.mark.skipif(os.name == "nt", reason="links and device files of POSIX")
SECRET = b"what others rely on"
Plant = Callable[[Path, Path], None]


def a_device(path: Path, victim: Path) -> None:
    """A null device of our own: never the real one."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes device files")


def a_link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def a_link_to_nothing(path: Path, victim: Path) -> None:
    path.symlink_to(victim.with_name("nothing"))


def a_pipe(path: Path, victim: Path) -> None:
    os.mkfifo(path)


def a_folder(path: Path, victim: Path) -> None:
    path.mkdir()
    shutil.copy(victim, path)


def a_second_name(path: Path, victim: Path) -> None:
    os.link(victim, path)


PLANTS = (a_link, a_link_to_nothing, a_pipe, a_folder, a_device)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "elsewhere" / "victim"
    path.parent.mkdir()
    path.write_bytes(SECRET)
    return path


def state(path: Path) -> tuple[int, int, str]:
    found = os.lstat(path)
    return stat.S_IFMT(found.st_mode), found.st_ino, os.readlink(path) if path.is_symlink() else ""


def untouched(victim: Path) -> bool:
    return victim.read_bytes() == SECRET and os.listdir(victim.parent) == [victim.name]


@posix
@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_files(path.parent, {path.name: b"x"}),
        lambda path: write_document(Document("t", "l", ()), path.parent, {path.name: b"x"}),
        lambda path: MetricsFile(path, 0).append({}),
        lambda path: fill_grid([0.0], lambda x, y: 0.0, path, {}),
        lambda path: RunLock(path.rename(path.with_name(LOCK_FILE)).parent).__enter__(),
    ],
    ids=["run folder", "report", "metrics.jsonl", "grid", "lock"],
)
def test_own_files_are_regular_files(
    tmp_path: Path, victim: Path, plant: Plant, write: Callable[[Path], object]
) -> None:
    """Whatever stands in the place of a file of ours is left alone, and named."""
    path = tmp_path / "own" / "file"
    path.parent.mkdir()
    plant(path, victim)
    before = state(path)
    with pytest.raises(UserError, match=r"there is a (link|pipe|folder|device) in the place of ") as caught:
        write(path)
    assert "\n" not in str(caught.value)
    (there,) = (each for each in path.parent.iterdir() if each.name in (path.name, LOCK_FILE))
    assert state(there) == before
    assert untouched(victim)


@posix
def test_a_copy_of_a_folder_by_hard_links_stays_as_it_is(tmp_path: Path, victim: Path) -> None:
    """`cp -al RUN COPY` gives files a second name: what goes on in one of the folders is not seen in the other."""
    for name in ("metrics.jsonl", LOCK_FILE, "recipe.yaml"):
        a_second_name(tmp_path / name, victim)
    log = MetricsFile(tmp_path / "metrics.jsonl", 0)
    log.append({"a": 1})
    log.close()
    with RunLock(tmp_path):
        assert (tmp_path / LOCK_FILE).stat().st_nlink == 1
        with pytest.raises(UserError, match="is being trained by"):
            RunLock(tmp_path).__enter__()
    write_files(tmp_path, {"recipe.yaml": b"x"})
    assert (tmp_path / "metrics.jsonl").read_bytes() == b'{"a": 1}\n'
    assert untouched(victim)


@posix
def test_nobody_can_prepare_the_name_that_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    for _ in range(3):
        with disk.replacing(tmp_path / "f") as partial:
            names.append(partial.name)
            assert disk.is_partial(partial.name)
    assert len(set(names)) == 3
    monkeypatch.setattr(disk.secrets, "token_hex", lambda size: "0" * 2 * size)
    for plant in (a_link, a_pipe, a_second_name):
        guessed = tmp_path / f".{'0' * 16}.partial"
        victim = tmp_path / "victim"
        victim.write_bytes(SECRET)
        plant(guessed, victim)
        with pytest.raises(FileExistsError):
            disk.write_file(tmp_path / "f", b"x")
        assert victim.read_bytes() == SECRET
        guessed.unlink()


def test_what_a_killed_writer_left_goes_with_the_next_run(tmp_path: Path) -> None:
    recipe = tiny(paint(tmp_path / "data", {"train/cat": 8, "train/dog": 8, "val/cat": 4, "val/dog": 4}))
    run = tmp_path / "run"
    run.mkdir()
    (run / ".0123456789abcdef.partial").touch()
    stopped_run(recipe, run)
    assert not list(run.glob(".*.partial"))
    (run / ".0123456789abcdef.partial").touch()
    train(recipe, run, device="cpu")
    assert not list(run.glob(".*.partial"))


def test_what_fails_leaves_the_former_file(tmp_path: Path) -> None:
    disk.write_file(tmp_path / "f", b"former")

    def fails() -> None:
        with disk.replacing(tmp_path / "f") as partial:
            partial.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("f", b"former")]


@posix
def test_a_users_name_means_what_it_leads_to(tmp_path: Path, victim: Path) -> None:
    """A link is followed to its file, a linked folder to the folder; neither becomes something else."""
    link, folder, open_end = tmp_path / "link", tmp_path / "linked", tmp_path / "open_end"
    link.symlink_to(victim)
    folder.symlink_to(victim.parent)
    open_end.symlink_to("elsewhere/new")
    for target, file in ((link, victim), (folder / "made", folder / "made"), (open_end, victim.with_name("new"))):
        check_targets(json=str(target))
        write_result(str(target), "text")
        assert file.read_text() == "text"
    assert link.is_symlink()
    assert folder.is_symlink()
    assert open_end.is_symlink()


@posix
def test_devices_and_pipes_are_written_to(tmp_path: Path) -> None:
    pipe, device, by_link = tmp_path / "pipe", tmp_path / "device", tmp_path / "link"
    a_pipe(pipe, tmp_path)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    check_targets(json=str(pipe))
    write_result(str(pipe), "through a pipe")
    reader.join(30)
    assert read == [b"through a pipe"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    a_device(device, tmp_path)
    by_link.symlink_to(device)
    for target in (device, by_link):
        check_targets(json=str(target))
        write_result(str(target), "into nothing")
        assert stat.S_ISCHR(device.stat().st_mode)
    assert by_link.is_symlink()


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="no names of open files")
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_an_open_file_is_written_to_where_it_is(tmp_path: Path, name: str) -> None:
    """`--json /dev/stdout > FILE`: neither cut nor replaced, and in the order of what was said."""
    script = f"""
import os
from illama.cli.output import check_targets, write_result
os.write(1, b"first ")
print("second ", end="")
check_targets(json={name!r})
write_result({name!r}, "third ")
print("fourth")
"""
    with open(tmp_path / "out", "wb") as out:
        subprocess.run([sys.executable, "-c", script], stdout=out, check=True)
    assert (tmp_path / "out").read_bytes() == b"first second third fourth\n"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no/such/f.json", "there is no folder no/such"),
        (".", r"there is a folder in the place of"),
        ("x" * 300, "File name too long"),
        ("a\0b", "is no file's name"),
    ],
)
def test_names_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        check_targets(json=name)
    assert not list(tmp_path.iterdir())


def test_two_results_have_two_places(tmp_path: Path) -> None:
    for json, csv in (("-", "-"), (str(tmp_path / "f"), str(tmp_path / "." / "f"))):
        with pytest.raises(UserError, match="cannot both write to"):
            check_targets(json=json, csv=csv)


@posix
def test_links_planted_in_a_run_change_nothing_elsewhere(tmp_path: Path, victim: Path) -> None:
    """Each name of a run's folder in turn leads elsewhere while the run goes on: it ends well or in one line."""
    recipe = tiny(paint(tmp_path / "data", {"train/cat": 8, "train/dog": 8, "val/cat": 4, "val/dog": 4}))
    begun, whole = stopped_run(recipe, tmp_path / "begun"), tmp_path / "whole"
    shutil.copytree(begun, whole)
    train(recipe, whole, device="cpu")
    files = sorted(str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file())
    assert {"metrics.jsonl", "curves.png", LOCK_FILE, "checkpoints/last/meta.json"} <= set(files)
    names = [name for name in files if not name.startswith(("checkpoints", "tensorboard"))]
    for folder in ("checkpoints/last", "checkpoints/previous", "checkpoints/.last.old", "checkpoints/.last.new-0"):
        names.append(folder)
    for i, name in enumerate(names):
        run = shutil.copytree(begun, tmp_path / f"run{i}")
        place, aside = run / name, victim.parent.parent / f"aside{i}"
        if place.exists():  # what is read there stays right: only writing may go wrong
            shutil.move(place, aside)
        elif name.startswith("checkpoints"):
            shutil.copytree(begun / "checkpoints" / "last", aside)
        else:
            aside.write_bytes(SECRET)
        before = content(aside)
        place.symlink_to(aside)
        refused = ""
        try:
            train(recipe, run, device="cpu")
        except UserError as error:
            refused = str(error)
        assert content(aside) == before, name
        if refused:
            assert f"a link in the place of {place.name}" in refused
            place.unlink()
            if name in names_of(begun):
                shutil.move(aside, place)
            train(recipe, run, device="cpu")
        assert same_weights(run, whole)
        assert untouched(victim)


def names_of(run: Path) -> set[str]:
    return {str(path.relative_to(run)) for path in run.rglob("*")}


def content(place: Path) -> dict[str, bytes]:
    if place.is_file():
        return {"": place.read_bytes()}
    return {str(path.relative_to(place)): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}
