"""`illama recipes`: what can be trained; and what `illama train RECIPE --print` shows of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from illama.console.table import aligned
from illama.errors import UserError

if TYPE_CHECKING:
    from illama.recipes.batches import BatchPlan
    from illama.recipes.schema import Recipe
    from illama.training.schedules import Schedules

# Stands in for the steps of an epoch where the data is not known; values at corner points do not depend on it.
_ANY_STEPS = 1000


def recipes_command(*, keys: Annotated[bool, Parameter(negative="")] = False) -> None:
    """List the packaged recipes, one line each. `illama train NAME --print` shows one in full.

    Args:
        keys: All keys of a recipe instead, as Markdown: what each holds and decides.
    """
    from illama.recipes import list_recipes
    from illama.recipes.problems import keys_as_markdown

    if keys:
        print(keys_as_markdown(), end="")
        return

    print("\n".join(aligned([(name, headline(name)) for name in list_recipes()], left=2)))


def headline(name: str) -> str:
    """The first sentence of a recipe file's header."""
    text = files("illama.recipes").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    lines = [line.removeprefix("#").strip() for line in text.split("\n# Source:")[0].splitlines()]
    return " ".join(lines).split(". ")[0].rstrip(".") + "."


def describe(recipe: Recipe, num_devices: int = 1, *, look_at_data: bool = False) -> str:
    """The text of `--print`.

    Args:
        recipe: The resolved recipe.
        num_devices: Devices that the run would use; they share the total batch.
        look_at_data: Whether its data is opened, for its sizes.

    Returns:
        Lines ending in a newline. A batch that cannot be split is told in place of the schedules.

    Raises:
        UserError: There is no such task, the data cannot be opened, or the recipe does not fit it.
    """
    from illama.recipes.batches import plan_batches, train_image_count
    from illama.tasks import TASKS
    from illama.training.schedules import Schedules

    task = TASKS[recipe.task]  # answers for an unknown name, also where no data is looked at
    images, about = train_image_count(recipe), []
    if look_at_data:
        opened = task.load().open(recipe, num_devices)
        recipe, images = opened.recipe, len(opened.train)
        about = [*opened.notes, opened.train.description, opened.evaluated.description, ""]
    lines = [recipe.to_yaml(), *about]
    try:
        plan = plan_batches(recipe, num_devices)
    except UserError as error:
        return "\n".join([*lines, f"total batch      not possible: {error}", ""])
    lines += _batch_lines(recipe, plan)
    if images is None:
        lines.append("steps            known once the data is opened (data.num_train_images is null)")
        lines += ["", *_corner_lines(Schedules.of(recipe, _ANY_STEPS, plan.lr), with_steps=False)]
    elif images < plan.total_batch:
        lines.append(f"steps            none: {images} training images do not fill a total batch")
    else:
        steps = images // plan.total_batch
        lines.append(
            f"steps            {steps} per epoch ({images} training images, {images % plan.total_batch} left out), "
            f"{steps * recipe.schedule.epochs} in {recipe.schedule.epochs} epochs"
        )
        lines += ["", *_corner_lines(Schedules.of(recipe, steps, plan.lr), with_steps=True)]
    return "\n".join([*lines, ""])


def _batch_lines(recipe: Recipe, plan: BatchPlan) -> Iterator[str]:
    devices = f"{plan.num_devices} device{'s' if plan.num_devices > 1 else ''}"
    yield (
        f"total batch      {plan.total_batch} = {devices} x device batch {plan.device_batch} "
        f"x accumulation {plan.accumulation}"
    )
    lr, lr_batch = recipe.optimizer.lr, recipe.optimizer.lr_batch
    if plan.total_batch == lr_batch:
        yield f"learning rate    {plan.lr:g}"
    else:
        scaling = recipe.optimizer.lr_scaling
        yield f"learning rate    {plan.lr:g} (lr_scaling {scaling}; {lr:g} belongs to a total batch of {lr_batch})"


def _corner_lines(schedules: Schedules, *, with_steps: bool) -> Iterator[str]:
    """A table of the steps at which a schedule starts, bends and ends; epochs count from 0."""
    step_title = f"{'step':>10}" if with_steps else ""
    yield f"{'schedule':<15}{step_title}{'epoch':>8}  value"
    curves: list[tuple[str, Callable[[int], float], int]] = [
        ("learning rate", schedules.lr, schedules.warmup_steps),
        ("softness", schedules.softness, schedules.softness_end_step),
        ("drop path", schedules.drop_path, schedules.drop_path_change_step),
    ]
    if schedules.recipe.schedule.patch_drop.rate > 0:
        curves.append(("patches", schedules.kept_patches, schedules.patch_drop_end_step))
    if schedules.recipe.schedule.mixing.mode != "standard":
        curves.append(("mixing", schedules.mix_prob, schedules.mixing_change_step))
    for title, value, bend in curves:
        for step in _corners(value, bend, schedules.total_steps):
            shown = f"{step:>10}" if with_steps else ""
            yield f"{title:<15}{shown}{step // schedules.steps_per_epoch:>8}  {value(step):.6g}"


def _corners(value: Callable[[int], float], bend: int, total: int) -> list[int]:
    """First and last step and, where the value changes, the two steps around the bend."""
    steps = sorted(step for step in {0, bend - 1, bend, total - 1} if 0 <= step < total)
    return steps if len({value(step) for step in steps}) > 1 else [0, total - 1]
