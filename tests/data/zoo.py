"""Odd data sets with the right answer beside each: how people's folders and files come, and what they mean.

A new report becomes a row of `CASES`. Pictures are numbered: picture n is 40 px of the grey level 10 n, in whatever
format and mode, so that what was read can be told from the pixels alone.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Seen = Mapping[str, Mapping[int, str]]  # by split ("" without splits): number of the picture -> its class


@dataclass(frozen=True)
class Case:
    """A data set and what it is.

    Attributes:
        name: What is odd about it.
        build: Makes it in an empty folder.
        seen: Its pictures as training and evaluation have to see them; None where it is refused.
        says: What a person is told (a pattern): the refusal, or a part of what was understood.
        passed_over: Files that are not read.
        broken: Pictures that cannot be decoded; they are seen by position, and numbered 0, -1, ...
        code: Exit code that it deserves.
        path: What is given, below the folder.
        data: Keys of the data section.
        order: Class names in index order, where that matters.
    """

    name: str
    build: Callable[[Path], object]
    seen: Seen | None = None
    says: str = ""
    passed_over: int = 0
    broken: int = 0
    code: int = 0
    path: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    order: Sequence[str] = ()


def refused(name: str, build: Callable[[Path], object], says: str, **more: Any) -> Case:
    """A data set that is not taken."""
    return Case(name, build, None, says, code=2, **more)


# pictures and files

FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".jp2": "JPEG2000", ".tif": "TIFF"}
FORMATS |= {".png": "PNG", ".gif": "GIF", ".bmp": "BMP", ".webp": "WEBP", ".avif": "AVIF", ".pgm": "PPM", ".qoi": "QOI"}


def picture(number: int, form: str = "PNG") -> bytes:
    """The file of a numbered picture."""
    file = io.BytesIO()
    image = Image.new("RGB" if form != "GIF" else "L", (40, 40), (10 * number,) * 3 if form != "GIF" else 10 * number)
    image.save(file, form, **({"lossless": True} if form == "WEBP" else {}))
    return file.getvalue()


def number_of(image: Image.Image) -> int:
    """Which picture it is, by its pixels."""
    return round(float(np.asarray(image.convert("L")).mean()) / 10)


def put(*files: str | bytes, start: int = 1) -> Callable[[Path], int]:
    """Numbered pictures at these paths, in the format of their ending; a file with another ending holds text."""

    def build(root: Path) -> int:
        for number, name in enumerate(files, start=start):
            file = os.path.join(os.fsencode(root), os.fsencode(name))
            os.makedirs(os.path.dirname(file), exist_ok=True)
            ending = os.path.splitext(os.fsdecode(name))[1].lower()
            with open(file, "wb") as opened:
                opened.write(picture(number, FORMATS[ending]) if ending in FORMATS else b"no picture\n")
        return len(files)

    return build


def also(*builds: Callable[[Path], object]) -> Callable[[Path], None]:
    """One after the other."""

    def build(root: Path) -> None:
        for one in builds:
            one(root)

    return build


def write(name: str, content: str | bytes) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return build


def link(name: str, target: str, *, folder: bool = True) -> Callable[[Path], None]:
    return lambda root: (root / name).symlink_to(target, target_is_directory=folder)


def outside(name: str, *files: str) -> Callable[[Path], None]:
    """A link to a folder beside the data set that holds pictures 11, 12, ..."""

    def build(root: Path) -> None:
        other = root.parent / f"{root.name} elsewhere"
        put(*files, start=11)(other)
        (root / name).symlink_to(other, target_is_directory=True)

    return build


def fifo(name: str) -> Callable[[Path], None]:
    return lambda root: os.mkfifo(root / name)


def folder(*names: str) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        for name in names:
            (root / name).mkdir(parents=True, exist_ok=True)

    return build


# folders

PLAIN = ("train/cat/1.png", "train/dog/2.png", "val/cat/3.png", "val/dog/4.png")
PLAIN_SEEN: Seen = {"train": {1: "cat", 2: "dog"}, "val": {3: "cat", 4: "dog"}}
TWO: Seen = {"": {1: "cat", 2: "dog"}}


def splits(train: str, other: str) -> dict[str, Any]:
    """Two splits of other names."""
    files = [
        f"{name}/{kind}/{n}.png"
        for n, (name, kind) in enumerate((t, k) for t in (train, other) for k in ("cat", "dog"))
    ]
    return {"build": put(*files), "seen": {train: {1: "cat", 2: "dog"}, other: {3: "cat", 4: "dog"}}}


FOLDERS = (
    Case("train and val", put(*PLAIN), PLAIN_SEEN, r"splits train, val\n *2 classes: cat, dog"),
    Case("class folders alone", put("cat/1.png", "dog/2.png"), TWO, "no splits"),
    Case("splits in other cases", **splits("Train", "TEST")),
    Case("Training and Testing", **splits("Training", "Testing")),
    Case("train and valid", **splits("train", "valid")),
    Case("train and dev", **splits("train", "dev")),
    Case("train_set and Test Set", **splits("train_set", "Test Set")),
    Case("train2017 and val2017", **splits("train2017", "val2017")),
    Case("seg_train and seg_test", **splits("seg_train", "seg_test")),
    Case("train-images and val-images", **splits("train-images", "val-images")),
    Case(
        "splits named by the recipe",
        **splits("summer", "winter"),
        data={"train_split": "summer", "eval_split": "winter"},
    ),
    Case(
        "val before test",
        put(
            "test/cat/1.png",
            "test/dog/2.png",
            *(f"train/{c}/{n}.png" for n, c in ((3, "cat"), (4, "dog"))),
            "val/cat/5.png",
        ),
        {"train": {3: "cat", 4: "dog"}, "val": {5: "cat"}, "test": {1: "cat", 2: "dog"}},
    ),
    Case(
        "test pictures without classes, which training need not see",
        put(*PLAIN, "test/5.png", "test/6.png"),
        PLAIN_SEEN,
        "test cannot be used: .*2 pictures directly in it",
    ),
    Case("a split for training only", put("train/cat/1.png", "train/dog/2.png"), {"train": {1: "cat", 2: "dog"}}),
    Case(
        "folders beside the splits",
        put(*PLAIN, "extra/cat/5.png", "readme/6.png", "7.png"),
        PLAIN_SEEN,
        "3 beside the folders of the splits",
        passed_over=3,
    ),
    Case("a folder without pictures beside the splits", put(*PLAIN, "labels/a.txt"), PLAIN_SEEN, passed_over=1),
    Case(
        "a class called train",
        put("bus/1.png", "car/2.png", "train/3.png"),
        {"": {1: "bus", 2: "car", 3: "train"}},
        "train is taken for a class",
    ),
    Case("a class called bullet_train", put("bus/1.png", "bullet_train/2.png"), {"": {1: "bus", 2: "bullet_train"}}),
    refused(
        "a test folder beside class folders", put("cat/1.png", "dog/2.png", "test/3.png"), "test is named like a split"
    ),
    refused(
        "a sorted test folder beside class folders",
        put("cat/1.png", "dog/2.png", "test/cat/3.png"),
        "put those classes into .*/train",
    ),
    refused("Kaggle's flat train and test", put("train/1.png", "test/2.png"), "1 pictures directly in it"),
    refused(
        "Kaggle's flat train with a table",
        also(put("train/1.png", "test/2.png"), write("train.csv", "id,label\n1,cat\n")),
        r"give data.path=.*train.csv if that lists them",
    ),
    refused(
        "ImageNet's flat val",
        put("train/cat/1.png", "train/dog/2.png", "val/3.png", "val/4.png"),
        r"val has 2 pictures directly in it.*train beside it has class folders.*docs/data.md#imagenet-1k.*val_fraction",
    ),
    Case(
        "an archive in its own name",
        put("train/train/cat/1.png", "train/train/dog/2.png", "val/val/cat/3.png"),
        {"train": {1: "cat", 2: "dog"}, "val": {3: "cat"}},
    ),
    refused(
        "a folder around the data set",
        put(*(f"pets/{name}" for name in PLAIN)),
        "pets holds the splits train, val; if it is a data set, give data.path=.*/pets",
    ),
    Case(
        "pictures by day",
        put("train/cat/day1/1.png", "train/cat/day2/2.png", "train/dog/day1/3.png", "val/cat/day1/4.png"),
        {"train": {1: "cat", 2: "cat", 3: "dog"}, "val": {4: "cat"}},
        "which count as cat; if those are the classes, give data.class_depth=2",
    ),
    Case(
        "pictures in images/", put("train/cat/images/1.png", "train/dog/images/2.png"), {"train": {1: "cat", 2: "dog"}}
    ),
    Case(
        "pictures at several depths",
        put("cat/1.png", "cat/a/2.png", "cat/a/b/c/d/e/f/3.png", "dog/x/4.png"),
        {"": {1: "cat", 2: "cat", 3: "cat", 4: "dog"}},
    ),
    Case(
        "classes two levels down",
        put("a/airfield/1.png", "a/alley/2.png", "b/bar/3.png"),
        {"": {1: "a/airfield", 2: "a/alley", 3: "b/bar"}},
        data={"class_depth": 2},
    ),
    Case(
        "classes at the leaves",
        put("a/airfield/1.png", "b/bakery/shop/2.png", "b/bakery/street/3.png"),
        {"": {1: "a/airfield", 2: "b/bakery/shop", 3: "b/bakery/street"}},
        data={"class_depth": "leaf"},
    ),
    refused(
        "too shallow for the depth",
        put("a/x/1.png", "a/2.png"),
        "2.png lies outside of class folders of that depth",
        data={"class_depth": 2},
    ),
    refused(
        "a loose picture",
        put("train/cat/1.png", "train/dog/2.png", "train/3.png"),
        "3.png lies outside of a class folder",
    ),
    refused("pictures without any folder", put("1.png", "2.png"), "2 pictures directly in it"),
    refused("an empty class folder", also(put(*PLAIN), folder("train/emu")), "class folder .*emu has no images"),
    refused("a class folder of texts", put(*PLAIN, "train/emu/a.txt"), "class folder .*emu has no images"),
    refused(
        "an empty split",
        also(put("train/cat/1.png", "train/dog/2.png"), folder("val")),
        "val has no images in class folders",
    ),
    refused("nothing", folder("."), "is not a data set"),
    refused("folders without pictures", folder("train/cat"), "has no images"),
    refused(
        "a class of its own in val",
        put(*PLAIN, "val/emu/5.png"),
        "1 images of class 'emu', which the model was not trained on",
    ),
    Case(
        "fewer classes in val",
        put("train/cat/1.png", "train/dog/2.png", "val/dog/3.png"),
        {"train": {1: "cat", 2: "dog"}, "val": {3: "dog"}},
        "1 of 2 classes have no image in val",
    ),
    refused("one class", put("train/cat/1.png", "val/cat/2.png"), "one class only"),
    Case(
        "both train and Training",
        put("train/cat/1.png", "train/dog/2.png", "Training/cat/3.png", "val/cat/4.png"),
        {"train": {1: "cat", 2: "dog"}, "val": {4: "cat"}},
    ),
    refused(
        "splits below the classes",
        put("cat/train/1.png", "cat/test/2.png", "dog/train/3.png", "dog/test/4.png"),
        r"cat holds the splits train, test; .*move the splits above it \(train/cat",
    ),
    refused(
        "two data sets side by side",
        put("A/train/cat/1.png", "A/val/cat/2.png", "B/train/cat/3.png"),
        "A holds the splits train, val; if it is a data set, give data.path=.*/A",
    ),
    Case(
        "splits below the classes that are none",
        put("cat/train/1.png", "cat/test/2.png", "dog/train/3.png", "dog/test/4.png"),
        {"": {1: "cat/train", 2: "cat/test", 3: "dog/train", 4: "dog/test"}},
        data={"class_depth": 2},
    ),
    refused(
        "names that go on after a split's",
        put("trainA/1.png", "trainB/2.png", "testA/3.png", "testB/4.png"),
        "which are named like splits, but it is not clear which train",
    ),
    Case(
        "TrainDataset and TestDataset",
        put(*(f"TrainDataset/{c}/{n}.png" for n, c in enumerate(("cat", "dog"))), "TestDataset/dog/3.png"),
        {"TrainDataset": {1: "cat", 2: "dog"}, "TestDataset": {3: "dog"}},
    ),
    Case(
        "the classes one folder deeper in each split",
        put("train/images/cat/1.png", "train/images/dog/2.png", "val/images/cat/3.png"),
        {"train": {1: "images", 2: "images"}, "val": {3: "images"}},
        "has one class only .images., .* if the classes are the folders in images, give data.class_depth=2",
        code=2,
    ),
    refused(
        "annotations beside the pictures of a detector",
        also(put("train/images/1.png"), put("train/labels/1.txt")),
        "train/labels has no images .*fill it or move it elsewhere",
    ),
    refused(
        "annotations beside the class folders",
        also(put("images/cat/1.png", "images/dog/2.png"), put("annotations/1.xml")),
        r"move it elsewhere, or give data.path=\S*/images if that is the data set",
    ),
    refused(
        "another name of the split for training",
        put("train_mini/cat/1.png", "train_mini/dog/2.png", "val/cat/3.png"),
        r"name the split for training \(data.train_split=train_mini\)",
    ),
    Case(
        "another name of the split for training, as told",
        put("train_mini/cat/1.png", "train_mini/dog/2.png", "val/cat/3.png"),
        {"train_mini": {1: "cat", 2: "dog"}, "val": {3: "cat"}},
        data={"train_split": "train_mini"},
    ),
    refused(
        "the data set twice in its own name, a test beside it",
        put("P/P/train/cat/1.png", "P/P/train/dog/2.png", "P/P/valid/cat/3.png", "test/test/4.png"),
        r"the data set may lie in \S*/P/P: give that",
    ),
    refused(
        "tiny-imagenet's validation images",
        put("train/n1/images/1.png", "train/n2/images/2.png", "val/images/3.png", "val/images/4.png"),
        "val has 2 pictures directly in it|images has 2 pictures directly in it|nothing says of which class they are",
    ),
    refused(
        "Kaggle's two tables",
        also(
            put("train/1.png"),
            write("sample_submission.csv", "id,label\n1,0\n"),
            write("train.csv", "id,label\n1,cat\n"),
        ),
        r"give data.path=\S*/train.csv if that lists them",
    ),
    refused(
        "a picture of a split that lies beside its classes",
        put("train/1.png", "train/a/2.png", "emu/3.png"),
        "1 such files.; move it into one|lies outside of a class folder",
    ),
    Case(
        "validation and test without training",
        put("seg_val/1.png", "seg_test/2.png"),
        {"": {1: "seg_val", 2: "seg_test"}},
    ),
    Case("pictures in one folder of their own each", put("cat/a/1.png", "dog/b/2.png"), TWO),
    Case(
        "some pictures one folder deeper",
        put("cat/1.png", "cat/a/2.png", "dog/3.png"),
        {"": {1: "cat", 2: "cat", 3: "dog"}},
    ),
    Case(
        "classes in upper and lower case",
        put("Zebra/1.png", "ant/2.png", "Bee/3.png"),
        {"": {1: "Zebra", 2: "ant", 3: "Bee"}},
        order=("ant", "Bee", "Zebra"),
    ),
    Case(
        "training and test alone",
        put("train/cat/1.png", "train/dog/2.png", "test/dog/3.png"),
        {"train": {1: "cat", 2: "dog"}, "test": {3: "dog"}},
    ),
)

# what tools leave behind
LEFT_BEHIND = (
    Case(
        "hidden folders",
        put(*PLAIN, "train/.ipynb_checkpoints/5.png", "train/cat/.x/6.png", ".git/7.png"),
        PLAIN_SEEN,
        "3 hidden",
        passed_over=3,
    ),
    Case("hidden pictures of macOS", put(*PLAIN, "train/cat/._1.png", "val/.DS_Store"), PLAIN_SEEN, passed_over=2),
    Case(
        "thumbnails of a NAS",
        put(*PLAIN, "@eaDir/1.png/x.jpg", "train/@eaDir/cat/y.jpg", "train/cat/@eaDir/1.png/z.jpg"),
        PLAIN_SEEN,
        "3 in folders of tools",
        passed_over=3,
    ),
    Case("__MACOSX", put("cat/1.png", "dog/2.png", "__MACOSX/cat/._1.png"), TWO, passed_over=1),
    Case(
        "lost+found and a recycle bin",
        put("cat/1.png", "dog/2.png", "lost+found/3.png", "$RECYCLE.BIN/4.png", "#recycle/5.png"),
        TWO,
        passed_over=3,
    ),
    Case(
        "Thumbs.db and desktop.ini",
        put("cat/1.png", "dog/2.png", "cat/Thumbs.db", "dog/desktop.ini", "notes.md"),
        TWO,
        "3 files that are no pictures",
        passed_over=3,
    ),
    Case(
        "backups of an editor",
        also(put("cat/1.png", "dog/2.png"), write("cat/1.png_original", picture(3)), write("cat/1.png~", picture(4))),
        TWO,
        passed_over=2,
    ),
    Case(
        "archives beside the class folders",
        also(put("cat/1.png", "dog/2.png"), write("cat.tar", b"x"), write("cat/old.zip", b"x")),
        TWO,
        passed_over=2,
    ),
)

# names
NAMES = (
    Case(
        "equal but for case",
        put("a/1.png", "A/2.png", "b/3.png"),
        {"": {1: "a", 2: "A", 3: "b"}},
        order=("A", "a", "b"),
    ),
    Case(
        "equal as numbers",
        put("s01/1.png", "s1/2.png", "s001/3.png"),
        {"": {1: "s01", 2: "s1", 3: "s001"}},
        order=("s001", "s01", "s1"),
    ),
    Case(
        "numbers in their order",
        put("10/1.png", "9/2.png", "1/3.png"),
        {"": {1: "10", 2: "9", 3: "1"}},
        order=("1", "9", "10"),
    ),
    Case("digits that are no numbers", put("x²/1².png", "x③/2.png", "٣/3.png"), {"": {1: "x²", 2: "x③", 3: "٣"}}),
    Case(
        "composed in one split and not in the other",
        put("train/cafe\u0301/1.png", "train/bar/2.png", "val/caf\u00e9/3.png"),
        {"train": {1: "caf\u00e9", 2: "bar"}, "val": {3: "caf\u00e9"}},
    ),
    refused("two that look alike", put("cafe\u0301/1.png", "caf\u00e9/2.png"), "two folders that look alike"),
    refused(
        "a class that is no UTF-8",
        put(b"caf\xe9/1.png", "bar/2.png"),
        r"caf\\xe9 has a name that is not UTF-8; rename it",
    ),
    Case("a file that is no UTF-8", put(b"cat/\xff\xfe.png", "dog/2.png"), TWO),
    Case("a line feed in a file's name", put("cat/a\nb.png", "dog/2.png"), TWO),
    Case(
        "an escape sequence in a class",
        put("cat\x1b[31m/1.png", "dog/2.png"),
        {"": {1: "cat\x1b[31m", 2: "dog"}},
        r"cat\\x1b\[31m",
    ),
    Case(
        "signs, blanks, dashes and dots",
        put("-cat/- 1.png", "d.o.g/ä 2 .png", "日本/3(1).png"),
        {"": {1: "-cat", 2: "d.o.g", 3: "日本"}},
    ),
)

# links and what is no file
LINKED = (
    Case(
        "a link to the folder above",
        also(put(*PLAIN), link("train/cat/again", "..")),
        PLAIN_SEEN,
        "1 links to folders that are read already",
        passed_over=1,
    ),
    Case(
        "a link to the data set",
        also(put(*PLAIN), link("train/dog/all", "../.."), link("val/cat/me", ".")),
        PLAIN_SEEN,
        passed_over=2,
    ),
    Case(
        "links between classes",
        also(put("cat/1.png", "dog/2.png"), link("cat/d", "../dog"), link("dog/c", "../cat")),
        TWO,
        passed_over=2,
    ),
    Case("a class by another name", also(put("cat/1.png", "dog/2.png"), link("hound", "dog")), TWO, passed_over=1),
    Case(
        "a class from elsewhere",
        also(put("cat/1.png"), outside("dog", "x.png", "deep/y.png")),
        {"": {1: "cat", 11: "dog", 12: "dog"}},
    ),
    Case(
        "the same folder from elsewhere twice",
        also(put("cat/1.png"), outside("dog", "x.png"), link("emu", "dog")),
        {"": {1: "cat", 11: "dog"}},
        passed_over=1,
    ),
    Case(
        "a split by another name",
        also(
            put("train_images/cat/1.png", "train_images/dog/2.png", "v/cat/3.png"),
            link("train", "train_images"),
            link("val", "v"),
        ),
        {"train": {1: "cat", 2: "dog"}, "val": {3: "cat"}},
        passed_over=2,
    ),
    Case(
        "val is train",
        also(put("train/cat/1.png", "train/dog/2.png"), link("val", "train")),
        {"train": {1: "cat", 2: "dog"}, "val": {1: "cat", 2: "dog"}},
    ),
    Case("linked pictures", also(put(*PLAIN), link("train/cat/5.png", "1.png", folder=False)), {**PLAIN_SEEN}),
    Case(
        "a link to nowhere",
        also(put("cat/1.png", "dog/2.png"), link("cat/3.png", "gone.png", folder=False)),
        {"": {1: "cat", 2: "dog", 0: "cat"}},
        broken=1,
        code=2,
    ),
    Case(
        "a pipe among the pictures",
        also(put("cat/1.png", "dog/2.png"), fifo("cat/3.png")),
        TWO,
        "1 that are no regular files",
        passed_over=1,
    ),
    Case(
        "a device among the pictures",
        also(put("cat/1.png", "dog/2.png"), link("cat/3.png", "/dev/zero", folder=False)),
        TWO,
        passed_over=1,
    ),
    Case(
        "links to a folder and to one inside of it",
        also(
            put("a/1.png"),
            lambda root: put("dog/puppy/12.png", "dog/13.png", start=12)(root.parent / "pool"),
            lambda root: (root / "dog").symlink_to("../pool/dog", target_is_directory=True),
            lambda root: (root / "puppy").symlink_to("../pool/dog/puppy", target_is_directory=True),
        ),
        {"": {1: "a", 12: "dog", 13: "dog"}},
        "1 links to folders that are read already",
        passed_over=1,
    ),
    Case(
        "links to a folder inside and then to all of it",
        also(
            put("a/1.png"),
            lambda root: put("dog/puppy/12.png", "dog/13.png", start=12)(root.parent / "pool"),
            lambda root: (root / "b").symlink_to("../pool/dog/puppy", target_is_directory=True),
            lambda root: (root / "c").symlink_to("../pool", target_is_directory=True),
        ),
        {"": {1: "a", 12: "b", 13: "c"}},
        passed_over=1,
    ),
    Case(
        "a link up from a linked folder",
        also(
            put("a/1.png"),
            lambda root: put("cat/12.png", "dog/13.png", start=12)(root.parent / "pool"),
            lambda root: (root.parent / "pool/cat/up").symlink_to("..", target_is_directory=True),
            lambda root: (root / "cat").symlink_to("../pool/cat", target_is_directory=True),
        ),
        {"": {1: "a", 12: "cat"}},
        passed_over=1,
    ),
    Case(
        "a link to a folder whose name begins like the data set's",
        also(put("a/1.png"), lambda root: put("12.png", start=12)(root.parent / "zo"), link("b", "../zo")),
        {"": {1: "a", 12: "b"}},
    ),
    Case(
        "a link named like a split inside of a class",
        also(put("train/cat/1.png", "train/dog/2.png"), link("train/cat/val", "../dog")),
        {"train": {1: "cat", 2: "dog"}},
        passed_over=1,
    ),
    Case(
        "two splits that are links to one folder beside them",
        also(put("pool/cat/1.png", "pool/dog/2.png"), link("train", "pool"), link("val", "pool")),
        {"train": {1: "cat", 2: "dog"}, "val": {1: "cat", 2: "dog"}},
        passed_over=1,
    ),
    Case(
        "a hidden link",
        also(put("cat/1.png", "dog/2.png"), outside(".more", "x.png", "y.png")),
        TWO,
        passed_over=1,
    ),
)

# endings and contents
ENDINGS = (
    Case("endings in capitals", put("cat/1.PNG", "cat/2.Jpeg", "dog/3.JPG"), {"": {1: "cat", 2: "cat", 3: "dog"}}),
    Case(
        "rarer endings",
        put("cat/1.jfif", "cat/2.jpe", "cat/3.tif", "dog/4.bmp", "dog/5.gif", "dog/6.webp", "dog/7.pgm"),
        {"": {1: "cat", 2: "cat", 3: "cat", 4: "dog", 5: "dog", 6: "dog", 7: "dog"}},
    ),
    Case("AVIF, JPEG 2000 and QOI", put("cat/1.avif", "cat/2.jp2", "dog/3.qoi"), {"": {1: "cat", 2: "cat", 3: "dog"}}),
    Case(
        "raw photographs",
        also(put("cat/1.png", "dog/2.png"), write("cat/3.dng", b"II*\0 raw"), write("dog/4.CR2", b"x")),
        TWO,
        r"1 \.dng pictures that cannot be read here",
        passed_over=2,
        code=2,
    ),
    Case(
        "JPEG XL and drawings",
        also(
            put("cat/1.png", "dog/2.png"),
            write("cat/3.jxl", b"\xff\x0a"),
            write("cat/4.svg", "<svg/>"),
            write("dog/5.eps", "%!PS"),
        ),
        TWO,
        passed_over=3,
        code=2,
    ),
    refused(
        "a class of raw photographs",
        also(put("cat/1.png", "dog/2.png"), write("emu/3.nef", b"x")),
        r"emu has no images .*\.nef pictures that cannot be read here: develop them",
    ),
    Case(
        "pictures without an ending",
        also(put("cat/1.png", "dog/2.png"), write("cat/3", picture(3)), write("dog/4.jpg?size=1", picture(4))),
        TWO,
        "2 pictures whose names do not end like a picture's",
        passed_over=2,
        code=2,
    ),
    Case(
        "named as another format",
        also(write("cat/1.jpg", picture(1)), write("dog/2.png", picture(2, "JPEG")), put("dog/3.gif", start=3)),
        {"": {1: "cat", 2: "dog", 3: "dog"}},
        "2 named as another format",
    ),
    Case(
        "a text named .jpg",
        also(put("cat/1.png", "dog/2.png"), write("cat/3.jpg", "no picture")),
        {"": {1: "cat", 2: "dog", 0: "cat"}},
        "not an image of a known format",
        broken=1,
        code=2,
    ),
    Case(
        "PostScript named .png",
        also(put("cat/1.png", "dog/2.png"), write("cat/3.png", "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")),
        {"": {1: "cat", 2: "dog", 0: "cat"}},
        broken=1,
        code=2,
    ),
    Case(
        "an empty file",
        also(put("cat/1.png", "dog/2.png"), write("dog/3.png", b"")),
        {"": {1: "cat", 2: "dog", 0: "dog"}},
        "the file is empty",
        broken=1,
        code=2,
    ),
    Case(
        "values that are no numbers",
        also(
            put("cat/1.png", "dog/2.png"),
            lambda root: Image.fromarray(np.full((40, 40), np.nan, np.float32)).save(root / "cat/3.tif"),
        ),
        {"": {1: "cat", 2: "dog", 0: "cat"}},
        "not finite",
        broken=1,
        code=2,
    ),
    Case(
        "more pixels than the limit",
        put("cat/1.png", "dog/2.png"),
        {"": {0: "cat", -1: "dog"}},
        r"40 x 40 pixels are more than data.max_image_pixels=1599",
        broken=2,
        code=2,
        data={"max_image_pixels": 1599},
    ),
)


# parquet


def table(name: str, *, features: Mapping[str, Any] | None = None, **columns: Any) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        found = pa.table(dict(columns))
        if features is not None:
            found = found.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(found, root / name)

    return build


def pixels(number: int, *shape: int) -> list[Any]:
    return np.full(shape, 10 * number, np.uint8).tolist()


def cells(*numbers: int) -> list[dict[str, Any]]:
    return [{"bytes": picture(number), "path": None} for number in numbers]


NAMED = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
TABLES_SEEN: Seen = {"train": {1: "cat", 2: "dog"}, "test": {3: "dog"}}


def both(train: str, test: str, **more: Any) -> Callable[[Path], None]:
    return also(
        table(train, image=cells(1, 2), label=[0, 1], features=NAMED, **more),
        table(test, image=cells(3), label=[1], features=NAMED, **more),
    )


def one_table(
    image: Any, label: Any = (0, 1), features: Mapping[str, Any] | None = NAMED, **more: Any
) -> Callable[[Path], None]:
    return table("train.parquet", image=image, label=list(label), features=features, **more)


PARQUET_SEEN: Seen = {"train": {1: "cat", 2: "dog"}}
PARQUET = (
    Case("as datasets writes it", both("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"), TABLES_SEEN),
    Case("in data/", both("data/train-00000-of-1.parquet", "data/test-00000-of-1.parquet"), TABLES_SEEN),
    Case(
        "in a configuration's folder",
        both("plain_text/train-00000-of-1.parquet", "plain_text/test-00000-of-1.parquet"),
        TABLES_SEEN,
    ),
    Case("as the hub converts it", both("default/train/0000.parquet", "default/test/0000.parquet"), TABLES_SEEN),
    Case("a folder for each split", both("train/0000.parquet", "test/0000.parquet"), TABLES_SEEN),
    Case(
        "a part as the hub converts it",
        both("default/partial-train/0000.parquet", "default/partial-test/0000.parquet"),
        {"partial-train": {1: "cat", 2: "dog"}, "partial-test": {3: "dog"}},
    ),
    refused(
        "two configurations",
        also(both("a/train-0.parquet", "a/test-0.parquet"), table("b/train-0.parquet", image=cells(4), label=[0])),
        r"several sets of parquet files \(a, b\)",
    ),
    Case(
        "a single table",
        table("pets.parquet", image=cells(1, 2), label=[0, 1], features=NAMED),
        TWO,
        path="pets.parquet",
    ),
    Case("a table without a split's name", table("0000.parquet", image=cells(1, 2), label=[0, 1], features=NAMED), TWO),
    Case("bytes alone", one_table([picture(1), picture(2)], features=None, label=["cat", "dog"]), PARQUET_SEEN),
    Case("bytes as numbers", one_table([list(picture(1)), list(picture(2))]), PARQUET_SEEN),
    Case("rows of pixels", one_table([pixels(1, 40, 40), pixels(2, 40, 40)]), PARQUET_SEEN),
    Case("pixels with channels last", one_table([pixels(1, 40, 30, 3), pixels(2, 40, 30, 3)]), PARQUET_SEEN),
    Case("pixels with channels first", one_table([pixels(1, 3, 40, 30), pixels(2, 3, 40, 30)]), PARQUET_SEEN),
    Case(
        "flat pixels with a shape",
        one_table(
            [pixels(1, 1200), pixels(2, 1200)], features={**NAMED, "image": {"_type": "Array3D", "shape": [20, 20, 3]}}
        ),
        PARQUET_SEEN,
    ),
    Case(
        "flat pixels without a shape",
        one_table([pixels(1, 1600), pixels(2, 1600)]),
        {"train": {0: "cat", -1: "dog"}},
        "1600 pixels without a shape",
        broken=2,
        code=2,
    ),
    Case(
        "pixels beyond 255",
        one_table([np.full((4, 4), 300).tolist(), pixels(2, 40, 40)]),
        {"train": {0: "cat", 2: "dog"}},
        "from 300 to 300",
        broken=1,
        code=2,
    ),
    Case(
        "base64",
        one_table([base64.b64encode(picture(n)).decode() for n in (1, 2)], features=None, label=["cat", "dog"]),
        PARQUET_SEEN,
    ),
    Case(
        "data URLs",
        one_table(
            [f"data:image/png;base64,{base64.b64encode(picture(n)).decode()}" for n in (1, 2)],
            features=None,
            label=["cat", "dog"],
        ),
        PARQUET_SEEN,
    ),
    Case(
        "paths from the table's folder",
        also(put("img/1.png", "img/2.png"), one_table([{"bytes": None, "path": f"img/{n}.png"} for n in (1, 2)])),
        PARQUET_SEEN,
        passed_over=2,
    ),
    Case(
        "addresses",
        one_table([{"bytes": None, "path": f"https://example.org/{n}.png"} for n in (1, 2)]),
        {"train": {0: "cat", -1: "dog"}},
        "is an address; pictures are not downloaded",
        broken=2,
        code=2,
    ),
    Case(
        "a row without a picture",
        one_table([{"bytes": picture(1), "path": None}, {"bytes": None, "path": None}]),
        {"train": {1: "cat", 0: "dog"}},
        "the row has no image",
        broken=1,
        code=2,
    ),
    refused(
        "several labels in a row", one_table(cells(1, 2), [[0, 1], [1]], features=None), "a row has several labels"
    ),
    Case(
        "labels from 1 on",
        one_table(cells(1, 2), [1, 2], features=None),
        {"train": {1: "1", 2: "2"}},
        "class 0 never occurs",
        order=("0", "1", "2"),
    ),
    refused("labels that are fractions", one_table(cells(1, 2), [0.5, 1.0], features=None), "expected whole numbers"),
    Case(
        "two columns of labels",
        table("train.parquet", img=cells(1, 2), fine_label=["cat", "dog"], target=["x", "x"]),
        PARQUET_SEEN,
        r"column fine_label is taken; there are also target",
    ),
    Case(
        "the other column of labels",
        table("train.parquet", img=cells(1, 2), fine_label=["x", "y"], target=["cat", "dog"]),
        PARQUET_SEEN,
        data={"label_column": "target"},
    ),
    Case(
        "a column of pictures by another name",
        table("train.parquet", jpg=cells(1, 2), label=["cat", "dog"]),
        PARQUET_SEEN,
        data={"image_column": "jpg"},
    ),
    refused(
        "no column of pictures",
        table("train.parquet", jpg=cells(1, 2), label=["cat", "dog"]),
        "has no image .* column; its columns: jpg, label; name it with data.image_column",
    ),
    refused("no parquet inside", write("train.parquet", "nothing of the kind"), "cannot be read as parquet"),
    Case(
        "a broken description of columns",
        also(
            one_table(cells(1, 2), ["cat", "dog"], features=None), lambda root: _with_metadata(root / "train.parquet")
        ),
        PARQUET_SEEN,
    ),
    Case(
        "class numbers without signs",
        one_table(cells(1, 2), np.array([0, 1], np.uint8), None),
        {"train": {1: "0", 2: "1"}},
    ),
    Case(
        "class numbers of 64 bits without signs",
        one_table(cells(1, 2), np.array([1, 0], np.uint64)),
        {"train": {1: "dog", 2: "cat"}},
    ),
    Case(
        "labels in bytes",
        one_table(cells(1, 2), ["caf\u00e9".encode(), b"bar"], None),
        {"train": {1: "caf\u00e9", 2: "bar"}},
    ),
    refused("labels in two normal forms", one_table(cells(1, 2), ["caf\u00e9", "cafe\u0301"], None), "one class only"),
    refused("an empty label", one_table(cells(1, 2), ["cat", ""], None), "row 2 has no label"),
    refused("labels that are structs", one_table(cells(1, 2), [{"a": 1}, {"a": 2}], None), "several labels"),
    refused(
        "a later file without the column",
        also(
            table("train-0.parquet", image=cells(1), label=[0], features=NAMED),
            table("train-1.parquet", img=cells(2), label=[1], features=NAMED),
        ),
        "train-1.parquet has no column image, and .*train-0.parquet has",
    ),
    refused(
        "files that number the classes differently",
        also(
            table("train-0.parquet", image=cells(1), label=[0], features=NAMED),
            table(
                "train-1.parquet",
                image=cells(2),
                label=[1],
                features={"label": {"_type": "ClassLabel", "names": ["dog", "cat"]}},
            ),
        ),
        "numbers the classes differently",
    ),
    Case(
        "a download that is not complete",
        also(
            table("train-00000-of-00003.parquet", image=cells(1), label=[0], features=NAMED),
            table("train-00002-of-00003.parquet", image=cells(2), label=[1], features=NAMED),
        ),
        PARQUET_SEEN,
        r"ATTENTION: 1 of 3 parts is not there \(train-00001-of-00003\)",
    ),
    refused(
        "two versions of a data set",
        also(
            table("data/train-00000-of-00001.parquet", image=cells(1), label=[0], features=NAMED),
            table("data/train-00000-of-00002.parquet", image=cells(2), label=[1], features=NAMED),
        ),
        "of 1 and of 2 parts",
    ),
    Case(
        "a preview beside data/",
        also(both("data/train-00000-of-1.parquet", "data/test-00000-of-1.parquet"), table("preview.parquet", a=[1])),
        TABLES_SEEN,
        passed_over=1,
    ),
    Case(
        "a banner beside the files",
        also(both("default/train/0000.parquet", "default/test/0000.parquet"), put("assets/banner.png")),
        TABLES_SEEN,
        passed_over=1,
    ),
    Case(
        "features of a model beside the pictures",
        also(put("cat/1.png", "dog/2.png"), table("features.parquet", x=[1.0])),
        TWO,
        passed_over=1,
    ),
    Case(
        "a column with the split",
        table("all.parquet", image=cells(1, 2, 3), label=["cat", "dog", "dog"], split=["train", "train", "val"]),
        {"train": {1: "cat", 2: "dog"}, "val": {3: "dog"}},
        "column split is the split",
    ),
    Case(
        "a column that says whether it is for tests",
        table("all.parquet", image=cells(1, 2, 3), label=["cat", "dog", "dog"], is_test=[False, False, True]),
        {"train": {1: "cat", 2: "dog"}, "test": {3: "dog"}},
    ),
    refused(
        "a pointer of Git LFS", write("train.parquet", "version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"
    ),
    Case(
        "base64 of addresses",
        one_table([base64.urlsafe_b64encode(picture(n, "BMP")).decode() for n in (1, 2)]),
        PARQUET_SEEN,
    ),
    Case(
        "a struct of other fields",
        one_table([{"filename": "1.png", "content": picture(n)} for n in (1, 2)]),
        {"train": {0: "cat", -1: "dog"}},
        "the row holds filename, content, expected bytes or path",
        broken=2,
        code=2,
    ),
    Case(
        "empty bytes beside a path",
        also(put("1.png", "2.png"), one_table([{"bytes": b"", "path": f"{n}.png"} for n in (1, 2)])),
        PARQUET_SEEN,
        passed_over=2,
    ),
    Case(
        "bytes and the path that they came from",
        one_table([{"bytes": picture(n), "path": f"/home/me/{n}.png"} for n in (1, 2)]),
        PARQUET_SEEN,
    ),
    Case(
        "eleven names by number",
        one_table(
            cells(1, 2, 3),
            (2, 10, 1),
            {"label": {"_type": "ClassLabel", "names": {str(n): f"c{n}" for n in range(11)}}},
        ),
        {"train": {1: "c2", 2: "c10", 3: "c1"}},
    ),
    Case(
        "a split's folder inside of another's", both("test/train/0000.parquet", "test/test/0000.parquet"), TABLES_SEEN
    ),
    Case(
        "a label beside another numbering",
        one_table(cells(1, 2), (0, 1), {"coarse": {"_type": "ClassLabel", "names": ["x", "y"]}}, coarse=[1, 0]),
        {"train": {1: "0", 2: "1"}},
        "column label is taken; there are also coarse",
    ),
    Case(
        "channels first in three rows",
        one_table([np.stack([np.full((3, 40), 10 * n)] * 3, -1).tolist() for n in (1, 2)]),
        PARQUET_SEEN,
    ),
    Case(
        "levels below 0",
        one_table([[[-1] * 4] * 4, pixels(2, 40, 40)]),
        {"train": {0: "cat", 2: "dog"}},
        "its pixels go from -1 to -1, expected 0 to 255",
        broken=1,
        code=2,
    ),
)


def _with_metadata(file: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(pq.read_table(file).replace_schema_metadata({"huggingface": "{not json"}), file)


# WebDataset shards


def shard(name: str, *members: tuple[str, bytes | str] | tarfile.TarInfo) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(root / name, "w") as tar:
            for member in members:
                if isinstance(member, tarfile.TarInfo):
                    tar.addfile(member)
                    continue
                content = member[1] if isinstance(member[1], bytes) else member[1].encode()
                entry = tarfile.TarInfo(member[0])
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))

    return build


def linked(name: str, target: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.LNKTYPE, target
    return entry


CLASSES = write("classes.txt", "cat\ndog\n")


def one_shard(*members: Any) -> Callable[[Path], None]:
    return also(shard("train-0.tar", *members), CLASSES)


def _rewritten(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """The shard with other bytes."""
    return lambda root: (root / "train-0.tar").write_bytes(change((root / "train-0.tar").read_bytes()))


A, B = (("a.png", picture(1)), ("a.cls", "0")), (("b.png", picture(2)), ("b.cls", "1"))
SHARDS = (
    Case("samples in their order", one_shard(*A, *B), PARQUET_SEEN),
    Case(
        "a folder for each split in a list",
        also(shard("train/0.tar", *A, *B), shard("val/0.tar", ("c.png", picture(3)), ("c.cls", "1")), CLASSES),
        {"train": {1: "cat", 2: "dog"}, "val": {3: "dog"}},
    ),
    Case(
        "one shard",
        shard("pets-train.tar", *A, *B),
        {"pets-train": {1: "0", 2: "1"}},
        path="pets-train.tar",
        data={"train_split": "pets-train", "eval_split": "pets-train"},
    ),
    Case("dots in the key", one_shard(("x/001.05.png", picture(1)), ("x/001.cls", "0"), *B), PARQUET_SEEN),
    refused(
        "two pictures of one key by dots",
        one_shard(("001.05.png", picture(1)), ("001.05.cls", "0"), ("001.06.png", picture(2)), ("001.06.cls", "1")),
        "sample '001' has two pictures, 05.png and 06.png",
    ),
    Case(
        "a mask beside the picture",
        one_shard(("a.jpg", picture(1, "JPEG")), ("a.png", picture(9)), ("a.cls", "0"), *B),
        PARQUET_SEEN,
        "1 further pictures of a sample",
        passed_over=1,
    ),
    Case("a named mask beside the picture", one_shard(("a.mask.png", picture(9)), *A, *B), PARQUET_SEEN, passed_over=1),
    refused("a key twice", one_shard(*A, *A, *B), "a.png is there twice"),
    Case("samples out of order", one_shard(A[0], B[0], B[1], A[1]), PARQUET_SEEN),
    Case(
        "members of macOS", one_shard(("._a.png", b"x"), ("__MACOSX/x.png", b"x"), *A, *B), PARQUET_SEEN, passed_over=2
    ),
    Case(
        "other members",
        one_shard(*A, ("a.txt", "a cat"), ("a.npy", b"x"), *B, ("README", "x")),
        PARQUET_SEEN,
        passed_over=3,
    ),
    refused("a sample without a class", one_shard(*A, B[0]), "sample 'b' has no class"),
    Case(
        "a class without a picture",
        one_shard(*A, *B, ("c.cls", "1")),
        PARQUET_SEEN,
        "1 samples without a picture",
        passed_over=1,
    ),
    refused("a class by name", one_shard(A[0], ("a.cls", "cat"), *B), r"a.cls holds no class number \('cat'\)"),
    refused("a class that is no number", one_shard(A[0], ("a.cls", "²"), *B), "holds no class number"),
    Case(
        "classes in JSON",
        one_shard(A[0], ("a.json", '{"label": 0}'), B[0], ("b.json", '{"label": 1, "x": 2}')),
        PARQUET_SEEN,
    ),
    refused("a huge class number", one_shard(*A, B[0], ("b.cls", "300000000")), "300000000 is no class number"),
    Case(
        "linked members",
        one_shard(*A, *B, linked("c.png", "a.png"), ("c.cls", "0")),
        PARQUET_SEEN,
        "pictures that are links",
        passed_over=2,
        code=2,
    ),
    Case(
        "raw photographs in shards",
        one_shard(*A, *B, ("c.dng", b"x"), ("c.cls", "0")),
        PARQUET_SEEN,
        passed_over=2,
        code=2,
    ),
    refused(
        "a gap in classes.txt",
        also(shard("train-0.tar", *A, *B), write("classes.txt", "cat\n\ndog\n")),
        "line 2 is empty",
    ),
    refused("a compressed shard", write("train-0.tar", b"\x1f\x8b compressed"), "cannot be read as a plain tar file"),
    refused(
        "an unreadable _info.json",
        also(one_shard(*A, *B), write("_info.json", "[1")),
        "does not list shards as timm writes it",
    ),
    refused(
        "an _info.json of endless shards",
        also(
            one_shard(*A, *B),
            write("_info.json", '{"splits": {"train": {"filenames": ["train-0.tar"], "shard_lengths": [1e999]}}}'),
        ),
        "does not list shards as timm writes it",
    ),
    refused(
        "two shards joined by cat", also(one_shard(*A), _rewritten(lambda raw: raw * 2)), "several were joined by cat"
    ),
    refused(
        "a damaged header",
        also(one_shard(*A, *B), _rewritten(lambda raw: raw.replace(b"b.png", b"b.pn\xff", 1))),
        "it does not go on as a tar file: it is damaged",
    ),
    refused(
        "cut after a member",
        also(one_shard(*A, *B), _rewritten(lambda raw: raw[: len(raw.rstrip(b"\0")) // 512 * 512 + 512])),
        "ends without tar's end mark",
    ),
    refused(
        "not fetched to the end",
        also(one_shard(*A, *B), _rewritten(lambda raw: raw + bytes(2 << 20))),
        "it was not fetched completely",
    ),
    refused(
        "fewer samples than _info.json says",
        also(
            one_shard(*A, *B),
            write(
                "_info.json", json.dumps({"splits": {"train": {"filenames": ["train-0.tar"], "shard_lengths": [3]}}})
            ),
        ),
        "train-0.tar holds 2 samples, and _info.json says 3",
    ),
    refused(
        "a share for a label",
        one_shard(("a.png", picture(1)), ("a.json", '{"label": 0.93}'), *B),
        "holds no class number",
    ),
    refused(
        "true for a label", one_shard(("a.png", picture(1)), ("a.json", '{"label": true}'), *B), "holds no class number"
    ),
    refused(
        "two labels of a sample",
        one_shard(*A, ("a.json", '{"label": 1}'), *B),
        r"has the classes 0 \(.cls\) and 1 \(.json\)",
    ),
    Case("a label twice", one_shard(*A, ("a.json", '{"label": 0}'), *B), PARQUET_SEEN),
    refused(
        "a coarse and a fine label",
        one_shard(("a.png", picture(1)), ("a.coarse.cls", "0"), ("a.fine.cls", "1"), *B),
        "an image needs one",
    ),
    Case("a banner beside the shards", also(one_shard(*A, *B), put("banner.png")), PARQUET_SEEN),
    Case("a number beside JSON without one", one_shard(*A, ("a.json", '{"width": 9}'), *B), PARQUET_SEEN),
    refused(
        "an empty first line of names",
        also(shard("train-0.tar", *A, *B), write("classes.txt", "\ncat\ndog\n")),
        "line 1 is empty",
    ),
    Case("endings of members in capitals", one_shard(("a.PNG", picture(1)), ("a.CLS", "0"), *B), PARQUET_SEEN),
    Case("shards far below", also(one_shard(*A, *B), shard("old/train/train-1.tar", *A)), PARQUET_SEEN),
    Case(
        "a member that is about the shard",
        one_shard(("__meta__/x.png", picture(9)), *A, *B),
        PARQUET_SEEN,
        passed_over=1,
    ),
)


# lists of files


def listing(
    *rows: Sequence[str], name: str = "list.csv", separator: str = ",", start: str = ""
) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        text = io.StringIO()
        csv.writer(text, delimiter=separator, lineterminator="\n").writerows(rows)
        (root / name).write_text(start + text.getvalue(), encoding="utf-8")

    return build


IMAGES = put("img/1.png", "img/2.png")
ROWS = (("img/1.png", "cat"), ("img/2.png", "dog"))


def listed(name: str, *rows: Sequence[str], refused: str | None = None, **more: Any) -> Case:
    """A case of a CSV file beside img/1.png and img/2.png, or other files; `refused` is what a refusal says."""
    build, options = more.pop("build", IMAGES), more.pop("options", {})
    if refused is not None:
        more |= {"seen": None, "says": refused, "code": 2}
    return Case(
        name, also(build, listing(*rows, **options)), **{"seen": TWO, "path": options.get("name", "list.csv")} | more
    )


THREE = put("img/1.png", "img/2.png", "img/3.png")
LISTS = (
    listed("file and label", ("file", "label"), *ROWS, says="column file is the file, label the label"),
    listed(
        "other names of columns",
        ("Image Path", "n", "Class_Name"),
        *((file, "7", label) for file, label in ROWS),
        says="column Image Path is the file, Class_Name the label",
    ),
    listed("tabs", ("filename", "species"), *ROWS, options={"name": "list.tsv", "separator": "\t"}),
    listed("semicolons", ("file", "label"), *ROWS, options={"separator": ";"}),
    listed("no header", *ROWS),
    listed("a mark of UTF-8 before the header", ("file", "label"), *ROWS, options={"start": "\ufeff"}),
    listed(
        "splits",
        ("file", "label", "Split"),
        *(
            (file, label, split)
            for (file, label), split in zip((*ROWS, *ROWS), ("TRAIN", "TRAIN", "Test", "Test"), strict=True)
        ),
        seen={"TRAIN": {1: "cat", 2: "dog"}, "Test": {1: "cat", 2: "dog"}},
    ),
    listed(
        "a column is_valid",
        ("name", "label", "is_valid"),
        (*ROWS[0], "False"),
        (*ROWS[1], "False"),
        ("img/3.png", "cat", "True"),
        build=THREE,
        seen={"train": {1: "cat", 2: "dog"}, "validation": {3: "cat"}},
    ),
    listed(
        "Kaggle's ids without endings",
        ("id", "breed"),
        ("1", "cat"),
        ("2", "dog"),
        build=put("train/1.jpg", "train/2.jpg"),
        options={"name": "train.csv"},
        says=r"below train/\) without its ending",
    ),
    listed(
        "files below images/",
        ("image", "label"),
        ("1.png", "cat"),
        ("2.png", "dog"),
        build=put("images/1.png", "images/2.png"),
    ),
    listed("paths of Windows", ("file", "label"), ("img\\1.png", "cat"), ("img\\2.png", "dog")),
    listed("a row twice", ("file", "label"), *ROWS, ROWS[0], says="1 rows that say again", passed_over=1),
    listed(
        "two labels of a file",
        ("file", "label"),
        *ROWS,
        ("img/1.png", "dog"),
        refused="row 4, says that img/1.png is dog, and another row that it is cat",
    ),
    listed("a row without a label", ("file", "label"), *ROWS, ("img/1.png", ""), refused="row 4, has no label"),
    listed("a row that is too short", ("file", "label"), *ROWS, ("img/1.png",), refused="row 4, has no label"),
    listed(
        "a file that is not there",
        ("file", "label"),
        *ROWS,
        ("img/9.png", "dog"),
        seen={"": {1: "cat", 2: "dog", 0: "dog"}},
        says="No such file",
        broken=1,
        code=2,
    ),
    listed("no file is there", ("file", "label"), ("x/1.png", "cat"), refused="lists x/1.png, which is not in"),
    listed(
        "addresses in a list",
        ("file", "label"),
        ("https://example.org/1.png", "cat"),
        refused="pictures are not downloaded",
    ),
    listed(
        "a column for each class",
        ("file", "cat", "dog"),
        ("img/1.png", "1", "0"),
        ("img/2.png", "0", "1"),
        refused="cat, dog look like one column for each class",
    ),
    listed("a header alone", ("file", "label"), refused="a header and no rows"),
    listed(
        "numbers as classes",
        ("file", "label"),
        ("img/1.png", "10"),
        ("img/2.png", "9"),
        seen={"": {1: "10", 2: "9"}},
        order=("9", "10"),
    ),
    listed(
        "raw photographs in a list",
        ("file", "label"),
        *ROWS,
        ("img/3.dng", "dog"),
        says=r"\.dng pictures",
        passed_over=1,
        code=2,
    ),
    listed(
        "a class in two forms of Unicode",
        ("file", "label"),
        ("img/1.png", "cafe\u0301"),
        ("img/2.png", "caf\u00e9"),
        ("img/3.png", "bar"),
        build=THREE,
        seen={"": {1: "caf\u00e9", 2: "caf\u00e9", 3: "bar"}},
    ),
    refused(
        "not UTF-8",
        also(IMAGES, write("list.csv", "file,label\nimg/1.png,caf\xe9\n".encode("latin-1"))),
        "is not UTF-8; save it again",
        path="list.csv",
    ),
    refused("an empty table", also(IMAGES, write("list.csv", "")), "has no rows", path="list.csv"),
    Case(
        "a list in parquet",
        also(IMAGES, table("list.parquet", path=["img/1.png", "img/2.png"], label=["cat", "dog"])),
        TWO,
        path="list.parquet",
    ),
    refused(
        "the folder of a list",
        also(put("1.png", "2.png"), listing(("file", "label"), ("1.png", "cat"), ("2.png", "dog"))),
        r"give data.path=.*/list.csv",
    ),
    listed(
        "a label with the separator in it",
        ("file", "label"),
        ("img/1.png", "crane", " bird"),
        ("img/2.png", "crane", " machine"),
        refused="row 2, has 3 cells and the table 2 columns",
    ),
    listed("empty cells after the last column", ("file", "label"), (*ROWS[0], "", ""), ROWS[1]),
    refused(
        "a quote that is not closed",
        also(IMAGES, write("list.csv", 'file,label\nimg/1.png,cat\nimg/2.png,"dog\n')),
        "row 3, cannot be read: unexpected end of data .an unclosed quote",
        path="list.csv",
    ),
    refused(
        "a quote that closes later",
        also(IMAGES, write("list.csv", 'file,label\nimg/1.png,"cat\nimg/2.png,dog"\n')),
        "row 2: .* is no label; an image needs one class, in one line",
        path="list.csv",
    ),
    refused(
        "rows after empty lines",
        also(IMAGES, write("list.csv", "file,label\n\n\n\nimg/1.png,cat\nimg/2.png,\n")),
        "row 6, has no label",
        path="list.csv",
    ),
    listed(
        "Kaggle's data set column",
        ("class id", "filepaths", "labels", "data set"),
        ("0", "img/1.png", "cat", "train"),
        ("1", "img/2.png", "dog", "train"),
        ("0", "img/3.png", "cat", "test"),
        build=THREE,
        seen={"train": {1: "cat", 2: "dog"}, "test": {3: "cat"}},
        says="data set the split",
    ),
    listed(
        "a column of any name that names splits",
        ("file", "label", "purpose"),
        (*ROWS[0], "training"),
        (*ROWS[1], "training"),
        ("img/3.png", "cat", "dev"),
        build=THREE,
        seen={"training": {1: "cat", 2: "dog"}, "dev": {3: "cat"}},
        says="purpose the split",
    ),
    listed(
        "is_training_image",
        ("file", "label", "is_training_image"),
        (*ROWS[0], "1"),
        (*ROWS[1], "1"),
        ("img/3.png", "cat", "0"),
        build=THREE,
        seen={"train": {1: "cat", 2: "dog"}, "test": {3: "cat"}},
    ),
    listed(
        "neither yes nor no",
        ("file", "label", "is_valid"),
        (*ROWS[0], "FALSCH"),
        (*ROWS[1], "WAHR"),
        refused="column is_valid, says 'FALSCH', expected yes or no",
    ),
    listed(
        "is_train with the names of splits",
        ("file", "label", "is_train"),
        (*ROWS[0], "train"),
        (*ROWS[1], "train"),
        ("img/3.png", "cat", "test"),
        build=THREE,
        seen={"train": {1: "cat", 2: "dog"}, "test": {3: "cat"}},
    ),
    listed("folds", ("file", "label", "fold"), (*ROWS[0], "0"), (*ROWS[1], "1")),
    listed(
        "an id of two pictures",
        ("id", "label"),
        ("1", "cat"),
        ("2", "dog"),
        build=put("train/1.jpg", "train/2.jpg", "train/1.png"),
        options={"name": "train.csv"},
        refused="lists 1, and there are train/1.jpg, train/1.png; write folder and ending into the table",
    ),
    listed(
        "a file with two labels in two splits",
        ("file", "label", "split"),
        (*ROWS[0], "train"),
        (*ROWS[1], "train"),
        ("./img/1.png", "dog", "val"),
        refused="row 4, says that ./img/1.png is dog, and another row that it is cat",
    ),
    listed(
        "a label called y beside an x, asked for",
        ("file", "x", "y"),
        ("img/1.png", "2", "cat"),
        ("img/2.png", "2", "dog"),
        data={"label_column": "y"},
    ),
    listed(
        "coordinates",
        ("file", "x", "y", "kind"),
        ("img/1.png", "2", "3", "cat"),
        ("img/2.png", "2", "4", "dog"),
        refused="has no column for the label .columns: file, x, y, kind.",
    ),
    listed("pandas' nothing", ("file", "label"), ROWS[0], ("img/2.png", "nan"), refused="row 3, has no label"),
    listed(
        "a header in another language",
        ("Datei", "Klasse"),
        *ROWS,
        options={"separator": ";"},
        says="column Datei is the file, Klasse the label",
    ),
    listed("Excel's first line", ("file", "label"), *ROWS, options={"separator": ";", "start": "sep=;\n"}),
    listed("a header in the middle", ("file", "label"), ROWS[0], ("file", "label"), ROWS[1]),
    refused(
        "UTF-16 without its mark",
        also(IMAGES, write("list.csv", "file,label\n".encode("utf-16-le"))),
        r"is no UTF-8 text \(is it UTF-16\?\)",
        path="list.csv",
    ),
    listed(
        "pictures in two folders",
        ("image_id", "dx"),
        ("ISIC_1", "mel"),
        ("ISIC_2", "nv"),
        build=put("part_1/ISIC_1.png", "part_2/ISIC_2.png"),
        seen={"": {1: "mel", 2: "nv"}},
        says="column image_id is the file .by its name, in several folders. without its ending, dx the label",
    ),
    listed(
        "paths from a folder above",
        ("Path", "label"),
        ("CheX/train/1.png", "cat"),
        ("CheX/train/2.png", "dog"),
        build=put("train/1.png", "train/2.png"),
    ),
    listed(
        "two columns that may be the file",
        ("filename", "path", "label"),
        ("1.png", "img/1.png", "cat"),
        ("2.png", "img/2.png", "dog"),
        says="column (path|filename) is the file",
    ),
    listed("addresses of files", ("file", "label"), *((f"file://img/{n}.png", c) for n, c in ((1, "cat"), (2, "dog")))),
    listed(
        "names in another normal form",
        ("file", "label"),
        ("caf\u00e9.png", "cat"),
        ("2.png", "dog"),
        build=put("cafe\u0301.png", "2.png"),
    ),
    listed(
        "pictures that are not read alone",
        ("file", "label"),
        ("1.dcm", "cat"),
        ("2.dcm", "dog"),
        build=put("1.dcm", "2.dcm"),
        refused="no pictures that can be read; 2 .dcm pictures that cannot be read here",
    ),
    Case(
        "NUL in a name",
        also(IMAGES, table("list.parquet", path=["img/1.png\0", "img/2.png"], label=["cat", "dog"])),
        {"": {0: "cat", 2: "dog"}},
        "embedded null|No such file",
        broken=1,
        code=2,
        path="list.parquet",
    ),
    refused(
        "several labels in parquet",
        also(IMAGES, table("list.parquet", path=["img/1.png", "img/2.png"], label=[["cat"], ["cat", "dog"]])),
        "is no label; an image needs one class",
        path="list.parquet",
    ),
    Case(
        "a list in parquet with splits, its column called image",
        also(
            THREE,
            table(
                "list.parquet",
                image=["img/1.png", "img\\2.png", "img/3.png"],
                label=["cat", "dog ", "cat"],
                split=["train", "train", "test"],
            ),
        ),
        {"train": {1: "cat", 2: "dog"}, "test": {3: "cat"}},
        path="list.parquet",
    ),
    listed("blanks after the separators", ("file", " label"), ("img/1.png", " cat"), ("img/2.png ", "dog ")),
    listed("a mark of UTF-8 and no header", *ROWS, options={"start": "\ufeff"}),
    listed("a list in capitals", ("file", "label"), *ROWS, options={"name": "LIST.CSV"}),
    listed(
        "the same names in images/ and beside the table",
        ("file", "label"),
        ("1.png", "cat"),
        ("2.png", "dog"),
        build=put("1.png", "2.png", "images/1.png", "images/2.png"),
    ),
    listed(
        "a name with a backslash",
        ("file", "label"),
        ("a\\1.png", "cat"),
        ("2.png", "dog"),
        build=put("a\\1.png", "2.png"),
    ),
    listed(
        "the same row in two splits",
        ("file", "label", "split"),
        (*ROWS[0], "train"),
        (*ROWS[1], "train"),
        (*ROWS[0], "train"),
        (*ROWS[0], "val"),
        seen={"train": {1: "cat", 2: "dog"}, "val": {1: "cat"}},
        passed_over=1,
    ),
    listed(
        "is_train with yes and no",
        ("file", "label", "is_train"),
        (*ROWS[0], "yes"),
        (*ROWS[1], "yes"),
        ("img/3.png", "cat", "no"),
        build=THREE,
        seen={"train": {1: "cat", 2: "dog"}, "test": {3: "cat"}},
    ),
)

CASES = (*FOLDERS, *LEFT_BEHIND, *NAMES, *LINKED, *ENDINGS, *PARQUET, *SHARDS, *LISTS)
