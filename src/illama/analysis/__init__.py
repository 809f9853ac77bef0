"""What a trained network does inside, and how far its answers can be trusted.

Pure functions of logits, attention maps, features, or a model with images; what commands call gives a `Finding`.
Importing this package loads no torch: names load what they need on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from illama.analysis.class_token import class_attention, class_token_leak
    from illama.analysis.reach import exchange, image_gradient, jacobian_norms

__all__ = ["class_attention", "class_token_leak", "exchange", "image_gradient", "jacobian_norms"]

_MODULES = {
    "class_token": ("class_attention", "class_token_leak"),
    "reach": ("exchange", "image_gradient", "jacobian_norms"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"illama.analysis.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
