"""Learned position embedding at another size (specification: model, section 7)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from illama.errors import UserError
from illama.models.config import ClsPosition


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
