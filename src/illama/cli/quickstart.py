"""`illama quickstart`: the shortest way to a trained model."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from illama.cli.output import Device
from illama.cli.train import last_line
from illama.errors import UserError

RECIPE = "digits_micro"


def quickstart_command(*overrides: str, out: Path = Path("runs/quickstart"), device: Device = None) -> None:
    """Train a micro iLLaMA on handwritten digits, then print the commands to try next.

    Args:
        overrides: Changes of the recipe digits_micro, such as schedule.epochs=5.
        out: The run folder.
    """
    from illama.recipes import load_recipe
    from illama.training.loop import train

    recipe = load_recipe(RECIPE, overrides)
    result = train(recipe, out=out, device=device)
    examples = write_examples(result.run_dir / "examples", recipe.data.eval_split)
    print(f"\n{last_line(result)}")
    print(
        f"Pictures: {result.run_dir / 'curves.png'} (the run) and {result.run_dir / 'predictions.png'} (what it sees)"
    )
    print("\nNext:")
    for words, why in next_commands(result.run_dir, examples):
        print(f"  {words}\n      {why}")


def write_examples(folder: Path, split: str) -> Path:
    """Save the first test image of each class as a file, for `illama predict`; returns the folder."""
    from illama.data import open_source
    from illama.recipes import DataConfig

    source = open_source(DataConfig(name="digits"), split, in_chans=1)
    try:
        folder.mkdir(exist_ok=True)
        for number, name in enumerate(source.classes):
            first = source.labels.tolist().index(number)
            source.read(first).save(folder / f"digit_{name}.png")
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from error
    return folder


def next_commands(run_dir: Path, examples: Path) -> list[tuple[str, str]]:
    """What a newcomer would type next, as (command, what it does)."""
    illama, run = program(), shlex.quote(str(run_dir))
    return [
        (
            f"{illama} predict {run} {shlex.quote(str(examples))} --top-k 3",
            "class names with probabilities for image files",
        ),
        (f"{illama} eval {run}", "accuracy of each digit; with --softness 1 under a bidirectional mask"),
        (f"{illama} train cifar10_micro --data /path/to/cifar10", "colour photographs; all recipes: illama recipes"),
    ]


def program() -> str:
    """How this program is called from here: by name, or by its path where the shell would not find it."""
    called = Path(sys.argv[0])
    if called.name != "illama" or shutil.which("illama") is not None:
        return "illama"
    absolute = called.absolute()
    inside = absolute.is_relative_to(Path.cwd())
    return shlex.quote(str(absolute.relative_to(Path.cwd()) if inside else absolute))
