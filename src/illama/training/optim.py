"""The optimizer: which tensors decay, layer-wise learning rates, AdamW; and no step by a loss that is not finite."""

from __future__ import annotations

from typing import Any

import torch

from illama.distributed import ALONE, World
from illama.models.illama import ILlama


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
