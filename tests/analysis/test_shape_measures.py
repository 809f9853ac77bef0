"""Shape bias on decisions that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from illama.analysis.shape.measures import category_probabilities, decisions, shape_bias
from illama.data.imagenet import categories16
from illama.errors import UserError

NAMES = list(categories16())


def _numbers(*names: str) -> torch.Tensor:
    return torch.tensor([NAMES.index(name) for name in names])


def test_a_category_is_the_mean_of_its_classes_in_numpy_too() -> None:
    logits = torch.randn(7, 1000, generator=torch.Generator().manual_seed(0))
    odds = np.exp(logits.numpy().astype(np.float64))
    probabilities = odds / odds.sum(axis=1, keepdims=True)
    expected = np.stack([np.take(probabilities, own, axis=1).mean(axis=1) for own in categories16().values()], axis=1)
    found = category_probabilities(logits)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    assert decisions(logits).tolist() == expected.argmax(axis=1).tolist()


def test_a_sum_would_decide_otherwise() -> None:
    """A little of each of the 109 dogs is more than the one knife in sum, and less on average."""
    logits = torch.zeros(1, 1000)
    logits[0, list(categories16()["dog"])] = 1.0
    logits[0, list(categories16()["knife"])] = 3.0
    in_sum = {name: logits.softmax(1)[0, list(own)].sum() for name, own in categories16().items()}
    assert max(in_sum, key=lambda name: float(in_sum[name])) == "dog"
    assert NAMES[int(decisions(logits))] == "knife"


def test_counts_by_hand() -> None:
    #        shape    texture other    shape    no conflict
    shapes = _numbers("cat", "cat", "cat", "dog", "dog")
    textures = _numbers("dog", "dog", "oven", "cat", "dog")
    found = shape_bias(_numbers("cat", "dog", "bear", "dog", "dog"), shapes, textures)
    cat, dog, bear = (NAMES.index(name) for name in ("cat", "dog", "bear"))
    assert (found.shape[cat], found.texture[cat], found.other[cat]) == (1, 1, 1)
    assert (found.shape[dog], found.texture[dog], found.other[dog]) == (1, 0, 0)
    assert found.by_category[cat] == 0.5
    assert found.by_category[dog] == 1.0
    assert found.by_category[bear] is None
    assert (found.images, found.decided, found.without_conflict) == (4, 3, 1)
    assert found.bias == 2 / 3
    assert (found.shape_accuracy, found.texture_accuracy) == (0.5, 0.25)


def test_without_a_conflict_or_a_decision_there_is_no_bias() -> None:
    with pytest.raises(UserError, match="none of the 2 images shows one category in the texture of another"):
        shape_bias(_numbers("cat", "dog"), _numbers("cat", "dog"), _numbers("cat", "dog"))
    with pytest.raises(UserError, match="on none of the 1 images with a conflict"):
        shape_bias(_numbers("bear", "cat"), _numbers("cat", "cat"), _numbers("dog", "cat"))
