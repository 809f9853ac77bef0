"""What a trained network does inside, and how far its answers can be trusted.

Pure functions of logits, attention maps, features, or a model with images; what commands call gives a `Finding`.
Importing this package loads no torch: names load what they need on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from illama.analysis.attention_rows import attention_distance, row_entropy, row_mass
    from illama.analysis.capture import each_attention
    from illama.analysis.class_token import class_attention, class_token_leak
    from illama.analysis.directions import filter_normalized_directions
    from illama.analysis.frozen import knn_votes, linear_probe
    from illama.analysis.rank import cumulated_shares, effective_rank, rank_of, singular_values
    from illama.analysis.reach import changes_before_cuts, exchange, image_gradient, jacobian_norms

__all__ = [
    "attention_distance",
    "changes_before_cuts",
    "class_attention",
    "class_token_leak",
    "cumulated_shares",
    "each_attention",
    "effective_rank",
    "exchange",
    "filter_normalized_directions",
    "image_gradient",
    "jacobian_norms",
    "knn_votes",
    "linear_probe",
    "rank_of",
    "row_entropy",
    "row_mass",
    "singular_values",
]

_MODULES = {
    "attention_rows": ("attention_distance", "row_entropy", "row_mass"),
    "capture": ("each_attention",),
    "class_token": ("class_attention", "class_token_leak"),
    "directions": ("filter_normalized_directions",),
    "frozen": ("knn_votes", "linear_probe"),
    "rank": ("cumulated_shares", "effective_rank", "rank_of", "singular_values"),
    "reach": ("changes_before_cuts", "exchange", "image_gradient", "jacobian_norms"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"illama.analysis.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
