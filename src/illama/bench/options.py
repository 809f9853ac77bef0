"""What can be asked of a benchmark. No torch here: the command line shows these fields as its options.

An attribute's description is the option's help text.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from illama.errors import UserError
from illama.models.variants import VARIANTS

BenchPrecision = Literal["float32", "bf16"]
CompileMode = Literal["default", "reduce-overhead", "max-autotune"]
Runtime = Literal["onnxruntime", "openvino"]
_Several = Parameter(
    consume_multiple=True, negative="", show_default=lambda values: " ".join(map(str, values)) or "none"
)
_Switch = Parameter(negative="")
_AtLeastOne = Parameter(validator=Number(gte=1))
Softness = Annotated[float, Parameter(validator=Number(gte=0, lte=1))]


@dataclass(frozen=True, kw_only=True)
class EffortOptions:
    """Options that all benchmarks share.

    Attributes:
        device: cpu, cuda, cuda:1 or mps; the best there is by default.
        seconds: Time for the rounds of each group of cases; five rounds are made at least.
        rounds: Exactly so many rounds for each group instead.
        out: A folder for the report, its numbers as JSON and a chart; made if absent.
    """

    device: str | None = None
    seconds: Annotated[float, Parameter(validator=Number(gt=0))] = 15.0
    rounds: Annotated[int | None, _AtLeastOne] = None
    out: Path | None = None

    def __post_init__(self) -> None:
        if self.out is not None and self.out.exists() and not self.out.is_dir():
            raise UserError(f"--out {self.out} is a file; give a folder")


@dataclass(frozen=True, kw_only=True)
class ModelOptions(EffortOptions):
    """Options of `bench model` and `bench train`.

    Attributes:
        model: Sizes to measure: tiny, small, base, large.
        batch: Images per call; several make a sweep.
        precision: float32 or bf16, or both. bf16 means weights and images in prediction, autocast in training.
        compile: Whether torch.compile prepares every network.
        compile_mode: torch.compile's mode; reduce-overhead replays CUDA graphs.
        img_size: Height and width of the images in pixels.
        peer: Networks to compare with besides timm's ViT, each as module:factory; the factory is called with
            num_classes= or with nothing, and its network takes (B, 3, H, W).
        no_timm: Leave timm's ViT out.
        softness: Softness of illama's mask, 0 (causal) to 1.
        runtimes: Also the peer exported to ONNX, in onnxruntime or openvino (CPU, float32, prediction).
        profile: Also where the time goes, by kind of work; without torch.compile.
        no_ceilings: Leave out what the device can do at best, which takes a while to measure, and with it the floors.
    """

    model: Annotated[tuple[str, ...], _Several] = ("tiny",)
    batch: Annotated[tuple[int, ...], _Several, _AtLeastOne] = (1, 16)
    precision: Annotated[tuple[BenchPrecision, ...], _Several] = ("float32",)
    compile: Annotated[bool, _Switch] = False
    compile_mode: CompileMode | None = None
    img_size: int = 224
    peer: Annotated[tuple[str, ...], _Several] = ()
    no_timm: Annotated[bool, _Switch] = False
    softness: Softness = 0.0
    runtimes: Annotated[tuple[Runtime, ...], _Several] = ()
    profile: Annotated[bool, _Switch] = False
    no_ceilings: Annotated[bool, _Switch] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.model:
            VARIANTS[name]
        if self.compile_mode is not None and not self.compile:
            raise UserError(f"--compile-mode {self.compile_mode} says how to compile; give --compile as well")


@dataclass(frozen=True, kw_only=True)
class AttentionBenchOptions(EffortOptions):
    """Options of `bench attention`.

    Attributes:
        shape: Batch, heads, tokens and head width as B,h,N,d; several are measured one after the other.
        backend: Backends by name, or all.
        softness: Softness of the mask, 0 (causal) to 1.
        dtype: float32 or bf16, or both.
        backward: Forward and backward instead of forward alone.
        no_ceilings: Leave out what the device can do at best, which takes a while to measure, and with it the floors.
    """

    shape: Annotated[tuple[str, ...], _Several] = ("16,3,197,64", "16,12,197,64", "4,12,577,64")
    backend: Annotated[tuple[str, ...], _Several] = ("all",)
    softness: Softness = 0.0
    dtype: Annotated[tuple[BenchPrecision, ...], _Several] = ("float32",)
    backward: Annotated[bool, _Switch] = False
    no_ceilings: Annotated[bool, _Switch] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.shapes  # noqa: B018 - complains now rather than after the measurement of the first

    @property
    def shapes(self) -> tuple[tuple[int, int, int, int], ...]:
        """The shapes as numbers."""
        return tuple(_shape(text) for text in self.shape)


@dataclass(frozen=True, kw_only=True)
class DataOptions(EffortOptions):
    """Options of `bench data`.

    Attributes:
        recipe: The recipe whose loader is measured; digits_micro for digits, otherwise imagenet1k_tiny.
        batch: Images per batch; the recipe's own on one device by default, or the whole set if that is smaller.
        workers: Processes that read images; the recipe's by default.
    """

    recipe: str | None = None
    batch: Annotated[int | None, _AtLeastOne] = None
    workers: Annotated[int | None, Parameter(validator=Number(gte=0))] = None


def _shape(text: str) -> tuple[int, int, int, int]:
    parts = text.split(",")
    if len(parts) != 4 or not all(
        part.strip().isascii() and part.strip().isdigit() and int(part) > 0 for part in parts
    ):
        raise UserError(f"--shape {text!r} is not four positive numbers B,h,N,d, such as 16,3,197,64")
    batch, heads, tokens, width = map(int, parts)
    return batch, heads, tokens, width
