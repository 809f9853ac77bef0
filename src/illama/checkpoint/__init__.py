"""Weights and checkpoints: atomic saving, checked loading, safe reading of foreign files, adaptation.

Importing this package loads no torch: names load what they need on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from illama.checkpoint.adapt import LoadReport, adapt_state_dict, initialize_from
    from illama.checkpoint.foreign import read_weights
    from illama.checkpoint.io import Checkpoint, keep_checkpoint, load_checkpoint, save_checkpoint, save_weights
    from illama.checkpoint.load import load_model
    from illama.checkpoint.meta import Meta
    from illama.checkpoint.saver import Saver
    from illama.checkpoint.tags import Newest, has_checkpoint, kept_tag, newest_checkpoint

__all__ = [
    "Checkpoint",
    "LoadReport",
    "Meta",
    "Newest",
    "Saver",
    "adapt_state_dict",
    "has_checkpoint",
    "initialize_from",
    "keep_checkpoint",
    "kept_tag",
    "load_checkpoint",
    "load_model",
    "newest_checkpoint",
    "read_weights",
    "save_checkpoint",
    "save_weights",
]

_MODULES = {
    "adapt": ("LoadReport", "adapt_state_dict", "initialize_from"),
    "foreign": ("read_weights",),
    "io": ("Checkpoint", "keep_checkpoint", "load_checkpoint", "save_checkpoint", "save_weights"),
    "load": ("load_model",),
    "meta": ("Meta",),
    "saver": ("Saver",),
    "tags": ("Newest", "has_checkpoint", "kept_tag", "newest_checkpoint"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"illama.checkpoint.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
