"""Where and with what a number was made."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


_words: list[str] | None = None


@contextmanager
def asked(words: Sequence[str]) -> Iterator[None]:
    """Inside, `command_line` tells these words after `illama`, whatever the process was started with."""
    global _words
    before, _words = _words, list(words)
    try:
        yield
    finally:
        _words = before


def command_line() -> dict[str, Any]:
    """What was typed: the words, the folder it was typed in, and how many processes do it."""
    return {
        "command": sys.argv if _words is None else ["illama", *_words],
        "working_folder": str(Path.cwd()),
        "processes": _launched("WORLD_SIZE"),
        "processes_per_machine": _launched("LOCAL_WORLD_SIZE"),
    }


def typed_command(typed: Mapping[str, Any], changes: Sequence[str] = ()) -> str | None:
    """A training command for a shell, as it was typed, maybe with other overrides.

    Args:
        typed: What `command_line` told.
        changes: Overrides, key=value, which replace those of the same key.

    Returns:
        The command; None where no `illama train` was typed.
    """
    program, *words = typed["command"]
    if Path(program).name not in ("illama", "illama.exe", "__main__.py") or words[0] not in ("train", "quickstart"):
        return None
    keys = {change.partition("=")[0] for change in changes}
    words = [word for word in words if word.partition("=")[0] not in keys]
    options = next((place for place, word in enumerate(words) if word.startswith("--")), len(words))
    return shlex.join(["illama", *launch_words(typed), *words[:options], *changes, *words[options:]])


def launch_words(typed: Mapping[str, Any]) -> list[str]:
    """The words before a command that start it on as many processes as it was typed for."""
    processes, here = typed.get("processes", 1), typed.get("processes_per_machine", 1)
    if processes == 1:
        return []
    machines = ["--nnodes", str(processes // here)] if processes > here else []
    return ["launch", *machines, "--nproc-per-node", str(here)]


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, hardware, git revision and command line: what a number needs to be trusted later."""
    import torch

    packages = ("illama", "numpy", "pillow", "simplejpeg", "timm", "torchvision", "pyarrow", "safetensors")
    return {
        **command_line(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__}
        | {name: _version(name) for name in packages},
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "native_kernels": _native() if device.type == "cpu" else None,
        "git_revision": _git_revision(),
    }


def _native() -> bool | str:
    """Whether compiled kernels compute on the CPU, or why they do not."""
    from illama import native

    return native.kernels() is not None or native.why_not() or "the run began without them"


def _launched(variable: str) -> int:
    """A number of processes as torchrun tells it; 1 where nobody does."""
    value = os.environ.get(variable, "")
    return int(value) if value.isascii() and value.isdigit() else 1


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
        described = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None
