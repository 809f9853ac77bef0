"""Weights and checkpoints: atomic saving, checked loading, safe reading of foreign files, adaptation."""

from illama.checkpoint.adapt import LoadReport, adapt_state_dict, initialize_from
from illama.checkpoint.foreign import read_weights
from illama.checkpoint.io import Checkpoint, load_checkpoint, save_checkpoint, save_weights
from illama.checkpoint.load import load_model
from illama.checkpoint.meta import Meta

__all__ = [
    "Checkpoint",
    "LoadReport",
    "Meta",
    "adapt_state_dict",
    "initialize_from",
    "load_checkpoint",
    "load_model",
    "read_weights",
    "save_checkpoint",
    "save_weights",
]
