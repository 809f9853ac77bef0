"""Image folders: SPLIT/CLASS/image.jpg, or CLASS/image.jpg for a set without splits. timm finds the files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from illama.data.images import read_bytes, read_image
from illama.data.source import Source, number_classes
from illama.data.splits import EVAL_SPLITS, TRAIN_SPLITS, choose_split
from illama.errors import UserError
from illama.timm_bridge import import_timm

# timm by itself sees only the first three.
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")


class FolderSource(Source):
    """Image files."""

    def __init__(
        self, files: list[str], labels: np.ndarray, classes: tuple[str, ...], in_chans: int, description: str
    ) -> None:
        self._files = files
        self.in_chans = in_chans
        self.labels = labels
        self.classes = classes
        self.description = description

    def read(self, i: int) -> Image.Image:
        return read_image(self._files[i], self.in_chans)

    def encoded(self, i: int) -> bytes:
        return read_bytes(self._files[i])

    def location(self, i: int) -> str:
        return self._files[i]


def open_folder(
    path: Path, split: str, in_chans: int = 3, classes: Sequence[str] | None = None, *, carved: bool = False
) -> Source:
    """Open one split of an image folder; a class is the name of the folder that holds its files.

    Args:
        path: Folder with a sub-folder per split, or with the class folders directly.
        split: Name of a split folder, or "auto" for the first one to evaluate on. Class folders directly under
            `path` serve for evaluation; for training only if a share of them is `carved` out to evaluate on.
        in_chans: 1 or 3.
        classes: Numbering of the training split.
        carved: Whether `data.val_fraction` divides the split.

    Raises:
        UserError: No such split, a class folder without images, images outside of class folders, an unknown class.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a folder of image folders")
    splits = _split_folders(path, split)
    if splits:
        name = choose_split(split, splits, str(path))
        root, what = path / name, f"folder {path}, split {name}"
    elif split in TRAIN_SPLITS and not carved:
        raise UserError(
            f"{path} has class folders but no split folders (train/CLASS, val/CLASS), so nothing is left to "
            "evaluate on; give data.val_fraction=0.1, or sort the images into splits"
        )
    elif split not in ("auto", *TRAIN_SPLITS):
        raise UserError(f"{path} has no split {split!r}; splits found: none, its class folders lie directly in it")
    else:
        root, what = path, f"folder {path}"
    files, found, labels = _files_and_classes(root)
    names, labels = number_classes(found, labels, classes, what)
    return FolderSource(files, labels, names, in_chans, f"{what}: {len(files)} images, {len(names)} classes")


def _split_folders(path: Path, wanted: str) -> list[str]:
    """Sub-folders that are splits: named like one, and holding folders instead of images."""
    known = {*TRAIN_SPLITS, *EVAL_SPLITS, wanted}
    return sorted(
        entry.name
        for entry in path.iterdir()
        if entry.name in known and entry.is_dir() and any(inner.is_dir() for inner in entry.iterdir())
    )


def _files_and_classes(root: Path) -> tuple[list[str], list[str], np.ndarray]:
    """Files, class names in timm's order, and the class number of each file."""
    import_timm()
    from timm.data import create_dataset

    folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    try:
        reader = create_dataset("", root=str(root), search_split=False, input_key=";".join(IMAGE_ENDINGS)).reader
    except RuntimeError:  # timm's word for "not one image"
        raise UserError(f"{root} has no images ({', '.join(IMAGE_ENDINGS)}) in its folders: {folders}") from None
    by_number = {number: name for name, number in reader.class_to_idx.items()}
    inside = [(os.path.relpath(file, root).split(os.sep), file, by_number[label]) for file, label in reader.samples]
    # tools leave hidden folders (.ipynb_checkpoints) that are no classes
    inside = [entry for entry in inside if not any(part.startswith(".") for part in entry[0][:-1])]
    loose = [file for parts, file, _ in inside if len(parts) == 1]
    if loose:
        raise UserError(f"{loose[0]} lies outside of a class folder ({len(loose)} such files); move it into one")
    empty = sorted(set(folders) - {parts[0] for parts, _, _ in inside})
    if empty:
        raise UserError(
            f"class folder {root / empty[0]} has no images ({', '.join(IMAGE_ENDINGS)}); fill it or remove it"
        )
    used = {name for _, _, name in inside}
    names = [by_number[number] for number in sorted(by_number) if by_number[number] in used]
    numbers = {name: number for number, name in enumerate(names)}
    return [file for _, file, _ in inside], names, np.array([numbers[name] for *_, name in inside], dtype=np.int64)
