"""timm beside illama: loading it safely, and registering the family with it.

`import illama` must stay quick, so timm is not imported for its own sake. If timm is loaded already, the models
are registered at once; otherwise a finder waits on `sys.meta_path` and registers them when timm is imported.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import re
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from illama.errors import UserError

_fragments: list[Any] = []  # torch.library fragments live as long as somebody holds them


def torchvision_ready() -> bool:
    """Whether torchvision can be imported, after declaring operators that its binary could not register.

    A torchvision wheel built for CUDA next to a CPU torch stops at `operator torchvision::nms does not exist`
    (pytorch/vision issue 9085), and timm with it. Declaring the missing schemas lets the Python parts work;
    the operators themselves stay unavailable. Nothing happens where the two packages match.
    """
    if importlib.util.find_spec("torchvision") is None:
        return False
    import torch

    for _ in range(8):  # one missing operator is found per attempt
        try:
            importlib.import_module("torchvision")
            return True
        except RuntimeError as error:
            missing = re.fullmatch(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise
            for name in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
                del sys.modules[name]
            fragment = torch.library.Library("torchvision", "FRAGMENT")
            fragment.define(f"{missing[1]}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _fragments.append(fragment)
    return False


def import_timm() -> ModuleType:
    """The timm package.

    Raises:
        UserError: timm or torchvision is not installed.
    """
    if importlib.util.find_spec("timm") is None or not torchvision_ready():
        raise UserError('this needs timm and torchvision, which are not installed; pip install "illama[timm]"')
    return importlib.import_module("timm")


def register_with_timm() -> None:
    """Make the family known to timm, now or as soon as timm is imported."""
    if sys.modules.get("timm") is not None:
        importlib.import_module("illama.timm_models")
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
        importlib.import_module("illama.timm_models")

    def __getattr__(self, name: str) -> Any:  # resources, source lines: whatever the real loader offers
        return getattr(self._loader, name)
