"""What reaches what: derivatives, and an exchange of everything that stands after a token (docs/causality.md).

Letters: B images of a batch, N tokens in sequence order, D width. A model is left in the mode that it came with and
is looked at in evaluation mode, at its own softness. Leaks can be fainter than rounding in float32: give a model and
images in double precision where a small number matters. Zeros are exact in every precision.
"""

from __future__ import annotations

import torch

from illama.analysis.batches import batch_size, others_of
from illama.evaluation import evaluating
from illama.models import ILlama


def image_gradient(model: ILlama, images: torch.Tensor) -> float:
    """Norm of the gradient of the summed squared logits with respect to the pixels, mean over the images.

    Args:
        model: Any configuration, in the dtype and on the device of the images.
        images: Normalised images (n, in_chans, H, W).
    """
    norms = []
    with evaluating(model, None), torch.enable_grad():
        for batch in images.split(batch_size(model, keeps_graph=True)):
            pixels = batch.detach().clone().requires_grad_()
            gradient = torch.autograd.grad(model(pixels).square().sum(), pixels)[0]
            norms.append(gradient.flatten(1).norm(dim=1))
    return float(torch.cat(norms).mean())


def jacobian_norms(model: ILlama, images: torch.Tensor) -> torch.Tensor:
    """Norms of the derivatives of each token after the last block by each embedded token, mean over the images.

    One backward pass per image, token and channel, many of them side by side: for small networks or few images.

    Args:
        model: Any configuration, in the dtype and on the device of the images.
        images: Normalised images (n, in_chans, H, W).

    Returns:
        (N, N) on the CPU: row = the token that answers, column = the token that changes, both in sequence order.
        Frobenius norms of D x D derivatives of all blocks together; the final norm and the head are left out.
    """
    total: torch.Tensor | float = 0.0
    with evaluating(model, None):
        for image in images.split(1):
            total = total + _jacobian_norms(model, model.embed(image))
    assert isinstance(total, torch.Tensor), "there is no image"
    return total.cpu() / len(images)


@torch.enable_grad()
def _jacobian_norms(model: ILlama, x_1ND: torch.Tensor) -> torch.Tensor:
    """Those of one image. Copies of it are asked for one channel each, so that every backend can serve."""
    _, tokens, width = x_1ND.shape
    copies = min(width, batch_size(model, keeps_graph=True))
    x_BND = x_1ND.detach().repeat(copies, 1, 1).requires_grad_()
    answer_BND = model.run_blocks(x_BND)
    norms_NN = x_1ND.new_zeros(tokens, tokens)
    for token in range(tokens):
        for first in range(0, width, copies):
            channels = torch.arange(first, min(first + copies, width), device=x_1ND.device)
            asked_BND = torch.zeros_like(answer_BND)
            asked_BND[torch.arange(len(channels)), token, channels] = 1
            gradient_BND = torch.autograd.grad(answer_BND, x_BND, asked_BND, retain_graph=True)[0]
            norms_NN[token] = torch.hypot(norms_NN[token], gradient_BND.norm(dim=(0, 2)))
    return norms_NN


def exchange(model: ILlama, images: torch.Tensor) -> torch.Tensor:
    """How far a token's output moves when every patch after it comes from another image.

    The change of token t after the last block is divided by the token's norm; mean over the images. With the class
    token first, position 0 is the class token's own change when all patches are exchanged.

    Args:
        model: Any configuration, in the dtype and on the device of the images.
        images: Normalised images (n, in_chans, H, W), at least two; each meets the one before it.

    Returns:
        (number of tokens that a patch follows,) on the CPU, in sequence order: N - 2 values with the class token last,
        N - 1 with the class token first.

    Raises:
        UserError: There are fewer than two images.
    """
    size = batch_size(model, keeps_graph=False)
    changes = []
    with evaluating(model, None):
        for batch, others in zip(images.split(size), others_of(images).split(size), strict=True):
            changes.append(_exchange(model, model.embed(batch), model.embed(others)))
    return torch.cat(changes, dim=1).mean(dim=1).cpu()


def _exchange(model: ILlama, x_BND: torch.Tensor, others_BND: torch.Tensor) -> torch.Tensor:
    """Relative changes of each image, (positions, B)."""
    before_BND = model.run_blocks(x_BND)
    followed = x_BND.shape[1] - (2 if model.config.cls_position == "last" else 1)
    changes = []
    for token in range(followed):
        # A class token that stands last is cut off with the patches: it is the same in all images.
        mixed_BND = torch.cat((x_BND[:, : token + 1], others_BND[:, token + 1 :]), dim=1)
        before_BD = before_BND[:, token]
        change_BD = model.run_blocks(mixed_BND)[:, token] - before_BD
        changes.append(change_BD.norm(dim=-1) / before_BD.norm(dim=-1))
    return torch.stack(changes) if changes else x_BND.new_zeros(0, len(x_BND))
