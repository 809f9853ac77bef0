"""Weights from anywhere: found, read without running anything, understood, and fitted to another size or head.

Importing this package loads no torch: names load what they need on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from illama.weights.adapt import LoadReport, adapt_state_dict, initialize_from
    from illama.weights.foreign import read_weights
    from illama.weights.load import load_model

__all__ = ["LoadReport", "adapt_state_dict", "initialize_from", "load_model", "read_weights"]

_MODULES = {
    "adapt": ("LoadReport", "adapt_state_dict", "initialize_from"),
    "foreign": ("read_weights",),
    "load": ("load_model",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"illama.weights.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
