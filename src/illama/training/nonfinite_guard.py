"""A non-finite loss must not reach the weights, and looking for it must not make the host wait for the device."""

from __future__ import annotations

import torch

from illama.distributed import ALONE, World


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
