"""The two pictures of a run folder: curves.png, and predictions.png with what the model says of some test images."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml

from illama.console.json_text import parse_json
from illama.console.text import shown
from illama.data import BrokenImage, EvalTransform, Source
from illama.errors import UserError
from illama.models import ILlama
from illama.report.formats import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, YELLOW
from illama.system.files import replacing
from illama.system.given_file import read_given
from illama.training.run_folder import is_logged_number
from illama.training.runs import start_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

# Recipes whose curve the authors published, and what their run is called in published_curves.json.
PUBLISHED_RUNS = {
    "imagenet1k_tiny": "illama_tiny.in1k",
    "imagenet1k_small": "illama_small.in1k",
    "imagenet1k_base": "illama_base.in1k",
    "imagenet1k_base_384": "illama_base.in1k_384",
    "imagenet21k_base": "illama_base.in21k",
    "imagenet21k_large": "illama_large.in21k",
    "imagenet1k_base_from21k": "illama_base.in21k_ft_in1k",
    "imagenet1k_base_from21k_384": "illama_base.in21k_ft_in1k_384",
    "imagenet1k_large_from21k": "illama_large.in21k_ft_in1k",
    "imagenet1k_large_from21k_384": "illama_large.in21k_ft_in1k_384",
}
Curves = dict[str, list[float]]
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW)
CELL, WORDS, MARGIN = 1.6, 0.45, 0.08  # inches of predictions.png: an image's width, two lines of text, what stays free


def draw_curves(run_dir: Path) -> Path:
    """Draw losses, accuracy, learning rate and softness of a run into its curves.png.

    A vertical line marks where the soft mask ends; runs of published recipes have the published curve beside them.

    Args:
        run_dir: A run folder with recipe.yaml and metrics.jsonl.

    Returns:
        The picture's path.

    Raises:
        UserError: The folder is no run, or the picture cannot be written.
    """
    from matplotlib.figure import Figure

    recipe = _read_recipe(run_dir)
    train, evals = read_metrics(run_dir / "metrics.jsonl")
    published = published_curves(recipe["name"])
    figure = Figure(figsize=(12, 8), layout="constrained")
    ((loss, accuracy), (rate, softness)) = figure.subplots(2, 2, sharex=True)
    _draw_loss(loss, train, evals, published)
    _draw_accuracy(accuracy, evals, published)
    _draw_schedule(rate, train, published, "lr", "learning rate")
    _draw_schedule(softness, train, published, "softness", "softness (1 bidirectional, 0 causal)")
    softness.set_ylim(-0.05, 1.05)
    end = soft_mask_end(recipe, max(train.get("epoch", [0.0]), default=0.0))
    for axes in (loss, accuracy, rate, softness):
        if end is not None:
            axes.axvline(end, color="black", linestyle=":", linewidth=1.2, label=f"soft mask ends, epoch {end}")
        axes.set_xlabel("epoch")
        axes.tick_params(labelbottom=True)
        axes.grid(alpha=0.25)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    start = start_of(run_dir)
    title = f"{run_dir.resolve().name}: {recipe['name']}" + ("" if start is None else f", started from {start}")
    figure.suptitle(shown(title), parse_math=False)
    return _save(figure, run_dir / "curves.png", dpi=100)


def draw_runs(run_dirs: Sequence[Path], path: Path) -> Path:
    """Draw training loss and test accuracy of several runs, a colour for each.

    Accuracies hold at the softness in force.

    Args:
        run_dirs: Run folders, one at least.
        path: The picture to write.

    Raises:
        UserError: A folder is no run, or the picture cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    for number, run_dir in enumerate(run_dirs):
        name = f"{shown(run_dir.resolve().name)} ({shown(_read_recipe(run_dir)['name'])})".replace("$", r"\$")
        train, evals = read_metrics(run_dir / "metrics.jsonl")
        color, style = COLOURS[number % len(COLOURS)], ("-", "--", ":", "-.")[number // len(COLOURS) % 4]
        _line(loss, train, "loss", color, name, style=style)
        _line(accuracy, evals, "top1", color, name, style=style)
    for axes, label in ((loss, "training cross-entropy (nats)"), (accuracy, "test top-1 (%)")):
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    return _save(figure, path, dpi=110)


def read_metrics(path: Path) -> tuple[Curves, Curves]:
    """Columns of the "train" and of the "eval" lines of a metrics.jsonl; lines that are damaged are left out.

    A value that a line lacks, or that is no number, is NaN: all columns of a kind are equally long.
    """
    lines = read_given(path).decode(errors="replace").splitlines(keepends=True) if path.is_file() else []
    records = [record for line in lines if (record := _parsed(line)) is not None]
    kinds = ([r for r in records if r["kind"] == kind] for kind in ("train", "eval"))
    train, evals = (
        {
            key: [r[key] if is_logged_number(r.get(key)) else math.nan for r in kept]
            for key in dict.fromkeys(k for r in kept for k in r if k != "kind")
        }
        for kept in kinds
    )
    return train, evals


def _parsed(line: str) -> dict[str, Any] | None:
    """A whole line of the log; None for one that a crash cut off, or that something damaged."""
    try:
        record = parse_json(line) if line.endswith("\n") else None
    except ValueError:
        return None
    return record if isinstance(record, dict) and {"kind", "epoch"} <= record.keys() else None


def published_curves(recipe_name: str) -> Curves | None:
    """The authors' curve for a recipe, at the ends of epochs 1, 2, ...; None where they published none."""
    if recipe_name not in PUBLISHED_RUNS:
        return None
    stored = parse_json(files("illama.recipes").joinpath("published_curves.json").read_text(encoding="utf-8"))
    rows = stored["runs"][PUBLISHED_RUNS[recipe_name]]
    curves = {name: list(column) for name, column in zip(stored["columns"], zip(*rows, strict=True), strict=True)}
    curves["epoch"] = [epoch + 1 for epoch in curves["epoch"]]
    return curves


def draw_predictions(
    images: ArrayLike,
    truths: Sequence[int],
    predicted: Sequence[int],
    probabilities: Sequence[float],
    classes: Sequence[str],
    path: Path,
) -> Path:
    """Draw a grid of images with what the model says of them; wrong answers differ by colour, frame, sign and words.

    Args:
        images: (n, C, H, W) uint8, at least one image, one or three channels.
        truths: Right classes, (n,).
        predicted: The model's classes, (n,).
        probabilities: The model's probability of its answer, (n,), 0 to 1.
        classes: Class names.
        path: The picture to write.

    Raises:
        UserError: The picture cannot be written.
    """
    from matplotlib.figure import Figure

    pictures = np.asarray(images)
    columns = min(8, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    image_height = CELL * pictures.shape[2] / pictures.shape[3]
    width, height = max(CELL * columns, 4.0), (image_height + WORDS) * rows + WORDS
    figure = Figure(figsize=(width, height))
    # One system of coordinates, in inches from the upper left: one for each image would take ten times as long.
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    axes.set_autoscale_on(False)
    wrong = 0
    answers = zip(pictures, truths, predicted, probabilities, strict=True)
    for n, (image, truth, answer, probability) in enumerate(answers):
        wrong += truth != answer
        left, top = CELL * (n % columns), WORDS + (image_height + WORDS) * (n // columns)
        box = (left + MARGIN, left + CELL - MARGIN, top + image_height + WORDS - MARGIN, top + WORDS + MARGIN)
        _draw_answer(axes, image, box, classes[truth], classes[answer], float(probability))
    title = f"{len(pictures)} test images, {wrong} wrong (\N{BALLOT X})"
    axes.text(width / 2, WORDS / 2, title, fontsize=12, ha="center", va="center")
    return _save(figure, path, dpi=110)


def _draw_answer(
    axes: Axes, image: np.ndarray, box: tuple[float, float, float, float], truth: str, answer: str, probability: float
) -> None:
    """In a box (left, right, bottom, top), with words above it."""
    from matplotlib.patches import Rectangle

    right = truth == answer
    shown = image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)
    smooth = "nearest" if max(image.shape[1:]) <= 64 else "antialiased"
    axes.imshow(shown, cmap="gray", vmin=0, vmax=255, interpolation=smooth, extent=box, aspect="auto")
    color, line, width = (BLUE, "solid", 1.0) if right else (ORANGE, "dashed", 4.0)
    frame = (box[0], box[3]), box[1] - box[0], box[2] - box[3]
    axes.add_patch(Rectangle(*frame, fill=False, edgecolor=color, linewidth=width, linestyle=line))
    sign = "\N{CHECK MARK}" if right else "\N{BALLOT X}"
    said = f"{sign} {_short(answer)} ({100 * probability:.0f} %)"
    axes.text(
        (box[0] + box[1]) / 2,
        box[3] - MARGIN,
        said if right else f"{said}\nis {_short(truth)}",
        color=color,
        fontsize=8,
        weight="normal" if right else "bold",
        ha="center",
        va="bottom",
        parse_math=False,
    )


def _draw_loss(axes: Axes, train: Curves, evals: Curves, published: Curves | None) -> None:
    _line(axes, train, "loss", BLUE, "training")
    _line(axes, evals, "loss", ORANGE, "test, softness in force")
    if _was_soft(evals):
        _line(axes, evals, "loss_causal", GREEN, "test, softness 0", style="--")
    if published is not None:
        _line(axes, published, "train_loss", GREY, "published, training", style="--")
        _line(axes, published, "val_loss", GREY, "published, test", style="-.")
    axes.set_ylabel("cross-entropy (nats)")


def _draw_accuracy(axes: Axes, evals: Curves, published: Curves | None) -> None:
    _line(axes, evals, "top1", ORANGE, "softness in force")
    if _was_soft(evals):
        _line(axes, evals, "top1_causal", GREEN, "softness 0", style="--")
    _line(axes, evals, "ema_top1", BLUE, "averaged weights")
    if published is not None:
        _line(axes, published, "val_top1_percent", GREY, "published", style="--")
    axes.set_ylabel("test top-1 (%)")
    axes.set_ylim(top=min(axes.get_ylim()[1], 100))


def _draw_schedule(axes: Axes, train: Curves, published: Curves | None, key: str, label: str) -> None:
    _line(axes, train, key, BLUE, "this run")
    if published is not None:
        _line(axes, published, f"mean_{key}", GREY, "published, mean of the epoch", style="--")
    axes.set_ylabel(label)


def _line(axes: Axes, curves: Curves, key: str, color: str, label: str, style: str = "-") -> None:
    if key not in curves:
        return
    few = len(curves[key]) <= 60 and color != GREY
    axes.plot(
        curves["epoch"], curves[key], style, color=color, label=label, linewidth=1.6, marker="o" if few else None, ms=3
    )


def _was_soft(evals: Curves) -> bool:
    return any(value > 0 for value in evals.get("softness", []))


def soft_mask_end(recipe: dict[str, Any], reached: float) -> int | None:
    """Epoch from which on the mask is causal; None where it never was soft or the run has not come so far.

    Args:
        recipe: A recipe as a tree.
        reached: Epochs that the run has done.
    """
    softness = recipe["schedule"]["softness"]
    end = softness["cutoff_epochs"]
    return end if softness["mode"] == "soft" and softness["value"] > 0 and 0 < end <= reached else None


def _read_recipe(run_dir: Path) -> dict[str, Any]:
    path = Path(run_dir) / "recipe.yaml"
    if not path.is_file():
        raise UserError(f"{run_dir} is not a run folder: it has no recipe.yaml")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _short(name: str) -> str:
    name = shown(name)
    return name if len(name) <= 12 else f"{name[:11]}\N{HORIZONTAL ELLIPSIS}"


def _save(figure: Figure, path: Path, dpi: int) -> Path:
    """Write the picture; it appears only when it is complete."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a box is drawn in its place
            with replacing(path) as partial:
                figure.savefig(partial, dpi=dpi, format="png")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return path


SHOWN = 32


def draw_test_predictions(
    run_dir: Path | None, model: ILlama, source: Source, transform: EvalTransform, device: torch.device
) -> None:
    """Classify evenly spaced images of the evaluation split and draw them; unreadable ones are left out.

    Without a folder the model is asked and nothing is drawn: what the other processes of a sharded model have to do.
    """
    images, truths = [], []
    for index in np.linspace(0, len(source) - 1, min(SHOWN, len(source))).round().astype(int):
        try:
            images.append(transform(source.read(int(index))))
        except BrokenImage:
            continue
        truths.append(int(source.labels[index]))
    shown = torch.stack(images)
    model.eval()
    with torch.no_grad():
        probabilities = model(transform.normalize(shown, device)).float().softmax(-1).cpu()
    best, predicted = probabilities.max(-1)
    if run_dir is not None:
        path = run_dir / "predictions.png"
        draw_predictions(shown, truths, predicted.tolist(), best.tolist(), source.classes, path)
