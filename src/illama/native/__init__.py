"""Compiled CPU kernels: what a block computes between its matrix products, in one pass each.

Each function takes tensors for which `serves` is true, and is differentiable, twice as well: second derivatives are
formed from torch's operators. They are for eager mode; compilers fuse the plain formulas themselves.

`kernels.c` is compiled for this processor, once per machine, and loaded. GCC is all it takes. Without it, or where the
result cannot be loaded, everything goes on with torch's operators, which are slower; `why_not` says why. The library
lies in the user's cache folder under the digest of what it was made from and of its own content: a file that is not
exactly what was compiled is never loaded.

Letters: B batch, h heads, N tokens, d head width, D width.
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
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from illama.errors import UserError
from illama.system.files import write_file

__all__ = ["attend", "gate", "keep", "kernels", "rms_norm", "serves", "why_not"]

DTYPES = (torch.float32, torch.bfloat16)
_PLAIN = (torch.Tensor, nn.Parameter)  # others, quantized or sharded ones, bring their own operators
_CHUNKS = 32  # of kernels.c
Tables = tuple[torch.Tensor, torch.Tensor]
Formula = Callable[..., torch.Tensor]
ENVIRONMENT = "ILLAMA_NATIVE"  # "off" keeps to torch's operators
SOURCE = Path(__file__).with_name("kernels.c")
# -fno-math-errno and -fno-trapping-math let loops with roots and comparisons become vectors; numbers stay IEEE's.
_FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math")
_WIDE = ("-march=native", "-mprefer-vector-width=512")
_SECONDS = 120  # for the compiler
log = logging.getLogger(__name__)
_kept: list[bool] = []


def serves(*tensors: torch.Tensor) -> bool:
    """Whether the kernels can compute with these: plain CPU tensors of one type, float32 or bfloat16, in eager mode."""
    if torch.compiler.is_compiling() or torch._C._is_tracing():
        return False
    dtype = tensors[0].dtype
    for tensor in tensors:
        if type(tensor) not in _PLAIN or not tensor.is_cpu or tensor.dtype is not dtype:
            return False
    return (
        dtype in DTYPES
        and tensors[0].numel() > 0
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0  # fake tensors and counters of operators see torch's own
        and kernels() is not None
    )


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, formula: Formula) -> torch.Tensor:
    """x (..., D) * rsqrt(mean(x^2) + eps), rounded to x's type, times weight (D,); `formula(x, weight)` is the same."""
    if not _learns(x, weight):
        return _normed(x.contiguous(), weight, eps, None)
    return formula(x, weight) if x.dtype != torch.float32 else _RMSNorm.apply(x, weight, eps, formula)


def gate(gate: torch.Tensor, value: torch.Tensor, formula: Formula) -> torch.Tensor:
    """SiLU(gate) * value for tensors of one shape; `formula(gate, value)` is the same by torch's operators."""
    if _learns(gate, value):
        return _Gate.apply(gate, value, formula)
    return _gated(gate.contiguous(), value.contiguous())


def attend(
    qkv_BN3hd: torch.Tensor, softness: float, rope: Tables | None, scale: float, modified: bool, formula: Formula
) -> torch.Tensor:
    """Eq. 2 with the causal mask, or the modified one: (B, h, N, d), stored as (B, N, h, d).

    Args:
        qkv_BN3hd: Queries, keys and values.
        softness: 0 to 1.
        rope: cos and sin (N, d/2), float32, contiguous; None where q and k come rotated.
        formula: The same by torch's operators, of `qkv_BN3hd`.
    """
    options = _Options(softness, rope, scale, modified)
    if _learns(qkv_BN3hd):
        return _Attend.apply(qkv_BN3hd.contiguous(), options, formula)
    return _attended(qkv_BN3hd.contiguous(), options, None)


def _learns(*tensors: torch.Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _at(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _call(name: str, *arguments: Any) -> int:
    """A function of kernels.c, which a profiler sees as `illama::NAME`."""
    function = getattr(kernels(), name)
    if not torch.autograd._profiler_enabled():
        return function(*arguments)
    with torch.profiler.record_function(f"illama::{name}"):
        return function(*arguments)


def _again(formula: Formula, grad: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """Gradients by torch's operators, for somebody who differentiates a second time."""
    wanted = [t for t in inputs if t.requires_grad]
    gradients = iter(torch.autograd.grad(formula(*inputs), wanted, grad, create_graph=True))
    return tuple(next(gradients) if t.requires_grad else None for t in inputs)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, formula: Formula) -> torch.Tensor:
        factors = torch.empty(x.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(x, weight, factors)
        ctx.formula = formula
        return _normed(x.contiguous(), weight, eps, factors)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, weight, factors = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_again(ctx.formula, grad, x, weight), None, None
        x, grad, width = x.contiguous(), grad.contiguous(), x.shape[-1]
        dx, d_weight, shares = torch.empty_like(x), torch.empty_like(weight), x.new_empty(_CHUNKS, width)
        tensors = (grad, x, weight.contiguous(), factors, dx, d_weight, shares)
        _call("rms_norm_backward", *map(_at, tensors), x.numel() // width, width, torch.get_num_threads())
        return dx, d_weight, None, None


def _normed(x: torch.Tensor, weight: torch.Tensor, eps: float, factors: torch.Tensor | None) -> torch.Tensor:
    y, width, half = torch.empty_like(x), x.shape[-1], x.dtype == torch.bfloat16
    tensors = (x, weight.contiguous(), y, factors)
    _call("rms_norm_forward", *map(_at, tensors), x.numel() // width, width, eps, half, torch.get_num_threads())
    return y


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, value: torch.Tensor, formula: Formula) -> torch.Tensor:
        ctx.save_for_backward(gate, value)
        ctx.formula = formula
        return _gated(gate.contiguous(), value.contiguous())

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        gate, value = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_again(ctx.formula, grad, gate, value), None
        tensors = (grad.contiguous(), gate.contiguous(), value.contiguous(), *map(torch.empty_like, (gate, value)))
        half = gate.dtype == torch.bfloat16
        _call("gate_backward", *map(_at, tensors), gate.numel(), half, torch.get_num_threads())
        return tensors[3], tensors[4], None


def _gated(gate: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    y, half = torch.empty_like(gate), gate.dtype == torch.bfloat16
    _call("gate_forward", _at(gate), _at(value), _at(y), gate.numel(), half, torch.get_num_threads())
    return y


class _Request(ctypes.Structure):
    """`attention_t` of kernels.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "heads", "tokens", "width")),
        ("qkv", ctypes.c_int64 * 4),
        ("out", ctypes.c_int64 * 3),
        ("grad", ctypes.c_int64 * 3),
        ("scale", ctypes.c_float),
        ("softness", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("half", "modified", "threads")),
    )


class _Options(NamedTuple):
    softness: float
    rope: Tables | None
    scale: float
    modified: bool


def _request(
    qkv_BN3hd: torch.Tensor, options: _Options, out_BhNd: torch.Tensor, grad_BhNd: torch.Tensor | None = None
) -> Any:
    batch, tokens, _, heads, width = qkv_BN3hd.shape
    strides = (ctypes.c_int64 * 4)(*qkv_BN3hd.stride()[:4])
    half = qkv_BN3hd.dtype == torch.bfloat16
    return ctypes.byref(
        _Request(
            batch, heads, tokens, width, strides, _strides(out_BhNd), _strides(grad_BhNd),
            options.scale, options.softness, half, options.modified, torch.get_num_threads(),
        )
    )  # fmt: skip


def _strides(x_BhNd: torch.Tensor | None) -> Any:
    """Those of batch, token and head."""
    strides = (0, 0, 0) if x_BhNd is None else (x_BhNd.stride(0), x_BhNd.stride(2), x_BhNd.stride(1))
    return (ctypes.c_int64 * 3)(*strides)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv_BN3hd: torch.Tensor, options: _Options, formula: Formula) -> torch.Tensor:
        batch, tokens, _, heads, _ = qkv_BN3hd.shape
        lse_BhN = torch.empty(batch, heads, tokens)
        out_BhNd = _attended(qkv_BN3hd, options, lse_BhN)
        ctx.save_for_backward(qkv_BN3hd, out_BhNd, lse_BhN)
        ctx.options, ctx.formula = options, formula
        return out_BhNd

    @staticmethod
    def backward(ctx: Any, grad_BhNd: torch.Tensor) -> Any:
        qkv_BN3hd, out_BhNd, lse_BhN = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_again(ctx.formula, grad_BhNd, qkv_BN3hd), None, None
        if grad_BhNd.stride(-1) != 1:  # that of a sum, for instance, is one number with strides 0
            grad_BhNd = grad_BhNd.contiguous()
        d_qkv = torch.empty_like(qkv_BN3hd)
        tensors = (grad_BhNd, qkv_BN3hd, *_tables(ctx.options), out_BhNd, lse_BhN, d_qkv)
        request = _request(qkv_BN3hd, ctx.options, out_BhNd, grad_BhNd)
        _raise_if(_call("attention_backward", request, *map(_at, tensors)))
        return d_qkv, None, None


def _tables(options: _Options) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    return (None, None) if options.rope is None else options.rope


def _attended(qkv_BN3hd: torch.Tensor, options: _Options, lse_BhN: torch.Tensor | None) -> torch.Tensor:
    batch, tokens, _, heads, width = qkv_BN3hd.shape
    out_BhNd = qkv_BN3hd.new_empty(batch, tokens, heads, width).transpose(1, 2)
    tensors = (qkv_BN3hd, *_tables(options), out_BhNd, lse_BhN)
    _raise_if(_call("attention_forward", _request(qkv_BN3hd, options, out_BhNd), *map(_at, tensors)))
    return out_BhNd


def _raise_if(failed: int) -> None:
    if failed:
        raise MemoryError("no memory for the scores of one head")


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
