"""Image folders: SPLIT/CLASS/.../image.jpg, or CLASS/.../image.jpg for a set without splits.

The rule, which tests/data/plain.py holds in twenty lines: folders named like splits are splits if they hold all
pictures, or if one for training has pictures in sub-folders. Below a split the first level is the class
(`data.class_depth` says otherwise), and every picture below it belongs to it, at any depth.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from illama.console.text import shown
from illama.data.decode.images import read_bytes, read_head, read_image
from illama.data.layout import Layout, needed_folder
from illama.data.source import Source
from illama.data.sources.formats import picture_endings
from illama.data.sources.splits import (
    SPELLINGS,
    class_of_folder,
    class_order,
    few,
    is_training,
    role_at_start,
    role_of,
    roles_of,
    split_order,
)
from illama.data.sources.table import TABLES
from illama.data.sources.walk import Listing, PassedOver
from illama.errors import UserError

if TYPE_CHECKING:
    from illama.recipes.schema import ClassDepth, DataConfig

BESIDE = "beside the folders of the splits"


@dataclass(eq=False, repr=False, kw_only=True)
class FolderSource(Source):
    """Image files.

    Attributes:
        root: The folder that the paths begin in.
        paths: Path of each file below it, or from the top.
    """

    root: str
    paths: Sequence[str]

    def read(self, i: int) -> Image.Image:
        return read_image(self.location(i), self.in_chans, max_pixels=self.max_pixels)

    def encoded(self, i: int) -> bytes:
        return read_bytes(self.location(i))

    def head(self, i: int, length: int) -> tuple[int, bytes]:
        return read_head(self.location(i), length)

    def location(self, i: int) -> str:
        return os.path.join(self.root, self.paths[i])


def look_at_folder(data: DataConfig, listing: Listing | None) -> FolderLayout:
    """The layout of an image folder.

    Raises:
        UserError: There are no pictures in class folders, or folders of which it is not clear what they are.
    """
    listing = needed_folder(data, listing, "of image folders")
    if not listing.pictures:
        raise _without_images(listing, listing.root, listing.folders)
    return FolderLayout(data, listing)


class FolderLayout(Layout):
    """An image folder.

    Attributes:
        listing: All that lies in it.
    """

    def __init__(self, data: DataConfig, listing: Listing) -> None:
        self.listing = listing
        self._by_top = _grouped(listing)
        splits = split_folders(self._by_top, {data.train_split, data.eval_split}, shown(listing.root))
        passed_over = PassedOver(dict(listing.passed_over.reasons))
        if splits:
            for name, paths in self._by_top.items():
                if name not in splits and paths:
                    passed_over.add(BESIDE, name or paths[0], len(paths))
        if not splits and data.class_depth == 1:
            _refuse_split_below(listing)
        taken = "" if splits else ", ".join(name for name in self._by_top if name in roles_of(self._by_top))
        notes = (
            [f"{taken} is taken for a class: its pictures lie directly in it, and classes beside it"] if taken else []
        )
        super().__init__(data, "folder", shown(listing.root), splits, passed_over, notes)
        self.how_to_split = "sort the class folders into splits (train/CLASS, val/CLASS)"

    def read_split(self, split: str | None, in_chans: int, classes: Sequence[str] | None) -> FolderSource:
        """As `Layout.read_split`.

        Raises:
            UserError: Pictures without a class, a class without pictures, or names that no file could say.
        """
        root = self.listing.root if split is None else f"{self.listing.root}/{split}"
        paths = list(self.listing.pictures) if split is None else self._inside(split)
        if split is not None and {path.partition("/")[0] for path in paths} == {split}:
            root, paths = f"{root}/{split}", [path[len(split) + 1 :] for path in paths]  # unpacked into its own name
        folders = [class_folder(path, self.data.class_depth) for path in paths]
        if None in folders:
            self._refuse_loose(root, split, [path for path, folder in zip(paths, folders, strict=True) if not folder])
        folder_of = [folder or "" for folder in folders]
        self._refuse_empty(root, set(folder_of))
        self._note_depth(paths, folder_of)
        names = _class_names(root, folder_of)
        if classes is not None and len(names) == 1 and len(classes) > 1 and not set(names.values()) & set(classes):
            self._refuse_loose(root, split, paths)  # val/images/*.jpg
        number = {folder: number for number, folder in enumerate(names)}
        return FolderSource(
            root=root,
            paths=paths,
            classes=tuple(names.values()),
            labels=np.array([number[folder] for folder in folder_of], dtype=np.int64),
            in_chans=in_chans,
            description=f"folder {self.name_of(split)}",
        )

    def _refuse_loose(self, root: str, split: str | None, loose: list[str]) -> None:
        """Pictures that lie in no class folder."""
        first = f"{shown(root)}/{shown(loose[0])}"
        if len(loose) < len(self.listing.pictures if split is None else self._inside(split)):
            needs = "a class folder" if self.data.class_depth in (1, "leaf") else "class folders of that depth"
            raise UserError(f"{first} lies outside of {needs} ({len(loose)} such files); move it into one")
        sorted_ones = [
            name for name in self.splits if name != split and any("/" in path for path in self._inside(name))
        ]
        beside = f", while {shown(sorted_ones[0])} beside it has class folders" if sorted_ones else ""
        table = _table_for(split, self.listing.holding(*TABLES))
        listed = f"give data.path={self.where}/{shown(table)} if that lists them, or " if table else ""
        evaluates = split is not None and not is_training(split)
        other = "; to do without them, give data.val_fraction=0.1 or another data.eval_split" if evaluates else ""
        raise UserError(
            f"{shown(root)} has {len(loose)} pictures directly in it, such as {shown(loose[0])}{beside}: nothing says "
            f"of which class they are; sort them into class folders, {listed}list file and label in a .csv file "
            f"(docs/data.md#lists-of-files; ImageNet's validation images: docs/data.md#imagenet-1k){other}"
        )

    def _refuse_empty(self, root: str, used: set[str]) -> None:
        """Class folders without a picture, and splits without any."""
        prefix = f"{root}/"[len(self.listing.root) + 1 :]
        inside = [folder[len(prefix) :] for folder in self.listing.folders if folder.startswith(prefix)]
        if not used:
            raise _without_images(self.listing, root, inside)
        if self.data.class_depth == "leaf":
            return
        level = [folder for folder in inside if folder.count("/") == self.data.class_depth - 1]
        empty = [folder for folder in level if folder not in used]
        if empty:
            deep = [name for name in used if any(folder.startswith(f"{name}/") for folder in inside)]
            hint = (
                f", or give data.path={shown(root)}/{shown(deep[0])} if that is the data set"
                if len(used) == 1 and deep
                else ""
            )
            raise UserError(
                f"class folder {shown(root)}/{shown(empty[0])} has no images ({len(empty)} such folders); fill it or "
                f"move it elsewhere{hint}{_lost(self.listing)}"
            )

    def _inside(self, split: str) -> list[str]:
        return [path[len(split) + 1 :] for path in self._by_top.get(split, ())]

    def _note_depth(self, paths: Sequence[str], folder_of: Sequence[str]) -> None:
        """Say so where the folders inside of the class folders may be the classes."""
        if self.data.class_depth != 1:
            return
        inner: dict[str, set[str]] = {}
        for path, folder in zip(paths, folder_of, strict=True):
            inner.setdefault(folder, set()).add(path[len(folder) + 1 :].rpartition("/")[0].partition("/")[0])
        deeper = [folder for folder, names in inner.items() if len(names) > 1 and "" not in names]
        if deeper:
            example = f"{deeper[0]}/{min(inner[deeper[0]])}"
            self.note(
                f"{len(deeper)} of {len(inner)} class folders hold their pictures in folders of their own "
                f"({shown(example)}), which count as {shown(deeper[0])}; if those are the classes, give "
                "data.class_depth=2, or leaf for the innermost ones"
            )


def _class_names(root: str, folder_of: Sequence[str]) -> dict[str, str]:
    """The class that each folder is named for, in the order of the classes.

    Raises:
        UserError: A name is no UTF-8, or two look alike.
    """
    folders: dict[str, str] = {}
    for folder in sorted(set(folder_of)):
        name = class_of_folder(folder, f"{root}/{folder}")
        if name in folders:
            raise UserError(
                f"{shown(root)} has two folders that look alike, {folders[name]!a} and {folder!a}: "
                "their names differ in Unicode's normal form only; rename one of them"
            )
        folders[name] = folder
    return {folders[name]: name for name in class_order(folders)}


def _without_images(listing: Listing, root: str, folders: Sequence[str]) -> UserError:
    return UserError(
        f"{shown(root)} has no images in class folders; folders: {few(folders) or 'none'}; read are "
        f"{', '.join(sorted(picture_endings()))}{_lost(listing)}"
    )


def _lost(listing: Listing) -> str:
    """Pictures that were found and are not read, which may be what is missed."""
    lost = listing.passed_over.lost()
    return f"; passed over: {lost}" if lost else ""


def _refuse_split_below(listing: Listing) -> None:
    """Splits inside of what would be the classes: cat/train, cat/test."""
    inner: dict[str, set[str]] = {}
    for path in listing.pictures:
        top, _, rest = path.partition("/")
        if "/" in rest:
            inner.setdefault(top, set()).add(rest.partition("/")[0])
    for top, names in inner.items():
        roles, folder = roles_of(names), f"{shown(listing.root)}/{shown(top)}"
        if len(roles) == len(names) and "train" in roles.values() and len(set(roles.values())) > 1:
            raise UserError(
                f"{folder} holds the splits {', '.join(map(shown, split_order(names)))}; if it is a data set, give "
                f"data.path={folder}; if it is a class, move the splits above it (train/{shown(top)}, ...), or give "
                "data.class_depth=2 if those are no splits"
            )


def _table_for(split: str | None, tables: Sequence[str]) -> str | None:
    """The table that is likeliest to list the pictures of a split; a sample of a submission lists none."""
    role = None if split is None else role_of(split)

    def rank(table: str) -> tuple[bool, bool, int]:
        stem = table.rpartition("/")[2].rpartition(".")[0].lower()
        return (
            "submi" in stem,
            role is None or not any(stem.startswith(word) for word in SPELLINGS[role]),
            tables.index(table),
        )

    return min(tables, key=rank, default=None)


def class_folder(path: str, depth: ClassDepth) -> str | None:
    """The folder of a picture that names its class; None where the picture lies too high."""
    folders = path.split("/")[:-1]
    if depth == "leaf":
        return "/".join(folders) or None
    return "/".join(folders[:depth]) if len(folders) >= depth else None


def split_folders(by_top: Mapping[str, Sequence[str]], named: set[str], where: str) -> list[str]:
    """Which entries of a folder are splits; none where they are classes.

    Args:
        by_top: Paths of the pictures by their first folder, "" for those that lie in none.
        named: Splits that the recipe names; the usual spellings need not be there.
        where: The folder, for messages.

    Raises:
        UserError: Folders named like splits lie beside class folders, and it is not clear what they are.
    """
    empty = [name for name, paths in by_top.items() if name and not paths]
    folders = {name: paths for name, paths in by_top.items() if name and paths}
    roles = roles_of([*folders, *empty])
    splits = [name for name in folders if name in roles or name in named]
    others = [name for name in folders if name not in splits]
    nested = [name for name in splits if any(path.count("/") > 1 for path in folders[name])]
    _refuse_like_splits(list(folders), splits, where)
    trains = [name for name in splits if roles.get(name) == "train"]
    if not others or any(name in trains or name in named - set(roles) for name in nested):
        return splits + [name for name in empty if splits and (name in roles or name in named)]
    if nested or len(trains) < len(splits):
        odd = next(name for name in splits if name in nested or name not in trains)
        whole = {
            path[: path.index(f"/{word}/")]
            for name in others
            for path in folders[name]
            for word in SPELLINGS["train"]
            if f"/{word}/" in path
        }
        inside = f"; the data set may lie in {where}/{shown(min(whole))}: give that" if whole else ""
        raise UserError(
            f"{where}/{shown(odd)} is named like a split, but {few(others)} beside it hold pictures too and no folder "
            f"for training has class folders: put those classes into {where}/train, name the split for training "
            f"(data.train_split={shown(others[0])}), or rename {shown(odd)} if it is a class{inside}"
        )
    return []


def _refuse_like_splits(folders: Sequence[str], splits: Sequence[str], where: str) -> None:
    """trainA beside testA: too much like splits to be classes, and none is for training all the same."""
    heads = {folder: role for folder in folders if (role := role_at_start(folder)) is not None}
    if not splits and len(heads) == len(folders) and "train" in heads.values() and len(set(heads.values())) > 1:
        raise UserError(
            f"{where} has {few(folders)}, which are named like splits, but it is not clear which train and which "
            "evaluate; sort them into train/CLASS and val/CLASS, or name two with data.train_split and data.eval_split"
        )


def _grouped(listing: Listing) -> dict[str, list[str]]:
    """Pictures by the first folder of their paths, "" for those without one; folders without pictures have none."""
    groups: dict[str, list[str]] = {folder: [] for folder in listing.folders if "/" not in folder}
    for path in listing.pictures:
        top, slash, _ = path.partition("/")
        groups.setdefault(top if slash else "", []).append(path)
    return dict(sorted(groups.items()))
