"""Compiles `kernels.c` for this processor, once per machine, and loads it.

GCC is all it takes. Without it, or where the result cannot be loaded, everything goes on with torch's operators, which
are slower; `why_not` says why. The library lies in the user's cache folder under the digest of what it
was made from and of its own content: a file that is not exactly what was compiled is never loaded.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from illama.errors import UserError
from illama.system.files import write_file

ENVIRONMENT = "ILLAMA_NATIVE"  # "off" keeps to torch's operators
SOURCE = Path(__file__).with_name("kernels.c")
# -fno-math-errno and -fno-trapping-math let loops with roots and comparisons become vectors; numbers stay IEEE's.
_FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math")
_WIDE = ("-march=native", "-mprefer-vector-width=512")
_SECONDS = 120  # for the compiler
log = logging.getLogger(__name__)

_kept: list[bool] = []


def kernels() -> ctypes.CDLL | None:
    """The compiled functions; None where there are none, or where the run began without them."""
    if not _kept:
        _kept[:] = [wanted()]
    return _library()[0] if _kept[0] else None


def keep(compiled: bool) -> None:
    """Stay with what a run began with: other operators round differently."""
    _kept[:] = [compiled]
    if compiled and kernels() is None:
        log.warning("the run began with compiled CPU kernels, and here are none (%s): last digits differ", why_not())


def wanted() -> bool:
    """Whether the environment allows them."""
    named = os.environ.get(ENVIRONMENT, "auto")
    if named not in ("auto", "off"):
        raise UserError(f"{ENVIRONMENT} must be auto or off; got {named!r}")
    return named == "auto"


def why_not() -> str | None:
    """Why there are no compiled kernels here; None where there are."""
    if not wanted():
        return f"{ENVIRONMENT}=off"
    return _library()[1]


@cache
def _library() -> tuple[ctypes.CDLL | None, str | None]:
    """The library, or why there is none."""
    try:
        return _declared(_load()), None
    except (OSError, subprocess.SubprocessError, _NoCompilerError) as error:
        log.info("CPU kernels are torch's operators: %s", error)
        return None, str(error)


class _NoCompilerError(Exception):
    """Why nothing can be compiled."""


def _load() -> ctypes.CDLL:
    if os.name != "posix":
        raise _NoCompilerError(f"they are made on POSIX systems, this is {platform.system()}")
    # Other compilers call another OpenMP library than the one that torch brings on Linux.
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise _NoCompilerError("there is no C compiler (gcc or cc)")
    made_from = _digest(SOURCE.read_bytes(), _version(compiler), _processor(), " ".join(_FLAGS + _WIDE).encode())
    folder = _own_folder()
    if folder is not None:
        for library in folder.glob(f"{made_from}-*.so"):
            content = library.read_bytes()
            if library.name == f"{made_from}-{_digest(content)}.so":
                return ctypes.CDLL(str(library))
    with tempfile.TemporaryDirectory() as temporary:
        made = _compile(compiler, Path(temporary))
        if folder is None:  # a loaded library needs its file no more
            return ctypes.CDLL(str(made))
        content = made.read_bytes()
    kept = folder / f"{made_from}-{_digest(content)}.so"
    write_file(kept, content)
    return ctypes.CDLL(str(kept))


def _compile(compiler: str, folder: Path) -> Path:
    log.info("compiling CPU kernels for this processor (a few seconds, once)")
    made, unlinked = folder / "kernels.so", folder / "kernels.o"
    for wide in (_WIDE, _WIDE[:1], ("-mcpu=native",)):  # not every compiler knows each of them
        command = [*compiler.split(), *_FLAGS, *wide, "-c", str(SOURCE), "-o", str(unlinked)]
        tried = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        if tried.returncode == 0:
            break
    else:
        raise _NoCompilerError(f"{compiler} cannot compile them: {_last_line(tried.stderr)}")
    # Linked without an OpenMP library: torch's, which is loaded, serves; two in one process fight for the cores.
    lenient = ("-undefined", "dynamic_lookup") if platform.system() == "Darwin" else ()
    command = [*compiler.split(), "-shared", *lenient, str(unlinked), "-o", str(made), "-lm"]
    tried = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    if tried.returncode:
        raise _NoCompilerError(f"{compiler} cannot link them: {_last_line(tried.stderr)}")
    return made


def _own_folder() -> Path | None:
    """The user's cache folder, where nobody else may write; None where there is no such place."""
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(home) / "illama"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except (OSError, RuntimeError):
        return None
    ours = status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return folder if ours and os.access(folder, os.W_OK) else None


def _processor() -> bytes:
    """What this processor can do, as far as it can be read: a home folder may be shared by several machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        told = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
        return "\n".join(sorted(told)).encode()
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.node()}".encode()


def _version(compiler: str) -> bytes:
    command = [*compiler.split(), "--version"]
    return subprocess.run(command, capture_output=True, timeout=_SECONDS, check=True).stdout


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:32]


def _last_line(text: str) -> str:
    errors = [line for line in text.splitlines() if "error" in line] or text.splitlines()
    return errors[0] if errors else "no message"


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """The types of the arguments, in the order of `kernels.c`."""
    pointer, number, whole, flag = ctypes.c_void_p, ctypes.c_float, ctypes.c_int64, ctypes.c_int
    library.attention_forward.argtypes = [pointer] * 6
    library.attention_backward.argtypes = [pointer] * 8
    library.rms_norm_forward.argtypes = [pointer] * 4 + [whole, whole, number, flag, flag]
    library.rms_norm_backward.argtypes = [pointer] * 7 + [whole, whole, flag]
    library.gate_forward.argtypes = [pointer] * 3 + [whole, flag, flag]
    library.gate_backward.argtypes = [pointer] * 5 + [whole, flag, flag]
    for name in ("rms_norm_forward", "rms_norm_backward", "gate_forward", "gate_backward"):
        getattr(library, name).restype = None
    return library
