"""`bench data`: the recipe's own loader, beside timm's on an image folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from PIL import Image

from illama.bench import data as bench_data_module
from illama.bench.data import LoaderTimer, bench_data
from illama.bench.options import DataOptions
from illama.bench.report import as_markdown
from illama.errors import UserError

SMALL = ("model.img_size=32", "model.embed_dim=32", "model.depth=1", "model.num_heads=1")
F = TypeVar("F", bound=Callable[..., None])
OPTIONS = DataOptions(device="cpu", batch=4, workers=0, rounds=1)


def timm_leaves_files_open(test: F) -> F:
    """timm's data set leaves it to the garbage collector to close image files."""
    for ignored in ("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"):
        test = pytest.mark.filterwarnings(ignored)(test)
    return test


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_data_module, "ROUND_S", 0.05)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of six images."""
    for name in ("apple", "pear"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(6):
            pixels = np.random.default_rng(i).integers(0, 255, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "train" / name / f"{i}.png")
    return tmp_path


@timm_leaves_files_open
def test_an_image_folder_is_compared_with_timms_loader(folder: Path) -> None:
    report = bench_data(str(folder), [*SMALL, "augment.crop=resized"], OPTIONS)
    (group,) = report.groups
    names = ["illama", "timm create_loader", "illama, the same images in a shard"]
    assert [row.name for row in group.cases] == names
    assert set(group.profile_s) == {"one image, one core"}
    assert {"decode", "crop and resize"} < set(group.profile_s["one image, one core"])
    assert all(seconds >= 0 for seconds in group.profile_s["one image, one core"].values())
    assert all(row.items_per_s > 0 for row in group.cases)
    assert group.cases[1].ratio is not None
    assert "12 images, 2 classes" in report.lines[0]
    text = as_markdown(report)
    assert "streamed from disk" in text
    assert "it would wait" in text
    assert "GFLOP/s" not in text  # loading has no arithmetic to compare with
    assert "not measured" not in text


@timm_leaves_files_open
def test_timms_loader_gives_what_the_recipe_asks_for(folder: Path) -> None:
    from illama.recipes import load_recipe

    recipe = load_recipe("imagenet1k_tiny", [*SMALL, "augment.crop=resized"])
    images, recipe, batch = bench_data_module._prepare(str(folder), recipe, OPTIONS)
    stream = bench_data_module._timm_batches(images, recipe, batch, torch.device("cpu"))
    for _ in range(5):  # more than the images of one epoch
        pixels, targets = next(stream)
        assert pixels.shape == (4, 3, 32, 32)
        assert targets.shape == (4, 2)
        torch.testing.assert_close(targets.sum(1), torch.ones(4))
    stream.close()  # type: ignore[attr-defined]


@timm_leaves_files_open
def test_class_folders_without_splits_serve_whole(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    options = dataclasses.replace(OPTIONS, out=out, batch=None)
    report = bench_data(str(folder / "train"), [*SMALL, "augment.crop=resized"], options)
    assert "12 images, 2 classes" in report.lines[0]
    assert report.groups[0].title.startswith("imagenet1k_tiny: batches of 12")
    with Image.open(out / "data_samples.png") as picture:
        assert min(picture.size) > 500


def test_an_odd_batch_is_not_given_to_timms_mixing(folder: Path) -> None:
    options = dataclasses.replace(OPTIONS, batch=5)
    report = bench_data(str(folder), [*SMALL, "augment.crop=resized"], options)
    assert "timm create_loader" not in [row.name for row in report.groups[0].cases]
    assert any("even number" in note for note in report.groups[0].notes)


def test_the_shard_holds_the_same_images(folder: Path) -> None:
    from illama.recipes import load_recipe

    (folder / "train" / "pear" / "0.png").write_bytes(b"no image")
    images, _, _ = bench_data_module._prepare(str(folder), load_recipe("imagenet1k_tiny", SMALL), OPTIONS)
    with ExitStack() as stack:
        shards = bench_data_module._as_shards(images, stack)
        assert shards is not None
        assert shards.classes == images.classes
        assert shards.labels.tolist() == images.labels.tolist()
        assert all(shards.encoded(i) == images.encoded(i) for i in range(12))
    with ExitStack() as stack:
        stack.callback(setattr, bench_data_module, "SHARDED_BYTES", bench_data_module.SHARDED_BYTES)
        bench_data_module.SHARDED_BYTES = 100
        assert bench_data_module._as_shards(images, stack) is None


def test_a_source_without_files_is_measured_alone() -> None:
    report = bench_data("digits", [], OPTIONS)
    (row,) = report.groups[0].cases
    assert row.name == "illama"
    assert report.groups[0].title.startswith("digits_micro: batches of 4")
    assert any("image folders only" in note for note in report.groups[0].notes)


def test_padded_crops_are_not_compared_with_resized_ones(folder: Path) -> None:
    report = bench_data(str(folder), SMALL, OPTIONS)
    assert [row.name for row in report.groups[0].cases] == ["illama", "illama, the same images in a shard"]
    assert any("augment.crop=resized" in note for note in report.groups[0].notes)


def test_a_batch_larger_than_the_set_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="12 readable images are fewer than the 13"):
        bench_data(str(folder), SMALL, DataOptions(device="cpu", batch=13, workers=0, rounds=1))


def test_a_loader_is_started_afresh_and_ended() -> None:
    given: list[int] = []
    ended = []

    def stream() -> Iterator[int]:
        try:
            for number in range(100):
                given.append(number)
                yield number
        finally:
            ended.append(True)

    timer = LoaderTimer(torch.device("cpu"), skip=3)
    for _ in range(2):
        assert timer.seconds(stream, 4) > 0
    assert given == list(range(7)) * 2
    assert ended == [True, True]
