"""All numbers of the attention analysis from one pass over the images.

Letters: B images, h heads, N tokens in sequence order, L depth, s images whose rows are kept to be drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from illama.analysis.attention.rank import cumulated_shares, effective_rank, rank_of, singular_values
from illama.analysis.attention.rollout import readout_row, rollout
from illama.analysis.attention.rows import attention_distance, row_entropy, row_mass
from illama.analysis.batches import batch_size
from illama.analysis.capture import each_attention
from illama.errors import UserError
from illama.models import ILlama, ModelConfig


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
