"""What the class token sees, for the study of the attention collapse (Table 1, Sec. 3.3): numbers, maps, verdicts."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from illama.analysis import class_attention, class_token_leak, image_gradient
from illama.checkpoint.format import Meta
from illama.console.progress import WorkProgress
from illama.errors import UserError
from illama.models import ROADMAP, ILlama
from illama.models.config import MaskMode
from illama.report import Block, Bullets, Figure, Table, svg_bytes
from illama.report.formats import GREY
from illama.weights import load_model

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

NUMBERS_HEADER = (
    "network",
    "mask mode",
    "gradient by the image, untrained",
    "trained",
    "change of the logits, untrained",
    "trained",
    "mass of the class token's row",
)
NUMBERS_CAPTION = (
    "At softness 0, in double precision, mean of {images} images{seeds}. Gradient: norm of the gradient of the summed "
    "squared logits by the pixels. Change of the logits: norm of their change when all patches come from another "
    "image, divided by their norm. Mass: sum of the class token's row of the matrix that multiplies v, mean of all "
    "blocks and heads of the trained network."
)


@dataclass(frozen=True)
class CollapseRow:
    """One network of the study.

    Attributes:
        label: Its name, without the mask mode.
        row: Its row of the roadmap: llama_attention, ps_cls or modified_causal.
        mask_mode: "post_softmax" or "pre_softmax".
        runs: Folders of its finished runs, one per seed.
    """

    label: str
    row: str
    mask_mode: MaskMode
    runs: tuple[Path, ...]

    @property
    def is_collapsed(self) -> bool:
        """Whether nothing but itself stands in the class token's row: it is first, behind a causal mask."""
        fields = ROADMAP[self.row]
        return fields["cls_position"] == "first" and fields["mask"] == "causal"


@dataclass(frozen=True)
class _Seen:
    """What one network sees of the images: see `illama.analysis`.

    Attributes:
        gradient: Of the logits by the pixels.
        change: Of the logits when the image is exchanged.
        attention_LN: The class token's row, mean of heads and images, the class token's own column last.
        grid: Rows and columns of patches.
    """

    gradient: float
    change: float
    attention_LN: torch.Tensor
    grid: tuple[int, int]

    @property
    def mass(self) -> float:
        """Sum of the row, mean over the blocks."""
        return float(self.attention_LN.sum(1).mean())


@dataclass(frozen=True)
class _Measured:
    """A row, one entry per seed."""

    row: CollapseRow
    untrained: tuple[_Seen, ...]
    trained: tuple[_Seen, ...]

    def values(self, quantity: Literal["gradient", "change", "mass"]) -> tuple[list[float], list[float]]:
        """Untrained and trained."""
        untrained, trained = ([getattr(seen, quantity) for seen in part] for part in (self.untrained, self.trained))
        return untrained, trained


def collapse_blocks(rows: Sequence[CollapseRow], images: torch.Tensor) -> tuple[Block, ...]:
    """Look at every network of the study, untrained and trained, at softness 0 and in double precision.

    Args:
        rows: The networks.
        images: Normalised images (n, in_chans, H, W), at least two, on the device that shall compute.

    Returns:
        What the numbers say, the table of numbers, and the maps of what the class token looks at.

    Raises:
        UserError: There is no row, a row without runs, a run that is not of its row, or fewer than two images.
    """
    if not rows:
        raise UserError("there is no network to look at; give at least one row with finished runs")
    total = sum(len(row.runs) for row in rows)
    # networks are initialised here, with seeds of their own
    with torch.random.fork_rng(devices=()), WorkProgress("looking at trained networks", total, "networks") as progress:
        measured = [_measure(row, images.double(), progress) for row in rows]
    return Bullets(tuple(_verdicts(measured))), _table(measured, len(images)), _figure(measured)


def _measure(row: CollapseRow, images: torch.Tensor, progress: WorkProgress) -> _Measured:
    if not row.runs:
        raise UserError(f"{row.label}, {row.mask_mode} has no finished run; train it first")
    pairs = []
    for run in row.runs:
        model, meta = load_model(run)
        expected = ROADMAP[row.row] | {"mask_mode": row.mask_mode}
        wrong = [name for name, value in expected.items() if getattr(model.config, name) != value]
        if wrong:
            raise UserError(f"{run} is no run of {row.row} under {row.mask_mode}: its model.{wrong[0]} differs")
        pairs.append((_look(_untrained(run, meta), images), _look(model, images)))
        progress.advance(1)
    untrained, trained = zip(*pairs, strict=True)
    return _Measured(row, untrained, trained)


def _untrained(run: Path, meta: Meta) -> ILlama:
    """The network as its run began."""
    if meta.recipe is None:
        raise UserError(f"{run} does not hold its recipe, so its untrained network is unknown; train it with illama")
    torch.manual_seed(meta.recipe["seed"])
    return ILlama(meta.config)


def _look(model: ILlama, images: torch.Tensor) -> _Seen:
    model.set_softness(0.0)
    model = model.to(images)
    row_LN = class_attention(model, images).mean(1)
    own = model.cls_index % row_LN.shape[1]
    attention_LN = torch.cat((row_LN[:, :own], row_LN[:, own + 1 :], row_LN[:, own : own + 1]), dim=1)
    return _Seen(image_gradient(model, images), class_token_leak(model, images), attention_LN, model.config.grid)


def _verdicts(measured: Sequence[_Measured]) -> list[str]:
    """What holds, in numbers: blindness under `pre_softmax`, a trace through the denominator under `post_softmax`."""
    verdicts = []
    seeing = [part for part in measured if not part.row.is_collapsed]
    for part in measured:
        if part.row.is_collapsed and part.row.mask_mode == "pre_softmax":
            verdicts.append(_blindness(part))
        elif part.row.is_collapsed:
            cured = [other for other in seeing if other.row.mask_mode == part.row.mask_mode]
            verdicts.append(_trace(part) + _beside(part, cured))
    if seeing:
        least = min(min(part.values("change")[1]) for part in seeing)
        names = ", ".join(f"{part.row.label} under `{part.row.mask_mode}`" for part in seeing)
        verdicts.append(
            f"**What the cures see** ({names}): exchanging the image changes the logits of every trained network by at "
            f"least {_number([least])} of their norm."
        )
    return verdicts


def _blindness(part: _Measured) -> str:
    name = f"**Strictly causal (`pre_softmax`), a class token that stands first is blind** ({part.row.label}): "
    gradients, changes = part.values("gradient"), part.values("change")
    if not any(map(any, (*gradients, *changes))):
        seeds = f", for each of {len(part.trained)} seeds" if len(part.trained) > 1 else ""
        return (
            f"{name}this holds exactly. The gradient by the image is 0 and the logits do not change by a bit when "
            f"the image is exchanged, untrained and trained{seeds}."
        )
    return (
        f"{name}this does NOT hold. Trained, the gradient by the image is {_number(gradients[1])}, and the logits "
        f"change by {_number(changes[1])} of their norm when the image is exchanged."
    )


def _trace(part: _Measured) -> str:
    """Whether the image reaches a class token whose row keeps nothing of the patches."""
    masses, changes = part.values("mass"), part.values("change")
    text = (
        f"**Masked after the softmax (`post_softmax`), a trace of the image reaches it through the denominator** "
        f"({part.row.label}): its row holds its weight on itself alone, {_percent(masses[0])} of the mass untrained "
        f"and {_percent(masses[1])} trained, but that weight is divided by a sum over the keys of all patches. "
    )
    if not any(map(any, changes)):
        return f"{text}Yet the logits do NOT change when the image is exchanged: no trace is seen."
    return (
        f"{text}So it is not blind in the strict sense: exchanging the image changes the logits by "
        f"{_number(changes[0])} of their norm untrained and by {_number(changes[1])} trained."
    )


def _beside(part: _Measured, cured: Sequence[_Measured]) -> str:
    """The trace beside what the cured networks of the same mask mode see."""
    gradient = statistics.mean(value for other in cured for value in other.values("gradient")[0]) if cured else 0.0
    if gradient == 0:
        return ""
    change = statistics.mean(value for other in cured for value in other.values("change")[1])
    ratio = statistics.mean(part.values("gradient")[0]) / gradient
    return (
        f" Untrained, its gradient by the image is {_number([ratio])} times the cures' mean; the trained cures' logits "
        f"change by {_number([change])}."
    )


def _table(measured: Sequence[_Measured], images: int) -> Table:
    rows = []
    for part in measured:
        cells = [_number(values) for values in (*part.values("gradient"), *part.values("change"))]
        rows.append((part.row.label, f"`{part.row.mask_mode}`", *cells, _percent(part.values("mass")[1])))
    most = max(len(part.trained) for part in measured)
    seeds = f"; mean \N{PLUS-MINUS SIGN} standard deviation of up to {most} seeds" if most > 1 else ""
    return Table(NUMBERS_HEADER, tuple(rows), NUMBERS_CAPTION.format(images=images, seeds=seeds))


def _figure(measured: Sequence[_Measured]) -> Figure:
    maps = [
        ClassMaps(
            f"{part.row.label}, {part.row.mask_mode}",
            torch.stack([seen.attention_LN for seen in part.trained]).mean(0),
            part.trained[0].grid,
        )
        for part in measured
    ]
    caption = (
        "What the class token of the trained networks looks at, at softness 0: its row of the matrix that multiplies "
        "v, laid on the patches (mean of heads, images and seeds). Below each map its weight on itself and on all "
        "patches together; what is missing to 100 % was cut off after the softmax."
    )
    alt = f"Maps of the class token's attention over the patches for {len(maps)} networks, up to three blocks each"
    return Figure("class_attention", draw_class_maps(maps), alt, caption)


def _number(values: Sequence[float]) -> str:
    """Mean in two digits, standard deviation in one; zero is told from small."""
    if not any(values):
        return "0 exactly"
    spread = f" \N{PLUS-MINUS SIGN} {_digits(statistics.stdev(values), 1)}" if len(values) > 1 else ""
    return _digits(statistics.mean(values), 2) + spread


def _digits(value: float, digits: int) -> str:
    return f"{value:.{digits}g}".replace("e-0", "e-").replace("e+0", "e")


def _percent(values: Sequence[float]) -> str:
    spread = f" \N{PLUS-MINUS SIGN} {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread} %"


PER_LINE, BLOCKS = 2, 3  # networks side by side, and maps of each
# Inches: a map, the gaps between maps and between networks, the words above and below a map, the scale on the right.
MAP, GAP, SPACE, ABOVE, BELOW, SCALE = 1.4, 0.1, 0.35, 0.62, 0.42, 0.95
TITLE_LETTERS = 48


@dataclass(frozen=True)
class ClassMaps:
    """One network.

    Attributes:
        title: What stands above its maps.
        attention_LN: The class token's row in every block, one head or a mean; its weight on itself stands last.
        grid: Rows and columns of patches, in raster order in the row.
    """

    title: str
    attention_LN: torch.Tensor
    grid: tuple[int, int]


def draw_class_maps(networks: Sequence[ClassMaps]) -> bytes:
    """First, middle and last block of every network on one scale, as SVG.

    Places are computed here: matplotlib's own layouts round differently from call to call, which shows in the bytes.
    """
    from matplotlib.figure import Figure

    largest = max(float(network.attention_LN[_shown(network), :-1].max()) for network in networks) or 1.0
    height = MAP * max(rows / columns for rows, columns in (network.grid for network in networks))
    lines, strip = math.ceil(len(networks) / PER_LINE), BLOCKS * MAP + (BLOCKS - 1) * GAP
    across = min(PER_LINE, len(networks))
    wide = across * strip + (across - 1) * SPACE + 2 * GAP + SCALE
    tall = lines * (ABOVE + height + BELOW) + GAP
    figure = Figure(figsize=(wide, tall))

    def place(left: float, top: float, width: float, height: float) -> Axes:
        return figure.add_axes((left / wide, 1 - (top + height) / tall, width / wide, height / tall))

    for index, network in enumerate(networks):
        line, column = divmod(index, PER_LINE)
        left = GAP + column * (strip + SPACE)
        top = line * (ABOVE + height + BELOW) + ABOVE
        title = "\n".join(textwrap.wrap(network.title, TITLE_LETTERS)[:2])
        figure.text(
            (left + strip / 2) / wide,
            1 - (top - 0.27) / tall,
            title,
            ha="center",
            va="bottom",
            fontsize=9,
            weight="bold",
            linespacing=1.0,
            parse_math=False,
        )
        for shown, block in enumerate(_shown(network)):
            image = _draw(place(left + shown * (MAP + GAP), top, MAP, height), network, block, largest)
    scale_height = min(2.5, 0.6 * tall)
    scale = place(wide - SCALE, (tall - scale_height) / 2, 0.14, scale_height)
    bar = figure.colorbar(image, cax=scale)
    bar.set_label("weight on a patch", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return svg_bytes(figure)


def _draw(ax: Axes, network: ClassMaps, block: int, largest: float) -> AxesImage:
    patches, own = network.attention_LN[block, :-1], float(network.attention_LN[block, -1])
    image = ax.imshow(
        patches.reshape(network.grid).numpy(), cmap="Blues", vmin=0, vmax=largest, interpolation="nearest"
    )
    if not patches.any():
        ax.text(0.5, 0.5, "no weight", transform=ax.transAxes, ha="center", va="center", fontsize=8, color=GREY)
    ax.set_title(f"block {block + 1}", fontsize=8, pad=3)
    ax.set(xticks=[], yticks=[])
    ax.set_xlabel(f"itself {_share(own)}\npatches {_share(float(patches.sum()))}", fontsize=8)
    return image


def _shown(network: ClassMaps) -> list[int]:
    """First, middle and last block."""
    depth = len(network.attention_LN)
    return sorted({0, depth // 2, depth - 1})


def _share(value: float) -> str:
    return "0" if value == 0 else f"{100 * value:.1f} %"
