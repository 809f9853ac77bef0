"""Where the answer comes from: the row that the head reads, in one layer and through all of them.

Letters: B images, h heads, n patches, N = n + 1 tokens in sequence order.
"""

from __future__ import annotations

import torch

from illama.analysis.attention.rows import patches_of
from illama.models import ModelConfig


def residual_mix(weights_BhNN: torch.Tensor) -> torch.Tensor:
    """What one layer mixes, (B, N, N): the heads' mean and the residual, (A + I) with every row divided by its sum.

    Where the rows of A sum to one this is Abnar and Zuidema's 0.5 A + 0.5 I ("Quantifying attention flow in
    transformers", 2020). A row that has kept the mass m after the mask gives 1 / (1 + m) to the residual, and
    m / (1 + m) to what it looks at: its attention adds little to the token, so the token stays what it was. With the
    fixed factors of one half the rows would no longer sum to one, and the early tokens of a `post_softmax` network
    would seem to come from nowhere.
    """
    mixed_BNN = weights_BhNN.mean(1) + torch.eye(weights_BhNN.shape[-1]).to(weights_BhNN)
    return mixed_BNN / mixed_BNN.sum(-1, keepdim=True)


def rollout(weights_BhNN: torch.Tensor, below_BNN: torch.Tensor | None = None) -> torch.Tensor:
    """Attention multiplied through the layers: (B, N, N), rows sum to one.

    Row = a token after this layer, column = the embedded token that it comes from. Values, feed-forwards and the sizes
    of residual branches are not looked at: it says where information may come from, not what is done with it.

    Args:
        weights_BhNN: One layer's maps.
        below_BNN: The same of the layers below; None for the first layer.
    """
    mixed_BNN = residual_mix(weights_BhNN)
    return mixed_BNN if below_BNN is None else mixed_BNN @ below_BNN


def readout_row(maps_BNN: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """The row of what the head reads, (B, N): the class token's, or the mean of the rows that are pooled."""
    if config.global_pool == "token":
        return maps_BNN[:, -1 if config.cls_position == "last" else 0]
    pooled_BNN = maps_BNN[:, patches_of(config)] if config.global_pool == "avg" else maps_BNN
    return pooled_BNN.mean(1)


def on_grid(rows_BN: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """The patches of rows (B, N) on their grid, (B, rows, columns); the weight on the class token is left out."""
    return rows_BN[:, patches_of(config)].unflatten(1, config.grid)
