"""illama: the image LLaMA. Importing it is quick, silent and offline; names load what they need on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from illama.errors import UserError
from illama.hub import register_with_timm
from illama.registry import lazy_exports

if TYPE_CHECKING:
    from illama.attention import soft_causal_attention
    from illama.evaluation.classify import evaluate
    from illama.evaluation.predict import predict
    from illama.models import ILlama, ModelConfig
    from illama.recipes import load_recipe
    from illama.training import train
    from illama.weights import load_model

__version__ = "0.1.0"
__all__ = [
    "ILlama",
    "ModelConfig",
    "UserError",
    "evaluate",
    "load_model",
    "load_recipe",
    "predict",
    "soft_causal_attention",
    "train",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "attention": ("soft_causal_attention",),
        "evaluation": ("evaluate", "predict"),
        "models": ("ILlama", "ModelConfig"),
        "recipes": ("load_recipe",),
        "training": ("train",),
        "weights": ("load_model",),
    },
)
register_with_timm()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
