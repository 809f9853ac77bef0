"""Which splits a data set has, for those who want to see all of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from illama.data.catalog import kind_of, needed_path
from illama.data.folder import _split_folders
from illama.data.parquet import _files
from illama.data.shards import _listed
from illama.data.splits import EVAL_SPLITS, TRAIN_SPLITS, split_in_name

if TYPE_CHECKING:
    from illama.recipes.schema import DataConfig


def split_names(data: DataConfig) -> list[str]:
    """The splits of a data set, those for training first; none for class folders that lie directly in a folder.

    Raises:
        UserError: The data set is missing or of no known kind.
    """
    kind = kind_of(data)
    if kind == "digits":
        return ["train", "test"]
    if kind == "torch/":  # what else there is, torchvision does not tell
        return ["train", "validation"]
    if kind == "hfds/":
        return _hub_splits(data.name)
    path = needed_path(data)
    if kind == "parquet":
        return _in_order(split_in_name(file.name) for file in _files(path))
    if kind == "wds/":
        shards = [*path.glob("*.tar"), *path.glob("*/*.tar")]
        by_name = (split_in_name(file.name) if file.parent == path else file.parent.name for file in shards)
        return _in_order(_listed(path) or by_name)
    return _in_order(_split_folders(path, "train"))


def _hub_splits(name: str) -> list[str]:
    try:
        import datasets

        return _in_order(datasets.get_dataset_split_names(name.partition("/")[2]))
    except Exception:  # of many kinds; opening a split says what is wrong
        return ["train"]


def _in_order(names: Iterable[str]) -> list[str]:
    known = (*TRAIN_SPLITS, *EVAL_SPLITS)
    return sorted(
        set(names),
        key=lambda name: ("train" not in name, known.index(name) if name in known else len(known), name),
    )
