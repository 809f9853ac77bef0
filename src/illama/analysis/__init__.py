"""What a trained network does inside, and how far its answers can be trusted.

Pure functions of logits, attention maps, features, or a model with images; commands get an `AnalysisResult`.
Importing this package loads no torch: names load what they need on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from illama.registry import lazy_exports

if TYPE_CHECKING:
    from illama.analysis.attention.measures import (
        attention_distance,
        class_attention,
        class_token_leak,
        cumulated_shares,
        effective_rank,
        rank_of,
        row_entropy,
        row_mass,
        singular_values,
    )
    from illama.analysis.capture import each_attention
    from illama.analysis.causality.sensitivity import changes_before_cuts, exchange, image_gradient, jacobian_norms
    from illama.analysis.landscape.measures import filter_normalized_directions
    from illama.analysis.probe.measures import knn_votes, linear_probe

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

__getattr__ = lazy_exports(
    __name__,
    {
        "attention.measures": (
            *("attention_distance", "class_attention", "class_token_leak", "cumulated_shares", "effective_rank"),
            *("rank_of", "row_entropy", "row_mass", "singular_values"),
        ),
        "capture": ("each_attention",),
        "causality.sensitivity": ("changes_before_cuts", "exchange", "image_gradient", "jacobian_norms"),
        "landscape.measures": ("filter_normalized_directions",),
        "probe.measures": ("knn_votes", "linear_probe"),
    },
)
