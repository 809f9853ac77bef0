"""The blocked backend: as exact as the reference in both of its cuts, differentiable, memory linear in N."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch

from illama import UserError
from illama.attention import blocked, soft_causal_attention, soft_causal_attention_qkvpacked
from illama.device.linear import keep_linear_kernels
from tests.attention.common import (
    DEVICE,
    HEAD_DIMS,
    SOFTNESS,
    TOKENS,
    assert_as_exact_as_the_reference,
    assert_one_graph_serves_all_softness,
    in_dtype,
    outputs_and_gradients,
    poisoned,
    random_qkv,
    random_tables,
)

CUTS = ("together", "head by head")
DTYPES = (torch.float32, torch.bfloat16, torch.float64)

Force = Callable[..., list[int]]


@pytest.fixture
def force(monkeypatch: pytest.MonkeyPatch) -> Force:
    """Chooses how the work is cut; gives a list that grows with every product oneDNN is asked for."""

    def choose(cut: str, rows: int | None = None) -> list[int]:
        products: list[int] = []
        original = blocked.onednn_product

        def counted(*tensors: torch.Tensor) -> torch.Tensor:
            products.append(1)
            return original(*tensors)

        monkeypatch.setattr(blocked, "onednn_product", counted)
        if cut == "together":
            keep_linear_kernels("mkl")
            if rows is not None:
                monkeypatch.setattr(blocked._Cut, "ROWS", rows)
            return products
        if DEVICE != "cpu" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            pytest.skip("head by head needs oneDNN's linear operator on the CPU")
        keep_linear_kernels("onednn")
        monkeypatch.setattr(blocked._Cut, "FEWEST_TOKENS", 1)
        monkeypatch.setattr(blocked._Cut, "MOST_THREADS", torch.get_num_threads())
        if rows is not None:
            monkeypatch.setattr(blocked._Cut, "ROWS_ONE_BY_ONE", rows)
        return products

    return choose


def _lengths() -> Iterator[tuple]:
    """Each length with each softness and dtype; cut, width, rotation and packing go round."""
    for index, (tokens, softness, dtype) in enumerate(itertools.product(TOKENS, SOFTNESS, DTYPES)):
        width = HEAD_DIMS[(index + index // 4) % 4]
        rotate, packed = (index // 3) % 2 == 0, index % 2 == 0
        yield tokens, width, softness, dtype, rotate, packed, "together"
        if dtype == torch.float32:
            yield tokens, width, softness, dtype, rotate, not packed, "head by head"


@pytest.mark.parametrize(("tokens", "head_dim", "softness", "dtype", "rotate", "packed", "cut"), list(_lengths()))
def test_exact_at_every_length(force: Force, tokens, head_dim, softness, dtype, rotate, packed, cut) -> None:
    products = force(cut)
    batch, heads = (2, 3) if tokens <= 65 else (1, 2)
    qkv = random_qkv(batch, heads, tokens, head_dim, dtype)
    rope = in_dtype(random_tables(tokens, head_dim), torch.promote_types(dtype, torch.float32)) if rotate else None
    assert_as_exact_as_the_reference(qkv, softness, "causal", rope, "blocked", packed=packed)
    assert bool(products) == (cut == "head by head" and tokens > 1)


def _modes() -> Iterator[tuple]:
    """Each width with each softness, dtype and cut; each of these with every rotation and packing somewhere."""
    ways = [(dtype, "together") for dtype in DTYPES] + [(torch.float32, "head by head")]
    for index, ((dtype, cut), head_dim, softness) in enumerate(itertools.product(ways, HEAD_DIMS, SOFTNESS)):
        yield dtype, cut, head_dim, softness, index % 2 == 0, (index // 2 + index // 12) % 2 == 0


@pytest.mark.parametrize(("dtype", "cut", "head_dim", "softness", "rotate", "packed"), list(_modes()))
def test_exact_in_every_mode(force: Force, dtype, cut, head_dim, softness, rotate, packed) -> None:
    """In blocks of 16 rows, so that 65 tokens are several blocks of unequal height."""
    products = force(cut, rows=16)
    qkv = random_qkv(1, 2, 65, head_dim, dtype)
    rope = in_dtype(random_tables(65, head_dim), torch.promote_types(dtype, torch.float32)) if rotate else None
    given = torch.tensor(softness, device=DEVICE, dtype=torch.float64)
    assert_as_exact_as_the_reference(qkv, given, "causal", rope, "blocked", packed=packed)
    assert bool(products) == (cut == "head by head")


@pytest.mark.parametrize("most_scores", [1, 3 * 20 * 20])
def test_heads_are_worked_on_in_groups_without_a_trace(force: Force, monkeypatch, most_scores: int) -> None:
    """7 heads in groups of one, or of three with a rest of one."""
    force("together", rows=20)
    monkeypatch.setattr(blocked._Cut, "MOST_SCORES", most_scores)
    qkv = random_qkv(1, 7, 40, 32, torch.float32)
    assert_as_exact_as_the_reference(qkv, 0.35, "causal", random_tables(40, 32), "blocked", packed=True)
    assert_as_exact_as_the_reference(qkv, 0.0, "causal", None, "blocked")


@pytest.mark.parametrize("softness", SOFTNESS)
@pytest.mark.parametrize(("backend", "rows"), [("reference", 0), ("blocked", 66), ("blocked", 2)])
def test_gradients_are_derivatives(force: Force, backend: str, rows: int, softness: float) -> None:
    """Float64 finite differences, rotation included, in one block of rows and in several."""
    force("together", rows=rows)
    rope = in_dtype(random_tables(5, 4), torch.float64)
    qkv = random_qkv(1, 2, 5, 4, torch.float64).requires_grad_()

    def attend(qkv: torch.Tensor) -> torch.Tensor:
        return soft_causal_attention_qkvpacked(qkv, softness, rope=rope, backend=backend)

    assert torch.autograd.gradcheck(attend, (qkv,))


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("softness", [0.0, 0.4])
def test_large_scores_do_not_overflow(force: Force, cut: str, softness: float) -> None:
    """Scores of thousands: what is left is their own rounding, eps times the score.

    A row's weights are then a single 1, and dO V^T and its row sum cancel: a gradient of nearly zero is their rounding.
    """
    force(cut, rows=30)
    q, k, v = random_qkv(1, 2, 100, 32, torch.float32).permute(2, 0, 3, 1, 4)
    q, k, d_out = 30 * q, 30 * k, torch.randn_like(v)
    truth, found = (
        outputs_and_gradients(
            lambda q, k, v, name=name: soft_causal_attention(q, k, v, softness, backend=name),
            (t.to(dtype) for t in (q, k, v)),
            d_out,
        )
        for name, dtype in (("reference", torch.float64), ("blocked", torch.float32))
    )
    largest = (q @ k.mT).abs().max() * 32**-0.5
    assert largest > 1000
    cancelled = d_out.norm() * v.norm(dim=-1).max() * max(t.norm(dim=-1).max() for t in (q, k)) * 32**-0.5
    for mine, true in zip(found, truth, strict=True):
        assert (mine - true).norm() <= 2 * torch.finfo(torch.float32).eps * (largest * true.norm() + cancelled)


@pytest.mark.parametrize("cut", CUTS)
def test_strides_packing_and_repetition_change_no_bit(force: Force, cut: str) -> None:
    force(cut, rows=16)
    qkv, rope = random_qkv(2, 3, 40, 32, torch.float32), random_tables(40, 32)
    d_out = torch.randn(2, 3, 40, 32, device=DEVICE)

    def separate(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return soft_causal_attention(q, k, v, 0.4, rope=rope, backend="blocked")

    q, k, v = (t.contiguous() for t in qkv.permute(2, 0, 3, 1, 4))
    strided = [
        q.transpose(0, 2).contiguous().transpose(0, 2),  # tokens outermost
        torch.stack([k, k], dim=-1)[..., 0],  # channels apart
        torch.cat([v, v], dim=-1)[..., :32],  # rows apart
    ]
    with poisoned():
        expected = outputs_and_gradients(separate, (q, k, v), d_out)
        others = [
            outputs_and_gradients(separate, (q, k, v), d_out),
            outputs_and_gradients(separate, strided, d_out),
        ]
        for layout in (qkv, torch.stack([qkv, qkv], dim=-1)[..., 0]):
            out, d_qkv = outputs_and_gradients(
                lambda t: soft_causal_attention_qkvpacked(t, 0.4, rope=rope, backend="blocked"), [layout], d_out
            )
            others.append([out, *d_qkv.permute(2, 0, 3, 1, 4)])
    for found in others:
        for mine, other in zip(found, expected, strict=True):
            assert torch.equal(mine, other)


@pytest.mark.parametrize("cut", CUTS)
def test_cotangents_of_any_layout(force: Force, cut: str) -> None:
    """That of a sum is one number with all strides 0."""
    force(cut)
    qkv = random_qkv(2, 2, 20, 32, torch.float32)
    one, random = torch.ones((), device=DEVICE).expand(2, 2, 20, 32), torch.randn(2, 2, 20, 32, device=DEVICE)
    for given in (one, random.transpose(1, 3).contiguous().transpose(1, 3), torch.stack([random, random], -1)[..., 0]):
        strided, contiguous = (
            outputs_and_gradients(lambda t: soft_causal_attention_qkvpacked(t, 0.4, backend="blocked"), [qkv], d)[1]
            for d in (given, given.contiguous())
        )
        torch.testing.assert_close(strided, contiguous, rtol=1e-5, atol=1e-6)


def test_softness_is_a_number_or_a_tensor_and_gets_no_gradient() -> None:
    qkv = random_qkv(1, 1, 9, 32, torch.float32).requires_grad_()
    softness = torch.tensor(0.25, device=DEVICE, requires_grad=True)
    by_tensor = soft_causal_attention_qkvpacked(qkv, softness, backend="blocked")
    assert torch.equal(by_tensor, soft_causal_attention_qkvpacked(qkv, 0.25, backend="blocked"))
    by_tensor.sum().backward()
    assert softness.grad is None
    assert torch.count_nonzero(qkv.grad)


def test_softness_is_as_exact_as_the_tokens() -> None:
    """0.3 has more digits than float32 keeps: a number, and a tensor in double, reach float64 tokens unrounded."""
    q, k, v = random_qkv(1, 2, 9, 8, torch.float64).permute(2, 0, 3, 1, 4)
    expected = soft_causal_attention(q, k, v, 0.3, backend="reference")
    for softness in (0.3, torch.tensor(0.3, dtype=torch.float64, device=DEVICE)):
        found = soft_causal_attention(q, k, v, softness, backend="blocked")
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


def test_what_no_gradient_asks_for_is_not_kept() -> None:
    qkv = random_qkv(1, 2, 9, 32, torch.float32)
    needs = soft_causal_attention_qkvpacked(qkv.clone().requires_grad_(), 0.4, backend="blocked")
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            out = soft_causal_attention_qkvpacked(qkv, 0.4, backend="blocked")
        assert out.grad_fn is None
        assert torch.equal(out, needs)


@pytest.mark.parametrize("rotate", [False, True])
def test_what_is_saved_for_backward_grows_linearly(rotate: bool) -> None:
    def saved_bytes(tokens: int) -> int:
        sizes: list[int] = []
        rope = random_tables(tokens, 32) if rotate else None
        qkv = random_qkv(1, 2, tokens, 32, torch.float32).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel() * t.itemsize) or t, lambda t: t):
            soft_causal_attention_qkvpacked(qkv, 0.4, rope=rope, backend="blocked")
        return sum(sizes)

    small, middle, large = (saved_bytes(tokens) for tokens in (100, 200, 400))
    assert 0 < large - middle == 2 * (middle - small)


def test_the_second_derivative_is_refused_and_the_reference_has_it() -> None:
    qkv = random_qkv(1, 1, 6, 8, torch.float64).requires_grad_()
    out = soft_causal_attention_qkvpacked(qkv, 0.4, backend="blocked").square().sum()
    with pytest.raises(UserError, match=r'no second derivative.*"reference"'):
        torch.autograd.grad(out, qkv, create_graph=True)
    by_reference = soft_causal_attention_qkvpacked(qkv, 0.4, backend="reference").square().sum()
    (first,) = torch.autograd.grad(by_reference, qkv, create_graph=True)
    assert torch.count_nonzero(torch.autograd.grad(first.square().sum(), qkv)[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_mode": "pre_softmax"}, "post_softmax only"),
        ({"mask": "none"}, "mask causal"),
        ({"mask": "modified_causal"}, "mask causal"),
        ({"queries": 2}, "all tokens, or one query"),
    ],
)
def test_what_it_declines(changes: dict, message: str) -> None:
    q, k, v = torch.zeros(3, 1, 1, 6, 8)
    q = q[:, :, : changes.pop("queries", 6)]
    with pytest.raises(UserError, match=f"blocked.*cannot serve.*{message}"):
        soft_causal_attention(q, k, v, 0.0, backend="blocked", **changes)


@pytest.mark.parametrize("rotate", [False, True])
def test_operator_keeps_its_promises_to_torch(rotate: bool) -> None:
    """Schema, fake outputs, autograd registration, and tracing with dynamic shapes."""
    qkv = random_qkv(2, 2, 7, 32, torch.float32).requires_grad_()
    cos, sin = random_tables(7, 32) if rotate else (None, None)
    softness = torch.tensor(0.4, device=DEVICE)
    torch.library.opcheck(torch.ops.illama.blocked_attention.default, (qkv, softness, cos, sin, 0.2))


def test_one_full_graph_serves_all_softness() -> None:
    assert_one_graph_serves_all_softness("blocked", torch.float32, "aot_eager")
