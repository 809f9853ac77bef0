"""The parts of a network, each made in several ways that compute the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from processes import BATCH, NETWORKS, allocator_cases, environment_cases

from illama import native
from illama.attention import blocked, soft_causal_attention_qkvpacked
from illama.attention.request import Tables, rotate
from illama.bench.interleave import Case
from illama.device.linear import onednn_product
from illama.models.layers import PatchEmbed, RMSNorm, _gated
from illama.models.position import angles_1d
from illama.models.variants import VARIANTS

Shape = tuple[int, int, int, int]  # batch, heads, tokens, head width
ROWS, WIDTH, HIDDEN = 3152, 192, 512  # tiny at batch 16: 16 x 197 tokens
TINY, MANY, LONG = (16, 3, 197, 64), (16, 12, 197, 64), (4, 12, 577, 64)


@dataclass(frozen=True)
class Group:
    """Ways to make one thing; ratios are to the first.

    Attributes:
        title: The thing, with its shape.
        cases: The ways.
        elsewhere: Whether the work is done by other processes, which must not count as a disturbance.
    """

    title: str
    cases: list[Case]
    elsewhere: bool = False


def linear() -> Iterator[Group]:
    """Products of a linear layer by MKL (torch's choice) and oneDNN."""
    for rows, inputs, outputs in (
        (ROWS, WIDTH, 3 * WIDTH),
        (ROWS, 768, 2048),
        (197, 768, 2304),
        (64, 64, 192),
        (1, 8, 8),
    ):
        yield from _linear(rows, inputs, outputs, backward=(rows, inputs) == (ROWS, WIDTH))


def _linear(rows: int, inputs: int, outputs: int, *, backward: bool) -> Iterator[Group]:
    x, weight, grad = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(rows, outputs)
    shape, flops = f"{rows} x {inputs} -> {outputs}", 2.0 * rows * inputs * outputs
    yield _ways(
        f"{shape}, forward", flops, {"MKL": lambda: F.linear(x, weight), "oneDNN": lambda: onednn_product(x, weight)}
    )
    if not backward:
        return
    to_input = {"MKL": lambda: torch.matmul(grad, weight), "oneDNN": lambda: onednn_product(grad, weight.t())}
    yield _ways(f"{shape}, gradient of its input", flops, to_input)
    to_weight = {
        "MKL": lambda: torch.matmul(grad.t(), x),
        "oneDNN, wider factor first": lambda: onednn_product(grad.t(), x.t()),
        "oneDNN, wider factor second, transposed": lambda: onednn_product(x.t(), grad.t()).t().contiguous(),
    }
    yield _ways(f"{shape}, gradient of its weight", flops, to_weight)


def rotation() -> Iterator[Group]:
    """The rotary embedding of q: one complex product, or real arithmetic on the two channels of each pair."""
    batch, heads, tokens, width = TINY
    x_BhNd = torch.randn(batch, tokens, heads, width).transpose(1, 2)
    angles = torch.rand(tokens, width // 2)
    cos, sin = angles.cos(), angles.sin()

    def real() -> torch.Tensor:
        first, second = x_BhNd.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)

    yield _ways(_shape(TINY), None, {"real arithmetic": real, "complex product": lambda: rotate(x_BhNd, (cos, sin))})


def softmax() -> Iterator[Group]:
    """Making a softmax again in the backward pass: in one pass, or from the saved log-sum-exp."""
    batch, heads, tokens, _ = TINY
    scores = torch.randn(batch * heads, tokens, tokens)
    saved, out = scores.logsumexp(-1, keepdim=True), torch.empty_like(scores)
    yield _ways(
        f"{scores.numel() / 1e6:.1f} M values, rows of {tokens}",
        None,
        {
            "exp(scores - saved)": lambda: torch.sub(scores, saved, out=out).exp_(),
            "softmax": lambda: torch.softmax(scores, -1, out=out),
        },
    )


def swiglu() -> Iterator[Group]:
    """Feed-forward with residual: torch's element-wise operators after products, or oneDNN's epilogues inside them."""
    x, residual = torch.randn(ROWS, WIDTH), torch.randn(ROWS, WIDTH)
    gate, value, back = torch.randn(HIDDEN, WIDTH), torch.randn(HIDDEN, WIDTH), torch.randn(WIDTH, HIDDEN)
    linear_with = torch.ops.mkldnn._linear_pointwise

    def fused() -> torch.Tensor:
        gated = linear_with(x, gate, None, "swish", [], "")
        return linear_with.binary(linear_with.binary(x, gated, value, None, "mul"), residual, back, None, "add")

    def plain() -> torch.Tensor:
        hidden = F.silu(onednn_product(x, gate)) * onednn_product(x, value)
        return onednn_product(hidden, back) + residual

    torch.testing.assert_close(fused(), plain(), rtol=1e-3, atol=1e-1)
    flops = 2.0 * 3 * ROWS * WIDTH * HIDDEN
    yield _ways(f"{ROWS} x {WIDTH} -> {HIDDEN} -> {WIDTH}", flops, {"torch's operators": plain, "epilogues": fused})


def packed() -> Iterator[Group]:
    """W1 and W3 of the feed-forward as two products or as one, the packed weight being there already."""
    x, gate, value = torch.randn(ROWS, WIDTH), torch.randn(HIDDEN, WIDTH), torch.randn(HIDDEN, WIDTH)
    both = torch.cat((gate, value))
    yield _ways(
        f"{ROWS} x {WIDTH} -> 2 x {HIDDEN}, oneDNN",
        2.0 * 2 * ROWS * WIDTH * HIDDEN,
        {
            "two products": lambda: (onednn_product(x, gate), onednn_product(x, value)),
            "one product": lambda: onednn_product(x, both).chunk(2, -1),
        },
    )


def rmsnorm() -> Iterator[Group]:
    """RMSNorm by the plain formula, by torch's operator, and with the squares summed by a product."""
    x, norm = torch.randn(ROWS, WIDTH), RMSNorm(WIDTH).requires_grad_(False)

    def by_product() -> torch.Tensor:
        squares = torch.bmm(x.unsqueeze(1), x.unsqueeze(2)).squeeze(2)
        return x * torch.rsqrt(squares / WIDTH + 1e-6) * norm.weight

    torch.testing.assert_close(by_product(), norm(x))
    yield _ways(
        f"{ROWS} x {WIDTH}",
        None,
        {
            "plain formula": lambda: norm(x),
            "F.rms_norm": lambda: F.rms_norm(x, (WIDTH,), norm.weight, 1e-6),
            "squares by a product": by_product,
        },
    )


def patches() -> Iterator[Group]:
    """The patch embedding as a convolution, or as a product of rearranged patches."""
    yield from (_patches(name) for name in ("tiny", "base"))


def _patches(name: str) -> Group:
    config = VARIANTS[name]
    embed, images = PatchEmbed(config).requires_grad_(False), torch.randn(16, config.in_chans, *config.height_width)
    side, (height, width), weight = config.patch_size, config.grid, embed.proj.weight.flatten(1)

    def by_product() -> torch.Tensor:
        cut = images.unflatten(3, (width, side)).unflatten(2, (height, side))
        return onednn_product(cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2), weight, embed.proj.bias)

    torch.testing.assert_close(by_product(), embed(images), rtol=1e-4, atol=1e-4)
    flops = 2.0 * 16 * config.num_patches * weight.numel()
    ways = {"convolution": lambda: embed(images), "product (oneDNN)": by_product}
    return _ways(f"16 x {config.in_chans} x 224 x 224 -> {config.embed_dim}", flops, ways)


def heads() -> Iterator[Group]:
    """`blocked`: all heads at once, or one after the other with oneDNN's products."""
    for shape in (TINY, LONG):
        for backward in (False, True):
            attend = _attention(shape, backward=backward)
            ways = {
                "all heads at once": _under(attend, FEWEST_TOKENS=math.inf),
                "one head at a time": _under(attend, FEWEST_TOKENS=0),
            }
            yield _ways(_shape(shape) + ", forward + backward" * backward, None, ways)


def cuts() -> Iterator[Group]:
    """`blocked`: rows of a block of queries, and how many scores a block may hold."""
    single, half = _attention(TINY), _attention(TINY, dtype=torch.bfloat16)
    yield _ways(
        f"{_shape(TINY)}, float32", None, {f"{rows} rows": _under(single, ROWS=rows) for rows in (66, 33, 99, 197)}
    )
    yield _ways(
        f"{_shape(TINY)}, bf16", None, {f"{rows} rows": _under(half, ROWS_HALF=rows) for rows in (200, 33, 66, 99)}
    )
    for shape in (TINY, MANY):
        attend, ways = _attention(shape), {}
        for mib in (4, 1, 0.25):
            ways[f"{mib:g} MiB of scores"] = _under(attend, MOST_SCORES=int(mib * (1 << 18)))
        ways["no limit"] = _under(attend, MOST_SCORES=1 << 40)
        yield _ways(_shape(shape), None, ways)


def two_sdpa() -> Iterator[Group]:
    """Eq. 2 at softness 0 from two fused calls, full and causal, joined by their log-sum-exps, beside `blocked`."""
    yield from (_two_sdpa(shape) for shape in (TINY, MANY, LONG))


def _two_sdpa(shape: Shape) -> Group:
    batch, count, tokens, width = shape
    qkv, softness = torch.randn(batch, tokens, 3, count, width), torch.zeros(())
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    sdpa = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def joined() -> torch.Tensor:
        _, full = sdpa(q, k, v)
        causal_out, causal = sdpa(q, k, v, 0.0, True)
        return causal_out * (causal - full).exp().unsqueeze(-1)

    def blocks() -> torch.Tensor:
        return soft_causal_attention_qkvpacked(qkv, softness, backend="blocked")

    torch.testing.assert_close(joined(), blocks(), rtol=1e-4, atol=1e-5)
    return _ways(_shape(shape), None, {"blocked": blocks, "two SDPA calls": joined})


def attention() -> Iterator[Group]:
    """Eq. 2 at softness 0, rotation included: backends, two SDPA calls joined by their log-sum-exps (forward),
    and beside them SDPA without mask and rotation, which is another function."""
    for shape, backward in ((TINY, False), (MANY, False), (LONG, False), (TINY, True), (MANY, True), (LONG, True)):
        batch, count, tokens, width = shape
        qkv = torch.randn(batch, tokens, 3, count, width).requires_grad_(backward)
        upstream, angles = torch.randn(batch, count, tokens, width), angles_1d(tokens, width)
        rope, softness = (angles.cos().float(), angles.sin().float()), torch.zeros(())
        inputs = (qkv, upstream, rope, softness)
        ways = {name: _attended(name, *inputs) for name in ("reference", "blocked", "native")}
        if not backward:
            ways["two SDPA calls"] = _joined(qkv, rope)
        ways["SDPA, no mask, no rotation"] = _sdpa(qkv, upstream)
        yield _ways(f"{_shape(shape)}, {'forward + backward' if backward else 'forward'}", None, ways)


def _attended(
    backend: str, qkv: torch.Tensor, upstream: torch.Tensor, rope: Tables, softness: torch.Tensor
) -> Callable[[], object]:
    def attend() -> object:
        out = soft_causal_attention_qkvpacked(qkv, softness, rope=rope, backend=backend)
        return torch.autograd.grad(out, qkv, upstream) if qkv.requires_grad else out

    return attend


def _sdpa(qkv: torch.Tensor, upstream: torch.Tensor) -> Callable[[], object]:
    def attend() -> object:
        out = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        return torch.autograd.grad(out, qkv, upstream) if qkv.requires_grad else out

    return attend


def _joined(qkv: torch.Tensor, rope: Tables) -> Callable[[], object]:
    """With lse the log-sum-exp of all scores and lse_c that of the causal ones, O = exp(lse_c - lse) O_c."""
    sdpa = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def attend() -> object:
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q, k = rotate(q, rope), rotate(k, rope)
        out, causal = sdpa(q, k, v, 0.0, True)
        return out * (causal - sdpa(q, k, v)[1]).exp().unsqueeze(-1)

    return attend


def between() -> Iterator[Group]:
    """What lies between the products of a block, by torch's operators and by compiled kernels."""
    yield from (group(backward) for backward in (False, True) for group in (_norm, _gate))


def _norm(backward: bool) -> Group:
    x, norm = torch.randn(ROWS, WIDTH).requires_grad_(backward), RMSNorm(WIDTH).requires_grad_(backward)
    ways = {
        "torch's operators": lambda: norm._formula(x, norm.weight),
        "compiled kernel": lambda: native.rms_norm(x, norm.weight, norm.eps, norm._formula),
    }
    return _both_ways(f"RMSNorm, {ROWS} x {WIDTH}", ways, x, norm.weight)


def _gate(backward: bool) -> Group:
    gate, value = (torch.randn(ROWS, HIDDEN).requires_grad_(backward) for _ in range(2))
    ways = {
        "torch's operators": lambda: _gated(gate, value),
        "compiled kernel": lambda: native.gate(gate, value, _gated),
    }
    return _both_ways(f"SiLU(gate) * value, {ROWS} x {HIDDEN}", ways, gate, value)


def _both_ways(title: str, ways: Mapping[str, Callable[[], torch.Tensor]], *inputs: torch.Tensor) -> Group:
    if not inputs[0].requires_grad:
        return _ways(f"{title}, forward", None, ways)
    upstream = torch.randn_like(next(iter(ways.values()))())

    def with_gradients(run: Callable[[], torch.Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(run(), inputs, upstream)

    return _ways(f"{title}, forward + backward", None, {name: with_gradients(run) for name, run in ways.items()})


def allocator() -> Iterator[Group]:
    """Predicting 16 images with malloc as it comes, and told to keep freed memory (as the command line does)."""
    for network in NETWORKS:
        yield Group(f"{network}, batch {BATCH}", allocator_cases(network), elsewhere=True)


def mkl_environment() -> Iterator[Group]:
    """A product by MKL under the environment variables that are said to let it use AVX-512."""
    yield Group("3152 x 192 -> 576, forward, MKL", environment_cases(ROWS, WIDTH, 3 * WIDTH), elsewhere=True)


def _ways(title: str, flops: float | None, ways: Mapping[str, Callable[[], object]]) -> Group:
    return Group(title, [Case(name, run, flops=flops) for name, run in ways.items()])


def _shape(shape: Shape) -> str:
    return "(B, h, N, d) = ({}, {}, {}, {})".format(*shape)


def _attention(shape: Shape, *, dtype: torch.dtype = torch.float32, backward: bool = False) -> Callable[[], object]:
    batch, count, tokens, width = shape
    qkv = torch.randn(batch, tokens, 3, count, width).to(dtype).requires_grad_(backward)
    softness, upstream = torch.zeros(()), torch.randn(batch, count, tokens, width).to(dtype)

    def attend() -> object:
        out = soft_causal_attention_qkvpacked(qkv, softness, backend="blocked")
        return torch.autograd.grad(out, qkv, upstream) if backward else out

    return attend


def _under(run: Callable[[], object], **settings: float) -> Callable[[], object]:
    """A call under other settings of how `blocked` cuts its work."""
    cut = blocked._Cut
    kept = {name: getattr(cut, name) for name in settings}

    def call() -> object:
        for name, value in settings.items():
            setattr(cut, name, value)
        try:
            return run()
        finally:
            for name, value in kept.items():
                setattr(cut, name, value)

    return call


PARTS: dict[str, Callable[[], Iterator[Group]]] = {
    part.__name__: part
    for part in (
        linear, rotation, softmax, swiglu, packed, rmsnorm, patches, heads, cuts, two_sdpa, attention,
        between, allocator, mkl_environment
    )
}  # fmt: skip
