"""The compiled attention of the CPU: errors against float64, second derivatives, the same bits on any threads."""

from __future__ import annotations

import itertools

import pytest
import torch

from illama import native, soft_causal_attention
from illama.attention import soft_causal_attention_qkvpacked
from tests.attention.common import (
    HEAD_DIMS,
    SOFTNESS,
    TOKENS,
    assert_as_exact_as_the_reference,
    outputs_and_gradients,
    random_qkv,
    random_tables,
)

pytestmark = pytest.mark.skipif(native.why_not() is not None, reason=f"no compiled kernels: {native.why_not()}")
DTYPES = (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", ["causal", "modified_causal"])
@pytest.mark.parametrize(("tokens", "softness"), list(itertools.product(TOKENS, SOFTNESS)))
def test_every_length(tokens: int, softness: float, mask: str, dtype: torch.dtype) -> None:
    torch.manual_seed(tokens)
    qkv, rope = random_qkv(2, 3, tokens, 64, dtype), random_tables(tokens, 64)
    assert_as_exact_as_the_reference(qkv, softness, mask, rope, "native", packed=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [2, 6, 7, 16, 47, 48, 49, 96, 97])  # borders of tiles, vectors and blocks
def test_borders(tokens: int, dtype: torch.dtype) -> None:
    torch.manual_seed(tokens)
    for softness, mask in ((0.0, "causal"), (0.35, "modified_causal"), (0.0, "modified_causal")):
        assert_as_exact_as_the_reference(random_qkv(2, 2, tokens, 32, dtype), softness, mask, None, "native")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("head_dim", [2, 6, 8, 24, *HEAD_DIMS])
def test_every_head_width(head_dim: int, rotate: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(head_dim)
    rope = random_tables(65, head_dim) if rotate else None
    assert_as_exact_as_the_reference(random_qkv(2, 2, 65, head_dim, dtype), 0.35, "causal", rope, "native")


@pytest.mark.parametrize("backward", [False, True])
def test_the_same_bits_on_any_number_of_threads(backward: bool) -> None:
    """One head on four threads is cut into parts, three on one are not."""
    torch.manual_seed(0)
    qkv, rope, d_out = random_qkv(1, 3, 197, 64, torch.float32), random_tables(197, 64), torch.randn(1, 3, 197, 64)
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            found.append(
                outputs_and_gradients(
                    lambda t: soft_causal_attention_qkvpacked(t, 0.0, rope=rope, backend="native"), [qkv], d_out
                )
                if backward
                else [soft_causal_attention_qkvpacked(qkv, 0.0, rope=rope, backend="native")]
            )
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(mine, first) for mine, first in zip(other, found[0], strict=True))


def test_equal_weights() -> None:
    out = soft_causal_attention_qkvpacked(torch.ones(1, 33, 3, 2, 32), 0.0, backend="native")
    torch.testing.assert_close(out[0, 1, :, 5], torch.arange(1, 34) / 33)


def test_scores_in_the_thousands() -> None:
    """The output is exact; gradients form the weights again from a saved lse, with an error of eps times a score."""
    torch.manual_seed(0)
    qkv, d_out = 30 * random_qkv(1, 2, 33, 32, torch.float32), torch.randn(1, 2, 33, 32)
    truth, found, plain = (
        outputs_and_gradients(
            lambda t, backend=backend: soft_causal_attention_qkvpacked(t, 0.35, backend=backend), [tensors], d_out
        )
        for tensors, backend in ((qkv.double(), "reference"), (qkv, "native"), (qkv, "reference"))
    )
    q, k, _ = qkv.permute(2, 0, 3, 1, 4)
    largest = float((q @ k.mT).abs().max()) * 32**-0.5
    assert largest > 3000
    error, allowed = ((t[0].double() - truth[0]).norm() for t in (found, plain))
    assert error <= 2 * allowed + 2e-7 * truth[0].norm()
    bound = torch.finfo(torch.float32).eps * largest * qkv.double().norm() * d_out.norm()
    assert (found[1].double() - truth[1]).norm() <= bound


@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_what_is_not_finite_shows(where: str) -> None:
    q, k, v = random_qkv(1, 1, 33, 32, torch.float32).permute(2, 0, 3, 1, 4).contiguous()
    {"q": q, "k": k, "v": v}[where][0, 0, 5, 3] = float("nan")
    found = soft_causal_attention(q, k, v, 0.0, backend="native").isnan().any(-1)[0, 0]
    expected = soft_causal_attention(q, k, v, 0.0, backend="reference").isnan().any(-1)[0, 0]
    assert expected.any()
    assert found[expected].all() if where == "v" else torch.equal(found, expected)


def test_a_second_derivative_is_the_references() -> None:
    tensors = random_qkv(1, 2, 17, 8, torch.float32)

    def penalty(backend: str) -> torch.Tensor:
        qkv = tensors.clone().requires_grad_()
        out = soft_causal_attention_qkvpacked(qkv, 0.35, rope=rope, backend=backend)
        (first,) = torch.autograd.grad(out.square().sum(), qkv, create_graph=True)
        return torch.autograd.grad(first.square().sum(), qkv)[0]

    rope = random_tables(17, 8)
    torch.testing.assert_close(penalty("native"), penalty("reference"), rtol=1e-4, atol=1e-4)


def test_the_gradient_of_a_sum_has_no_strides() -> None:
    qkv = random_qkv(2, 2, 33, 32, torch.float32).requires_grad_()
    other = qkv.detach().clone().requires_grad_()
    soft_causal_attention_qkvpacked(qkv, 0.35, backend="native").sum().backward()
    soft_causal_attention_qkvpacked(other, 0.35, backend="reference").sum().backward()
    torch.testing.assert_close(qkv.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_tensors_that_are_views_of_others() -> None:
    """Every second image, channels of a wider tensor, heads in another order."""
    wide = torch.randn(4, 3, 33, 3, 48)[::2, :, :, :, 8:40]
    qkv = wide.permute(0, 2, 3, 1, 4)[:, :, :, [2, 0, 1]]
    assert_as_exact_as_the_reference(qkv, 0.35, "causal", None, "native", packed=True)
