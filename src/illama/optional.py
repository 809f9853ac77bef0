"""Packages that not everybody has: imported when they are needed, or a `UserError` that says how to get them."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
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
