"""A non-finite loss must not reach the weights, and looking for it must not make the host wait for the device."""

from __future__ import annotations

import torch


class LossGuard:
    """Watches the loss on the device.

    From the first non-finite loss on, the fused optimizer leaves every weight as it is: its steps read `found_inf`
    on the device, the way torch's gradient scaler uses it. The host asks for the verdict at log points only.
    """

    def __init__(self, device: torch.device, optimizer: torch.optim.Optimizer) -> None:
        self._first_bad = torch.full((), -1, dtype=torch.int64, device=device)
        self._found = torch.zeros((), device=device)
        optimizer.grad_scale = None  # type: ignore[attr-defined]
        optimizer.found_inf = self._found  # type: ignore[attr-defined]

    def watch(self, loss: torch.Tensor, step: int) -> None:
        """Take note of one micro-batch's loss, before the optimizer step."""
        bad = ~torch.isfinite(loss)
        self._first_bad.copy_(torch.where(bad & (self._first_bad < 0), step, self._first_bad))
        self._found.logical_or_(bad)

    def first_bad_step(self) -> int | None:
        """The first step whose loss was not finite, or None. Waits for the device."""
        step = int(self._first_bad)
        return None if step < 0 else step
