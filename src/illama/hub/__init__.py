"""Names under which other libraries know the family; here it is registered with timm.

`import illama` must stay quick, so timm is not imported for its own sake. If timm is loaded already, the models
are registered at once; otherwise a finder waits on `sys.meta_path` and registers them when timm is imported.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from illama.optional import torchvision_ready


def register_with_timm() -> None:
    """Make the family known to timm, now or as soon as timm is imported."""
    if sys.modules.get("timm") is not None:
        importlib.import_module("illama.hub.timm_models")
    elif not any(isinstance(finder, _TimmFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TimmFinder())


class _TimmFinder(importlib.abc.MetaPathFinder):
    """Finds timm where the other finders do, but has the models registered once it is loaded."""

    def __init__(self) -> None:
        self._asking_others = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "timm" or self._asking_others:
            return None
        self._asking_others = True
        try:
            spec = importlib.util.find_spec("timm")
        finally:
            self._asking_others = False
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(importlib.abc.Loader):
    """Prepares torchvision, runs timm's own loader, then registers the models."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        torchvision_ready()
        self._loader.exec_module(module)
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _TimmFinder)]
        importlib.import_module("illama.hub.timm_models")

    def __getattr__(self, name: str) -> Any:  # resources, source lines: whatever the real loader offers
        return getattr(self._loader, name)
