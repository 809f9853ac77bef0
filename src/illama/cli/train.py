"""`illama train`: run a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from illama.cli.output import Device
from illama.console.text import shown

if TYPE_CHECKING:
    from illama.training.loop import TrainResult


def train_command(
    recipe: str,
    /,
    *overrides: str,
    data: str | None = None,
    out: Path | None = None,
    device: Device = None,
    init_from: Path | None = None,
    track: Literal["wandb"] | None = None,
    print_only: Annotated[bool, Parameter(name="--print", negative="")] = False,
) -> None:
    """Train a recipe. Running the same command again continues a run that was stopped, exactly.

    Args:
        recipe: A name that `illama recipes` lists, or the path of a YAML file.
        overrides: Changes of the recipe such as optimizer.lr=1e-3 or train.total_batch=256.
        data: Where the data set is; short for data.path=...
        out: The run folder; runs/RECIPE by default.
        init_from: Weights to start from (a run, a checkpoint, .safetensors, .pth, .pt, .bin). The same command again
            continues the run.
        track: Send the log to Weights & Biases too; metrics.jsonl and TensorBoard are always written.
        print_only: Show the resolved recipe, its batch, steps and schedules, and stop. Data that is named is looked at.
    """
    from illama.recipes import load_recipe, overridden_keys, override

    changes = list(overrides) if data is None else [*overrides, override("data.path", data)]
    resolved = load_recipe(recipe, changes)
    if print_only:
        from illama.cli.recipes import describe

        print(describe(resolved, look_at_data=data is not None or "data.path" in overridden_keys(overrides)), end="")
        return
    from illama.distributed import is_main_process
    from illama.training.loop import train

    result = train(resolved, out=out, device=device, init_from=init_from, track=track)
    if is_main_process():
        print(last_line(result))


def last_line(result: TrainResult) -> str:
    """The outcome of a run in one line."""
    score, scores, at = result.score, result.scores, ""
    if result.softness:
        at = f" at softness {result.softness:g}, {score.shown(scores[score.causal_key])} at softness 0"
    return (
        f"test {score.title} {score.shown(scores[score.key])}{at} after {result.steps} steps, {shown(result.run_dir)}"
    )
