"""How many directions an attention map has: its rank by singular values (Fig. 4, 11), and its effective rank.

Letters: N tokens; a map is the N x N matrix that multiplies v. Leading axes are free (images, heads).
"""

from __future__ import annotations

import torch

from illama.errors import UserError


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
