"""Attention as it multiplies the values, one layer at a time; how many images are looked at together.

Letters: B images of a batch, h heads, N tokens in sequence order, D width, L depth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from illama.errors import UserError
from illama.evaluation import evaluating
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


Visit = Callable[[int, torch.Tensor], None]


def each_attention(model: ILlama, images: torch.Tensor, visit: Visit, *, layers: Sequence[int] | None = None) -> None:
    """One forward pass, in which every layer's attention is formed, handed over and forgotten.

    The pass itself runs on the model's own backend. The matrix that multiplies v in a block is computed once more from
    that block's q and k, for no fast backend forms it: after the rotary embedding, the softmax and the mask. So no more
    than one layer's maps exist at a time, unless `visit` keeps them.

    Args:
        model: Any configuration, in the dtype and on the device of the images; looked at in evaluation mode, without
            gradients, at its own softness.
        images: One batch of normalised images (B, in_chans, H, W); see `illama.analysis.capture` for its size.
        visit: Called with the layer's index, 0 to L - 1 in rising order, and its weights (B, h, N, N) in at least
            float32; rows are queries. Under `post_softmax` a row need not sum to one.
        layers: Indices of the layers, negative ones from the end; all when None. The pass ends at the last of them.

    Raises:
        UserError: There is no such layer.
    """
    blocks: list[Any] = list(model.blocks)
    wanted = set(range(len(blocks))) if layers is None else {model.block_index(layer) for layer in layers}
    if not wanted:
        return
    rope = None if model.rope is None else model.rope.tables()

    def look(layer: int, x_BND: torch.Tensor) -> None:
        if layer in wanted:
            visit(layer, blocks[layer].attn.weights(blocks[layer].norm1(x_BND), model.softness, rope))

    with evaluating(model, None):
        x_BND = model.embed(images)
        look(0, x_BND)
        model.run_blocks(x_BND, after_block=lambda index, x: look(index + 1, x), stop_after=max(wanted) - 1)
