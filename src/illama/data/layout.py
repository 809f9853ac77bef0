"""What lies at a path: one look decides the kind of data set, its splits and classes, and says what was understood.

`look` is the one door. Training, evaluation, prediction, checks, shards and analyses all go through it, so they see the
same pictures under the same names; nobody else walks through a data set's folders.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from illama.console.text import shown
from illama.data.decode.images import check_channels
from illama.data.source import Source, SubsetSource, number_classes
from illama.data.sources.splits import (
    choose_split,
    is_training,
    missing_parts,
    split_of_path,
    split_order,
    stratified_choice,
)
from illama.data.sources.walk import Listing, PassedOver, walk
from illama.errors import UserError
from illama.registry import Registry
from illama.system.files import at_home

if TYPE_CHECKING:
    from illama.recipes.schema import DataConfig

WHOLE = "all"  # what a data set without splits is called as a split


class Layout(ABC):
    """A data set as one look found it. Opening a split of it reads no folder again.

    Attributes:
        data: What was asked for.
        kind: "folder", "manifest", "parquet", "shards", ... for people.
        where: The data set, for messages.
        splits: Names of the splits, those for training first; () for a data set that has none.
        passed_over: Files that are not read.
        notes: What people should know of the layout, line by line.
    """

    def __init__(
        self,
        data: DataConfig,
        kind: str,
        where: str,
        splits: Sequence[str],
        passed_over: PassedOver | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.data = data
        self.kind = kind
        self.where = where
        self.splits = tuple(split_order(splits))
        with contextlib.suppress(UserError):  # the one that numbers the classes comes first
            first = choose_split(data.train_split, self.splits, where)
            self.splits = (first, *(name for name in self.splits if name != first))
        self.passed_over = passed_over or PassedOver()
        self.notes = list(notes)

    def read(self, split: str | None, in_chans: int, classes: Sequence[str] | None) -> Source:
        """One split, or the whole of a data set without splits (None).

        Args:
            split: One of `splits`.
            in_chans: 1 or 3.
            classes: Numbering of the training split; None where this is the one that numbers.

        Raises:
            UserError: It cannot be read; its classes are not those of the training split.
        """
        source = self.read_split(split, in_chans, classes)
        source.classes, source.labels = number_classes(source.classes, source.labels, classes, source.description)
        source.description += f": {len(source)} images, {len(source.classes)} classes"
        return source

    @abstractmethod
    def read_split(self, split: str | None, in_chans: int, classes: Sequence[str] | None) -> Source:
        """As `read`, in the split's own numbering, described by kind, place and split; `classes` help to see what is
        wrong."""

    def name_of(self, split: str | None) -> str:
        """A split, or all of the data set, for messages."""
        return self.where + (f", split {shown(split)}" if split is not None else "")

    def open(
        self,
        split: str,
        *,
        in_chans: int = 3,
        classes: Sequence[str] | None = None,
        seed: int = 0,
    ) -> Source:
        """One split.

        Args:
            split: "train" (stands for `data.train_split`), "eval" or "auto" (for `data.eval_split`, or for the
                carved share when `data.val_fraction` is set), or any split by its own name.
            in_chans: Channels of the images, 1 or 3.
            classes: Numbering of the training split, for every other split.
            seed: Decides which images are carved out (`data.val_fraction`) and kept (`data.max_*_images`).

        Raises:
            UserError: The split or a class is missing or unknown; the message names what there is.
        """
        check_channels(in_chans)
        data = self.data
        training = split in ("train", data.train_split)
        own_eval = split in ("eval", "auto")
        carve = data.val_fraction > 0 and (training or own_eval)
        evaluated = data.eval_split if own_eval else split
        name = data.train_split if training or carve else evaluated
        source = self.read(self._choose(name, carved=carve), in_chans, classes)
        source.max_pixels = data.max_image_pixels
        if carve:
            source = _carved(source, data.val_fraction, held_out=not training, seed=seed)
        limit = data.max_train_images if training else data.max_eval_images
        if limit is not None and limit < len(source):
            chosen = stratified_choice(source.labels, limit, seed)
            why = f"{limit} of {len(source)} chosen by seed {seed}, classes in proportion"
            source = SubsetSource(source, chosen, why)
        if not len(source):
            raise UserError(f"{source.description}: no images are left")
        return source

    def asked_for(self, data: DataConfig) -> Layout:
        """The same files, opened as another data section says."""
        other = copy.copy(self)
        other.data = data
        return other

    def note(self, text: str) -> None:
        """Something that people should know, said once."""
        if text not in self.notes:
            self.notes.append(text)

    def note_missing(self, files: Sequence[Path]) -> None:
        """Say so where files of a split, named like train-00001-of-00003, are not all there; as `missing_parts`."""
        text = missing_parts([file.name for file in files], self.where)
        if text is not None:
            self.note(text)

    def used_splits(self) -> set[str]:
        """The splits that training and its evaluation open."""
        used = set()
        for wanted in (self.data.train_split, self.data.eval_split):
            with contextlib.suppress(UserError):
                used.add(choose_split(wanted, self.splits, self.where))
        return used

    def explain(self, classes: Sequence[str]) -> list[str]:
        """What was understood, in at most three lines and the notes."""
        from illama.data.sources.splits import few

        named = f"splits {', '.join(map(shown, self.splits))}" if self.splits else "no splits"
        lines = [f"{self.kind} {self.where}: {named}", f"{len(classes):,} classes: {few(classes)}"]
        passed = self.passed_over.line()
        return [*lines, *([f"passed over: {passed}"] if passed else []), *self.notes]

    def _choose(self, wanted: str, *, carved: bool) -> str | None:
        """The split that is read; None for all of a data set without splits."""
        if self.splits or wanted == WHOLE:
            return choose_split(wanted, self.splits, self.where) if self.splits else None
        if is_training(wanted) and not carved:
            raise UserError(
                f"{self.where} has no splits, so nothing is left to evaluate on; give data.val_fraction=0.1, or "
                f"{self.how_to_split}"
            )
        if wanted != "auto" and not is_training(wanted):
            raise UserError(f"{self.where} has no split {wanted!r}; it has no splits at all")
        return None

    how_to_split = "sort the images into splits (train/CLASS, val/CLASS)"


def one_class(classes: Sequence[str], layout: Layout) -> str:
    """Why a data set with a single class cannot be trained on, in a line."""
    name, hint = next(iter(classes), ""), ""
    if layout.kind == "folder" and layout.splits:
        hint = f"; if the classes are the folders in {shown(name)}, give data.class_depth=2"
    elif layout.kind == "folder":
        hint = f"; if the data set lies in {layout.where}/{shown(name)}, give that"
    return f"{layout.where} has one class only ({shown(name)}), and training needs two to tell apart{hint}"


def look(data: DataConfig) -> Layout:
    """Look at the data set that a recipe names, once.

    Raises:
        UserError: It is missing, or not understood; the message says what was found and what to do.
    """
    if data.name != "auto":
        prefix, slash, _ = data.name.partition("/")
        kind, listing = prefix.lower() + slash if slash else data.name, None
    else:
        path = needed_path(data)
        listing = None if path.is_file() else _walk(path, data)
        kind = _kind(path, listing)
    module, _, function = KINDS[kind].partition(".")
    if not function:
        raise UserError(
            f"data.name {data.name} is a stream without positions, so a stopped run could not continue exactly; "
            "use hfds/..., wds/..., parquet files or an image folder"
        )
    layout: Layout = getattr(importlib.import_module(f"illama.data.sources.{module}"), function)(data, listing)
    return layout


def open_source(
    data: DataConfig,
    split: str,
    *,
    in_chans: int = 3,
    classes: Sequence[str] | None = None,
    seed: int = 0,
) -> Source:
    """Open one split of the data set that a recipe names; several are opened faster from one `look`.

    See `Layout.open` for the arguments.

    Raises:
        UserError: The data set, the split or a class is missing or unknown; the message names what there is.
    """
    check_channels(in_chans)
    return look(data).open(split, in_chans=in_chans, classes=classes, seed=seed)


def look_alike(path: Path) -> str:
    """What a path that does not exist may have meant, as a question; "" where nothing beside it is called alike."""
    with contextlib.suppress(OSError):
        near = difflib.get_close_matches(path.name, os.listdir(path.parent), n=1)
        return f"did you mean {shown(path.parent / near[0])}?" if near else ""
    return ""


def is_gone(data: DataConfig) -> bool:
    """Whether the place of a data set does not exist; that of the hub's is a cache, which need not."""
    return data.path is not None and not data.name.startswith("hfds/") and not at_home(data.path).exists()


def needed_path(data: DataConfig) -> Path:
    """The data set's folder or file; an error when it is not given or does not exist."""
    if not data.path:  # "" is no short name of the current folder
        raise UserError(f"data set {data.name!r} needs a path; give data.path=FOLDER")
    path = at_home(data.path)
    if not path.exists():
        near = look_alike(path)
        raise UserError(f"data.path {shown(data.path)} does not exist{f'; {near}' if near else ''}")
    return path


def needed_folder(data: DataConfig, listing: Listing | None, what: str) -> Listing:
    """What lies in the data set's folder, where nobody has looked yet."""
    path = needed_path(data)
    if not path.is_dir():
        raise UserError(f"{shown(path)} is not a folder {what}")
    return listing or _walk(path, data)


def _walk(path: Path, data: DataConfig) -> Listing:
    return walk(path, {data.train_split, data.eval_split})


def _kind(path: Path, listing: Listing | None) -> str:
    """The key of KINDS for what lies at a path."""
    if listing is None:
        kinds = {".parquet": "parquet", ".csv": "manifest", ".tsv": "manifest", ".tar": "wds/"}
        if path.suffix.lower() in kinds:
            return kinds[path.suffix.lower()]
    else:
        parquet, shards = listing.holding(".parquet"), listing.holding(".tar")
        sorted_in = len({picture.rpartition("/")[0] for picture in listing.pictures}) > 1  # not a banner in assets/
        of_splits = {ending for ending in (".parquet", ".tar") if any(map(split_of_path, listing.holding(ending)))}
        if ".parquet" in of_splits and any(file.count("/") == 0 or file.startswith("data/") for file in parquet):
            return "parquet"
        if (path / "_info.json").is_file():
            return "wds/"
        if not sorted_in and of_splits:
            return "parquet" if ".parquet" in of_splits else "wds/"
        if listing.pictures and (sorted_in or not any(file.count("/") == 0 for file in parquet)):
            return "folder"
        if parquet or shards:
            return "parquet" if parquet else "wds/"
        if listing.folders:
            return "folder"
    tables = [] if listing is None else listing.holding(".csv", ".tsv")
    listed = f" (or {tables[0]})" if tables else ""
    raise UserError(
        f"data.path {shown(path)} is not a data set: expected a folder for each class (train/CLASS/image.jpg), "
        f"*.parquet files, shards (train-*.tar), or a .csv file of file and label{listed}, or set data.name to one of "
        + ", ".join(sorted(KINDS))
    )


# Kinds of data sets, and the function in `sources/` that looks at one, imported when it is needed; "" for streams.
# Names with a slash are the prefixes of timm's data set names.
KINDS: Registry[str] = Registry(
    "data set",
    {
        "digits": "named.look_at_digits",
        "parquet": "parquet.look_at_parquet",
        "folder": "folder.look_at_folder",
        "manifest": "manifest.look_at_manifest",
        "torch/": "named.look_at_torchvision",
        "hfds/": "named.look_at_hub",
        "wds/": "shards.look_at_shards",
        "hfids/": "",
        "tfds/": "",
    },
)


def _carved(source: Source, fraction: float, *, held_out: bool, seed: int) -> Source:
    held = stratified_choice(source.labels, round(fraction * len(source)), seed)
    if held_out:
        return SubsetSource(source, held, f"{len(held)} held out by seed {seed} (val_fraction {fraction:g})")
    kept = np.setdiff1d(np.arange(len(source)), held)
    return SubsetSource(source, kept, f"{len(kept)} left for training (val_fraction {fraction:g}, seed {seed})")
