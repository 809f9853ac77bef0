"""What the class token looks at, and how much of the picture reaches the logits.

Letters: L depth, h heads, N tokens in sequence order. As in `illama.analysis.causality.sensitivity`, a model is
looked at in evaluation mode and at its own softness.
"""

from __future__ import annotations

import torch

from illama.analysis.batches import batch_size, others_of
from illama.analysis.capture import each_attention
from illama.evaluation import evaluating
from illama.models import ILlama


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
