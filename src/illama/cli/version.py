"""`illama version`: what is installed."""

from __future__ import annotations

import platform
from importlib import metadata

PACKAGES = ("torch", "numpy", "pillow", "safetensors", "timm", "torchvision", "pyarrow")


def version_command() -> None:
    """Versions of illama, Python and the packages that decide results."""
    import illama

    print(f"illama {illama.__version__}, Python {platform.python_version()}, {platform.platform()}")
    for name in PACKAGES:
        try:
            print(f"  {name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            print(f"  {name} is not installed")
