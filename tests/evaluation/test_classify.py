"""The pass over the data: each image once, the model left as it was."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from illama.errors import UserError
from illama.evaluation import collect_logits, evaluate_model, evaluate_together
from illama.models import ILlama, ModelConfig

CONFIG = ModelConfig(img_size=8, patch_size=2, in_chans=1, num_classes=4, embed_dim=8, depth=2, num_heads=2)


class Batches:
    """A loader of random images."""

    def __init__(self, count: int, size: int, skipped: dict[str, str] | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(count, 1, 8, 8, generator=generator)
        self.targets = torch.randint(0, 4, (count,), generator=generator)
        self.size, self.skipped = size, skipped or {}

    def __iter__(self) -> Iterator[SimpleNamespace]:
        for start in range(0, len(self.images), self.size):
            part = slice(start, start + self.size)
            yield SimpleNamespace(
                images=self.images[part],
                targets=self.targets[part],
                indices=torch.arange(len(self.images))[part],
            )


@pytest.fixture
def model() -> ILlama:
    torch.manual_seed(0)
    model = ILlama(CONFIG)
    torch.nn.init.normal_(model.head.weight)
    return model


def test_the_result_does_not_depend_on_the_batch_size(model: ILlama) -> None:
    results = [evaluate_model(model, Batches(23, size), 4) for size in (1, 5, 23)]
    assert {result.count for result in results} == {23}
    assert len({(result.top1, result.top5, result.class_hits, result.class_counts) for result in results}) == 1
    assert results[0].loss == pytest.approx(results[2].loss, rel=1e-5)


def test_the_numbers_fit_each_other_and_the_logits(model: ILlama) -> None:
    loader = Batches(23, 5)
    result = evaluate_model(model, loader, 4)
    logits, targets, indices = collect_logits(model, loader)
    assert torch.equal(indices, torch.arange(23))
    assert torch.equal(targets, loader.targets)
    assert result.top1 == pytest.approx(100 * (logits.argmax(1) == targets).float().mean().item())
    assert sum(result.class_counts) == result.count
    assert result.top1 == pytest.approx(100 * sum(result.class_hits) / result.count)
    assert result.top5 == 100.0
    assert result.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, targets).item(), rel=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(model: ILlama, training: bool) -> None:
    model.train(training).set_softness(0.5)
    result = evaluate_model(model, Batches(6, 3), 4, softness=1.0)
    assert result.softness == 1.0
    assert model.training is training
    assert float(model.softness) == 0.5
    assert evaluate_model(model, Batches(6, 3), 4).softness == 0.5


def test_several_questions_share_one_pass(model: ILlama, monkeypatch: pytest.MonkeyPatch) -> None:
    """One model at two values of softness and another one: each as it would be alone, to the bit."""
    torch.manual_seed(1)
    other, loader, passes = ILlama(CONFIG), Batches(23, 5), []
    for each in (model, other):
        torch.nn.init.normal_(each.patch_embed.proj.weight)
        torch.nn.init.normal_(each.head.weight)
    model.train().set_softness(0.7)
    asked = [(model, None), (model, 0.0), (other, 0.3)]
    alone = [evaluate_model(each, loader, 4, softness=softness) for each, softness in asked]
    original = Batches.__iter__
    monkeypatch.setattr(Batches, "__iter__", lambda self: passes.append(1) or original(self))
    together = evaluate_together(asked, loader, 4)
    assert len(passes) == 1
    assert [result.softness for result in together] == pytest.approx([0.7, 0.0, 0.3])
    assert len({result.loss for result in together}) == 3
    for one, result in zip(alone, together, strict=True):
        assert dataclasses.replace(one, images_per_s=0) == dataclasses.replace(result, images_per_s=0)
    assert (model.training, other.training) == (True, True)
    assert (float(model.softness), float(other.softness)) == (pytest.approx(0.7), 0.0)


def test_softness_changes_what_is_computed(model: ILlama) -> None:
    with torch.no_grad():
        model.patch_embed.proj.weight.mul_(20)
        for block in model.blocks:
            block.attn.proj.weight.normal_()
    losses = {evaluate_model(model, Batches(6, 3), 4, softness=softness).loss for softness in (0.0, 0.5, 1.0)}
    assert len(losses) == 3


def test_drop_path_is_off_during_the_pass(model: ILlama) -> None:
    expected = evaluate_model(model, Batches(6, 3), 4).loss
    model.set_drop_path(0.9)
    model.train()
    assert evaluate_model(model, Batches(6, 3), 4).loss == expected


def test_skipped_images_are_handed_on(model: ILlama) -> None:
    result = evaluate_model(model, Batches(6, 3, {"bad.jpg": "cut off"}), 4)
    assert result.count == 6
    assert json.loads(json.dumps(result.to_dict()))["skipped"] == {"bad.jpg": "cut off"}


def test_per_class_names_and_absent_classes(model: ILlama) -> None:
    loader = Batches(6, 3)
    loader.targets = loader.targets % 2
    result = evaluate_model(model, loader, 4)
    assert list(result.per_class) == ["0", "1", "2", "3"]
    assert result.per_class["3"] is None


def test_no_image_at_all_is_an_error(model: ILlama) -> None:
    with pytest.raises(UserError, match="no image could be evaluated; 1 were skipped"):
        evaluate_model(model, Batches(0, 3, {"bad.jpg": "cut off"}), 4)
