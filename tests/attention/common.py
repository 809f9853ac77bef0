"""The measure that every attention backend faces: no further from float64 than twice the reference's own error."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator

import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention.flex_attention import AuxRequest, flex_attention

from illama.attention import Tables, soft_causal_attention, soft_causal_attention_qkvpacked
from tests.conftest import ON_GPU

DEVICE = "cuda" if ON_GPU else "cpu"
TOKENS, HEAD_DIMS, SOFTNESS = (1, 5, 65, 197, 577), (32, 64, 80, 128), (0.0, 0.35, 1.0)


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """New tensors hold NaN until somebody writes to them."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3, device=DEVICE).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def random_qkv(batch: int, heads: int, tokens: int, head_dim: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(batch, tokens, 3, heads, head_dim, device=DEVICE).to(dtype)


def random_tables(tokens: int, head_dim: int) -> Tables:
    angles = 2 * torch.pi * torch.rand(tokens, head_dim // 2, device=DEVICE)
    return angles.cos(), angles.sin()


def in_dtype(tables: Tables | None, dtype: torch.dtype) -> Tables | None:
    return None if tables is None else (tables[0].to(dtype), tables[1].to(dtype))


def outputs_and_gradients(function, inputs, d_out) -> list[torch.Tensor]:
    inputs = [t.detach().requires_grad_() for t in inputs]
    out = function(*inputs)
    out.backward(d_out.to(out.dtype))
    return [out.detach(), *(t.grad for t in inputs)]


def reference_errors(qkv_BhNd, truth, d_out, softness, rope, **options) -> list[torch.Tensor]:
    """L2 errors of `reference` in this dtype against the truth: output, dq, dk, dv.

    The largest of several equal computations, whose scores sum the channels in another order: in one small head a
    single peaked row can decide the error, and its rounding may happen to be lucky.
    """
    q, k, v = qkv_BhNd
    largest = [torch.zeros((), dtype=torch.float64, device=DEVICE)] * 4
    for _ in range(4):
        pairs = torch.randperm(q.shape[-1] // 2, device=DEVICE)
        channels = torch.stack([2 * pairs, 2 * pairs + 1], dim=-1).flatten()
        tables = None if rope is None else (rope[0][:, pairs], rope[1][:, pairs])
        inputs = (q[..., channels], k[..., channels], v)
        out, d_q, d_k, d_v = outputs_and_gradients(
            lambda q, k, v, tables=tables: soft_causal_attention(
                q, k, v, softness, rope=tables, backend="reference", **options
            ),
            inputs,
            d_out,
        )
        back = channels.argsort()
        found = (out, d_q[..., back], d_k[..., back], d_v)
        errors = [(mine.double() - true).norm() for mine, true in zip(found, truth, strict=True)]
        largest = [torch.maximum(one, other) for one, other in zip(largest, errors, strict=True)]
    return largest


def by_flex_attention(q, k, v, softness: float, mask: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Eq. 2 for softness > 0 without a softmax of ours, and the log-sum-exp of the scores; on the CPU, no gradients.

    With log(softness) added to later keys' scores a plain attention gives O_soft, the softmax of which has another
    denominator than Eq. 2: O = exp(lse_soft - lse) O_soft.
    """

    def soften(score, b, h, query, key):
        seen = (key <= query) | (query == 0) if mask == "modified_causal" else key <= query
        return torch.where(seen, score, score + math.log(softness))

    q, k, v = (t.detach().cpu() for t in (q, k, v))
    with warnings.catch_warnings():  # that it is slow without torch.compile
        warnings.simplefilter("ignore", UserWarning)
        out_BhNd, soft = flex_attention(q, k, v, score_mod=soften, return_aux=AuxRequest(lse=True))
        _, plain = flex_attention(q, k, v, return_aux=AuxRequest(lse=True))
    return (soft.lse - plain.lse).exp().unsqueeze(-1) * out_BhNd, plain.lse


def assert_as_exact_as_the_reference(*arguments, **options) -> None:
    """Errors against float64 at most twice those of `reference` in this dtype, plus one rounding of the result."""
    for name, error, _, allowed in errors_beside_the_reference(*arguments, **options):
        assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"


def errors_beside_the_reference(
    qkv: torch.Tensor,
    softness: float | torch.Tensor,
    mask: str,
    rope: Tables | None,
    backend: str = "triton",
    *,
    mask_mode: str = "post_softmax",
    packed: bool = False,
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Of output and gradients: name, L2 error against float64, that of `reference`, and what is allowed."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    dtype, tokens, scale = qkv.dtype, qkv.shape[1], qkv.shape[-1] ** -0.5
    d_out = torch.randn(q.shape, device=DEVICE).to(dtype)
    options = {"mask": mask, "mask_mode": mask_mode}

    def attention(backend: str, tables: Tables | None) -> Callable[..., torch.Tensor]:
        return lambda q, k, v: soft_causal_attention(q, k, v, softness, rope=tables, backend=backend, **options)

    doubles = [t.double() for t in (q, k, v)]
    truth = outputs_and_gradients(attention("reference", in_dtype(rope, torch.float64)), doubles, d_out)
    references = reference_errors((q, k, v), truth, d_out, softness, rope, **options)
    with poisoned():
        if packed:
            out, d_qkv = outputs_and_gradients(
                lambda t: soft_causal_attention_qkvpacked(t, softness, rope=rope, backend=backend, **options),
                [qkv],
                d_out,
            )
            found = [out, *d_qkv.permute(2, 0, 3, 1, 4)]
        else:
            found = outputs_and_gradients(attention(backend, rope), (q, k, v), d_out)
    for name, mine, reference, true in zip(("out", "dq", "dk", "dv"), found, references, truth, strict=True):
        assert mine.dtype == dtype
        allowed = 2 * reference + torch.finfo(dtype).eps * true.norm()
        if tokens == 1 and name in ("dq", "dk"):  # zero, as the difference of two equal sums in float32
            terms = scale * d_out.double().norm() * v.double().norm() * torch.maximum(q.norm(), k.norm())
            allowed = allowed + torch.finfo(torch.float32).eps * terms
        yield name, (mine.double() - true).norm(), reference, allowed


def assert_one_graph_serves_all_softness(backend: str, dtype: torch.dtype, compiler: str) -> None:
    """torch.compile with gradients: no graph break, one compilation, the numbers of eager mode."""
    qkv, rope = random_qkv(2, 2, 20, 32, dtype), random_tables(20, 32)
    d_out = torch.randn(2, 2, 20, 32, device=DEVICE).to(dtype)
    counter = CompileCounterWithBackend(compiler)

    def attention(qkv: torch.Tensor, softness: torch.Tensor) -> torch.Tensor:
        return soft_causal_attention_qkvpacked(qkv, softness, rope=rope, backend=backend) * 2

    torch._dynamo.reset()
    compiled = torch.compile(attention, backend=counter, fullgraph=True)
    for value in (1.0, 0.5, 0.0):
        softness = torch.tensor(value, device=DEVICE)
        found = outputs_and_gradients(lambda qkv, a=softness: compiled(qkv, a), [qkv], d_out)
        expected = outputs_and_gradients(lambda qkv, a=softness: attention(qkv, a), [qkv], d_out)
        for mine, eager in zip(found, expected, strict=True):
            assert torch.equal(mine, eager)
    assert counter.frame_count == 1
