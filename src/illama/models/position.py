"""Position embeddings: learned ones at another size, and rotary ones (LLaMA's 1-D, VisionLLaMA's 2-D).

Learned: specification of the model, section 7. Rotary: real cos/sin tables; letters: N tokens, d head width, n patches.
A table row belongs to a token; column j rotates the interleaved pair of channels (2j, 2j + 1).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from illama.attention.request import Tables
from illama.errors import UserError
from illama.models.config import ClsPosition, ModelConfig


def resize_position(
    pos_embed: torch.Tensor,
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    cls_position: ClsPosition,
) -> torch.Tensor:
    """Resize the patch rows bicubically on their grid and keep the class token's row.

    Args:
        pos_embed: (1, old rows * old columns + 1, D).
        old_grid, new_grid: Patches as (rows, columns).
        cls_position: Whether the class token's row is the "last" (iLLaMA) or the "first" (ViT).

    Returns:
        (1, new rows * new columns + 1, D) in the input's dtype; the input itself when the grids agree.

    Raises:
        UserError: The number of rows does not fit the old grid.
    """
    rows, columns = old_grid
    if pos_embed.dim() != 3 or pos_embed.shape[1] != rows * columns + 1:
        raise UserError(
            f"pos_embed of shape {tuple(pos_embed.shape)} does not fit a grid of {rows} x {columns} patches "
            f"and a class token: expected (1, {rows * columns + 1}, D)"
        )
    if old_grid == new_grid:
        return pos_embed
    if cls_position == "last":
        patches, cls_row = pos_embed[:, :-1], pos_embed[:, -1:]
    else:
        cls_row, patches = pos_embed[:, :1], pos_embed[:, 1:]
    as_map = patches.reshape(1, rows, columns, -1).permute(0, 3, 1, 2)
    as_map = as_map.to(torch.promote_types(as_map.dtype, torch.float32))  # the published code's precision
    resized = F.interpolate(as_map, size=new_grid, mode="bicubic", align_corners=False, antialias=False)
    patches = resized.permute(0, 2, 3, 1).flatten(1, 2).to(pos_embed.dtype)
    return torch.cat([patches, cls_row] if cls_position == "last" else [cls_row, patches], dim=1)


BASE = 10000.0  # theta of RoPE, in LLaMA and in both published vision models


def angles_1d(tokens: int, head_dim: int) -> torch.Tensor:
    """Angles t * theta^(-2i/d) of the sequence index t, class token included: (N, d/2), float64, radians."""
    frequencies = BASE ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    return torch.outer(torch.arange(tokens, dtype=torch.float64), frequencies)


def angles_2d(config: ModelConfig) -> torch.Tensor:
    """VisionLLaMA's angles: even pairs rotate by x, odd pairs by y: (N, d/2), float64, radians, in token order.

    The class token counts as patch -1 of the raster order: x = columns - 1, y = `rope2d_cls_y`.
    """
    _, columns = config.grid
    patch = torch.arange(config.num_patches)
    x = torch.cat([patch % columns, torch.tensor([columns - 1])])
    y = torch.cat([patch // columns, torch.tensor([config.rope2d_cls_y])])
    if config.cls_position == "first":
        x, y = x.roll(1), y.roll(1)
    scale = 224 / config.height_width[0] if config.rope2d_auto_scale else 1.0
    frequencies = BASE ** (-torch.arange(0, config.head_dim, 4, dtype=torch.float64) / config.head_dim)
    by_x, by_y = torch.outer(x * scale, frequencies), torch.outer(y * scale, frequencies)
    return torch.stack((by_x, by_y), dim=-1).flatten(1)


class RotaryTable(nn.Module):
    """cos and sin of the rotation angles as non-persistent buffers (N, d/2).

    The tables are float32, and float64 in a double model; half precision never reaches them, for positions up to
    N - 1 need more digits than it has.
    """

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        angles = self.angles()
        # Made where new tensors go by default (the meta device, for instance) and cast like any buffer.
        self.register_buffer("cos", torch.empty(angles.shape), persistent=False)
        self.register_buffer("sin", torch.empty(angles.shape), persistent=False)
        self._fill()

    def angles(self) -> torch.Tensor:
        """The rotation angles in radians, (N, d/2), float64 on the CPU."""
        with torch.device("cpu"):
            if self.config.position == "rope2d":
                return angles_2d(self.config)
            return angles_1d(self.config.num_patches + 1, self.config.head_dim)

    def _fill(self) -> None:
        dtype = torch.float64 if self.cos.dtype == torch.float64 else torch.float32
        self.cos = self.angles().cos().to(self.cos.device, dtype)
        self.sin = self.angles().sin().to(self.sin.device, dtype)

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        super()._apply(fn, recurse)
        self._fill()
        return self

    def tables(self, rows: torch.Tensor | None = None) -> Tables:
        """cos and sin, as `soft_causal_attention` takes them: of all tokens, or of those of these places (N,) int64."""
        return (self.cos, self.sin) if rows is None else (self.cos[rows], self.sin[rows])
