"""The pictures: what is drawn is what was measured, and the end of the soft mask is where the recipe says."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from illama.errors import UserError
from illama.recipes import list_recipes, load_recipe
from illama.training import figures
from illama.training.figures import (
    PUBLISHED_RUNS,
    draw_curves,
    draw_runs,
    published_curves,
    read_metrics,
)

pytestmark = pytest.mark.usefixtures("drawing")


def start_run(run: Path, recipe: str, epochs: int, overrides: tuple[str, ...] = (), ema: bool = False) -> None:
    run.mkdir()
    (run / "recipe.yaml").write_text(load_recipe(recipe, overrides).to_yaml())
    with (run / "metrics.jsonl").open("w") as file:
        for epoch in range(1, epochs + 1):
            train = {
                "kind": "train",
                "step": epoch,
                "epoch": float(epoch),
                "loss": 1 / epoch,
                "lr": 0.1,
                "softness": 1.0,
            }
            ends = {"kind": "eval", "step": epoch, "epoch": epoch, "top1": 50.0 + epoch, "loss": 2 / epoch}
            ends |= {"softness": 1.0, "top1_causal": 40.0 + epoch, "loss_causal": 3 / epoch}
            ends |= {"ema_top1": 60.0 + epoch} if ema else {}
            file.write(json.dumps(train) + "\n" + json.dumps(ends) + "\n")


def lines_of(figure: Figure, panel: int) -> dict[str, tuple[list[float], list[float]]]:
    return {
        str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in figure.axes[panel].lines
    }


def test_the_measured_numbers_are_drawn(tmp_path: Path, drawn: list[Figure]) -> None:
    start_run(tmp_path / "run", "digits_micro", 12, ema=True)
    path = draw_curves(tmp_path / "run")
    assert path == tmp_path / "run" / "curves.png"
    with Image.open(path) as picture:
        assert min(picture.size) >= 600
    loss, accuracy = lines_of(drawn[0], 0), lines_of(drawn[0], 1)
    epochs = list(range(1, 13))
    assert loss["training"] == (epochs, [1 / e for e in epochs])
    assert loss["test, softness 0"] == (epochs, [3 / e for e in epochs])
    assert accuracy["softness in force"] == (epochs, [50 + e for e in epochs])
    assert accuracy["averaged weights"] == (epochs, [60 + e for e in epochs])
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in drawn[0].axes)


@pytest.mark.parametrize(("epochs", "marked"), [(12, True), (9, False)])
def test_the_end_of_the_soft_mask_is_marked_once_it_is_reached(
    tmp_path: Path, drawn: list[Figure], epochs: int, marked: bool
) -> None:
    start_run(tmp_path / "run", "digits_micro", epochs, ("schedule.softness.cutoff_epochs=10",))
    draw_curves(tmp_path / "run")
    for panel in range(4):
        at = lines_of(drawn[0], panel).get("soft mask ends, epoch 10")
        assert (at is not None) == marked
        assert at is None or list(at[0]) == [10, 10]


def test_a_causal_run_has_no_mark(tmp_path: Path, drawn: list[Figure]) -> None:
    start_run(tmp_path / "run", "digits_micro", 3, ("schedule.softness.cutoff_epochs=0",))
    draw_curves(tmp_path / "run")
    assert not any("soft mask" in label for label in lines_of(drawn[0], 0))


def test_published_curves_stand_beside_published_recipes(tmp_path: Path, drawn: list[Figure]) -> None:
    start_run(tmp_path / "run", "imagenet1k_tiny", 2)
    draw_curves(tmp_path / "run")
    epochs, accuracy = lines_of(drawn[0], 1)["published"]
    assert (epochs[0], epochs[-1], len(epochs)) == (1, 300, 300)
    assert accuracy[49] == pytest.approx(63.1, abs=0.05)  # the last epoch with the soft mask
    assert accuracy[50] == pytest.approx(58.06, abs=0.05)
    assert accuracy[-1] == pytest.approx(75.0, abs=0.005)


def test_every_published_run_belongs_to_a_packaged_recipe(shared_data: Path) -> None:
    assert set(PUBLISHED_RUNS) <= set(list_recipes())
    source = shared_data.parent / "golden" / "published_curves.json"
    stored = json.loads(source.read_text())
    assert sorted(PUBLISHED_RUNS.values()) == sorted(stored["runs"])
    packaged = Path(figures.__file__).parents[1] / "recipes" / "published_curves.json"
    assert packaged.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("recipe", PUBLISHED_RUNS)
def test_published_schedules_are_those_of_the_recipe(recipe: str) -> None:
    """The epochs and the end of the soft mask in the authors' logs are the ones our recipe asks for."""
    curves, schedule = published_curves(recipe), load_recipe(recipe).schedule
    assert curves is not None
    assert len(curves["epoch"]) == schedule.epochs
    soft = [epoch for epoch, softness in zip(curves["epoch"], curves["mean_softness"], strict=True) if softness > 0]
    assert max(soft, default=0) == schedule.softness.cutoff_epochs


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "eval", "epoch": 1}\n{"kind": "eval", "epoch": 2, "top1": 3.0}\n{"kind": "ev')
    train, evals = read_metrics(path)
    assert train == {}
    assert evals["epoch"] == [1, 2]
    assert math.isnan(evals["top1"][0])
    assert evals["top1"][1] == 3.0


@pytest.mark.parametrize("value", ['"x"', "null", "[1]", "true", "1e400", "{}"])
def test_a_value_that_is_no_number_is_missing(tmp_path: Path, value: str) -> None:
    run = tmp_path / "run"
    start_run(run, "digits_micro", 2)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(f'{{"kind": "eval", "epoch": 3, "step": 9, "top1": {value}, "loss": {value}}}\n')
    assert math.isnan(read_metrics(run / "metrics.jsonl")[1]["top1"][-1])
    assert draw_curves(run).is_file()


def test_lines_that_say_no_epoch_are_left_out(tmp_path: Path) -> None:
    run = tmp_path / "run"
    start_run(run, "digits_micro", 0)
    (run / "metrics.jsonl").write_text('{"kind": "eval", "top1": 3.0}\n{"kind": "train", "loss": 1}\n')
    assert read_metrics(run / "metrics.jsonl") == ({}, {})
    assert draw_curves(run).is_file()


def test_a_run_without_numbers_is_drawn_empty(tmp_path: Path) -> None:
    start_run(tmp_path / "run", "digits_micro", 0)
    assert draw_curves(tmp_path / "run").is_file()
    with pytest.raises(UserError, match=r"not a run folder: it has no recipe\.yaml"):
        draw_curves(tmp_path)


def test_a_picture_that_cannot_be_written(tmp_path: Path) -> None:
    start_run(tmp_path / "run", "digits_micro", 1)
    (tmp_path / "run" / "curves.png").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*curves\.png"):
        draw_curves(tmp_path / "run")


def test_several_runs_share_a_picture(tmp_path: Path, drawn: list[Figure]) -> None:
    names = ["one", "$x_1$ two", *map(str, range(5))]
    for number, name in enumerate(names):
        start_run(tmp_path / name, "digits_micro", 1 + number % 2)
    assert draw_runs([tmp_path / name for name in names], tmp_path / "runs.png").is_file()
    loss, accuracy = drawn[0].axes
    for axes in (loss, accuracy):
        assert len(axes.lines) == len(names)
        looks = {(line.get_color(), line.get_linestyle()) for line in axes.lines}
        assert len(looks) == len(names), "runs are told apart"
    with pytest.raises(UserError, match=r"not a run folder: it has no recipe\.yaml"):
        draw_runs([tmp_path / "none"], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
