"""The classes of ImageNet-1K, against the lists that others package."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import pytest

from illama.data.imagenet import Subset, categories16, is_imagenet_head, names, readable, subset, wnids


def test_ids_are_the_1000_of_timm_in_the_same_order() -> None:
    listed = resources.files("timm.data").joinpath("_info/imagenet_synsets.txt").read_text().split()
    assert wnids() == tuple(listed) == tuple(sorted(listed))
    assert len(names()) == 1000
    assert (names()[0], names()[281], names()[999]) == (
        "tench, Tinca tinca",
        "tabby, tabby cat",
        "toilet tissue, toilet paper, bathroom tissue",
    )


@pytest.mark.parametrize("name", ["imagenet-a", "imagenet-r"])
def test_subsets_are_those_of_timm(name: Subset) -> None:
    listed = resources.files("timm.data").joinpath(f"_info/{name.replace('-', '_')}_synsets.txt").read_text().split()
    assert [wnids()[number] for number in subset(name)] == listed
    assert len(listed) == 200


def test_categories_are_the_published_mapping(shared_data: Path) -> None:
    mapping = json.loads((shared_data / "cue_conflict" / "categories_1000_to_16.json").read_text())["categories"]
    assert categories16() == {name: tuple(sorted(mapping[name])) for name in sorted(mapping)}
    assert sum(map(len, categories16().values())) == 207


def test_a_head_is_imagenets_by_its_classes_and_their_order() -> None:
    assert is_imagenet_head(1000, ())
    assert is_imagenet_head(1000, wnids())
    assert is_imagenet_head(1000, names())
    assert not is_imagenet_head(1000, wnids()[::-1])
    assert not is_imagenet_head(10, ())
    assert not is_imagenet_head(1001, ())


def test_an_id_becomes_readable_and_another_name_stays() -> None:
    assert readable("n01440764") == "n01440764 tench"
    assert readable("airplane") == "airplane"
