"""Checkpoints of this project's own: one format, saved as a whole or not at all, read with their checksums.

Importing this package loads no torch: names load what they need on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from illama.registry import lazy_exports

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

__getattr__ = lazy_exports(
    __name__,
    {
        "folder": ("Newest", "has_checkpoint", "kept_tag", "newest_checkpoint"),
        "format": ("Checkpoint", "Meta", "keep_checkpoint", "load_checkpoint", "save_checkpoint", "save_weights"),
        "saver": ("Saver",),
    },
)
