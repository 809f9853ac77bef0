"""The one door to every kind of data set: `open_source`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from illama.data.images import check_channels
from illama.data.source import Source, SubsetSource
from illama.data.splits import stratified_choice
from illama.errors import UserError
from illama.registry import Registry

if TYPE_CHECKING:
    from illama.recipes.schema import DataConfig

Opener = Callable[..., Source]


def _open_digits(data: DataConfig, split: str, in_chans: int, classes: Sequence[str] | None) -> Source:
    from illama.data.digits import open_digits

    return open_digits(split, in_chans, classes)


def _open_parquet(data: DataConfig, split: str, in_chans: int, classes: Sequence[str] | None) -> Source:
    from illama.data.parquet import open_parquet

    return open_parquet(needed_path(data), split, in_chans, classes)


def _open_folder(data: DataConfig, split: str, in_chans: int, classes: Sequence[str] | None) -> Source:
    from illama.data.folder import open_folder

    return open_folder(needed_path(data), split, in_chans, classes, carved=data.val_fraction > 0)


def _open_shards(data: DataConfig, split: str, in_chans: int, classes: Sequence[str] | None) -> Source:
    from illama.data.shards import open_shards

    return open_shards(needed_path(data), split, in_chans, classes)


def _open_torch(data: DataConfig, split: str, in_chans: int, classes: Sequence[str] | None) -> Source:
    from illama.data.named import open_torchvision

    return open_torchvision(data.name, needed_path(data), split, in_chans, classes)


def _open_hub(data: DataConfig, split: str, in_chans: int, classes: Sequence[str] | None) -> Source:
    from illama.data.named import open_hub_data

    return open_hub_data(data.name, data.path, split, in_chans, classes)


def _open_iterable(data: DataConfig, split: str, in_chans: int, classes: Sequence[str] | None) -> Source:
    raise UserError(
        f"data.name {data.name} is a stream without positions, so a stopped run could not continue exactly; "
        "use hfds/..., wds/..., parquet files or an image folder"
    )


# Kinds of data sets; those with a slash are the prefixes of timm's data set names.
SOURCES: Registry[Opener] = Registry(
    "data set",
    {
        "digits": _open_digits,
        "parquet": _open_parquet,
        "folder": _open_folder,
        "torch/": _open_torch,
        "hfds/": _open_hub,
        "wds/": _open_shards,
        "hfids/": _open_iterable,
        "tfds/": _open_iterable,
    },
)


def needed_path(data: DataConfig) -> Path:
    """The data set's folder or file; an error when it is not given or does not exist."""
    if data.path is None:
        raise UserError(f"data set {data.name!r} needs a path; give data.path=FOLDER")
    path = Path(data.path).expanduser()
    if not path.exists():
        raise UserError(f"data.path {data.path} does not exist")
    return path


def holds_shards(path: Path) -> bool:
    """Whether a folder looks like one of WebDataset shards."""
    return path.is_dir() and any(next(path.glob(pattern), None) for pattern in ("_info.json", "*.tar", "*/*.tar"))


def kind_of(data: DataConfig) -> str:
    """The key of SOURCES that reads this data set."""
    if data.name != "auto":
        prefix, slash, _ = data.name.partition("/")
        return prefix.lower() + slash if slash else data.name
    path = needed_path(data)
    if path.suffix == ".parquet" or any(next(path.glob(at), None) for at in ("*.parquet", "data/*.parquet")):
        return "parquet"
    if holds_shards(path):
        return "wds/"
    if path.is_dir() and any(entry.is_dir() for entry in path.iterdir()):
        return "folder"
    raise UserError(
        f"data.path {data.path} is not a data set: expected *.parquet files, shards (train-*.tar), or a folder for "
        "each class (train/CLASS/image.jpg), or set data.name to one of " + ", ".join(sorted(SOURCES))
    )


def open_source(
    data: DataConfig,
    split: str,
    *,
    in_chans: int = 3,
    classes: Sequence[str] | None = None,
    seed: int = 0,
) -> Source:
    """Open one split of the data set that a recipe names.

    Args:
        data: The recipe's `data` section.
        split: "train" (stands for `data.train_split`), "eval" or "auto" (for `data.eval_split`, or for the
            carved share when `data.val_fraction` is set), or any split by its own name.
        in_chans: Channels of the images, 1 or 3.
        classes: Numbering of the training split, for every other split.
        seed: Decides which images are carved out (`data.val_fraction`) and kept (`data.max_*_images`).

    Raises:
        UserError: The data set, the split or a class is missing or unknown; the message names what there is.
    """
    check_channels(in_chans)
    training = split in ("train", data.train_split)
    own_eval = split in ("eval", "auto")
    carve = data.val_fraction > 0 and (training or own_eval)
    evaluated = data.eval_split if own_eval else split
    name = data.train_split if training or carve else evaluated
    source = SOURCES[kind_of(data)](data, name, in_chans, classes)
    if carve:
        source = _carved(source, data.val_fraction, held_out=not training, seed=seed)
    limit = data.max_train_images if training else data.max_eval_images
    if limit is not None and limit < len(source):
        chosen = stratified_choice(source.labels, limit, seed)
        source = SubsetSource(source, chosen, f"{limit} of {len(source)} chosen by seed {seed}, classes in proportion")
    if not len(source):
        raise UserError(f"{source.description}: no images are left")
    return source


def _carved(source: Source, fraction: float, *, held_out: bool, seed: int) -> Source:
    held = stratified_choice(source.labels, round(fraction * len(source)), seed)
    if held_out:
        return SubsetSource(source, held, f"{len(held)} held out by seed {seed} (val_fraction {fraction:g})")
    kept = np.setdiff1d(np.arange(len(source)), held)
    return SubsetSource(source, kept, f"{len(kept)} left for training (val_fraction {fraction:g}, seed {seed})")
