"""Loaders: order, exact restarts, storage rules, broken files, and that memory and stream mean the same."""

from __future__ import annotations

import dataclasses
import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from illama.data import EvalLoader, EvalTransform, TrainLoader, open_source
from illama.data.augment.batched import BatchedAugment, shift
from illama.data.decode.images import BrokenImage
from illama.data.eval_transform import normalize
from illama.data.loading import loader as loaders
from illama.data.loading.batch import Batch, TrainingOrder
from illama.data.loading.loader import resolve_crop, resolve_workers
from illama.data.loading.samples import TrainSamples, decode
from illama.data.rng import Draws, DrawShare
from illama.data.source import Source
from illama.data.targets import CLASS_LABELS, ClassLabels
from illama.errors import UserError
from illama.recipes import BatchPlan, Recipe, load_recipe, plan_batches

# All that is random, at once.
EVERYTHING = [
    "augment.crop=pad",
    "augment.crop_padding=1",
    "augment.hflip=0.5",
    "augment.rotate=10",
    "augment.randaugment=rand-m9-mstd0.5-inc1",
    "augment.erase_prob=0.5",
    "augment.mixup=0.8",
    "augment.cutmix=1.0",
]
PLAIN = ["augment.crop=none", "augment.hflip=0", "augment.rotate=0", "augment.label_smoothing=0"]


def _recipe(*overrides: str) -> Recipe:
    return load_recipe("digits_micro", ["train.total_batch=96", "optimizer.lr_scaling=none", *overrides])


def _loader(recipe: Recipe, source: Source | None = None) -> TrainLoader:
    source = source or open_source(recipe.data, "train", in_chans=recipe.model.in_chans, seed=recipe.seed)
    return TrainLoader(recipe, source, "cpu", plan_batches(recipe))


class Synthetic(Source):
    """Noise images of given sizes; some of them broken."""

    def __init__(self, sizes: list[tuple[int, int]], broken: tuple[int, ...] = ()) -> None:
        self.classes = ("a", "b", "c")
        self.labels = np.arange(len(sizes)) % 3
        self.description = "synthetic"
        self._sizes = sizes
        self._broken = broken

    def read(self, i: int) -> Image.Image:
        if i in self._broken:
            raise BrokenImage(self.location(i), "made broken")
        w, h = self._sizes[i]
        return Image.fromarray(np.random.default_rng(i).integers(0, 256, (h, w, 3), dtype=np.uint8))

    def location(self, i: int) -> str:
        return f"image {i}"


def _small(*overrides: str) -> Recipe:
    """16 px RGB, 3 classes, 4 images per step."""
    base = ["model.img_size=16", "model.in_chans=3", "model.num_classes=3", "data.mean=[0.5,0.4,0.3]"]
    base += ["data.std=[0.2,0.2,0.2]", "train.total_batch=4", "train.device_batch=null"]
    return _recipe(*base, *overrides)


# order


def test_every_epoch_is_a_permutation_without_its_rest() -> None:
    order = TrainingOrder(23, BatchPlan(3, 2, 6, 1e-3), seed=5)
    assert order.steps_per_epoch == 3
    micro = list(itertools.islice(order.from_step(0), 12))
    assert [(m.step, m.part, m.epoch) for m in micro[:7]] == [
        (0, 0, 0),
        (0, 1, 0),
        (1, 0, 0),
        (1, 1, 0),
        (2, 0, 0),
        (2, 1, 0),
        (3, 0, 1),
    ]
    epochs = [np.concatenate([m.chosen for m in micro[k : k + 6]]) for k in (0, 6)]
    for epoch in epochs:
        assert len(np.unique(epoch)) == 18
        assert epoch.max() < 23
    assert not np.array_equal(*epochs)
    late = next(iter(order.from_step(4)))
    assert (late.step, late.part) == (4, 0)
    assert np.array_equal(late.chosen, micro[8].chosen)


@dataclasses.dataclass
class Half:
    """Eight of the sixteen patches until step 2, mixing from there on; asked by a loader."""

    def mix_prob(self, step: int) -> float:
        return float(step >= 2)

    def kept_patches(self, step: int) -> int:
        return 8 if step < 2 else 16


def test_each_draw_batch_keeps_patches_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, none twice; the same from any step on, and however many micro-batches are made at once."""
    recipe = _recipe(*PLAIN, "augment.mixup=0.8", "train.accumulation=2")
    kept = [batch.kept for batch in itertools.islice(_loader(recipe).batches(0, Half()), 8)]
    assert kept[4:] == [None] * 4
    chosen = [one.tolist() for one in kept[:4] if one is not None]
    assert all(len(one) == 8 and one == sorted(set(one)) and set(one) < set(range(16)) for one in chosen)
    assert len({tuple(one) for one in chosen}) == 4
    monkeypatch.setattr(loaders, "_at_once", lambda device, size: 5)
    again = list(itertools.islice(_loader(recipe).batches(1, Half()), 6))
    assert [None if b.kept is None else b.kept.tolist() for b in again] == [*chosen[2:], *[None] * 4]
    mixed = [bool((b.targets.max(1).values < 1).any()) for b in again]
    assert mixed == [False, False, *[True] * 4]
    assert all(batch.kept is None for batch in itertools.islice(_loader(recipe).batches(0), 2))


# exact restarts


@pytest.mark.parametrize(
    ("storage", "workers", "accumulation"), [("memory", 0, 1), ("memory", 0, 2), ("stream", 0, 1), ("stream", 2, 2)]
)
def test_a_restart_at_any_step_gives_the_same_batches(storage: str, workers: int, accumulation: int) -> None:
    recipe = _recipe(
        *EVERYTHING, f"data.storage={storage}", f"data.workers={workers}", f"train.accumulation={accumulation}"
    )
    steps = [0, 1, 13, 14, 15, 29]  # 14 steps per epoch
    whole = list(itertools.islice(_loader(recipe).batches(0), (steps[-1] + 1) * accumulation))
    random.seed(99)  # global states must not matter
    np.random.seed(99)
    torch.manual_seed(99)
    again = _loader(recipe)
    assert again.steps_per_epoch == 14
    for step in steps:
        for part, batch in enumerate(itertools.islice(again.batches(step), accumulation)):
            expected = whole[step * accumulation + part]
            assert torch.equal(batch.images, expected.images)
            assert torch.equal(batch.targets, expected.targets)
            assert torch.equal(batch.indices, expected.indices)
    assert not torch.equal(whole[0].images, whole[1].images)


def test_worker_count_does_not_matter() -> None:
    recipes = [_recipe(*EVERYTHING, "data.storage=stream", f"data.workers={w}") for w in (0, 1, 2)]
    runs = [list(itertools.islice(_loader(recipe).batches(3), 3)) for recipe in recipes]
    for other in runs[1:]:
        assert all(torch.equal(a.images, b.images) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize(("storage", "workers"), [("memory", 0), ("stream", 0), ("stream", 2)])
def test_global_random_states_are_left_alone(storage: str, workers: int) -> None:
    batches = _loader(_recipe(*EVERYTHING, f"data.storage={storage}", f"data.workers={workers}")).batches(0)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    next(batches)
    next(batches)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states


def test_another_seed_gives_other_batches() -> None:
    first, second = (next(_loader(_recipe("data.storage=memory", f"seed={s}")).batches(0)) for s in (0, 1))
    assert not torch.equal(first.indices, second.indices)


# what a batch is


@pytest.mark.parametrize("storage", ["memory", "stream"])
def test_without_augmentation_a_batch_is_the_images_themselves(storage: str) -> None:
    recipe = _recipe(*PLAIN, f"data.storage={storage}", "data.workers=0", "data.mean=[0.3]", "data.std=[0.4]")
    source = open_source(recipe.data, "train", in_chans=1)
    seen: list[int] = []
    for batch in itertools.islice(_loader(recipe, source).batches(0), 14):
        seen += batch.indices.tolist()
        assert batch.targets.tolist() == source.labels[batch.indices].tolist()
        assert batch.targets.dtype == torch.int64
        images = torch.stack([torch.from_numpy(np.array(source.read(int(i)))) for i in batch.indices])[:, None]
        torch.testing.assert_close(batch.images, (images / 255 - 0.3) / 0.4)
    assert len(set(seen)) == 14 * 96


def test_mixing_makes_soft_targets_of_the_model_s_width() -> None:
    batch = next(_loader(_recipe(*EVERYTHING)).batches(0))
    assert batch.targets.shape == (96, 10)
    torch.testing.assert_close(batch.targets.sum(1), torch.ones(96))


def test_shift_moves_whole_pixels_over_black() -> None:
    images = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8).expand(500, 3, 8, 8)
    top, left = torch.randint(5, (2, 500), generator=torch.Generator().manual_seed(0))
    moved = shift(images, 2, top, left)
    found = set()
    padded = torch.nn.functional.pad(images[0], (2, 2, 2, 2))
    for image in moved:
        at = [(y, x) for y in range(5) for x in range(5) if torch.equal(image, padded[:, y : y + 8, x : x + 8])]
        assert len(at) == 1
        found.add(at[0])
    assert len(found) == 25


def augmented(augment: BatchedAugment, images: torch.Tensor) -> torch.Tensor:
    draws = Draws([torch.Generator().manual_seed(0)], DrawShare(len(images)))
    return augment.apply(images, augment.draw(draws, *images.shape[2:]))


def test_batched_flip_and_no_change_at_zero() -> None:
    images = torch.randint(0, 256, (400, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(augmented(BatchedAugment(), images), images)
    out = augmented(BatchedAugment(hflip=0.3), images)
    flipped = (out == images.flip(-1)).flatten(1).all(1)
    assert ((out == images).flatten(1).all(1) | flipped).all()
    assert flipped.float().mean().item() == pytest.approx(0.3, abs=0.07)


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("overrides", [EVERYTHING, (*PLAIN, "augment.rotate=20", "augment.color_jitter=0.4")])
def test_batches_that_are_augmented_together_are_those_of_each_alone(
    devices: int, overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the end of an epoch, from the middle of what was augmented together, and for a share of each batch."""
    recipe, source = _small(*overrides, "train.total_batch=8", "data.storage=memory"), Synthetic([(16, 16)] * 40)

    def some(start: int, at_once: int) -> list[Batch]:
        monkeypatch.setattr(loaders, "_at_once", lambda device, batch_bytes: at_once)
        loader = TrainLoader(recipe, source, "cpu", plan_batches(recipe, devices), devices - 1)
        return list(itertools.islice(loader.batches(start), 12 - start))

    alone = some(0, 1)
    for start, at_once in ((0, 5), (3, 4), (0, 12)):
        for one, other in zip(alone[start:], some(start, at_once), strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.targets, other.targets)
            assert torch.equal(one.indices, other.indices)
            assert one.micro is not None
            assert other.micro is not None
            assert (one.micro.step, one.micro.part) == (other.micro.step, other.micro.part)


class Told(TorchDispatchMode):
    """What a device is told to do: operators that compute, and copies to it."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device
        self.operators: list[str] = []
        self.copies: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        if self._device in devices and not func.is_view:
            self.operators.append(str(func))
            if len(devices) > 1:  # the host does not wait for it
                self.copies.append(bool((kwargs or {}).get("non_blocking")))
        return out


def test_a_step_costs_a_device_few_calls_and_no_waiting() -> None:
    """Of the recipe for CIFAR-10 at speed, with all its augmentation: a graph of the model's step is one call."""
    recipe = load_recipe("cifar10_tiny", ["data.storage=memory"])
    loader = TrainLoader(recipe, Synthetic([(32, 32)] * 1100), "meta", plan_batches(recipe, 1))
    batches = loader.batches(0)
    next(batches)  # constants travel once
    at_once = loaders._at_once(torch.device("meta"), 3 * 32 * 32 * recipe.train.total_batch)
    assert at_once > 1
    for _ in range(at_once - 1):
        next(batches)
    with Told("meta") as told:
        for _ in range(at_once):
            next(batches)
    assert len(told.operators) / at_once <= 60
    assert told.copies == [True] * len(told.copies)
    assert len(told.copies) <= 2


def test_streamed_and_batched_augmentation_have_the_same_statistics() -> None:
    """Padded crop, flip, rotation, RandAugment on the same image: mean and deviation of each pixel agree."""
    overrides = [*EVERYTHING[:5], "augment.hflip=0.2", "augment.crop_padding=2", "augment.rotate=20"]
    recipe = _small(*overrides)
    image = Synthetic([(16, 16)]).read(0).resize((4, 4)).resize((16, 16), Image.Resampling.BICUBIC)
    n = 1500
    source = Synthetic([(16, 16)])
    source.read = lambda i: image  # type: ignore[method-assign]
    samples = TrainSamples(recipe, source, "pad")
    streamed = torch.stack([samples[(epoch, 0)].pixels for epoch in range(n)]).float()  # type: ignore[misc]
    same = torch.from_numpy(np.array(image)).permute(2, 0, 1).expand(n, 3, 16, 16)
    batched = augmented(BatchedAugment.of(recipe, "pad"), same).float()
    error = (streamed.var(0) / n + batched.var(0) / n).sqrt().clamp(min=0.1)
    z = (streamed.mean(0) - batched.mean(0)) / error
    assert z.abs().max() < 5.5
    assert z.abs().mean() < 1.2
    assert (streamed.std(0) / batched.std(0)).log().abs().max() < 0.15


def test_grey_images_stream_with_everything_on() -> None:
    batch = next(_loader(_recipe(*EVERYTHING, "data.storage=stream", "data.workers=0")).batches(0))
    assert batch.images.shape == (96, 1, 8, 8)


def test_resized_crops_stream() -> None:
    source = Synthetic([(50, 40), (70, 30), (16, 90), (20, 20), (33, 8), (1, 1)])
    recipe = _small("augment.crop=resized", "augment.randaugment=rand-m9-mstd0.5-inc1", "model.img_size=[16,24]")
    loader = _loader(recipe, source)
    assert "resized crops" in loader.description
    assert next(loader.batches(0)).images.shape == (4, 3, 16, 24)


# where images are kept


def test_on_a_gpu_workers_only_crop_and_the_device_augments(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done there is done here on the CPU: same crops by the workers, then flip and RandAugment by batches."""
    source, plan, streamed = Synthetic([(40, 30)] * 12), plan_batches(_small()), "data.storage=stream"
    for device, override, who in (
        ("cpu", "seed=0", "that augment them too"),
        ("meta", "augment.crop_padding=4", "augmented on the device"),
    ):
        assert TrainLoader(_small(override, streamed), source, device, plan).description.endswith(who)
    there = CLASS_LABELS.batched(_small("augment.crop_padding=4"), "none")
    monkeypatch.setattr(loaders, "_augment_on_device", lambda *_: there)
    for overrides in (PLAIN, ()):
        recipe = _small(*overrides, "data.storage=stream", "augment.crop=resized", "data.workers=0")
        batches = list(itertools.islice(_loader(recipe, source).batches(0), 3))
        again = list(itertools.islice(_loader(recipe, source).batches(1), 2))
        for one, other in zip(batches[1:], again, strict=True):
            assert torch.equal(one.images, other.images)
        assert batches[0].images.shape[1:] == (3, 16, 16)


def test_one_size_stays_in_memory_and_others_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    same = Synthetic([(16, 16)] * 8)
    assert "in memory" in _loader(_small(), same).description
    assert "in memory" in _loader(_small(), Synthetic([(20, 12)] * 8)).description  # covers the input once
    assert "differ in size" in _loader(_small(), Synthetic([(16, 16)] * 7 + [(16, 17)])).description
    assert "64 px" in _loader(_small(), Synthetic([(65, 16)] * 8)).description
    assert "as asked" in _loader(_small("data.storage=stream"), same).description
    asked = _loader(_small("data.storage=memory"), Synthetic([(80, 60), (16, 16)] * 4))
    assert "8 images in memory" in asked.description
    monkeypatch.setattr("illama.data.loading.loader.MEMORY_MAX_BYTES", 8 * 16 * 16 * 3 - 1)
    assert "GiB decoded" in _loader(_small(), same).description
    with pytest.raises(UserError, match="cannot make the random resized crops"):
        _loader(_small("augment.crop=resized", "data.storage=memory"), same)


def test_crop_follows_from_the_size() -> None:
    assert resolve_crop(_small("augment.crop=auto")) == "pad"
    assert resolve_crop(_small("augment.crop=auto", "model.img_size=64")) == "resized"
    assert resolve_crop(_small("augment.crop=none", "model.img_size=64")) == "none"
    assert resolve_workers(3) == 3
    assert 1 <= resolve_workers("auto") <= 16


# broken files


def test_memory_leaves_broken_images_out() -> None:
    source = Synthetic([(16, 16)] * 10, broken=(0, 4))
    loader = _loader(_small(), source)
    assert loader.skipped == {"image 0": "made broken", "image 4": "made broken"}
    assert loader.steps_per_epoch == 2
    seen = torch.cat([batch.indices for batch in itertools.islice(loader.batches(0), 20)])
    assert set(seen.tolist()) == set(range(10)) - {0, 4}


@pytest.mark.parametrize("workers", [0, 2])
def test_stream_takes_the_next_readable_image(workers: int) -> None:
    source = Synthetic([(16, 16)] * 8, broken=(3, 4, 7))
    recipe = _small(*PLAIN, "data.storage=stream", f"data.workers={workers}")
    loader = _loader(recipe, source)
    instead = {3: 5, 4: 5, 7: 0}
    order = TrainingOrder(8, BatchPlan(4, 1, 4, 1e-3), recipe.seed)
    for micro, batch in zip(order.from_step(0), itertools.islice(loader.batches(0), 4), strict=False):
        assert batch.indices.tolist() == [instead.get(int(i), int(i)) for i in micro.chosen]
        assert batch.targets.tolist() == source.labels[batch.indices].tolist()
    assert loader.skipped == {f"image {i}": "made broken" for i in (3, 4, 7)}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_vanishes_is_stood_in_for(workers: int, tmp_path: Path) -> None:
    for k in range(12):
        folder = tmp_path / "train" / "abc"[k % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Synthetic([(30, 20)] * 12).read(k).save(folder / f"{k}.jpg")
    recipe = _small("data.name=folder", f"data.path={tmp_path}", "data.storage=stream", "augment.crop=resized")
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"workers": workers})})
    loader = _loader(recipe, open_source(recipe.data, "train"))
    gone = tmp_path / "train/b/4.jpg"
    seen = []
    for batch in itertools.islice(loader.batches(0), 60 * loader.steps_per_epoch):
        seen.append(batch.indices.tolist())
        gone.unlink(missing_ok=True)
    assert {Path(where).name: why for where, why in loader.skipped.items()} == {"4.jpg": "No such file or directory"}
    late = [i for indices in seen[-90:] for i in indices]
    assert set(late) == set(range(12)) - {_position(tmp_path, gone)}


def _position(root: Path, file: Path) -> int:
    """Place of a file in the order of an image folder: classes, then file names as people count."""
    names = [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
    order = [root / "train" / "abc"[c] / f"{k}.jpg" for c, inside in enumerate(names) for k in inside]
    return order.index(file)


@pytest.mark.parametrize("storage", ["memory", "stream"])
def test_nothing_readable(storage: str) -> None:
    source = Synthetic([(16, 16)] * 8, broken=tuple(range(8)))
    with pytest.raises(UserError, match=r"image \d: made broken"):
        next(_loader(_small(f"data.storage={storage}", "data.workers=2"), source).batches(0))


def test_too_few_images() -> None:
    with pytest.raises(UserError, match=r"3 readable images are fewer than the 4 of one step"):
        _loader(_small(), Synthetic([(16, 16)] * 3))


def test_too_many_classes() -> None:
    with pytest.raises(UserError, match=r"give model.num_classes=3"):
        _loader(_small("model.num_classes=2"), Synthetic([(16, 16)] * 8))


def test_decode_counts_and_keeps_the_order() -> None:
    source = Synthetic([(4, 4)] * 600, broken=(1, 300, 599))
    decoded = decode(source, CLASS_LABELS.fitted((4, 4)), threads=2)
    assert decoded.images.shape == (597, 3, 4, 4)
    assert decoded.indices.tolist() == [i for i in range(600) if i not in (1, 300, 599)]
    assert decoded.targets.tolist() == source.labels[decoded.indices].tolist()
    assert list(decoded.broken) == ["image 1", "image 300", "image 599"]
    assert np.array_equal(decoded.images[400].permute(1, 2, 0), np.asarray(source.read(int(decoded.indices[400]))))


# evaluation


@pytest.mark.parametrize(("kept", "workers"), [(True, 0), (False, 0), (False, 2)])
def test_evaluation_counts_every_readable_image_once(kept: bool, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kept:
        monkeypatch.setattr("illama.data.loading.loader.EVAL_MAX_BYTES", 0)
    source = Synthetic([(16 + i % 5, 20) for i in range(23)], broken=(2, 5, 6, 7, 8, 9))
    transform = EvalTransform((16, 16), 0.9, mode="crop")
    loader = EvalLoader(source, transform, 5, "cpu", workers)
    for _ in range(2):
        batches = list(loader)
        indices = torch.cat([batch.indices for batch in batches])
        assert indices.tolist() == [i for i in range(23) if i not in (2, 5, 6, 7, 8, 9)]
        assert torch.cat([batch.targets for batch in batches]).tolist() == source.labels[indices].tolist()
        expected = torch.stack([transform(source.read(int(i))) for i in indices])
        got = torch.cat([batch.images for batch in batches])
        assert torch.equal(got, normalize(expected, transform.mean, transform.std))
        assert sorted(loader.skipped) == sorted(f"image {i}" for i in (2, 5, 6, 7, 8, 9))
    assert len(loader) == 5


def test_messy_folder_trains_and_evaluates(shared_data: Path, tmp_path: Path) -> None:
    """The odd files as one class among good pictures: three are skipped and counted, none stops the run."""
    for k, name in enumerate(("odd", "odd2")):
        (tmp_path / "train" / name).mkdir(parents=True)
        for file in (shared_data / "messy").iterdir():
            if file.suffix != ".json":
                (tmp_path / "train" / name / f"{k}{file.name}").write_bytes(file.read_bytes())
    recipe = _small(
        "data.name=folder",
        f"data.path={tmp_path}",
        "augment.crop=resized",
        "augment.randaugment=rand-m9-mstd0.5-inc1",
        "model.img_size=32",
        "data.workers=2",
    )
    source = open_source(recipe.data, "train")
    assert len(source) == 36
    loader = _loader(recipe, source)
    for batch in itertools.islice(loader.batches(0), 2 * loader.steps_per_epoch):
        assert batch.images.isfinite().all()
    assert {Path(where).name[1:] for where in loader.skipped} <= {"truncated.jpg", "zero_byte.jpg", "text.jpg"}
    evaluation = EvalLoader(source, EvalTransform((48, 48)), 8, "cpu", 0)
    assert sum(len(batch.targets) for batch in evaluation) == 30
    assert len(evaluation.skipped) == 6


@pytest.mark.parametrize("storage", ["memory", "stream"])
def test_targets_that_are_not_the_tasks_are_refused(storage: str) -> None:
    """One number would be spread over a whole map."""

    class Maps(ClassLabels):
        def shape(self, size: tuple[int, int]) -> tuple[int, ...]:
            return size

    recipe = _small(f"data.storage={storage}", "data.workers=0")
    with pytest.raises(ValueError, match=r"the target of image \d is \(\) of torch.int64, its task's are \(16, 16\)"):
        next(TrainLoader(recipe, Synthetic([(16, 16)] * 4), "cpu", plan_batches(recipe), targets=Maps()).batches())
