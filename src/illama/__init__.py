"""illama: the image LLaMA. Importing it is quick, silent and offline; names load what they need on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from illama.errors import UserError
from illama.hub.timm_hook import register_with_timm

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

_HOME = {
    "ILlama": "illama.models",
    "ModelConfig": "illama.models",
    "evaluate": "illama.evaluation",
    "load_model": "illama.weights",
    "load_recipe": "illama.recipes",
    "predict": "illama.evaluation",
    "soft_causal_attention": "illama.attention",
    "train": "illama.training",
}

register_with_timm()


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
