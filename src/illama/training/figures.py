"""curves.png of a run folder, and the curves of several runs side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from illama.console.text import parse_json, shown
from illama.errors import UserError
from illama.recipes.schema import SoftnessConfig
from illama.report.formats import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, YELLOW, save_png
from illama.system.files import read_given
from illama.tasks import TASKS, Score
from illama.training.run_folder import is_logged_number
from illama.training.runs import start_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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


def draw_curves(run_dir: Path) -> Path:
    """Draw losses, the task's score, learning rate and softness of a run into its curves.png.

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
    score = _score(recipe)
    train, evals = read_metrics(run_dir / "metrics.jsonl")
    published = published_curves(recipe["name"])
    figure = Figure(figsize=(12, 8), layout="constrained")
    ((loss, judged), (rate, softness)) = figure.subplots(2, 2, sharex=True)
    _draw_loss(loss, train, evals, published)
    _draw_score(judged, evals, published, score)
    _draw_schedule(rate, train, published, "lr", "learning rate")
    _draw_schedule(softness, train, published, "softness", "softness (1 bidirectional, 0 causal)")
    softness.set_ylim(-0.05, 1.05)
    end = SoftnessConfig(**recipe["schedule"]["softness"]).causal_from
    reached = max(train.get("epoch", [0.0]), default=0.0)
    for axes in (loss, judged, rate, softness):
        if end is not None and end <= reached:
            axes.axvline(end, color="black", linestyle=":", linewidth=1.2, label=f"soft mask ends, epoch {end}")
        axes.set_xlabel("epoch")
        axes.tick_params(labelbottom=True)
        axes.grid(alpha=0.25)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    start = start_of(run_dir)
    title = f"{run_dir.resolve().name}: {recipe['name']}" + ("" if start is None else f", started from {start}")
    figure.suptitle(shown(title), parse_math=False)
    return save_png(figure, run_dir / "curves.png", dpi=100)


def draw_runs(run_dirs: Sequence[Path], path: Path) -> Path:
    """Draw training loss and score of several runs, a colour for each.

    Scores hold at the softness in force.

    Args:
        run_dirs: Run folders, one at least.
        path: The picture to write.

    Raises:
        UserError: A folder is no run, or the picture cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    loss, judged = figure.subplots(1, 2)
    labels = []
    for number, run_dir in enumerate(run_dirs):
        recipe = _read_recipe(run_dir)
        score = _score(recipe)
        labels.append(score.label)
        name = f"{shown(run_dir.resolve().name)} ({shown(recipe['name'])})".replace("$", r"\$")
        train, evals = read_metrics(run_dir / "metrics.jsonl")
        color, style = COLOURS[number % len(COLOURS)], ("-", "--", ":", "-.")[number // len(COLOURS) % 4]
        _line(loss, train, "loss", color, name, style=style)
        _line(judged, evals, score.key, color, name, style=style)
    labels = list(dict.fromkeys(labels))
    for axes, label in ((loss, "training cross-entropy (nats)"), (judged, f"test {' / '.join(labels)}")):
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    return save_png(figure, path, dpi=110)


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


def _draw_loss(axes: Axes, train: Curves, evals: Curves, published: Curves | None) -> None:
    _line(axes, train, "loss", BLUE, "training")
    _line(axes, evals, "loss", ORANGE, "test, softness in force")
    if _was_soft(evals):
        _line(axes, evals, "loss_causal", GREEN, "test, softness 0", style="--")
    if published is not None:
        _line(axes, published, "train_loss", GREY, "published, training", style="--")
        _line(axes, published, "val_loss", GREY, "published, test", style="-.")
    axes.set_ylabel("cross-entropy (nats)")


def _draw_score(axes: Axes, evals: Curves, published: Curves | None, score: Score) -> None:
    _line(axes, evals, score.key, ORANGE, "softness in force")
    if _was_soft(evals):
        _line(axes, evals, score.causal_key, GREEN, "softness 0", style="--")
    _line(axes, evals, f"ema_{score.key}", BLUE, "averaged weights")
    if published is not None:
        _line(axes, published, f"val_{score.key}_percent", GREY, "published", style="--")
    axes.set_ylabel(f"test {score.label}")
    axes.set_ylim(top=min(axes.get_ylim()[1], score.most))


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


def _read_recipe(run_dir: Path) -> dict[str, Any]:
    path = Path(run_dir) / "recipe.yaml"
    if not path.is_file():
        raise UserError(f"{run_dir} is not a run folder: it has no recipe.yaml")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _score(recipe: dict[str, Any]) -> Score:
    """What the run's task is judged by; earlier versions had one task and did not name it."""
    return TASKS[recipe.get("task", "classification")].score
