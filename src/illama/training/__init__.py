"""Training: schedules, optimizer, losses, and the one loop that runs every recipe.

Importing this package loads no torch: the loop is loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from illama.registry import lazy_exports

if TYPE_CHECKING:
    from illama.training.loop import TrainResult, train

__all__ = ["TrainResult", "train"]

__getattr__ = lazy_exports(__name__, {"loop": __all__})
