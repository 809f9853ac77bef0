"""What is understood of a folder does not depend on chance, agrees with a plain definition, and loses no file."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from illama.console.text import as_message, safe_lines, shown
from illama.data import look
from illama.data.decode.images import BrokenImage
from illama.data.layout import Layout
from illama.data.sources import walk
from illama.data.sources.formats import FileKind, ending_of, fits, kind_of_file, looks_like_picture
from illama.data.sources.splits import choose_split, class_order, difference, role_of, roles_of
from illama.errors import UserError
from illama.recipes import DataConfig
from tests.data.plain import plain, visible
from tests.data.zoo import FORMATS, picture, shard

FOLDERS = st.sampled_from(
    ["train", "Test", "val", "valid", "cat", "dog", "A", "a", "day1", ".x", "@eaDir", "lost+found"]
)
NAMES = st.sampled_from(["1.png", "2.PNG", "b.txt", ".h.png", "c.csv"])
PATHS = st.builds(lambda folders, name: "/".join([*folders, name]), st.lists(FOLDERS, max_size=4), NAMES)
TREES = st.sets(PATHS, min_size=1, max_size=14)


@pytest.fixture
def any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """File systems list their entries in any order."""
    original = os.scandir

    class Shuffled:
        def __init__(self, path: str) -> None:
            with original(path) as entries:
                self.entries = list(entries)
            random.shuffle(self.entries)

        def __iter__(self) -> Iterator[os.DirEntry[str]]:
            return self

        def __next__(self) -> os.DirEntry[str]:
            if not self.entries:
                raise StopIteration
            return self.entries.pop()

        def __enter__(self) -> Iterator[os.DirEntry[str]]:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        close = __exit__

    monkeypatch.setattr(walk.os, "scandir", Shuffled)


def make(root: Path, files: set[str]) -> None:
    """Empty files: nothing here is decoded."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()


def understood(root: Path) -> tuple[Layout, dict[str, set[tuple[str, str]] | None]] | None:
    """(file, class) of every split, None for one that is refused; None for a folder that is refused."""
    try:
        layout = look(DataConfig(name="folder", path=str(root)))
    except UserError:
        return None
    seen: dict[str, set[tuple[str, str]] | None] = {}
    for split in layout.splits or ("",):
        try:
            source = layout.read(split or None, 3, None)
        except UserError:
            seen[split] = None
            continue
        files = [os.path.relpath(source.location(i), root) for i in range(len(source))]
        assert len(set(files)) == len(files)
        seen[split] = {(file, source.classes[label]) for file, label in zip(files, source.labels, strict=True)}
    return layout, seen


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=TREES)
def test_a_folder_means_what_the_plain_definition_says(files: set[str], any_order: None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make(root, files)
        expected, meant = plain(files), understood(root)
        if expected is None or meant is None:
            assert expected is None
            assert meant is None
            return
        layout, seen = meant
        assert seen == expected
        refused = sum(
            sum(file.startswith(f"{split}/" if split else "") for file in pictures_of(files))
            for split, pictures in seen.items()
            if pictures is None
        )
        assert sum(map(len, filter(None, seen.values()))) + refused + layout.passed_over.total == len(files)


def pictures_of(files: set[str]) -> list[str]:
    return [file for file in files if visible(file) and file.lower().endswith(".png")]


def told(trees: Path) -> str:
    """What is understood of each folder, in order."""
    lines = []
    for root in sorted(trees.iterdir()):
        meant = understood(root)
        if meant is not None:
            layout, seen = meant
            sources = [layout.read(split or None, 3, None) for split, files in seen.items() if files is not None]
            lines.append([layout.splits, [[s.classes, s.labels.tolist(), list(s.paths)] for s in sources]])  # type: ignore[attr-defined]
    return json.dumps(lines)


def test_every_process_understands_the_same(tmp_path: Path) -> None:
    """Whatever its hash seed: names, numbers of classes and the order of the files."""
    numbers = random.Random(0)
    kinds = ["A", "a", "s01", "s1", "s001", "É", "é", "x²", "10", "9"]
    for tree in range(25):
        for k in range(20):
            split = numbers.choice(["train/", "val/", ""]) if tree % 2 else ""
            file = tmp_path / "trees" / f"{tree:02}" / f"{split}{numbers.choice(kinds)}/{numbers.choice(kinds)}{k}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    tell = (
        "import sys; from pathlib import Path; from tests.data.test_layout import told; print(told(Path(sys.argv[1])))"
    )
    seed = "0" if os.environ.get("PYTHONHASHSEED") == "42" else "42"
    words = [sys.executable, "-c", tell, str(tmp_path / "trees")]
    other = subprocess.run(
        words, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONHASHSEED": seed}
    ).stdout
    assert json.loads(other) == json.loads(told(tmp_path / "trees"))
    assert len(json.loads(other)) > 10


def test_links_end_and_repeat_nothing(tmp_path: Path) -> None:
    """Links between all folders, in every direction: each picture is found once."""
    names = [f"train/{kind}/{part}" for kind in ("cat", "dog") for part in ("x", "y")]
    make(tmp_path, {f"{name}/{k}.png" for name in names for k in range(3)})
    for number, name in enumerate([".", "train", *names, "train/cat"]):
        for place in ("train/cat", *names):
            (tmp_path / place / f"link{number}").symlink_to(tmp_path / name, target_is_directory=True)
    found = walk.walk(tmp_path)
    assert len(found.pictures) == 12
    assert found.passed_over.total == 5 * 7


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, {"train/cat/1.png", "train/dog/2.png"})
    original = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied")
        return original(path)

    monkeypatch.setattr(walk.os, "scandir", scandir)
    with pytest.raises(UserError, match=r"train/dog .*cannot be read: Permission denied"):
        look(DataConfig(path=str(tmp_path)))


# names


@pytest.mark.parametrize(
    ("name", "role"),
    [
        *((name, "train") for name in ("train", "Training", "TRAIN_SET", "train2017", "trainset", "train-images")),
        *((name, "train") for name in ("trn", "train_imgs", " train ", "TrainDataset")),
        *((name, "validation") for name in ("val", "Valid", "validation", "dev", "val_data", "DEVELOPMENT", "devel")),
        *((name, "test") for name in ("test", "Testing", "test1", "test set", "eval", "tst", "Evaluation")),
        *(
            (name, None)
            for name in ("cat", "trained", "trains", "latest", "invalid", "device", "contest", "dataset", "")
        ),
    ],
)
def test_roles_of_names(name: str, role: str | None) -> None:
    assert role_of(name) == role


def test_splits_that_differ_in_one_word() -> None:
    assert roles_of(["seg_train", "seg_test", "seg_pred"]) == {"seg_train": "train", "seg_test": "test"}
    assert roles_of(["bullet_train", "bus"]) == {}
    assert roles_of(["imagenet21k_train", "imagenet21k_val"]) == {
        "imagenet21k_train": "train",
        "imagenet21k_val": "validation",
    }
    assert roles_of(["x_train", "y_test"]) == {}


def test_spellings_are_chosen_in_a_stated_order() -> None:
    assert choose_split("auto", ["test", "dev", "valid", "train"], "x") == "valid"
    assert choose_split("auto", ["Testing", "Training"], "x") == "Testing"
    assert choose_split("train", ["TRAIN", "val"], "x") == "TRAIN"
    assert choose_split("val", ["validation", "Val"], "x") == "validation"
    assert choose_split("seg_test", ["seg_train", "seg_test"], "x") == "seg_test"
    assert choose_split("train", ["seg_train", "seg_test"], "x") == "seg_train"
    with pytest.raises(UserError, match=r"has Train and training; say which is meant with data.train_split=NAME"):
        choose_split("train", ["Train", "training"], "x")
    with pytest.raises(UserError, match=r"has Val and VAL; say which is meant with data.eval_split=NAME"):
        choose_split("auto", ["Val", "VAL", "train"], "x")


def test_order_and_differences_of_classes() -> None:
    assert class_order(["b", "a10", "A", "a", "a2", "a02"]) == ["A", "a", "a02", "a2", "a10", "b"]
    assert difference(["a", "b"], ["a", "b"]) is None
    assert difference(["caf\u00e9"], ["cafe\u0301"]) is None
    assert difference(["a", "b"], ["a", "c"]) == "1 no more there (b), 1 new (c)"
    assert difference(["A", "a"], ["a", "A"]) == "their order (A, a; now a, A)"
    many = [f"c{k}" for k in range(100)]
    assert difference(many, many[1:]) == "1 no more there (c0)"
    assert difference([], many) == "100 new (c0, c1, c2, ..., c99)"


def opened(data: DataConfig, split: str, seed: int = 0) -> list[str]:
    """Names of the files of a split."""
    source = look(data).open(split, seed=seed)
    return [os.path.relpath(source.location(i), str(data.path)) for i in range(len(source))]


def test_pictures_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """Whose order the identity of every run's data depends on."""
    make(tmp_path, {f"{folder}/{name}.png" for folder in ("a2", "a10") for name in ("10", "9", "B", "a")})
    names = opened(DataConfig(path=str(tmp_path)), "all")
    assert names == [f"{folder}/{name}.png" for folder in ("a2", "a10") for name in ("9", "10", "a", "B")]


def test_what_is_held_out(tmp_path: Path) -> None:
    """The share is rounded, depends on the seed, and is what both of its names open; training has all the rest."""
    make(tmp_path, {f"{kind}/{k}.png" for kind in ("cat", "dog") for k in range(18)})
    data = DataConfig(path=str(tmp_path), val_fraction=0.15)
    held = opened(data, "eval")
    assert len(held) == 5
    assert held == opened(data, "auto") != opened(data, "eval", seed=1)
    assert sorted([*held, *opened(data, "train")]) == sorted(opened(DataConfig(path=str(tmp_path)), "all"))
    split = data.model_copy(update={"path": str(tmp_path / "s"), "train_split": "seen"})
    make(tmp_path / "s", {f"{name}/{kind}/{k}.png" for name in ("seen", "new") for kind in "ab" for k in range(9)})
    assert len(opened(split, "seen")) == len(opened(split, "train")) == 15
    with pytest.raises(UserError, match=r"has no split 'vaal'; it has no splits at all"):
        opened(DataConfig(path=str(tmp_path / "s" / "new")), "vaal")


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, {"cat/1.png", "dog/2.png"})
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert len(look(DataConfig(path=f"~/{tmp_path.name}")).open("all")) == 2


def test_larger_pictures_than_the_recipe_says_are_broken(tmp_path: Path) -> None:
    for kind in ("cat", "dog"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "1.png").write_bytes(picture(1))
    layout = look(DataConfig(path=str(tmp_path), max_image_pixels=40 * 40))
    assert layout.open("all").read(0).size == (40, 40)
    with pytest.raises(BrokenImage, match=r"40 x 40 pixels are more than data.max_image_pixels=1599"):
        layout.asked_for(DataConfig(path=str(tmp_path), max_image_pixels=40 * 40 - 1)).open("all").read(0)


def test_layouts_that_need_no_advice(tmp_path: Path) -> None:
    """A note on deeper classes where all pictures of a class lie in one folder, or some above it, would mislead."""
    for name, files in (("one", {"cat/a/1.png", "dog/b/2.png"}), ("above", {"cat/1.png", "cat/a/2.png", "dog/3.png"})):
        make(tmp_path / name, files)
        layout = look(DataConfig(path=str(tmp_path / name)))
        layout.open("all")
        assert not layout.notes
    make(tmp_path / "deep", {"cat/a/1.png", "cat/b/2.png", "dog/3.png"})
    layout = look(DataConfig(path=str(tmp_path / "deep")))
    layout.open("all")
    assert "data.class_depth=2" in layout.notes[0]


def test_what_is_passed_over_counts_once(tmp_path: Path) -> None:
    members = [("x.png", picture(1)), ("x.cls", "0"), ("y.png", picture(2)), ("y.cls", "1"), ("notes.md", "")]
    shard("train-0.tar", *members)(tmp_path)
    layout = look(DataConfig(path=str(tmp_path)))
    for _ in range(2):
        layout.open("train")
    assert layout.passed_over.total == 1


def test_patterns_of_endless_shards_are_refused(tmp_path: Path) -> None:
    shard("train-0.tar", ("x.png", picture(1)), ("x.cls", "0"), ("y.png", picture(2)), ("y.cls", "1"))(tmp_path)
    layout = look(DataConfig(path=str(tmp_path)))
    assert len(layout.open("train-{0..0}.tar")) == 2
    for pattern in (
        "train-{0..9999999}.tar",
        "{0..9999}{0..9999}.tar",
        "{0..9}" * 30 + ".tar",
        "{0..999999999999}.tar",
    ):
        with pytest.raises(UserError, match=r"stands for .* shards, more than 1,000,000"):
            layout.open(pattern)
    with pytest.raises(UserError, match="stands for no shard"):
        layout.open("train-{5..0}.tar")


def test_foreign_names_are_shown_on_one_line() -> None:
    assert shown("a\x1b[31m\nb\u202ec\x7f\u2028") == r"a\x1b[31m\x0ab\u202ec\x7f\u2028"
    assert shown(os.fsdecode(b"caf\xe9.png")) == r"caf\xe9.png"
    assert shown("日本 é ²") == "日本 é ²"
    assert shown("x" * 1000) == "x" * 150 + "..." + "x" * 150
    assert safe_lines("a\n\x1b]0;b\x07") == "a\n\\x1b]0;b\\x07"
    assert as_message("a\nillama: error: \x1b\n\n  c") == "a\n  illama: error: \\x1b\n\n  c"


def test_files_are_told_apart_by_their_names_and_then_by_content() -> None:
    for ending, form in FORMATS.items():
        assert kind_of_file(f"x.y{ending.upper()}") is FileKind.PICTURE
        if form not in ("PPM",):
            assert looks_like_picture(picture(1, form)[:32]), form
    kinds = {"a.jxl": FileKind.UNREAD, "a.dng": FileKind.UNREAD, "a.txt": FileKind.OTHER, "a.png~": FileKind.OTHER}
    kinds |= {"a": FileKind.UNKNOWN, ".png": FileKind.UNKNOWN, "a.png.1": FileKind.UNKNOWN}
    for name, kind in kinds.items():
        assert kind_of_file(name) is kind, name
    assert ending_of("a.tar.GZ") == ".gz"
    for head in (b"II+\0", b"MM\0+", *(b"\0\0\0\x1cftyp" + brand for brand in (b"mif1", b"msf1", b"heic", b"avif"))):
        assert looks_like_picture(head.ljust(32, b"\0")), head
    assert fits("MPO", ".jpg")
    assert not fits("MPO", ".png")
    assert not looks_like_picture(b"BM is no picture, though it begins like one")
