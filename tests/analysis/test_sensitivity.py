"""Derivatives and exchanges: against finite differences, torch's own Jacobian and exchanged pixels."""

from __future__ import annotations

import pytest
import torch

from illama.analysis import exchange, image_gradient, jacobian_norms
from illama.models import ILlama
from tests.analysis.common import KINDS, every_kind, network, some_images


@every_kind
def test_gradient_against_finite_differences(kind: str) -> None:
    model, images = network(**KINDS[kind]).eval(), some_images(2)
    step, norms = 1e-5, []
    for image in images:
        moves = step * torch.eye(image.numel(), dtype=torch.float64).view(-1, *image.shape)
        with torch.no_grad():
            up, down = (model(image + sign * moves).square().sum(1) for sign in (1, -1))
        norms.append(float(((up - down) / (2 * step)).norm()))
    found = image_gradient(model, images)
    assert found == pytest.approx(sum(norms) / 2, rel=1e-6)
    assert (found == 0) == (kind == "class first, pre_softmax")


@pytest.mark.usefixtures("one_by_one")
def test_gradient_of_batches() -> None:
    test_gradient_against_finite_differences("published")


def torch_jacobian_norms(model: ILlama, images: torch.Tensor) -> torch.Tensor:
    norms = []
    for image in images.split(1):
        x_1ND = model.embed(image).detach()
        jacobian = torch.autograd.functional.jacobian(model.run_blocks, x_1ND)
        norms.append(jacobian[0, :, :, 0].square().sum(dim=(1, 3)).sqrt())
    return torch.stack(norms).mean(0)


@every_kind
def test_jacobian_equals_torchs(kind: str) -> None:
    model, images = network(0.3, **KINDS[kind]).eval(), some_images(2)
    torch.testing.assert_close(
        jacobian_norms(model, images), torch_jacobian_norms(model, images), rtol=1e-11, atol=1e-14
    )


@pytest.mark.usefixtures("one_by_one")
def test_jacobian_channel_by_channel() -> None:
    test_jacobian_equals_torchs("published")


@pytest.mark.parametrize(
    ("kind", "strict"), [("pre_softmax", True), ("class first, pre_softmax", True), ("published", False)]
)
def test_later_tokens_have_no_derivative_in_a_strictly_causal_network(kind: str, strict: bool) -> None:
    norms_NN = jacobian_norms(network(**KINDS[kind]), some_images(2))
    later = norms_NN[torch.triu(torch.ones(7, 7), 1).bool()]
    assert torch.count_nonzero(later) == (0 if strict else 21)
    assert torch.all(norms_NN.diagonal() > 0)


@pytest.mark.parametrize("kind", ["published", "class first", "modified mask"])
def test_exchange_equals_exchanged_pixels(kind: str) -> None:
    """Each position from images that are put together of two, patch by patch."""
    model, images = network(0.2, **KINDS[kind]).eval(), some_images(3)
    first = model.config.cls_position == "first"
    expected = []
    for token in range(6 if first else 5):
        kept = token if first else token + 1  # patches that stay
        from_own = (torch.arange(6) < kept).view(3, 2).repeat_interleave(2, 0).repeat_interleave(2, 1)
        mixed = torch.where(from_own, images, images[[2, 0, 1]])
        with torch.no_grad():
            after, before = (model.get_features(i, tokens="all", norm=False)[:, token] for i in (mixed, images))
        expected.append(((after - before).norm(dim=1) / before.norm(dim=1)).mean())
    torch.testing.assert_close(exchange(model, images), torch.stack(expected), rtol=1e-11, atol=0)


@pytest.mark.usefixtures("one_by_one")
def test_exchange_of_batches() -> None:
    test_exchange_equals_exchanged_pixels("published")


@every_kind
def test_nothing_leaks_exactly_where_the_mask_stands_before_the_softmax(kind: str) -> None:
    changes = exchange(network(**KINDS[kind]), some_images())
    assert len(changes) == (6 if KINDS[kind].get("cls_position") == "first" else 5)
    if "pre_softmax" in kind:
        assert torch.count_nonzero(changes) == 0
    else:
        assert torch.all(changes[:-1] > 0)


def test_softness_lets_later_patches_through() -> None:
    assert torch.all(exchange(network(0.5, **KINDS["pre_softmax"]), some_images()) > 1e-3)


def test_one_patch_has_nothing_behind_it() -> None:
    assert exchange(network(img_size=2), torch.randn(2, 2, 2, 2, dtype=torch.float64)).shape == (0,)


def test_tokens_of_zeros_that_stay_so_have_not_moved() -> None:
    model = network()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert not exchange(model, some_images()).any()
