"""Weights from anywhere: found, read without running anything, understood, and fitted to another size or head.

Importing this package loads no torch: names load what they need on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from illama.registry import lazy_exports

if TYPE_CHECKING:
    from illama.weights.adapt import LoadReport, adapt_state_dict, initialize_from
    from illama.weights.foreign import read_weights
    from illama.weights.load import load_model

__all__ = ["LoadReport", "adapt_state_dict", "initialize_from", "load_model", "read_weights"]

__getattr__ = lazy_exports(
    __name__,
    {
        "adapt": ("LoadReport", "adapt_state_dict", "initialize_from"),
        "foreign": ("read_weights",),
        "load": ("load_model",),
    },
)
