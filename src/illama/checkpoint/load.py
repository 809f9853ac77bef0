"""A model ready to use, from a run folder, a checkpoint folder or a weights file."""

from __future__ import annotations

from pathlib import Path

import torch

from illama.checkpoint.adapt import demand_same_shapes
from illama.checkpoint.foreign import read_weights
from illama.checkpoint.io import find_weights
from illama.checkpoint.meta import Meta
from illama.errors import UserError
from illama.models import ILlama


def load_model(path: Path | str, device: torch.device | str = "cpu") -> tuple[ILlama, Meta]:
    """Rebuild a model with its weights.

    Args:
        path: A run folder (its last checkpoint), a checkpoint folder,
            or a .safetensors file that illama wrote.
        device: Where the model shall be.

    Returns:
        The model in evaluation mode at the softness it was saved with, and what travelled with the weights.

    Raises:
        UserError: Nothing there, damaged, or a file that does not say which model it belongs to.
    """
    file = find_weights(Path(path))
    state, meta = read_weights(file)
    if meta is None:
        raise UserError(
            f"{file} holds weights alone: its model configuration, class names and evaluation transform are "
            f"missing; start a run from it (illama train RECIPE --init-from {file}), or give a checkpoint"
        )
    model = ILlama(meta.config)
    try:
        demand_same_shapes(state, model.state_dict())
    except UserError as error:
        raise UserError(f"{file} contradicts its own description: {error}") from None
    model.load_state_dict(state)
    model.set_softness(meta.softness)
    return model.to(device).eval(), meta
