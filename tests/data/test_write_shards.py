"""Shards hold the files' own bytes, and end as the same bytes however often the work was stopped."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from illama.data import write_shards as module
from illama.data.layout import open_source
from illama.data.sources.folder import look_at_folder
from illama.data.write_shards import ShardingResult, only_writer, plan_shards, write_shards
from illama.errors import UserError
from illama.recipes import DataConfig

DIGITS = load_digits()
SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has it ignored in the background
from pathlib import Path
from illama.data.write_shards import write_shards
write_shards(Path(sys.argv[1]), Path(sys.argv[2]), images_per_shard=3, threads=2)
"""


def png(i: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray((DIGITS.images[i] * 15).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def digit_folders(root: Path, train: int, val: int) -> Path:
    """Digits as train/CLASS/i.png and val/CLASS/i.png."""
    for i in range(train + val):
        folder = root / ("train" if i < train else "val") / f"digit{DIGITS.target[i]}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.png").write_bytes(png(i))
    return root


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def shard(source: Path, target: Path, **options: Any) -> ShardingResult:
    return write_shards(source, target, **({"images_per_shard": 7, "threads": 2} | options))


def members(file: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(file, "r:") as tar:
        return tar.getmembers()


def test_shards_hold_the_files_and_the_classes_of_the_folder(tmp_path: Path) -> None:
    source, target = digit_folders(tmp_path / "a", train=60, val=40), tmp_path / "s"
    result = shard(source, target)
    assert [(s.name, s.images, s.shards, s.shuffled) for s in result.splits] == [
        ("train", 60, 9, True),
        ("val", 40, 6, False),
    ]
    assert (result.written, result.kept, result.damaged, result.left_out) == (15, 0, 0, {})
    classes: tuple[str, ...] | None = None
    for split in ("train", "val"):
        folder = open_source(DataConfig(path=str(source)), split, classes=classes)
        shards = open_source(DataConfig(path=str(target), name="wds/x"), split, classes=classes)
        classes = folder.classes
        assert shards.classes == folder.classes
        stored = {shards.location(i).split(":")[1]: (shards.encoded(i), shards.labels[i]) for i in range(len(shards))}
        files = {Path(folder.location(i)): folder.labels[i] for i in range(len(folder))}
        assert stored == {
            f"{file.parent.name}/{file.name}": (file.read_bytes(), label) for file, label in files.items()
        }
    names = [name for name in shards_of(target, "val") for name in names_in(target / name)]
    assert names == sorted(names), "an evaluation split stays in order"


def shards_of(target: Path, split: str) -> list[str]:
    return list(json.loads((target / "_info.json").read_text())["splits"][split]["filenames"])


def names_in(file: Path) -> list[str]:
    return [member.name for member in members(file) if not member.name.endswith(".cls")]


def test_the_seed_mixes_the_classes_of_training(tmp_path: Path) -> None:
    source = digit_folders(tmp_path / "a", train=200, val=0)
    orders = {}
    for seed in (0, 1):
        shard(source, tmp_path / str(seed), seed=seed, images_per_shard=20)
        orders[seed] = [names_in(tmp_path / str(seed) / name) for name in shards_of(tmp_path / str(seed), "train")]
        classes = [{name.split("/")[0] for name in names} for names in orders[seed]]
        assert min(map(len, classes)) >= 5, "20 images in sorted order would be of one or two classes"
    assert orders[0] != orders[1]
    one, other = (sorted(name for names in orders[seed] for name in names) for seed in (0, 1))
    assert one == other


def test_bytes_depend_on_the_source_alone(tmp_path: Path) -> None:
    source = digit_folders(tmp_path / "a", train=50, val=11)
    shard(source, tmp_path / "one", threads=1)
    shard(source, tmp_path / "other", threads=5)
    assert contents(tmp_path / "one") == contents(tmp_path / "other")
    for file in (tmp_path / "one").glob("*.tar"):
        assert all((m.mtime, m.uid, m.gid, m.uname, m.mode) == (0, 0, 0, "", 0o644) for m in members(file))
    sums = dict(line.split("  ")[::-1] for line in (tmp_path / "one" / "SHA256SUMS").read_text().splitlines())
    assert sums == {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (tmp_path / "one").glob("*.tar")
    }


def test_odd_names_stay_apart_and_are_found(tmp_path: Path) -> None:
    """Readers take what follows the first dot of a name for the ending, and webdataset skips __names__."""
    names = [
        "a.b.JPEG",
        "a.c.jpg",
        "a.jpg",
        "a.png",
        "100%.jpg",
        "e\u0301 \u732b (1).webp",
        "x" * 200 + ".jpg",
    ]
    for folder in ("__back__", "v1.5"):
        (tmp_path / "a" / folder).mkdir(parents=True)
        for name in names:
            (tmp_path / "a" / folder / name).write_bytes(png(len(name)))
    result = shard(tmp_path / "a", tmp_path / "s", images_per_shard=100)
    assert [split.name for split in result.splits] == ["train"], "class folders without splits are for training"
    stored = names_in(tmp_path / "s" / "train-000000.tar")
    assert len(stored) == 2 * len(names)
    keys = {(name.rpartition("/")[0], name.rpartition("/")[2].partition(".")[0]) for name in stored}
    assert len(keys) == len(stored)
    assert not any(name.startswith("__") for name in stored)
    expected = {"v1.5/a%2Eb.jpg", "v1.5/a%2Ec.jpg", "v1.5/a%2Ejpg.jpg", "v1.5/a%2Epng.png", "%5F_back__/100%25.jpg"}
    assert expected <= set(stored)
    source = open_source(DataConfig(path=str(tmp_path / "s"), name="wds/x"), "train")
    assert np.bincount(source.labels).tolist() == [len(names)] * 2
    assert all(source.classes[source.labels[i]] in source.location(i).replace("%5F", "_") for i in range(len(source)))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves files open
def test_webdataset_and_timm_read_the_shards(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="the webdataset package is not installed")
    from timm.data import create_dataset

    source = digit_folders(tmp_path / "a", train=30, val=20)
    shard(source, tmp_path / "s")
    for split, count in (("train", 30), ("val", 20)):
        files = [str(tmp_path / "s" / name) for name in shards_of(tmp_path / "s", split)]
        samples = {sample["__key__"]: sample for sample in webdataset.WebDataset(files, shardshuffle=False)}
        assert len(samples) == count
        for key, sample in samples.items():
            folder, name = key.split("/")
            assert sample["png"] == (source / split / folder / f"{name}.png").read_bytes()
            assert f"digit{int(sample['cls'])}" == folder
        dataset = create_dataset("wds/x", root=str(tmp_path / "s"), split=split)
        assert len(dataset) == count
        labels = sorted(label for _, label in dataset)
        assert labels == sorted(DIGITS.target[:30] if split == "train" else DIGITS.target[30:50])


# stopped, and gone on with


def stopped(source: Path, target: Path, shards: int, how: signal.Signals) -> int:
    """Start the work in a process of its own and end it when it has finished some more shards; its exit code."""
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(source), str(target)], stderr=subprocess.PIPE)
    before = len(list(target.glob("*.tar")))
    while len(list(target.glob("*.tar"))) < before + shards and process.poll() is None:
        time.sleep(0.0005)
    assert process.poll() is None, process.communicate()
    process.send_signal(how)
    process.communicate()
    return process.returncode


def test_killed_and_interrupted_and_continued_is_identical(tmp_path: Path) -> None:
    source, target = digit_folders(tmp_path / "a", train=700, val=50), tmp_path / "killed"
    seed = random.randrange(2**32)
    print(f"moments of the ends: seed {seed}")
    numbers = random.Random(seed)
    for how in (signal.SIGKILL, signal.SIGINT):
        assert stopped(source, target, numbers.randrange(1, 60), how) == -how
        assert not (target / "SHA256SUMS").exists()
        with pytest.raises(UserError, match=r"train-\d+\.tar does not exist"):  # nobody trains on a part unawares
            open_source(DataConfig(path=str(target), name="wds/x"), "train")
    assert not list(target.glob(".*")), "who is interrupted leaves nothing, and removes what the killed one left"
    there = len(list(target.glob("*.tar")))
    result = shard(source, target, images_per_shard=3)
    assert 0 < result.kept <= there
    assert result.damaged == 0
    assert result.kept + result.written == 234 + 17
    whole = shard(source, tmp_path / "whole", images_per_shard=3)
    assert (whole.kept, whole.written) == (0, 234 + 17)
    assert contents(target) == contents(tmp_path / "whole")


def test_damaged_and_lost_shards_are_written_again(tmp_path: Path) -> None:
    source, target = digit_folders(tmp_path / "a", train=40, val=5), tmp_path / "s"
    shard(source, target)
    whole = contents(target)
    flipped = bytearray(whole["train-000002.tar"])
    flipped[random.randrange(len(flipped))] ^= 1 << random.randrange(8)
    (target / "train-000002.tar").write_bytes(flipped)
    (target / "val-000000.tar").unlink()
    result = shard(source, target)
    assert (result.damaged, result.written, result.kept) == (2, 2, 5)
    assert contents(target) == whole
    again = shard(source, target)
    assert (again.damaged, again.written, again.kept) == (0, 0, 7)
    assert contents(target) == whole


def test_a_full_disk_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = digit_folders(tmp_path / "a", train=60, val=0), tmp_path / "s"
    written = 0

    def addfile(tar: tarfile.TarFile, member: tarfile.TarInfo, content: Any) -> None:
        nonlocal written
        written += 1
        if written > 50:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(tar, member, content)

    original = tarfile.TarFile.addfile
    with monkeypatch.context() as full:
        full.setattr(tarfile.TarFile, "addfile", addfile)
        with pytest.raises(UserError, match=r"No space left on device; the 3 finished shards are kept, free some"):
            shard(source, target, threads=1)
    assert len(list(target.glob("*.tar"))) == 3
    assert not list(target.glob(".*"))
    assert shard(source, target).kept == 3
    shard(source, tmp_path / "whole")
    assert contents(target) == contents(tmp_path / "whole")


def test_too_small_a_disk_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = digit_folders(tmp_path / "a", train=20, val=0)
    layout = look_at_folder(DataConfig(path=str(source)), None)
    needed = sum(one.tar_bytes for one in plan_shards(layout, 7, 0).shards)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=needed - 1))
    with pytest.raises(UserError, match=r"needs 41\.0 kB, 41\.0 kB are free; free some"):
        shard(source, tmp_path / "s")
    assert not list((tmp_path / "s").glob("*.tar"))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=needed))
    assert shard(source, tmp_path / "s").written == 3


# sources that change, and places that are taken


def losing(monkeypatch: pytest.MonkeyPatch, *files: Path) -> None:
    """Files that vanish when the source has just been listed."""

    def listed(*words: Any) -> Any:
        plan = plan_shards(*words)
        for file in files:
            file.unlink(missing_ok=True)
        return plan

    monkeypatch.setattr(module, "plan_shards", listed)


def test_vanished_files_are_named_and_can_be_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = digit_folders(tmp_path / "a", train=60, val=10), tmp_path / "s"
    shard(source, tmp_path / "whole")
    lost = [source / "train" / f"digit{DIGITS.target[i]}" / f"{i}.png" for i in (3, 17)]
    with monkeypatch.context() as disk:
        losing(disk, *lost)
        result = shard(source, target)
    names = {f"train/{file.parent.name}/{file.name}" for file in lost}
    assert result.left_out == dict.fromkeys(names, "No such file or directory")
    assert result.splits[0].images == 58
    info = json.loads((target / "_info.json").read_text())["splits"]["train"]
    assert (info["num_samples"], sum(info["shard_lengths"])) == (58, 58)
    assert len(open_source(DataConfig(path=str(target), name="wds/x"), "train")) == 58
    still = shard(source, target)
    assert (still.written, set(still.left_out)) == (0, names)
    for file in lost:
        file.write_bytes(png(int(file.stem)))  # younger than the first one
    back = shard(source, target)
    assert back.left_out == {}
    assert 1 <= back.written <= 2
    lists = {"_plan.jsonl.gz"}  # which knows when the first ones were changed
    one, other = contents(target), contents(tmp_path / "whole")
    assert {k: v for k, v in one.items() if k not in lists} == {k: v for k, v in other.items() if k not in lists}


def test_a_source_that_is_gone_is_not_sharded_as_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = digit_folders(tmp_path / "a", train=40, val=0)
    monkeypatch.setattr(module, "MAX_LEFT_OUT", 5)
    losing(monkeypatch, *source.rglob("*.png"))
    with pytest.raises(UserError, match=r"more than 5 files cannot be read, among them .*No such file"):
        shard(source, tmp_path / "s", threads=1)
    assert len(list((tmp_path / "s").glob("*.tar"))) < 6, "the work ends before the last shard"


def grow(source: Path) -> None:
    (source / "train" / "digit1" / "new.png").write_bytes(png(1))


def edit(source: Path) -> None:
    (source / "train" / "digit1" / "1.png").write_bytes(png(1)[::-1])


def add_split(source: Path) -> None:
    digit_folders(source, train=0, val=30)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (grow, "the source has train/digit1/new.png, which it did not have"),
        (edit, r"1 files changed since \(size or time\), among them train/digit1/1.png"),
        (add_split, "the source has val/digit./.*, which it did not have"),
    ],
)
def test_another_source_is_refused(tmp_path: Path, change: Callable[[Path], None], reason: str) -> None:
    source = digit_folders(tmp_path / "a", train=30, val=0)
    shard(source, tmp_path / "s")
    before = contents(tmp_path / "s")
    time.sleep(0.02)  # file systems tell times apart by milliseconds
    change(source)
    with pytest.raises(UserError, match=f"cannot be continued: {reason}; undo that, or give a new folder"):
        shard(source, tmp_path / "s")
    assert contents(tmp_path / "s") == before


def test_other_options_and_other_folders_are_refused(tmp_path: Path) -> None:
    source, target = digit_folders(tmp_path / "a", train=30, val=0), tmp_path / "s"
    shard(source, target)
    with pytest.raises(UserError, match="begun with --images-per-shard 7, not 8; it was begun with --seed 0, not 3;"):
        shard(source, target, images_per_shard=8, seed=3)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    (tmp_path / "full" / ".letter.partial").write_text("mine too")
    with pytest.raises(UserError, match=r"full holds something else \(letter.txt\); give a new or empty folder"):
        shard(source, tmp_path / "full")
    assert sorted(contents(tmp_path / "full")) == [".letter.partial", "letter.txt"]
    with pytest.raises(UserError, match=r"lies inside of .*, where it would become a class"):
        shard(source, source / "train" / "shards")
    with pytest.raises(UserError, match=r"letter.txt is a file"):
        shard(source, tmp_path / "full" / "letter.txt")
    with pytest.raises(UserError, match="is not a folder of image folders"):
        shard(tmp_path / "nothing", tmp_path / "t")
    (target / "_plan.jsonl.gz").write_bytes((target / "_plan.jsonl.gz").read_bytes()[:-30])
    with pytest.raises(UserError, match=r"_plan.jsonl.gz is damaged .*delete the folder and shard again"):
        shard(source, target)


def test_two_writers_are_one_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fcntl")
    source = digit_folders(tmp_path / "a", train=10, val=0)
    monkeypatch.setattr("illama.data.write_shards.LOCK_PATIENCE_S", 0.0)
    (tmp_path / "s").mkdir()
    with only_writer(tmp_path / "s"), pytest.raises(UserError, match="another process is writing shards"):
        shard(source, tmp_path / "s")
    assert shard(source, tmp_path / "s").written == 2
