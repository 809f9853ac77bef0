"""The rotation of q and k: complex products, real arithmetic and in-place writing are one mathematics."""

from __future__ import annotations

import pytest
import torch

from illama.attention.request import Tables, rotate, rotate_into
from illama.models.position import angles_1d

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def tables(tokens: int, width: int, dtype: torch.dtype = torch.float64) -> Tables:
    angles = 2 * torch.pi * torch.rand(tokens, width // 2, dtype=torch.float64)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def one_by_one(x: torch.Tensor, tables: Tables) -> torch.Tensor:
    """Each pair times its 2 x 2 rotation matrix, pairs interleaved."""
    out = torch.empty_like(x)
    for token, (cosines, sines) in enumerate(zip(*tables, strict=True)):
        for j, (cos, sin) in enumerate(zip(cosines, sines, strict=True)):
            turn = torch.stack([torch.stack([cos, -sin]), torch.stack([sin, cos])])
            out[..., token, 2 * j : 2 * j + 2] = x[..., token, 2 * j : 2 * j + 2] @ turn.T
    return out


def layouts(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same values in memory orders that complex numbers can read, and that they cannot."""
    shifted = torch.zeros(x.numel() + 1, dtype=x.dtype)
    shifted[1:] = x.flatten()
    return {
        "contiguous": x,
        "tokens outermost": x.transpose(0, 2).contiguous().transpose(0, 2),
        "channels apart": torch.stack([x, x], dim=-1)[..., 0],
        "odd rows": torch.cat([x, x[..., :1]], dim=-1)[..., :-1],
        "odd offset": shifted[1:].view(x.shape),
    }


@pytest.mark.parametrize("layout", ["contiguous", "tokens outermost", "channels apart", "odd rows", "odd offset"])
def test_every_pair_turns_by_its_angle(layout: str) -> None:
    x, turn = torch.randn(2, 3, 5, 8, dtype=torch.float64), tables(5, 8)
    expected, given = one_by_one(x, turn), layouts(x)[layout]
    torch.testing.assert_close(rotate(given, turn), expected, rtol=1e-14, atol=1e-14)
    written = torch.full((2, 3, 5, 8), torch.nan, dtype=torch.float64)
    rotate_into(written, given, turn, scale=0.3)
    torch.testing.assert_close(written, 0.3 * expected, rtol=1e-14, atol=1e-14)
    assert torch.equal(given, x), "the input stays what it was"


@pytest.mark.parametrize("layout", ["contiguous", "tokens outermost", "channels apart", "odd rows", "odd offset"])
@pytest.mark.parametrize("rotated", [False, True])
def test_written_to_memory_of_any_layout(layout: str, rotated: bool) -> None:
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    turn = tables(5, 8) if rotated else None
    target = layouts(torch.full_like(x, torch.nan))[layout]
    rotate_into(target, x, turn, scale=0.5)
    torch.testing.assert_close(target, 0.5 * (one_by_one(x, turn) if turn else x), rtol=1e-14, atol=1e-14)


def test_turning_back_restores() -> None:
    x, (cos, sin) = torch.randn(2, 3, 5, 8, dtype=torch.float64), tables(5, 8)
    there, back = torch.empty_like(x), torch.empty_like(x)
    rotate_into(there, x, (cos, sin), scale=0.25)
    rotate_into(back, there, (cos, -sin), scale=4.0)
    torch.testing.assert_close(back, x, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
def test_half_precision_is_rotated_in_the_precision_of_the_tables(dtype: torch.dtype) -> None:
    """At position 500 an angle in bfloat16 would be off by a radian; the only loss is one rounding of the result."""
    angles = angles_1d(501, 8)
    exact = angles.cos(), angles.sin()
    single = exact[0].float(), exact[1].float()
    x = torch.randn(1, 2, 501, 8).to(dtype)
    expected = rotate(x.double(), exact)
    eps = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    written = torch.full_like(x, torch.nan)
    rotate_into(written, x, single)
    for found in (rotate(x, single), written):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=eps, atol=4 * eps)


def test_products_depend_on_the_distance_alone() -> None:
    """What makes it a relative position: q at t and k at s give the score of q at t + 3 and k at s + 3."""
    angles = angles_1d(12, 8)
    turn = angles.cos(), angles.sin()
    q, k = (torch.randn(8, dtype=torch.float64).expand(1, 1, 12, 8) for _ in range(2))
    scores = (rotate(q, turn) @ rotate(k, turn).mT)[0, 0]
    torch.testing.assert_close(scores[3:, 3:], scores[:-3, :-3])
    assert not torch.allclose(scores[0, :-3], scores[0, 3:])


def test_compilers_get_another_order_of_channels_and_the_same_scores() -> None:
    turn = tables(5, 8, torch.float32)
    q, k = torch.randn(2, 2, 3, 5, 8)

    def rotated(q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return rotate(q, turn), rotate(k, turn)

    torch._dynamo.reset()
    compiled = torch.compile(rotated, backend="aot_eager", fullgraph=True)(q, k)
    eager = rotated(q, k)
    torch.testing.assert_close(compiled[0] @ compiled[1].mT, eager[0] @ eager[1].mT, rtol=1e-5, atol=1e-5)
    interleaved = torch.cat([eager[0][..., ::2], eager[0][..., 1::2]], dim=-1)
    torch.testing.assert_close(compiled[0], interleaved, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", ["contiguous", "odd rows"])
def test_gradients_are_derivatives(layout: str) -> None:
    turn = tables(3, 4)
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: rotate(layouts(x)[layout], turn), (x,))
