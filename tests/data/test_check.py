"""A check finds exactly what was put in, in every kind of data set, and survives what it reads."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from illama.data import check
from illama.data.check import CRASHED, ROW, CheckResult, Issue, _same, check_data
from illama.data.layout import look, open_source
from illama.data.source import Source
from illama.data.write_shards import write_shards
from illama.errors import UserError
from illama.recipes import DataConfig


def picture(seed: int, size: tuple[int, int] = (40, 36), mode: str = "RGB") -> Image.Image:
    channels = {"RGB": 3, "L": 1, "CMYK": 4, "RGBA": 4}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze(), mode="CMYK") if mode == "CMYK" else Image.fromarray(pixels.squeeze())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two splits with one of everything; images by their class and name."""
    root = tmp_path / "images"
    for name in ("train/a", "train/b", "train/c", "val/a", "val/b"):
        (root / name).mkdir(parents=True)
    train, val = root / "train", root / "val"
    picture(0).save(train / "a" / "good.jpg")
    picture(1, (31, 200)).save(train / "a" / "narrow.png")
    (train / "a" / "cut.jpg").write_bytes((train / "a" / "good.jpg").read_bytes()[:-200])
    (train / "b" / "empty.jpg").touch()
    picture(2).save(train / "b" / "really_png.jpg", "PNG")
    picture(3, mode="L").save(train / "b" / "grey.png")
    picture(4, mode="CMYK").save(train / "b" / "cmyk.jpg")
    picture(5, mode="RGBA").save(train / "b" / "transparent.webp", lossless=True)
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(6).save(train / "b" / "turned.jpg", exif=turned)
    Image.fromarray(np.random.default_rng(7).integers(0, 60000, (40, 40), dtype=np.uint16)).save(
        train / "c" / "deep.png"
    )
    picture(8).save(train / "c" / "moving.gif", save_all=True, append_images=[picture(9)])
    # one picture twice in a class, one with other bytes in another class, one that leaks
    (train / "a" / "again.jpg").write_bytes((train / "a" / "good.jpg").read_bytes())
    picture(10).save(train / "a" / "as.png")
    picture(10).save(train / "c" / "as.bmp")
    picture(11).save(train / "c" / "leak.png")
    picture(11).save(val / "b" / "leak.png")
    picture(12).save(val / "a" / "other.png")
    return root


def issues_of(result: CheckResult) -> dict[str, set[str]]:
    """What was found, by kind; files by their names without ending."""
    kinds = {kind.name: {stem(place.where) for place in result.places(kind)} for kind in Issue}
    return {str(name): places for name, places in kinds.items() if places}


def stem(where: str) -> str:
    return where.rpartition("/")[2].partition(".")[0]


def groups(result: CheckResult) -> dict[tuple[str, ...], tuple[bool, bool, bool]]:
    return {
        tuple(sorted(stem(result.place(*image).where) for image in group.images)): (
            group.same_files,
            group.across_splits,
            group.several_labels,
        )
        for group in result.duplicates
    }


EVERYTHING = {
    "BROKEN": {"cut", "empty"},
    "TINY": {"narrow"},
    "WRONG_ENDING": {"really_png"},
    "GREY": {"grey"},
    "CMYK": {"cmyk"},
    "DEEP": {"deep"},
    "TRANSPARENT": {"transparent"},
    "TURNED": {"turned"},
    "ANIMATED": {"moving"},
}


def test_everything_is_found_in_a_folder(folder: Path) -> None:
    result = check_data(DataConfig(path=str(folder)), workers=2)
    assert issues_of(result) == EVERYTHING
    assert groups(result) == {
        ("again", "good"): (True, False, False),
        ("as", "as"): (False, False, True),
        ("leak", "leak"): (True, True, True),
    }
    assert [(s.name, len(s.rows), s.class_counts.tolist()) for s in result.splits] == [
        ("train", 15, [5, 6, 4]),
        ("val", 2, [1, 1, 0]),
    ]
    assert [split.missing_classes for split in result.splits] == [[], ["c"]]
    assert result.spread("width") == (31, 40, 40)
    assert result.spread("height") == (36, 36, 200)
    files = [file for file in folder.rglob("*.*") if file.stem not in ("cut", "empty")]
    sizes = sorted(file.stat().st_size for file in files)
    assert result.spread("bytes") == (sizes[0], float(np.median(sizes)), sizes[-1])
    whys = {stem(place.where): place.detail for place in result.places(Issue.BROKEN)}
    assert "truncated" in whys["cut"]
    assert whys["empty"] == "the file is empty"
    assert [place.detail for place in result.places(Issue.TINY)] == ["31 x 200"]
    assert [place.detail for place in result.places(Issue.WRONG_ENDING)] == ["PNG"]


def test_the_json_has_every_path(folder: Path) -> None:
    plain = json.loads(json.dumps(check_data(DataConfig(path=str(folder)), min_side=37).to_dict()))
    assert plain["splits"]["train"]["class_counts"] == {"a": 5, "b": 6, "c": 4}
    assert {Path(entry["where"]).name: entry["why"] for entry in plain["broken"]}["empty.jpg"] == "the file is empty"
    assert len(plain["tiny"]) == 14, "all that can be read but the 16-bit one are 36 pixels high or 31 wide"
    assert plain["wrong_ending"] == [
        {"split": "train", "where": str(folder / "train/b/really_png.jpg"), "class": "b", "format": "PNG"}
    ]
    leak = next(group for group in plain["duplicates"] if group["across_splits"])
    assert leak["images"] == [
        {"split": "train", "where": str(folder / "train/c/leak.png"), "class": "c"},
        {"split": "val", "where": str(folder / "val/b/leak.png"), "class": "b"},
    ]
    assert {kind: len(places) for kind, places in plain["information"].items()} == dict.fromkeys(
        ("grey", "cmyk", "deep", "transparent", "turned", "animated"), 1
    )


def test_shards_and_their_folder_are_found_alike(folder: Path, tmp_path: Path) -> None:
    write_shards(folder, tmp_path / "shards", images_per_shard=4)
    result = check_data(DataConfig(path=str(tmp_path / "shards"), name="wds/x"))
    assert issues_of(result) == EVERYTHING
    assert groups(result) == groups(check_data(DataConfig(path=str(folder))))


def test_parquet_rows_are_found_alike(folder: Path, tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for split in ("train", "val"):
        files = sorted((folder / split).rglob("*.*"))
        table = {"image": [file.read_bytes() for file in files], "label": [file.parent.name for file in files]}
        pq.write_table(pa.table(table), tmp_path / f"{split}.parquet", row_group_size=3)
    result = check_data(DataConfig(path=str(tmp_path)))
    whole = check_data(DataConfig(path=str(folder)))
    for kind in Issue:
        assert result.count(kind) == (0 if kind == Issue.WRONG_ENDING else whole.count(kind)), kind
    flags = [(group.same_files, group.across_splits, group.several_labels) for group in result.duplicates]
    assert sorted(flags) == sorted(groups(whole).values())


def test_other_sources_and_their_splits(tmp_path: Path) -> None:
    digits = check_data(DataConfig(name="digits"), min_side=8)
    assert [(split.name, len(split.rows)) for split in digits.splits] == [("train", 1437), ("test", 360)]
    assert issues_of(digits) == {}
    assert digits.spread("bytes") is None, "there are no files"
    assert digits.duplicates == []
    for name in ("red", "blue"):
        (tmp_path / "plain" / name).mkdir(parents=True)
        Image.new("RGB", (40, 40), name).save(tmp_path / "plain" / name / "x.png")
    plain = DataConfig(path=str(tmp_path / "plain"))
    assert look(plain).splits == ()
    result = check_data(plain)
    assert [(split.name, split.class_counts.tolist()) for split in result.splits] == [("all", [1, 1])]
    for name in ("train", "validation", "test", "extra"):
        (tmp_path / "wds" / name).mkdir(parents=True)
        (tmp_path / "wds" / name / "0.tar").touch()
    shards = DataConfig(path=str(tmp_path / "wds"), name="wds/x")
    assert look(shards).splits == ("train", "validation", "test", "extra")


def test_what_cannot_be_opened_says_why(folder: Path) -> None:
    (folder / "train" / "loose.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"loose.png lies outside of a class folder"):
        check_data(DataConfig(path=str(folder)))
    (folder / "train" / "loose.png").unlink()
    (folder / "val" / "d").mkdir()
    with pytest.raises(UserError, match=r"class folder .*val/d has no images"):
        check_data(DataConfig(path=str(folder)))
    picture(0).save(folder / "val" / "d" / "new.png")
    with pytest.raises(UserError, match="1 images of class 'd', which the model was not trained on"):
        check_data(DataConfig(path=str(folder)))


def test_the_manifest_of_odd_files(shared_data: Path, tmp_path: Path) -> None:
    manifest = json.loads((shared_data / "messy" / "manifest.json").read_text())["files"]
    (tmp_path / "odd").mkdir()
    for entry in manifest:
        (tmp_path / "odd" / entry["file"]).write_bytes((shared_data / "messy" / entry["file"]).read_bytes())
    result = check_data(DataConfig(path=str(tmp_path)))
    assert result.images == len(manifest)
    names = {kind: {Path(place.where).name for place in result.places(kind)} for kind in Issue}
    assert names[Issue.BROKEN] == {entry["file"] for entry in manifest if not entry["readable"]}
    assert names[Issue.TURNED] == {entry["file"] for entry in manifest if entry.get("exif_orientation", 1) > 1}
    assert names[Issue.TINY] == {"one_pixel.png", "panorama_4000x20.jpg"}
    rows = {Path(result.place(0, i).where).name: row for i, row in enumerate(result.splits[0].rows)}
    for entry in manifest:
        if entry["readable"]:
            assert [rows[entry["file"]]["width"], rows[entry["file"]]["height"]] == entry["size"], entry["file"]


def test_memory_of_a_large_set() -> None:
    assert ROW.itemsize * 14_000_000 < 600e6


@pytest.mark.parametrize("kinds", [1, 30, 10_000])
def test_equal_digests_are_grouped(kinds: int) -> None:
    numbers = np.random.default_rng(kinds).integers(0, kinds, 500)
    digests = np.stack([numbers % 7, numbers // 7], axis=1).astype(np.uint64)  # the first words alone are not enough
    chosen = np.flatnonzero(np.random.default_rng(1).random(500) < 0.8)
    expected = defaultdict(list)
    for i in chosen:
        expected[numbers[i]].append(int(i))
    assert [group.tolist() for group in _same(digests, chosen)] == sorted(
        group for group in expected.values() if len(group) > 1
    )
    assert _same(digests, np.array([], dtype=np.int64)) == []


def test_an_image_that_kills_its_reader_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a decoder does that crashes; the processes are forked, so they have the change too."""
    original = check.inspect

    def dies(source: Source, start: int, stop: int, min_side: int) -> object:
        if any("grey" in source.location(i) for i in range(start, stop)):
            os._exit(1)
        return original(source, start, stop, min_side)

    monkeypatch.setattr(check, "inspect", dies)
    monkeypatch.setattr(check, "_CHUNK", 4)
    result = check_data(DataConfig(path=str(folder)), workers=2)
    assert issues_of(result)["BROKEN"] == {"cut", "empty", "grey"}
    assert [place.detail for place in result.places(Issue.BROKEN) if "grey" in place.where] == [CRASHED]
    assert issues_of(result)["TINY"] == {"narrow"}


SLOW = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell has it ignored by what it starts in the background
from illama.cli.main import main
from illama.data import check

def slow(source, start, stop, min_side):
    open(os.path.join(sys.argv[2], str(os.getpid())), "w").close()
    time.sleep(0.3)
    return original(source, start, stop, min_side)

original, check.inspect, check._CHUNK = check.inspect, slow, 1
sys.exit(main(["data", "check", sys.argv[1], "--workers", "2"]))
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_no_process_stays_behind(folder: Path, tmp_path: Path, how: signal.Signals, code: int) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(folder), str(marks)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    wait_for(lambda: len(list(marks.iterdir())) == 2 or process.poll() is not None, seconds=120)
    time.sleep(random.random() * 0.4)
    process.send_signal(how)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert out == b""
    assert err == (b"illama: interrupted\n" if how == signal.SIGINT else b"")
    readers = [int(mark.name) for mark in marks.iterdir()]
    assert len(readers) == 2
    wait_for(lambda: not any(map(alive, readers)), seconds=30)


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_split_is_opened_by_its_own_name(folder: Path) -> None:
    """Whatever the recipe's keys say of numbers of images; the split for training numbers the classes."""
    config = DataConfig(path=str(folder), eval_split="val", val_fraction=0.3, max_eval_images=1)
    result = check_data(config)
    assert [(split.name, len(split.rows)) for split in result.splits] == [("train", 15), ("val", 2)]
    result = check_data(config.model_copy(update={"train_split": "val"}))
    assert [(split.name, len(split.rows)) for split in result.splits] == [("val", 2)]
    assert "class" in result.unusable["train"]
    assert len(open_source(DataConfig(path=str(folder)), "val")) == 2
