"""How many images are looked at together, and which image another one is exchanged for."""

from __future__ import annotations

import torch

from illama.errors import UserError
from illama.models import ILlama

MOST_VALUES = 1 << 25  # held by one batch: 256 MiB in double precision


def batch_size(model: ILlama, *, keeps_graph: bool) -> int:
    """Images of a batch whose activations stay below `MOST_VALUES`; at least one.

    Args:
        model: What computes them.
        keeps_graph: Whether a backward pass follows, which needs the activations of all blocks.
    """
    config = model.config
    tokens = config.num_patches + 1
    of_token = config.num_heads * tokens + 6 * config.embed_dim + 3 * config.hidden_dim  # the weights, then the rest
    blocks = len(model.blocks) if keeps_graph else 1
    return max(1, MOST_VALUES // (tokens * of_token * max(1, blocks)))


def others_of(images: torch.Tensor) -> torch.Tensor:
    """Another image for each: the one before it, the last for the first.

    Raises:
        UserError: There is no other one.
    """
    if len(images) < 2:
        raise UserError(f"an exchange needs at least two images; got {len(images)}")
    return images.roll(1, dims=0)
