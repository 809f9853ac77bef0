"""The optimizer: which tensors decay, layer-wise learning rates, AdamW or Muon; no step by a loss that is not finite.

Muon (K. Jordan et al., 2024) moves the matrices of the blocks, and AdamW everything else, as one optimizer. A weight
goes by an orthogonal matrix near its gradient's running mean. With W a weight (a, b), G its gradient, M the mean (0 at
first) and mu = 0.95:

    M <- mu M + (1 - mu) G
    U  = orthogonal(mu M + (1 - mu) G)                      (Nesterov's look ahead)
    W <- (1 - lr weight_decay) W - 0.2 sqrt(max(a, b)) lr U

The factor gives an update the root mean square of AdamW's (J. Liu et al., 2025), so that one learning rate serves both.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from illama.distributed import ALONE, World
from illama.models.illama import ILlama

MOMENTUM = 0.95
MOMENT = "momentum_buffer"  # its name in the optimizer's state, which is torch.optim.Muon's
# Coefficients of x <- A x + (B x x^T + C (x x^T)^2) x, which brings singular values from 0.003 to 1 near 1 in 5 steps.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
LEAST_NORM = 1e-7


def param_groups(
    model: ILlama, weight_decay: float, layer_decay: float | None = None, *, muon: bool = False
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer.

    Tensors of one dimension, every `.bias`, `pos_embed` and `cls_token` do not decay; everything else does. With
    `layer_decay`, group 0 is class token, position and patch embedding, group i + 1 is block i, the last group is
    the final norm and the head, and group g of G has `lr_scale` = layer_decay^(G - 1 - g). With `muon` the matrices of
    the blocks have groups of their own, for that optimizer: what embeds, normalises or classifies is no map from one
    hidden space to another.

    Returns:
        Groups with the keys params, names, weight_decay, lr_scale, and muon (bool) where asked for; only trainable
        tensors, no empty group.
    """
    last = model.config.depth + 1
    groups: dict[tuple[int, bool, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim > 1 and not name.endswith(".bias") and name not in model.no_weight_decay()
        depth = last if layer_decay is None else _layer(name, last)
        scale = 1.0 if layer_decay is None else layer_decay ** (last - depth)
        by_muon = muon and parameter.ndim == 2 and name.startswith("blocks.")
        group = groups.setdefault(
            (depth, decays, by_muon),
            {"params": [], "names": [], "weight_decay": weight_decay if decays else 0.0, "lr_scale": scale}
            | ({"muon": by_muon} if muon else {}),
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def build_adamw(
    groups: list[dict[str, Any]], *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
) -> torch.optim.AdamW:
    """AdamW over `param_groups`; its learning rate is set before every step by `set_lr`."""
    # Fused does the same arithmetic in one kernel; it exists for floating types on these devices only.
    fused = all(p.device.type in ("cpu", "cuda", "mps") for g in groups for p in g["params"])
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=fused)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group the step's learning rate times the group's scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def _layer(name: str, last: int) -> int:
    parts = name.split(".")
    if parts[0] == "blocks":
        return int(parts[1]) + 1
    return last if parts[0] in ("norm", "head") else 0


class LossGuard:
    """Watches the loss on the device.

    From the first non-finite loss on, the optimizer leaves every weight as it is: its steps read `found_inf` on the
    device, the way torch's gradient scaler uses it. The host asks for the verdict at log points only.

    Args:
        device: Where the loss is.
        optimizer: A fused one of torch, or one that reads `found_inf` as those do.
        world: The processes that share the weights: where one meets such a loss, none may change them.
    """

    def __init__(self, device: torch.device, optimizer: torch.optim.Optimizer, world: World = ALONE) -> None:
        self._world = world
        self._own_first_bad = torch.full((), -1, dtype=torch.int64, device=device)
        self._first_bad = self._own_first_bad.clone()
        self._found = torch.zeros((), device=device)
        optimizer.grad_scale = None  # type: ignore[attr-defined]
        optimizer.found_inf = self._found  # type: ignore[attr-defined]

    def watch(self, loss: torch.Tensor, step: int) -> None:
        """Take note of one micro-batch's loss."""
        bad = ~torch.isfinite(loss)
        first = self._own_first_bad
        first.copy_(torch.where(bad & (first < 0), step, first))

    def close_step(self) -> None:
        """Tell the optimizer, before its step, what was found; the processes tell each other."""
        self._first_bad.copy_(self._own_first_bad)
        self._world.max_(self._first_bad)
        self._found.copy_(self._first_bad >= 0)

    def first_bad_step(self) -> int | None:
        """The first step whose loss was not finite on any process, or None. Waits for the device."""
        step = int(self._first_bad)
        return None if step < 0 else step

    def bad_ranks(self) -> list[int]:
        """The processes that met such a loss themselves; all have to ask."""
        return [rank for rank, step in enumerate(self._world.gather(int(self._own_first_bad))) if step >= 0]


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for groups with `muon`, fused AdamW for the others.

    Matrices of one shape are orthogonalized together: a step of tiny has some 100 kernels, not 2,000.

    Attributes:
        found_inf: 0-d, on the parameters' device; where it is not 0 a step changes nothing, momentum included. As the
            fused AdamW reads it.

    Args:
        groups: From `param_groups` with `muon=True`.
        betas: AdamW's.
        eps: AdamW's.
    """

    found_inf: Tensor | None = None

    def __init__(self, groups: list[dict[str, Any]], *, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": 0.0})
        self._adamw = build_adamw(self._of(muon=False), betas=betas, eps=eps)

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Change all parameters by their gradients."""
        adamw: Any = self._adamw
        # This optimizer has groups and state, also after `load_state_dict`; the one within it borrows them.
        adamw.param_groups, adamw.state, adamw.found_inf = self._of(muon=False), self.state, self.found_inf
        adamw.step()
        with torch.no_grad():
            for group in self._of(muon=True):
                for parts in _of_one_shape(group):
                    self._step_together(parts, group["lr"], group["weight_decay"])

    def _of(self, *, muon: bool) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["muon"] == muon]

    def _step_together(self, parts: list[tuple[Tensor, int]], lr: float, weight_decay: float) -> None:
        """One step of weights, each of so many matrices one below the other, all of one shape (a, b)."""
        weights: list[Tensor] = []
        gradients: list[Tensor] = []
        moments: list[Tensor] = []
        for parameter, count in parts:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if MOMENT not in state:
                state[MOMENT] = torch.zeros_like(parameter)
            for kind, tensor in ((weights, parameter), (gradients, parameter.grad), (moments, state[MOMENT])):
                kind.append(tensor.unflatten(0, (count, -1)))
        if not weights:
            return
        counts, scale = [len(weight) for weight in weights], 0.2 * math.sqrt(max(weights[0].shape[1:]))
        gradient, before = torch.cat(gradients), torch.cat(moments)
        moment = before.lerp(gradient, 1 - MOMENTUM)
        update = orthogonal(gradient.lerp(moment, MOMENTUM)).to(gradient.dtype)
        decay = update.new_full((), 1 - lr * weight_decay)
        if self.found_inf is not None:  # the host does not know it: all is computed, and what was there is written
            may = self.found_inf == 0
            moment, update = torch.where(may, moment, before), torch.where(may, update, 0.0)
            decay = torch.where(may, decay, 1.0)
        torch._foreach_copy_(moments, moment.split(counts))
        torch._foreach_mul_(weights, decay)
        torch._foreach_add_(weights, update.split(counts), alpha=-lr * scale)


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices (k, a, b) with their singular values brought to 0.7 to 1.2, by Newton and Schulz's iteration.

    On CUDA in bfloat16, as published, which is enough and fast; elsewhere in the matrices' own type.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x  # the smaller of the two products with itself
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(LEAST_NORM)
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _of_one_shape(group: dict[str, Any]) -> list[list[tuple[Tensor, int]]]:
    """The weights of a group with their counts of matrices, by the shape of those.

    q, k and v lie in one weight to be computed together; to Muon they are three matrices.
    """
    by_shape: dict[tuple[int, int], list[tuple[Tensor, int]]] = {}
    for name, parameter in zip(group["names"], group["params"], strict=True):
        count = 3 if name.endswith("qkv.weight") else 1
        by_shape.setdefault((parameter.shape[0] // count, parameter.shape[1]), []).append((parameter, count))
    return list(by_shape.values())
