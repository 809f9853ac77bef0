"""Features of a whole source: the network's own, kept once, never mistaken for others."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from illama.data.source import SubsetSource
from illama.errors import UserError
from illama.evaluation.features import Pooled, _pooled, cached_features, collect_blocks, collect_features
from illama.evaluation.origin import data_id, weights_id
from illama.evaluation.subject import Subject, open_subject
from illama.models import ILlama
from tests.analysis.common import KINDS, every_kind, network, some_images


@pytest.fixture
def subject(digits_run: Path) -> Subject:
    subject = open_subject(digits_run, device="cpu", batch_size=16)
    return subject.on(SubsetSource(subject.source, np.arange(40), "the first 40"))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images of each batch that a network embeds from here on."""
    seen: list[int] = []
    embed = ILlama.embed

    def counting(self: ILlama, images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return embed(self, images)

    monkeypatch.setattr(ILlama, "embed", counting)
    return seen


def test_features_are_the_networks_own_in_the_order_of_the_source(subject: Subject) -> None:
    sample = subject.sample(40)
    depth = len(subject.model.blocks)
    blocks = [0, depth - 1]
    for tokens in ("class", "mean"):
        for block, found in zip(blocks, collect_blocks(subject, blocks, tokens), strict=True):
            with torch.no_grad():
                kind = "class" if tokens == "class" else "patches"
                expected = subject.model.get_features(sample.images, block, tokens=kind)
            expected = expected if tokens == "class" else expected.mean(dim=1)
            # another batch size rounds differently, by a few float32 steps
            torch.testing.assert_close(found.values, expected, rtol=1e-5, atol=1e-5)
            assert found.block == block
            assert torch.equal(found.positions, sample.positions)
            assert torch.equal(found.labels, sample.labels)


@every_kind
@pytest.mark.parametrize("tokens", ["class", "mean"])
def test_every_kind_of_network_gives_its_own_features(kind: str, tokens: Pooled) -> None:
    torch.manual_seed(0)
    model, images = network(0.3, **KINDS[kind]).eval(), some_images()
    blocks = list(range(len(model.blocks)))[::-1]  # in any order
    with torch.no_grad():
        found_BLD = _pooled(model, images, blocks, tokens)
        for i, block in enumerate(blocks):
            expected = model.get_features(images, block, tokens="class" if tokens == "class" else "patches")
            expected = expected if tokens == "class" else expected.mean(dim=1)
            # computed in double precision, handed out in float32
            torch.testing.assert_close(found_BLD[:, i], expected.float(), rtol=1e-6, atol=1e-6)


def test_the_heads_answer_to_the_class_token_is_the_logits(subject: Subject) -> None:
    found = collect_features(subject)
    sample = subject.sample(40)
    with torch.no_grad():
        torch.testing.assert_close(subject.model.head(found.values), subject.model(sample.images), rtol=1e-5, atol=1e-5)


def test_kept_features_are_read_instead_of_computed(subject: Subject, tmp_path: Path, passes: list[int]) -> None:
    first = cached_features(subject, [0], "class", tmp_path / "new")
    assert sum(passes) == 40
    again = cached_features(subject, [0], "class", tmp_path / "new")
    assert sum(passes) == 40
    assert torch.equal(first[0].values, again[0].values)
    both = cached_features(subject, [0, -1], "class", tmp_path / "new")
    assert sum(passes) == 80, "the missing block alone needs a pass"
    assert [found.block for found in both] == [0, len(subject.model.blocks) - 1]


@pytest.mark.parametrize("changed", ["weights", "softness", "images", "tokens", "transform"])
def test_kept_features_of_something_else_are_not_used(
    subject: Subject, tmp_path: Path, passes: list[int], changed: str
) -> None:
    cached_features(subject, [0], "class", tmp_path)
    if changed == "weights":
        with torch.no_grad():
            subject.model.blocks[0].mlp.fc2.weight[0, 0] += 1e-3
    elif changed == "softness":
        subject.model.set_softness(0.25)
    elif changed == "images":
        subject = subject.on(SubsetSource(subject.source, np.arange(39), "one less"))
    elif changed == "transform":
        subject = dataclasses.replace(subject, transform=dataclasses.replace(subject.transform, mean=(0.25,)))
    passes.clear()
    cached_features(subject, [0], "mean" if changed == "tokens" else "class", tmp_path)
    assert sum(passes) == len(subject.source)


def test_a_file_under_anothers_name_is_refused(subject: Subject, tmp_path: Path) -> None:
    cached_features(subject, [0], "class", tmp_path / "a")
    cached_features(subject, [1], "class", tmp_path / "b")
    (one,), (other,) = (list((tmp_path / name).iterdir()) for name in "ab")
    other.with_name(one.name).write_bytes(other.read_bytes())
    with pytest.raises(UserError, match="features of other weights, images or blocks than its name says; delete it"):
        cached_features(subject, [0], "class", tmp_path / "b")
    one.write_bytes(one.read_bytes()[:-7])
    with pytest.raises(UserError, match=rf"{one.name} is damaged, or of another version of illama; delete it$"):
        cached_features(subject, [0], "class", tmp_path / "a")


def test_a_block_that_does_not_exist_is_named(subject: Subject) -> None:
    depth = len(subject.model.blocks)
    with pytest.raises(UserError, match=f"block {depth} does not exist; the model has blocks 0 to {depth - 1}"):
        collect_features(subject, depth)


def test_features_that_are_not_finite_are_counted(subject: Subject) -> None:
    with torch.no_grad():
        subject.model.blocks[0].mlp.fc2.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match="40 of 40 images have features that are not finite"):
        collect_features(subject)


def test_unreadable_images_are_left_out_and_named(digits_run: Path, tmp_path: Path) -> None:
    for i in range(4):
        path = tmp_path / "data" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 40 * i, dtype=np.uint8)).save(path)
    bad = tmp_path / "data" / "a" / "2.png"
    bad.write_bytes(b"no picture")
    subject = open_subject(digits_run, data=str(tmp_path / "data"), device="cpu", numbering="data")
    found = collect_features(subject)
    assert found.positions.tolist() == [0, 2, 3]
    assert found.labels.tolist() == [0, 1, 1]
    assert list(found.skipped) == [str(bad)]
    for path in (tmp_path / "data").rglob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"none of the 4 images can be read|no image can be read"):
        collect_features(subject)


def test_a_data_set_is_known_by_names_and_labels_not_by_its_place(tmp_path: Path, digits_run: Path) -> None:
    def made(root: Path, files: dict[str, str]) -> str:
        for name, class_name in files.items():
            path = root / class_name / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(path)
        return data_id(open_subject(digits_run, data=str(root), device="cpu", numbering="data").source)

    files = {"1.png": "a", "2.png": "a", "3.png": "b"}
    first = made(tmp_path / "here", files)
    assert made(tmp_path / "there", files) == first
    assert made(tmp_path / "label", files | {"2.png": "b"}) != first
    assert made(tmp_path / "name", {"1.png": "a", "9.png": "a", "3.png": "b"}) != first
    assert made(tmp_path / "class", {"1.png": "a", "2.png": "a", "3.png": "c"}) != first


def test_other_pictures_under_the_same_names_are_another_data_set(tmp_path: Path, digits_run: Path) -> None:
    names = []
    for place, level in (("clean", 0), ("corrupted", 99), ("again", 0)):
        for number in range(40):
            path = tmp_path / place / str(number % 2) / f"{number}.bmp"  # of equal size, whatever it shows
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), level, dtype=np.uint8)).save(path)
        names.append(data_id(open_subject(digits_run, data=str(tmp_path / place), device="cpu").source))
    assert names[0] == names[2] != names[1]
    for position in (0, 37):  # the first and the last of the images that stand for all
        again = open_subject(digits_run, data=str(tmp_path / "again"), device="cpu").source
        path = Path(again.location(position))
        whole = path.read_bytes()
        path.write_bytes(b"broken")
        assert data_id(again) != names[0], position
        path.write_bytes(whole)
        assert data_id(again) == names[0]


def test_weights_are_known_by_every_bit(subject: Subject) -> None:
    model = subject.model
    before = weights_id(model)
    model.set_softness(0.7)
    assert weights_id(model) == before
    with torch.no_grad():
        model.head.weight[0, 0] = torch.nextafter(model.head.weight[0, 0], torch.tensor(9.0))
    assert weights_id(model) != before


def test_what_features_depend_on_is_plain_json(subject: Subject) -> None:
    identity = collect_features(subject).identity
    assert json.loads(json.dumps(identity)) == identity
