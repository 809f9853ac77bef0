"""What the rows of an attention map say: how far a token looks, among how many it spreads, what the mask took away.

Letters: h heads, n patches, N = n + 1 tokens in sequence order; a row belongs to the token that looks. Leading axes of
maps (..., N, N) are free (images, heads). A row without weight says nothing and is left out of the means; where no
row is left the mean is NaN.
"""

from __future__ import annotations

import torch

from illama.attention import attention_weights
from illama.models import ILlama, ModelConfig


def patches_of(config: ModelConfig) -> slice:
    """Where the patches stand in the sequence."""
    return slice(0, config.num_patches) if config.cls_position == "last" else slice(1, config.num_patches + 1)


def patch_distances(config: ModelConfig) -> torch.Tensor:
    """Distances in pixels between the centres of patches, (n, n), float64, in raster order."""
    rows, columns = config.grid
    patch = torch.arange(rows * columns)
    places = torch.stack((patch // columns, patch % columns), dim=1).double() * config.patch_size
    return (places.unsqueeze(0) - places.unsqueeze(1)).square().sum(-1).sqrt()


def attention_distance(weights: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """Mean distance in pixels between a patch and the patches that it looks at, (...), of maps (..., N, N).

    Each patch's row is cut to the patches and normalised, then distances are weighted with it ("An image is worth
    16x16 words", Fig. 7). The class token has no place in the image and takes no part.
    """
    patches = patches_of(config)
    of_patches = weights[..., patches, patches]
    distances_nn = patch_distances(config).to(weights)
    return ((of_patches * distances_nn).sum(-1) / of_patches.sum(-1)).nanmean(-1)


def row_entropy(weights: torch.Tensor) -> torch.Tensor:
    """Mean entropy in nats of the normalised rows of maps (..., N, N): (...), 0 to ln N.

    Row i of a causal map has only i + 1 entries, and at most the entropy ln(i + 1).
    """
    return torch.special.entr(weights / weights.sum(-1, keepdim=True)).sum(-1).nanmean(-1)


def row_mass(weights: torch.Tensor) -> torch.Tensor:
    """Mean sum of the rows of maps (..., N, N): (...). Below 1 the mask has taken weight away after the softmax."""
    return weights.sum(-1).mean(-1)


def indifferent_weights(model: ILlama) -> torch.Tensor:
    """The map (N, N), float64 on the CPU, that a model's mask leaves of equal scores: attention that does not look."""
    config = model.config
    equal = torch.zeros(1, 1, config.num_patches + 1, 1, dtype=torch.float64)
    softness = float(model.softness)
    return attention_weights(equal, equal, softness, mask=config.mask, mask_mode=config.mask_mode)[0, 0]
