"""What reaches what: derivatives, and an exchange of everything that stands after a token (docs/causality.md).

Letters: B images of a batch, N tokens in sequence order, D width, L depth, t tokens up to a cut. A model is left in
the mode that it came with and is looked at in evaluation mode, at its own softness. Leaks can be fainter than rounding
in float32: give a model and images in double precision where a small number matters. Zeros are exact in every
precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F

from illama.analysis.capture import batch_size, others_of
from illama.evaluation import evaluating
from illama.models import ILlama, ModelConfig


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
    cuts = range(followed_tokens(model.config))
    if not cuts:
        return torch.zeros(0)
    with evaluating(model, None):
        changes = [
            torch.stack([of_cut_LBt[-1, :, -1] for of_cut_LBt in of_batch])
            for of_batch in _each_batch(model, images, cuts)
        ]
    return torch.cat(changes, dim=1).mean(dim=1).cpu()


def changes_before_cuts(
    model: ILlama, images: torch.Tensor, cuts: Sequence[int], advance: Callable[[int], None] | None = None
) -> list[torch.Tensor]:
    """How far every token up to a cut moves, after every block, when all patches after the cut come from another image.

    `exchange` in full: there a token is looked at behind the last block and only where it is the last one kept.

    Args:
        model: Any configuration, in the dtype and on the device of the images.
        images: Normalised images (n, in_chans, H, W), at least two; each meets the one before it.
        cuts: The last token that is kept, 0 to `followed_tokens` - 1. A class token that stands last is the same in all
            images.
        advance: Called with the number of images each time that a batch has been run with one cut.

    Returns:
        For each cut c the changes (L, n, c + 1) on the CPU, each divided by its token's norm without the exchange.
        Tokens that do not depend on what comes later have exactly 0, in every precision.

    Raises:
        UserError: There are fewer than two images.
    """
    by_cut: list[list[torch.Tensor]] = [[] for _ in cuts]
    with evaluating(model, None):
        for of_batch in _each_batch(model, images, cuts):
            for parts, of_cut_LBt in zip(by_cut, of_batch, strict=True):
                parts.append(of_cut_LBt.cpu())
                if advance is not None:
                    advance(of_cut_LBt.shape[1])
    return [torch.cat(parts, dim=1) for parts in by_cut]


def exchanged(images: torch.Tensor, config: ModelConfig, cuts: Sequence[int]) -> torch.Tensor:
    """Whether anything after each cut changes when an image meets the one before it: (cuts, n) booleans on the CPU.

    Two pictures may end alike, in a white margin for instance. Such a pair says nothing of what a network lets through.
    """
    patches = F.unfold(images, config.patch_size, stride=config.patch_size)  # (n, values, patches)
    differs = (patches != others_of(patches)).any(1).cpu()
    first_patch = 1 if config.cls_position == "last" else 0
    return torch.stack([differs[:, cut + first_patch :].any(1) for cut in cuts])


def followed_tokens(config: ModelConfig) -> int:
    """How many tokens a patch follows: those that an exchange of later patches could reach."""
    return config.num_patches - (1 if config.cls_position == "last" else 0)


def _each_batch(model: ILlama, images: torch.Tensor, cuts: Iterable[int]) -> Iterator[Iterator[torch.Tensor]]:
    """For each batch of images the changes of `_each_cut`."""
    size = batch_size(model, keeps_graph=False)
    for batch, others in zip(images.split(size), others_of(images).split(size), strict=True):
        yield _each_cut(model, model.embed(batch), model.embed(others), cuts)


def _each_cut(
    model: ILlama, x_BND: torch.Tensor, others_BND: torch.Tensor, cuts: Iterable[int]
) -> Iterator[torch.Tensor]:
    """Relative changes of the tokens up to each cut after each block, (L, B, cut + 1).

    An image stands at the same place of the batch before and after: the rows of one product need not round alike, and
    what does not change has to give 0.
    """
    before_LBND: list[torch.Tensor] = []
    model.run_blocks(x_BND, after_block=lambda _, x: before_LBND.append(x))
    for cut in cuts:
        # A class token that stands last is cut off with the patches: it is the same in all images.
        mixed_BND = torch.cat((x_BND[:, : cut + 1], others_BND[:, cut + 1 :]), dim=1)
        yield _changes(model, mixed_BND, before_LBND, slice(0, cut + 1))


def _changes(model: ILlama, x_BND: torch.Tensor, before_LBND: list[torch.Tensor], kept: slice) -> torch.Tensor:
    """How far the kept tokens are after each block from what they were before, relative to that: (L, B, t)."""
    changes_LBt: list[torch.Tensor] = []

    def compare(block: int, after_BND: torch.Tensor) -> None:
        before_BtD = before_LBND[block][:, kept]
        moved_Bt = (after_BND[:, kept] - before_BtD).norm(dim=-1)
        # A token of zeros that has stayed so has not moved; 0 / 0 would say nothing.
        changes_LBt.append(torch.where(moved_Bt == 0, moved_Bt, moved_Bt / before_BtD.norm(dim=-1)))

    model.run_blocks(x_BND, after_block=compare)
    return torch.stack(changes_LBt)
