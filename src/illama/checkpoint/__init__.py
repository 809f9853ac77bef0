"""Checkpoints of this project's own: one format, saved as a whole or not at all, read with their checksums.

Importing this package loads no torch: names load what they need on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from illama.checkpoint.folder import Newest, has_checkpoint, kept_tag, newest_checkpoint
    from illama.checkpoint.format import (
        Checkpoint,
        Meta,
        keep_checkpoint,
        load_checkpoint,
        save_checkpoint,
        save_weights,
    )
    from illama.checkpoint.saver import Saver

__all__ = [
    "Checkpoint",
    "Meta",
    "Newest",
    "Saver",
    "has_checkpoint",
    "keep_checkpoint",
    "kept_tag",
    "load_checkpoint",
    "newest_checkpoint",
    "save_checkpoint",
    "save_weights",
]

_MODULES = {
    "folder": ("Newest", "has_checkpoint", "kept_tag", "newest_checkpoint"),
    "format": ("Checkpoint", "Meta", "keep_checkpoint", "load_checkpoint", "save_checkpoint", "save_weights"),
    "saver": ("Saver",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"illama.checkpoint.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
