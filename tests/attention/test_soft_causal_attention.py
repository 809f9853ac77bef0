"""The attention door: both equations written out, their identities, every backend against float64."""

from __future__ import annotations

import itertools

import pytest
import torch

from illama import UserError, native, soft_causal_attention
from illama.attention import BACKENDS, AttentionRequest, attention_weights, choose_backend
from illama.models import ILlama, ModelConfig
from tests.attention.common import (
    DEVICE,
    HEAD_DIMS,
    SOFTNESS,
    TOKENS,
    assert_as_exact_as_the_reference,
    by_flex_attention,
    in_dtype,
    outputs_and_gradients,
    random_qkv,
    random_tables,
)

MODES = ("post_softmax", "pre_softmax")
MASKS = ("causal", "none", "modified_causal")


def qkv(tokens: int = 7, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    return [torch.randn(2, 3, tokens, 4, dtype=torch.float64, generator=generator).to(dtype) for _ in range(3)]


def written_out(q, k, v, softness, mask, mask_mode):
    """One query at a time, in the words of the specification."""
    batch, heads, tokens, width = q.shape
    out = torch.zeros_like(v)
    for b, h, i in itertools.product(range(batch), range(heads), range(tokens)):
        scores = k[b, h] @ q[b, h, i] / width**0.5
        seen = torch.arange(tokens) <= i
        if mask == "none" or (mask == "modified_causal" and i == 0):
            seen[:] = True
        factor = seen.double() + softness * (~seen).double()
        weights = scores.exp() * factor if mask_mode == "pre_softmax" else scores.exp()
        weights = weights / weights.sum()
        out[b, h, i] = (weights * factor if mask_mode == "post_softmax" else weights) @ v[b, h]
    return out


@pytest.mark.parametrize("softness", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("mask_mode", MODES)
@pytest.mark.parametrize("mask", MASKS)
def test_equations_written_out(mask: str, mask_mode: str, softness: float) -> None:
    q, k, v = qkv()
    expected = written_out(q, k, v, softness, mask, mask_mode)
    for given in (softness, torch.tensor(softness, dtype=torch.float64)):
        found = soft_causal_attention(q, k, v, given, mask=mask, mask_mode=mask_mode)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("softness", [0.01, 0.35, 1.0])
@pytest.mark.parametrize("mask", ["causal", "modified_causal"])
def test_the_same_by_flex_attention(mask: str, softness: float) -> None:
    """Eq. 2 out of two plain attentions and their log-sum-exps."""
    q, k, v = qkv(65)
    found = soft_causal_attention(q, k, v, softness, mask=mask, backend="reference")
    torch.testing.assert_close(found, by_flex_attention(q, k, v, softness, mask)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tokens", [1, 2, 17])
def test_post_softmax_identities(tokens: int) -> None:
    """alpha F + (1 - alpha) r c with r the causal share of the mass; at alpha = 1 both modes agree."""
    q, k, v = qkv(tokens)
    full, causal = (soft_causal_attention(q, k, v, a, mask_mode="pre_softmax") for a in (1.0, 0.0))
    scores = q @ k.transpose(-2, -1) / 2
    hidden = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    share = (scores.masked_fill(hidden, -torch.inf).logsumexp(-1) - scores.logsumexp(-1)).exp().unsqueeze(-1)
    for softness in (0.0, 0.4, 1.0):
        found = soft_causal_attention(q, k, v, softness)
        torch.testing.assert_close(found, softness * full + (1 - softness) * share * causal)
    torch.testing.assert_close(soft_causal_attention(q, k, v, 1.0), full)


@pytest.mark.parametrize("mask_mode", MODES)
def test_weights_multiply_v(mask_mode: str) -> None:
    q, k, v = qkv()
    rope = in_dtype(random_tables(7, 4), torch.float64)
    attended = soft_causal_attention(q, k, v, 0.3, mask_mode=mask_mode, rope=rope)
    weights = attention_weights(q, k, 0.3, mask_mode=mask_mode, rope=rope)
    torch.testing.assert_close(weights @ v, attended)
    rows = weights.sum(-1)
    torch.testing.assert_close(rows[..., -1], torch.ones_like(rows[..., -1]))
    assert torch.all(rows[..., :-1] < 1 - 1e-3) if mask_mode == "post_softmax" else torch.allclose(rows, rows * 0 + 1)


def served() -> list[tuple[str, str, str]]:
    """What each backend serves on this machine; other tests hold it to its word about the rest."""
    q, k, v = torch.zeros(3, 1, 1, 33, 32, device=DEVICE)
    return [
        (name, mask, mode)
        for name, mask, mode in itertools.product(BACKENDS, MASKS, MODES)
        if BACKENDS[name].why_not(AttentionRequest(q, k, v, 0.0, mask, mode, 1.0)) is None
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("softness", SOFTNESS)
@pytest.mark.parametrize(("backend", "mask", "mask_mode"), served())
def test_backend_is_as_exact_as_the_reference(backend, mask, mask_mode, softness, dtype) -> None:
    if backend in ("triton", "native") and dtype == torch.float64:
        pytest.skip("its kernels stop at float32")
    tensors = random_qkv(2, 3, 33, 32, dtype)
    tables = in_dtype(random_tables(33, 32), torch.promote_types(dtype, torch.float32))
    for given, rope, packed in ((softness, None, False), (torch.tensor(softness, device=DEVICE), tables, True)):
        if dtype == torch.float64 and packed:
            given = given.double().fill_(softness)
        assert_as_exact_as_the_reference(tensors, given, mask, rope, backend, mask_mode=mask_mode, packed=packed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("tokens", "softness"), list(itertools.product(TOKENS, SOFTNESS)))
def test_sdpa_is_exact_at_every_length(tokens: int, softness: float, dtype: torch.dtype) -> None:
    mask = MASKS[tokens % 3]
    width = HEAD_DIMS[(tokens + int(10 * softness)) % 4]
    rope = in_dtype(random_tables(tokens, width), torch.promote_types(dtype, torch.float32))
    assert_as_exact_as_the_reference(
        random_qkv(1, 2, tokens, width, dtype), softness, mask, rope, "sdpa", mask_mode="pre_softmax"
    )


@pytest.mark.parametrize("softness", SOFTNESS)
@pytest.mark.parametrize(("mask", "mask_mode"), list(itertools.product(MASKS, MODES)))
@pytest.mark.parametrize("backend", list(BACKENDS))
def test_some_queries_get_the_rows_of_all(backend: str, mask: str, mask_mode: str, softness: float) -> None:
    """One query first (a class token that stands first), in the middle and last, and several: output and gradients."""
    q, k, v = qkv(9)
    rope, options = in_dtype(random_tables(9, 4), torch.float64), {"mask": mask, "mask_mode": mask_mode}
    served = 0
    for start, rows in ((0, 1), (4, 1), (8, 1), (0, 3), (2, 5), (4, 5), (0, 9)):
        some = slice(start, start + rows)
        request = AttentionRequest(q[:, :, some], k, v, softness, mask, mask_mode, 0.5, rope, None, start)
        if BACKENDS[backend].why_not(request):
            continue
        served += 1
        d_out = torch.randn(2, 3, rows, 4, dtype=torch.float64)

        def attend(q, k, v, start=start):
            given = torch.tensor(softness, dtype=torch.float64)
            return soft_causal_attention(q, k, v, given, rope=rope, query_start=start, backend=backend, **options)

        def cut(q, k, v, some=some):
            return soft_causal_attention(q, k, v, softness, rope=rope, backend="reference", **options)[:, :, some]

        found = outputs_and_gradients(attend, (q[:, :, some], k, v), d_out)
        expected = outputs_and_gradients(cut, (q, k, v), d_out)
        expected[1] = expected[1][:, :, some]
        for mine, other in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)
    least = {"triton": 0, "native": 0, "sdpa": 1, "blocked": 3, "reference": 7}[backend]
    assert served >= least


def test_auto_takes_the_backend_that_measured_fastest_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(dtype: torch.dtype, mask: str, mask_mode: str, tokens: int = 577, queries: int = 577) -> str:
        q, k, v = torch.zeros(3, 1, 1, tokens, 4, dtype=dtype)
        q = q[:, :, -queries:]
        start = tokens - q.shape[2]
        return choose_backend(AttentionRequest(q, k, v, 0.3, mask, mask_mode, 1.0, None, None, start))

    assert chosen(torch.float32, "causal", "pre_softmax") == chosen(torch.float32, "none", "post_softmax") == "sdpa"
    assert chosen(torch.float32, "causal", "post_softmax", queries=1) == "sdpa", "the last token sees everything"
    assert chosen(torch.bfloat16, "causal", "pre_softmax") == "reference"
    if native.why_not() is None:
        for mask, dtype, tokens in (("causal", torch.float32, 577), ("modified_causal", torch.bfloat16, 5)):
            assert chosen(dtype, mask, "post_softmax", tokens) == "native"
    native.keep(False)
    assert chosen(torch.float32, "causal", "post_softmax") == "blocked"
    assert chosen(torch.float32, "causal", "post_softmax", tokens=5) == "reference"
    assert chosen(torch.float32, "modified_causal", "post_softmax") == "reference"
    assert chosen(torch.bfloat16, "causal", "post_softmax") == "blocked"


def test_the_order_of_the_backends_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = torch.zeros(3, 1, 1, 577, 4)
    request = AttentionRequest(q, k, v, 0.3, "none", "post_softmax", 1.0, None, None, 0)
    assert choose_backend(request) == "sdpa"
    for order in (("reference", "sdpa"), ("blocked", "reference", "sdpa"), ("blocked", "sdpa", "reference")):
        monkeypatch.setattr(BACKENDS, "_entries", {name: BACKENDS[name] for name in (*order, "triton", "blocked")})
        assert choose_backend(request) == next(name for name in order if name != "blocked")  # it has no mask to serve


def test_no_gradient_flows_from_later_tokens_under_pre_softmax() -> None:
    q, k, v = (t.requires_grad_() for t in qkv())
    soft_causal_attention(q, k, v, 0.0, mask_mode="pre_softmax")[:, :, 2].sum().backward()
    assert torch.count_nonzero(k.grad[:, :, 3:]) == torch.count_nonzero(v.grad[:, :, 3:]) == 0
    assert torch.count_nonzero(v.grad[:, :, :3])


def test_post_softmax_leaks_through_the_denominator() -> None:
    """Even at softness 0 an early output depends on later keys, though not on later values."""
    q, k, v = (t.requires_grad_() for t in qkv())
    soft_causal_attention(q, k, v, 0.0)[:, :, 2].sum().backward()
    assert torch.all(k.grad[:, :, 3:].abs().amax(-1) > 0)
    assert torch.count_nonzero(v.grad[:, :, 3:]) == 0


def test_a_backend_that_cannot_serve_says_why() -> None:
    q, k, v = qkv()
    with pytest.raises(UserError, match=r"sdpa.*cannot mask after the softmax"):
        soft_causal_attention(q, k, v, 0.0, backend="sdpa")
    with pytest.raises(UserError, match="did you mean sdpa"):
        soft_causal_attention(q, k, v, 0.0, backend="spda")
    model = ILlama(ModelConfig(img_size=32, embed_dim=8, num_heads=2, depth=2, attention_backend="sdpa"))
    with pytest.raises(UserError, match="cannot mask after"):
        model(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"softness": 1.5}, "between 0"),
        ({"softness": torch.zeros(2)}, "0-d tensor"),
        ({"mask": "diagonal"}, "mask must be one of"),
        ({"mask_mode": "after"}, "mask_mode must be one of"),
        ({"q_BhNd": torch.zeros(2, 3, 3, 4), "query_start": 5}, "3 queries from token 5 on do not fit 7 tokens"),
        ({"k_BhNd": torch.zeros(2, 3, 6, 4)}, r"share one shape.*\(2, 3, 6, 4\)"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    given = dict(zip(("q_BhNd", "k_BhNd", "v_BhNd"), qkv(), strict=True))
    with pytest.raises(UserError, match=message):
        soft_causal_attention(**(given | {"softness": 0.0} | arguments))


@pytest.mark.parametrize("rotate", [False, True])
def test_auto_serves_the_transforms_of_torch_func(rotate: bool) -> None:
    """Per-sample gradients of 200 tokens, where eager mode takes another backend."""
    q, k, v = random_qkv(3, 2, 200, 8, torch.float64).permute(2, 0, 3, 1, 4)
    rope = in_dtype(random_tables(200, 8), torch.float64) if rotate else None

    def loss(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return soft_causal_attention(q, k, v, 0.3, rope=rope).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(lambda q, k, v: loss(q[None], k[None], v[None])))(q, k, v)
    leaf = q.clone().requires_grad_()
    torch.testing.assert_close(per_sample, torch.autograd.grad(loss(leaf, k, v), leaf)[0])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_auto_can_be_traced() -> None:
    q, k, v = random_qkv(1, 2, 200, 8, torch.float32).permute(2, 0, 3, 1, 4)
    rope, softness = random_tables(200, 8), torch.tensor(0.3, device=DEVICE)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return soft_causal_attention(q, k, v, softness, rope=rope)

    traced = torch.jit.trace(attend, (q, k, v))
    torch.testing.assert_close(traced(k, v, q), attend(k, v, q))
