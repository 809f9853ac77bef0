"""Where and with what a number was made."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, hardware, git revision and command line: what a number needs to be trusted later."""
    import torch

    packages = ("illama", "numpy", "pillow", "simplejpeg", "timm", "torchvision", "pyarrow", "safetensors")
    return {
        "command": sys.argv,
        "working_folder": str(Path.cwd()),
        "processes": _launched("WORLD_SIZE"),
        "processes_per_machine": _launched("LOCAL_WORLD_SIZE"),
        "versions": {"python": platform.python_version(), "torch": torch.__version__}
        | {name: _version(name) for name in packages},
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "git_revision": _git_revision(),
    }


def _launched(variable: str) -> int:
    """A number of processes as torchrun tells it; 1 where nobody does."""
    value = os.environ.get(variable, "")
    return int(value) if value.isdigit() else 1


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def _git_revision() -> str | None:
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
