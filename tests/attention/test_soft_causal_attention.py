"""The attention door: both equations written out, their identities, every backend against float64."""

from __future__ import annotations

import itertools

import pytest
import torch

from illama import UserError, soft_causal_attention
from illama.attention import BACKENDS, AttentionRequest
from illama.models import ILlama, ModelConfig

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
    attended, weights = soft_causal_attention(q, k, v, 0.3, mask_mode=mask_mode, return_weights=True)
    torch.testing.assert_close(weights @ v, attended)
    rows = weights.sum(-1)
    torch.testing.assert_close(rows[..., -1], torch.ones_like(rows[..., -1]))
    assert torch.all(rows[..., :-1] < 1 - 1e-3) if mask_mode == "post_softmax" else torch.allclose(rows, rows * 0 + 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("softness", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("mask", "mask_mode"), list(itertools.product(MASKS, MODES)))
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
def test_backend_is_as_exact_as_the_reference(backend, mask, mask_mode, softness, dtype) -> None:
    """Output and gradients: error against float64 at most twice the reference's own error in this dtype."""
    exact = [t.requires_grad_() for t in qkv(33)]
    options = {"mask": mask, "mask_mode": mask_mode}
    low = [t.detach().to(dtype) for t in exact]
    if BACKENDS[backend].why_not(AttentionRequest.of(*low, softness, mask, mask_mode, None, False)):
        pytest.skip(f"{backend} does not serve {mask} {mask_mode}; another test holds it to its word")

    def outputs_and_gradients(inputs, name):
        inputs = [t.detach().requires_grad_() for t in inputs]
        out = soft_causal_attention(*inputs, softness, backend=name, **options)
        out.backward(torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out).to(out.dtype))
        return [out.detach().double(), *(t.grad.double() for t in inputs)]

    truth = outputs_and_gradients([t.double() for t in low], "reference")
    for found, reference, true in zip(
        outputs_and_gradients(low, backend), outputs_and_gradients(low, "reference"), truth, strict=True
    ):
        floor = torch.finfo(dtype).eps * true.norm()  # one rounding of the result itself
        assert (found - true).norm() <= 2 * (reference - true).norm() + floor


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
    with pytest.raises(UserError, match="never forms the attention weights"):
        soft_causal_attention(q, k, v, 0.0, mask_mode="pre_softmax", backend="sdpa", return_weights=True)
    with pytest.raises(UserError, match="did you mean sdpa"):
        soft_causal_attention(q, k, v, 0.0, backend="spda")
    model = ILlama(ModelConfig(img_size=32, embed_dim=8, num_heads=2, depth=1, attention_backend="sdpa"))
    with pytest.raises(UserError, match="cannot mask after"):
        model(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"softness": 1.5}, "between 0"),
        ({"softness": torch.zeros(2)}, "0-d tensor"),
        ({"mask": "diagonal"}, "mask must be one of"),
        ({"mask_mode": "after"}, "mask_mode must be one of"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        soft_causal_attention(*qkv(), **({"softness": 0.0} | arguments))


def test_shapes_must_agree() -> None:
    q, k, v = qkv()
    with pytest.raises(UserError, match=r"share one shape.*\(2, 3, 6, 4\)"):
        soft_causal_attention(q, k[:, :, :6], v, 0.0)
