"""Numbers of attention maps: distance, entropy, rank, rollout, what the class token looks at; and of a whole network.

Letters: B images, L depth, h heads, n patches, N = n + 1 tokens in sequence order, s images whose rows are kept to be
drawn. A map is the N x N matrix that multiplies v; a row belongs to the token that looks. Leading axes of maps
(..., N, N) are free (images, heads). A row without weight says nothing and is left out of the means; where no row is
left the mean is NaN. Models are looked at in evaluation mode and at their own softness.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from illama.analysis.capture import batch_size, each_attention, others_of
from illama.attention import attention_weights
from illama.errors import UserError
from illama.evaluation import evaluating
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


def singular_values(weights: torch.Tensor) -> torch.Tensor:
    """Singular values of maps (..., N, N), the largest first: (..., N), float64 on the CPU."""
    return torch.linalg.svdvals(weights.cpu().double())


def cumulated_shares(values: torch.Tensor) -> torch.Tensor:
    """Singular values (..., N), largest first, cumulated and divided by their sum; the last share is exactly 1.

    A map of zeros has nothing to share out: its shares are 1 from the first on.
    """
    sums = values.cumsum(-1)
    total = sums[..., -1:]
    return torch.where(total > 0, sums / total, 1.0)


def rank_of(shares: torch.Tensor, share: float = 0.8) -> torch.Tensor:
    """How many singular values a curve of `cumulated_shares` (..., N) needs to reach `share`: (...), 1 to N.

    The paper averages the curves of many images first and takes the rank of the average.

    Raises:
        UserError: `share` is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise UserError(f"the share of the singular values must lie above 0 and be at most 1; got {share}")
    return (shares < share).sum(-1) + 1


def effective_rank(values: torch.Tensor) -> torch.Tensor:
    """exp of the entropy of the normalised singular values (..., N): (...), from 1 to N, and 0 for a map of zeros.

    Unlike `rank_of` it has no threshold (Roy and Vetterli, "The effective rank", EUSIPCO 2007).
    """
    total = values.sum(-1, keepdim=True)
    entropy = torch.special.entr(values / total.clamp_min(torch.finfo(values.dtype).tiny)).sum(-1)
    return torch.where(total.squeeze(-1) > 0, entropy.exp(), 0.0)


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


def class_attention(model: ILlama, images: torch.Tensor) -> torch.Tensor:
    """The class token's row of the matrix that multiplies v, in every block: after the softmax and after the mask.

    Under `post_softmax` a row need not sum to one: its sum is the mass that the mask has left.

    Args:
        model: Any configuration, in the dtype and on the device of the images.
        images: Normalised images (n, in_chans, H, W).

    Returns:
        (L, h, N) on the CPU, in at least float32, mean over the images; the class token's own column is
        `model.cls_index`.
    """
    total: torch.Tensor | float = 0.0
    for batch in images.split(batch_size(model, keeps_graph=False)):
        total = total + _class_rows(model, batch)
    assert isinstance(total, torch.Tensor), "there is no image"
    return total.cpu() / len(images)


def _class_rows(model: ILlama, images: torch.Tensor) -> torch.Tensor:
    """The sum over the images, (L, h, N)."""
    rows_hN: list[torch.Tensor] = []
    each_attention(model, images, lambda _, weights_BhNN: rows_hN.append(weights_BhNN[:, :, model.cls_index].sum(0)))
    return torch.stack(rows_hN)


def class_token_leak(model: ILlama, images: torch.Tensor) -> float:
    """How much of the picture reaches the logits: their change when all patches come from another image.

    The norm of the change is divided by the norm of the logits; mean over the images. 0 is a network that does not see
    its input. What the logits are made of is the configuration's (`global_pool`): with the published one, of the class
    token alone.

    Args:
        model: Any configuration, in the dtype and on the device of the images.
        images: Normalised images (n, in_chans, H, W), at least two; each meets the one before it.

    Raises:
        UserError: There are fewer than two images.
    """
    size = batch_size(model, keeps_graph=False)
    changes = []
    with evaluating(model, None):
        # Both at the same place of a batch: the rows of one product need not round alike, and 0 has to be 0.
        for batch, others in zip(images.split(size), others_of(images).split(size), strict=True):
            logits = model(batch).flatten(1)
            changes.append((model(others).flatten(1) - logits).norm(dim=1) / logits.norm(dim=1))
    return float(torch.cat(changes).mean())


@dataclass(frozen=True)
class AttentionNumbers:
    """What the maps of some images say, by layer and head; means over the images.

    Attributes:
        curves_LhN: Cumulated shares of the singular values (Fig. 4).
        rank_Lh: The paper's rank: that of the mean curve.
        image_rank_Lh: Mean of the ranks of single images.
        effective_rank_Lh: Roy and Vetterli's, without a threshold.
        distance_Lh: Mean distance in pixels of what a patch looks at; NaN where no patch looks at patches.
        entropy_Lh: Entropy of the normalised rows in nats.
        mass_Lh: Sum of a row.
        rows_LsN: The row that the head reads, mean of the heads, of each image that is drawn.
        rollout_sN: The same through all layers.
    """

    curves_LhN: torch.Tensor
    rank_Lh: torch.Tensor
    image_rank_Lh: torch.Tensor
    effective_rank_Lh: torch.Tensor
    distance_Lh: torch.Tensor
    entropy_Lh: torch.Tensor
    mass_Lh: torch.Tensor
    rows_LsN: torch.Tensor
    rollout_sN: torch.Tensor


def measure_attention(
    model: ILlama,
    images: torch.Tensor,
    *,
    share: float = 0.8,
    shown: int = 0,
    advance: Callable[[int], None] | None = None,
) -> AttentionNumbers:
    """Look at every map of every image once; no more than one layer's maps of one batch exist at a time.

    Args:
        model: Any configuration, in the dtype and on the device of the images, looked at with its own softness.
        images: Normalised images (n, in_chans, H, W), at least one.
        share: Share of the singular values' sum that the rank has to reach.
        shown: Rows and rollout are kept of the first so many images.
        advance: Called with a number of maps when they have been looked at; there are n * L * h.

    Returns:
        float64 on the CPU; singular values are computed there in double precision, wherever the model is.

    Raises:
        UserError: `share` is not above 0 and at most 1, or attention is not finite.
    """
    tally = _Tally(model.config, share, shown, advance)
    for batch in images.split(batch_size(model, keeps_graph=False)):
        tally.next_batch(len(batch))
        each_attention(model, batch, tally.visit)
    return tally.numbers()


class _Tally:
    """Takes the layers' maps as they come and keeps what is small."""

    def __init__(self, config: ModelConfig, share: float, shown: int, advance: Callable[[int], None] | None) -> None:
        self.config, self.share, self.room, self.advance = config, share, shown, advance
        self.drawn = 0  # images of the batch whose rows are kept
        self.curves: list[list[torch.Tensor]] = [[] for _ in range(config.depth)]
        self.numbers_5Bh: list[list[torch.Tensor]] = [[] for _ in range(config.depth)]
        self.rows: list[list[torch.Tensor]] = [[] for _ in range(config.depth)]
        self.rollouts: list[torch.Tensor] = []

    def next_batch(self, images: int) -> None:
        """A batch of so many images follows, beginning with its first layer."""
        self.drawn = min(images, self.room)
        self.room -= self.drawn

    def visit(self, layer: int, weights_BhNN: torch.Tensor) -> None:
        """Look at the maps of one layer."""
        maps_BhNN = weights_BhNN.cpu().double()
        if not torch.isfinite(maps_BhNN).all():
            raise UserError(
                f"the attention of layer {layer + 1} is not finite; use weights from before the training diverged"
            )
        values_BhN = singular_values(maps_BhNN)
        curves_BhN = cumulated_shares(values_BhN)
        self.curves[layer].append(curves_BhN)
        looked_at = (
            rank_of(curves_BhN, self.share).double(),
            effective_rank(values_BhN),
            attention_distance(maps_BhNN, self.config),
            row_entropy(maps_BhNN),
            row_mass(maps_BhNN),
        )
        self.numbers_5Bh[layer].append(torch.stack(looked_at))
        self._keep(layer, maps_BhNN[: self.drawn])
        if self.advance is not None:
            self.advance(maps_BhNN.shape[0] * maps_BhNN.shape[1])

    def _keep(self, layer: int, maps_shNN: torch.Tensor) -> None:
        self.rows[layer].append(readout_row(maps_shNN.mean(1), self.config))
        if layer == 0:
            self.rollouts.append(rollout(maps_shNN))
        else:
            self.rollouts[-1] = rollout(maps_shNN, self.rollouts[-1])

    def numbers(self) -> AttentionNumbers:
        """The means over all images."""
        curves_LhN = torch.stack([torch.cat(layer).mean(0) for layer in self.curves])
        means_5Lh = torch.stack([torch.cat(layer, dim=1).nanmean(1) for layer in self.numbers_5Bh], dim=1)
        image_rank, effective, distance, entropy, mass = means_5Lh
        rollout_sNN = torch.cat(self.rollouts)
        return AttentionNumbers(
            curves_LhN=curves_LhN,
            rank_Lh=rank_of(curves_LhN, self.share),
            image_rank_Lh=image_rank,
            effective_rank_Lh=effective,
            distance_Lh=distance,
            entropy_Lh=entropy,
            mass_Lh=mass,
            rows_LsN=torch.stack([torch.cat(layer) for layer in self.rows]),
            rollout_sN=readout_row(rollout_sNN, self.config),
        )
