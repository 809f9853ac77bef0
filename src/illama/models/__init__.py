"""The model family. Importing this package loads no torch: names that need it are loaded on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from illama.models.config import ModelConfig
from illama.models.variants import PEERS, ROADMAP, VARIANTS, roadmap_config

if TYPE_CHECKING:
    from illama.models.illama import ILlama

__all__ = ["PEERS", "ROADMAP", "VARIANTS", "ILlama", "ModelConfig", "roadmap_config"]


def __getattr__(name: str) -> Any:
    if name == "ILlama":
        from illama.models.illama import ILlama

        return ILlama
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
