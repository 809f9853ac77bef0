"""ImageNet-1K's 1000 classes by number: WordNet ids, names, and the subsets that robustness sets are made of.

`imagenet1k.tsv` beside this file holds one line per class. Ids and names: the synset list of ILSVRC 2012. Members of
ImageNet-A and ImageNet-R: the lists of timm (Apache-2.0). The 16 categories: Geirhos et al., "ImageNet-trained CNNs
are biased towards texture" (ICLR 2019), whose mapping of classes is published with their stimuli (CC BY 4.0).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Literal

Subset = Literal["imagenet-a", "imagenet-r"]

NUM_CLASSES = 1000


@cache
def wnids() -> tuple[str, ...]:
    """WordNet ids ("n01440764") in index order, which is their sorted order."""
    return tuple(row["wnid"] for row in _rows())


@cache
def names() -> tuple[str, ...]:
    """Names ("tench, Tinca tinca") in index order. One, "crane", stands for two classes: the bird and the machine."""
    return tuple(row["name"] for row in _rows())


@cache
def subset(name: Subset) -> tuple[int, ...]:
    """The 200 classes that ImageNet-A or ImageNet-R has images of, ascending."""
    column = {"imagenet-a": "imagenet_a", "imagenet-r": "imagenet_r"}[name]
    return tuple(number for number, row in enumerate(_rows()) if row[column] == "1")


@cache
def categories16() -> dict[str, tuple[int, ...]]:
    """The 16 entry-level categories in alphabetical order, each with its classes (207 in all)."""
    members: dict[str, list[int]] = {}
    for number, row in enumerate(_rows()):
        if row["category"]:
            members.setdefault(row["category"], []).append(number)
    return {category: tuple(members[category]) for category in sorted(members)}


def is_imagenet_head(num_classes: int, classes: Sequence[str]) -> bool:
    """Whether a network tells ImageNet-1K's classes apart, in their usual order.

    Args:
        num_classes: Logits of the head.
        classes: Their names where known. Weights from elsewhere often come without; 1000 classes are then taken for
            these.
    """
    return num_classes == NUM_CLASSES and tuple(classes) in ((), wnids(), names())


def readable(class_name: str) -> str:
    """A WordNet id with the first of its names, "n01440764 tench"; any other class name as it is."""
    number = _numbers().get(class_name)
    return class_name if number is None else f"{class_name} {names()[number].partition(',')[0]}"


@cache
def _numbers() -> dict[str, int]:
    return {wnid: number for number, wnid in enumerate(wnids())}


@cache
def _rows() -> tuple[dict[str, str], ...]:
    text = resources.files("illama.data").joinpath("imagenet1k.tsv").read_text(encoding="utf-8")
    return tuple(csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))
