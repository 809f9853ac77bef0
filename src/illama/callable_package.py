"""Lets a package be called: `illama.train(...)` and `illama.evaluate(...)` are functions and packages at once.

Importing `illama.evaluate.metrics` binds the package to the name `illama.evaluate`, wherever that happens; from then
on the name must still work as the function that it is documented to be.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


def make_callable(package: str, home: str, function: str) -> None:
    """Make calls of `package` calls of `function` in the module `home`, imported at the first call."""

    class CallablePackage(ModuleType):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return getattr(importlib.import_module(home), function)(*args, **kwargs)

    sys.modules[package].__class__ = CallablePackage
