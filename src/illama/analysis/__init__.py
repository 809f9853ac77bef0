"""What a trained network does inside, and how far its answers can be trusted.

Pure functions of logits, attention maps, features, or a model with images; commands get an `AnalysisResult`.
Importing this package loads no torch: names load what they need on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from illama.analysis.attention.class_token import class_attention, class_token_leak
    from illama.analysis.attention.rank import cumulated_shares, effective_rank, rank_of, singular_values
    from illama.analysis.attention.rows import attention_distance, row_entropy, row_mass
    from illama.analysis.capture import each_attention
    from illama.analysis.causality.sensitivity import changes_before_cuts, exchange, image_gradient, jacobian_norms
    from illama.analysis.landscape.directions import filter_normalized_directions
    from illama.analysis.probe.classifiers import knn_votes, linear_probe

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
    "attention.class_token": ("class_attention", "class_token_leak"),
    "attention.rank": ("cumulated_shares", "effective_rank", "rank_of", "singular_values"),
    "attention.rows": ("attention_distance", "row_entropy", "row_mass"),
    "capture": ("each_attention",),
    "causality.sensitivity": ("changes_before_cuts", "exchange", "image_gradient", "jacobian_norms"),
    "landscape.directions": ("filter_normalized_directions",),
    "probe.classifiers": ("knn_votes", "linear_probe"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"illama.analysis.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
