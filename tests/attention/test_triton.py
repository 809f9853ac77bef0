"""The Triton kernels against float64: on a GPU where there is one, else through Triton's interpreter."""

from __future__ import annotations

import dataclasses
import itertools
import math
import shutil
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from illama import UserError
from illama.attention import soft_causal_attention, soft_causal_attention_qkvpacked, triton, triton_tiles
from illama.attention.request import rotate
from illama.attention.triton import triton_attention, triton_attention_packed
from tests.attention.common import (
    DEVICE,
    HEAD_DIMS,
    ON_GPU,
    SOFTNESS,
    TOKENS,
    assert_as_exact_as_the_reference,
    assert_one_graph_serves_all_softness,
    by_flex_attention,
    outputs_and_gradients,
    poisoned,
    random_qkv,
    random_tables,
)
from tests.golden import test_family
from tests.golden.common import load, relative_l2

INTERPRETED = triton._INTERPRETED

DTYPES, MASKS = (torch.float32, torch.bfloat16, torch.float16), ("causal", "modified_causal")


def _lengths() -> Iterator[tuple]:
    """Each length with each softness and dtype; width, mask and rotation go round."""
    for index, (tokens, softness, dtype) in enumerate(itertools.product(TOKENS, SOFTNESS, DTYPES)):
        yield tokens, HEAD_DIMS[(index + index // 4) % 4], softness, dtype, MASKS[index % 2], (index // 3) % 2 == 0


@pytest.mark.kernels
@pytest.mark.parametrize(("tokens", "head_dim", "softness", "dtype", "mask", "rotate"), list(_lengths()))
def test_exact_at_every_length(tokens, head_dim, softness, dtype, mask, rotate) -> None:
    batch, heads = (2, 3) if tokens <= 5 else (1, 1)
    qkv = random_qkv(batch, heads, tokens, head_dim, dtype)
    rope = random_tables(tokens, head_dim) if rotate else None
    assert_as_exact_as_the_reference(qkv, torch.tensor(softness, device=DEVICE), mask, rope)


@pytest.mark.kernels
@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("softness", SOFTNESS)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_in_every_mode(dtype, head_dim, softness, mask, rotate) -> None:
    tokens = 65
    qkv = random_qkv(1, 2, tokens, head_dim, dtype)
    rope = random_tables(tokens, head_dim) if rotate else None
    assert_as_exact_as_the_reference(qkv, torch.tensor(softness, device=DEVICE), mask, rope)


@pytest.mark.kernels
@pytest.mark.parametrize("tokens", [16, 17, 64, 100, 128, 129, 256, 257, 320])
def test_exact_where_tiles_end(tokens: int) -> None:
    qkv, rope = random_qkv(1, 1, tokens, 64, torch.float16), random_tables(tokens, 64)
    assert_as_exact_as_the_reference(qkv, torch.tensor(0.0, device=DEVICE), "causal", rope)
    assert_as_exact_as_the_reference(qkv, torch.tensor(0.6, device=DEVICE), "causal", rope)


def _short_heads() -> Iterator[tuple]:
    """Around the ends of tiles and of the table's rows, each with each softness; width, mask, rotation go round."""
    lengths, half = (1, 5, 64, 65, 128, 129, 197, 256), (torch.bfloat16, torch.float16)
    for index, (tokens, softness, dtype) in enumerate(itertools.product(lengths, SOFTNESS, half)):
        yield tokens, HEAD_DIMS[(index + index // 4) % 4], softness, dtype, MASKS[(index // 2) % 2], index % 5 > 0


@pytest.fixture
def a_program_per_head(monkeypatch) -> None:
    """The kernels that take a whole head per program serve few heads as well."""
    monkeypatch.setattr(triton_tiles, "LEAST_HEADS", 1)


@pytest.mark.kernels
@pytest.mark.parametrize(("tokens", "head_dim", "softness", "dtype", "mask", "rotated"), list(_short_heads()))
def test_exact_with_a_program_per_head(tokens, head_dim, softness, dtype, mask, rotated, a_program_per_head) -> None:
    chosen = [triton_tiles.kernels_for(way, 1, tokens, head_dim, dtype) for way in ("forward", "backward")]
    assert chosen[0].keys() == ({"row"} if tokens > 208 and head_dim > 64 else {"head"})
    assert chosen[1].keys() == ({"fused"} if tokens <= 128 and head_dim <= 64 else {"queries", "keys"})
    qkv = random_qkv(1, 2 if tokens <= 5 else 1, tokens, head_dim, dtype)
    rope = random_tables(tokens, head_dim) if rotated else None
    assert_as_exact_as_the_reference(qkv, torch.tensor(softness, device=DEVICE), mask, rope)


@pytest.mark.kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_the_rotation_gives_the_bits_of_rotate(head_dim, dtype) -> None:
    """Forward to new tensors, back in place, from and to a packed projection. A GPU rounds once less (fma)."""
    from illama.attention import triton_launch

    qkv, (cos, sin) = random_qkv(2, 3, 70, head_dim, dtype), random_tables(70, head_dim)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    expected, back = ([rotate(t, tables) for t in (q, k)] for tables in ((cos, sin), (cos, -sin)))
    value = v.clone()
    with poisoned():
        found = triton_launch.rotated(q, k, (cos, sin))
    triton_launch.rotate_into(q, k, q, k, (cos, sin), back=True)
    for mine, true in zip([*found, q, k], [*expected, *back], strict=True):
        if ON_GPU:
            torch.testing.assert_close(mine, true, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)
        else:
            assert torch.equal(mine, true)
    assert all(t.is_contiguous() for t in found)
    assert torch.equal(v, value), "what lies between stays"


@pytest.mark.kernels
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_exact_where_rows_too_long_are_rotated_outside(dtype, monkeypatch) -> None:
    qkv, rope = random_qkv(1, 2, 70, 32, dtype), random_tables(70, 32)
    assert triton_tiles.rotates_inside(70, dtype)
    monkeypatch.setattr(triton_tiles, "LONGEST_ROTATED", 69)
    assert not triton_tiles.rotates_inside(70, dtype)
    for packed in (False, True):
        assert_as_exact_as_the_reference(qkv, torch.tensor(0.6, device=DEVICE), "causal", rope, packed=packed)


@pytest.mark.kernels
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("dtype", "least_heads"), [(torch.float32, 1), (torch.float16, 1), (torch.float16, 99)])
def test_agrees_with_flex_attention(dtype, least_heads, mask, monkeypatch) -> None:
    """An oracle that shares no formula with `reference`: output and log-sum-exp of each forward kernel."""
    monkeypatch.setattr(triton_tiles, "LEAST_HEADS", least_heads)
    q, k, v = random_qkv(1, 2, 129, 64, dtype).permute(2, 0, 3, 1, 4)
    softness, scale = torch.tensor(0.35, device=DEVICE), 64**-0.5
    true, true_lse = by_flex_attention(q.double(), k.double(), v.double(), 0.35, mask)
    plain = soft_causal_attention(q, k, v, softness, mask=mask, backend="reference")
    with poisoned():
        out, lse = triton_attention(q, k, v, softness, None, None, scale, mask == "modified_causal")
    mine, reference = ((t.cpu().double() - true).norm() for t in (out, plain))
    assert mine <= 2 * reference + torch.finfo(dtype).eps * true.norm()
    torch.testing.assert_close(lse.cpu().double() * math.log(2), true_lse, rtol=1e-6, atol=1e-6)


@pytest.mark.kernels
@pytest.mark.parametrize("rotates_inside", [True, False])
@pytest.mark.parametrize("least_heads", [1, 99])
def test_batches_far_apart(least_heads, rotates_inside, monkeypatch) -> None:
    """Offsets of more than 32 bits; nobody touches the memory between the images."""
    monkeypatch.setattr(triton_tiles, "LEAST_HEADS", least_heads)
    monkeypatch.setattr(triton_tiles, "LONGEST_ROTATED", 1024 if rotates_inside else 0)
    near = random_qkv(2, 1, 16, 32, torch.float16)
    far = torch.empty(2**31 + near[0].numel(), dtype=near.dtype, device=DEVICE)
    far = far.as_strided(near.shape, (2**31, *near.stride()[1:])).copy_(near)
    rope, d_out = random_tables(16, 32), torch.randn(2, 1, 16, 32, device=DEVICE)
    found, expected = (
        outputs_and_gradients(
            lambda q, k, v: soft_causal_attention(q, k, v, 0.4, rope=rope, backend="triton"),
            qkv.permute(2, 0, 3, 1, 4),
            d_out,
        )
        for qkv in (far, near)
    )
    assert all(torch.equal(mine, other) for mine, other in zip(found, expected, strict=True))


@pytest.mark.kernels
def test_large_scores_do_not_overflow() -> None:
    """Scores of thousands: what is left is the rounding of the saved log-sum-exp, eps times the score."""
    q, k, v = random_qkv(1, 1, 300, 32, torch.float32).permute(2, 0, 3, 1, 4)
    q, k = 30 * q, 30 * k
    d_out = torch.randn_like(v)
    truth, found = (
        outputs_and_gradients(
            lambda q, k, v, name=name: soft_causal_attention(q, k, v, 0.3, backend=name),
            (t.to(dtype) for t in (q, k, v)),
            d_out,
        )
        for name, dtype in (("reference", torch.float64), ("triton", torch.float32))
    )
    largest = (q @ k.mT).abs().max() * 32**-0.5
    assert largest > 1000
    for mine, true in zip(found, truth, strict=True):
        assert (mine - true).norm() <= 2 * torch.finfo(torch.float32).eps * largest * true.norm()


@pytest.mark.kernels
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    ("tokens", "least_heads", "rotate"),
    [(65, 1, False), (65, 1, True), (65, 99, False), (65, 99, True), (300, 99, True)],
)
def test_packed_equals_separate_to_the_bit(tokens, least_heads, rotate, mask, monkeypatch) -> None:
    monkeypatch.setattr(triton_tiles, "LEAST_HEADS", least_heads)
    qkv, softness = random_qkv(2, 2, tokens, 32, torch.float16), torch.tensor(0.4, device=DEVICE)
    rope = random_tables(tokens, 32) if rotate else None
    options = {"mask": mask, "rope": rope, "backend": "triton"}
    d_out = torch.randn(2, 2, tokens, 32, device=DEVICE).half()
    with poisoned():
        out, d_qkv = outputs_and_gradients(
            lambda qkv: soft_causal_attention_qkvpacked(qkv, softness, **options), [qkv], d_out
        )
        contiguous = [t.contiguous() for t in qkv.permute(2, 0, 3, 1, 4)]
        separate = outputs_and_gradients(
            lambda q, k, v: soft_causal_attention(q, k, v, softness, **options), contiguous, d_out
        )
    for found, expected in zip([out, *d_qkv.permute(2, 0, 3, 1, 4)], separate, strict=True):
        assert torch.equal(found, expected)
    assert out.transpose(1, 2).is_contiguous()
    assert d_qkv.is_contiguous()


@pytest.mark.kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_strides_change_no_bit(dtype, a_program_per_head) -> None:
    q, k, v = random_qkv(2, 3, 20, 32, dtype).permute(2, 0, 3, 1, 4)
    softness = torch.tensor(0.4, device=DEVICE)
    d_out = torch.randn(2, 3, 20, 32, device=DEVICE)

    def run(q, k, v):
        return soft_causal_attention(q, k, v, softness, backend="triton")

    expected = outputs_and_gradients(run, [t.contiguous() for t in (q, k, v)], d_out.contiguous())
    strided = [
        q.transpose(0, 2).contiguous().transpose(0, 2),  # tokens outermost
        torch.stack([k, k], dim=-1)[..., 0],  # channels apart
        torch.cat([v, v], dim=-1)[..., :32],  # rows apart
    ]
    found = outputs_and_gradients(run, strided, d_out.transpose(1, 3).contiguous().transpose(1, 3))
    for mine, other in zip(found, expected, strict=True):
        assert torch.equal(mine, other)
    one = torch.ones((), device=DEVICE).expand(2, 3, 20, 32)  # the gradient of a sum: all strides 0
    for cotangent in (one, one.clone()):
        d_v = outputs_and_gradients(run, (q, k, v), cotangent)[3]
        assert torch.equal(d_v, outputs_and_gradients(run, (q, k, v), one.contiguous())[3])


@pytest.mark.kernels
def test_softness_is_a_number_or_a_tensor_and_gets_no_gradient() -> None:
    qkv = random_qkv(1, 1, 9, 32, torch.float32).requires_grad_()
    softness = torch.tensor(0.25, device=DEVICE, requires_grad=True)
    by_tensor = soft_causal_attention_qkvpacked(qkv, softness, backend="triton")
    by_number = soft_causal_attention_qkvpacked(qkv, 0.25, backend="triton")
    assert torch.equal(by_tensor, by_number)
    by_tensor.sum().backward()
    assert softness.grad is None
    assert torch.count_nonzero(qkv.grad)


def operator_arguments(tokens: int, rotate: bool) -> tuple[tuple, tuple]:
    """Arguments of the packed operator and of the one for q, k, v."""
    qkv = random_qkv(2, 2, tokens, 32, torch.float32)
    cos, sin = random_tables(tokens, 32) if rotate else (None, None)
    options = (torch.tensor(0.4, device=DEVICE), cos, sin, 0.2, False)
    separate = [t.contiguous().requires_grad_() for t in qkv.permute(2, 0, 3, 1, 4)]
    return (qkv.requires_grad_(), *options), (*separate, *options)


@pytest.mark.kernels
@pytest.mark.parametrize("rotate", [False, True])
def test_operators_keep_their_promises_to_torch(rotate: bool) -> None:
    """Schema, fake outputs, autograd registration, and tracing with dynamic shapes."""
    packed, separate = operator_arguments(7, rotate)
    torch.library.opcheck(triton_attention_packed, packed)
    torch.library.opcheck(triton_attention, separate)


@pytest.mark.kernels
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_one_full_graph_serves_all_softness(backend: str) -> None:
    if backend == "inductor" and not ON_GPU and shutil.which("g++") is None:
        pytest.skip("inductor on the CPU needs a C++ compiler")
    assert_one_graph_serves_all_softness("triton", torch.float16, backend)


@pytest.mark.kernels
@pytest.mark.parametrize("rotate", [False, True])
def test_what_is_saved_for_backward_grows_linearly(rotate: bool) -> None:
    def saved_bytes(tokens: int) -> int:
        sizes: list[int] = []
        packed, _ = operator_arguments(tokens, rotate)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel() * t.itemsize) or t, lambda t: t):
            triton_attention_packed(*packed)
        return sum(sizes)

    small, middle, large = (saved_bytes(tokens) for tokens in (20, 40, 80))
    assert 0 < large - middle == 2 * (middle - small)


@pytest.mark.kernels
@pytest.mark.parametrize("least_heads", [1, 99])
def test_every_run_gives_the_same_bits(least_heads, monkeypatch) -> None:
    monkeypatch.setattr(triton_tiles, "LEAST_HEADS", least_heads)
    qkv, softness = random_qkv(2, 2, 90, 64, torch.float16), torch.tensor(0.4, device=DEVICE)
    d_out = torch.randn(2, 2, 90, 64, device=DEVICE)
    first, second = (
        outputs_and_gradients(lambda t: soft_causal_attention_qkvpacked(t, softness, backend="triton"), [qkv], d_out)
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.kernels
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_mode": "pre_softmax"}, "masks after the softmax"),
        ({"mask": "none"}, "masks after the softmax"),
        ({"dtype": torch.float64}, "not torch.float64"),
        ({"head_dim": 16}, "even head widths from 32 to 128, not 16"),
        ({"head_dim": 33}, "not 33"),
        ({"head_dim": 130}, "not 130"),
        ({"queries": 2}, "self-attention of all tokens, or one query"),
        ({"scale": -1.0}, "positive, not -1.0"),
    ],
)
def test_what_it_declines(changes: dict, message: str) -> None:
    shape, dtype = (3, 1, 1, 6, changes.get("head_dim", 32)), changes.get("dtype", torch.float32)
    q, k, v = torch.zeros(shape, dtype=dtype, device=DEVICE)
    q = q[:, :, : changes.get("queries", 6)]
    options = {name: value for name, value in changes.items() if name in ("mask", "mask_mode", "scale")}
    with pytest.raises(UserError, match=f"triton.*cannot serve.*{message}"):
        soft_causal_attention(q, k, v, 0.0, backend="triton", **options)


def test_says_what_is_missing(monkeypatch) -> None:
    """Without triton, and on a device without kernels."""
    tokens = torch.zeros(1, 1, 6, 32, device="meta")
    monkeypatch.setattr(triton, "_INSTALLED", True)
    with pytest.raises(UserError, match="run on CUDA devices, the tensors are on meta"):
        soft_causal_attention(tokens, tokens, tokens, 0.0, backend="triton")
    monkeypatch.setattr(triton, "_INSTALLED", False)
    with pytest.raises(UserError, match=r"pip install \"illama\[kernels\]\""):
        soft_causal_attention(tokens, tokens, tokens, 0.0, backend="triton")


@pytest.mark.kernels
@pytest.mark.gpu
def test_memory_grows_linearly() -> None:
    def peak_bytes(tokens: int) -> int:
        qkv = random_qkv(1, 4, tokens, 64, torch.bfloat16).requires_grad_()
        rope, softness = random_tables(tokens, 64), torch.tensor(0.5, device=DEVICE)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        soft_causal_attention_qkvpacked(qkv, softness, rope=rope, backend="triton").sum().backward()
        return torch.cuda.max_memory_allocated() - before

    peak_bytes(2049)
    assert peak_bytes(4097) < 2.2 * peak_bytes(2049)


@pytest.mark.kernels
@pytest.mark.gpu
@pytest.mark.parametrize("softness", [0.3, "tensor"])
def test_nothing_waits_for_the_device(softness) -> None:
    qkv, rope = random_qkv(2, 3, 197, 64, torch.bfloat16).requires_grad_(), random_tables(197, 64)
    softness = torch.tensor(0.3, device=DEVICE) if softness == "tensor" else softness

    def step() -> None:
        soft_causal_attention_qkvpacked(qkv, softness, rope=rope, backend="triton").sum().backward()

    step()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.kernels
def test_golden_numbers_of_the_tiny_model() -> None:
    """Published logits and gradients with the kernels in every block; the last one asks for one query."""
    name = "tiny@224"
    model, images = test_family.rebuilt(name)
    for block in model.blocks:
        block.attn.config = dataclasses.replace(block.attn.config, attention_backend="triton")
    row, stored = test_family.OUTPUTS["models"][name], load("family_outputs.safetensors")
    model, images = model.to(DEVICE), images.to(DEVICE)
    model.set_softness(row["loss"]["softness"])
    logits = model(images)
    softness = f"s{row['loss']['softness']:g}"
    assert relative_l2(logits.detach().cpu(), stored[f"{name}/{softness}/logits_f64"]) < 2e-5
    F.cross_entropy(logits, torch.tensor(row["loss"]["targets"], device=DEVICE)).backward()
    for key, parameter in model.named_parameters():
        assert float(parameter.grad.double().norm()) == pytest.approx(row["grad"][key]["l2"], rel=1e-5), key
