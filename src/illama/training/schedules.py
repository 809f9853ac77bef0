"""Learning rate, softness and drop path as pure functions of the optimizer step (the paper's Tables 12 to 16).

One value per optimizer step, set before the step; gradient accumulation does not advance them. Steps count from 0.
`Schedules.of` gives a recipe's schedules; the functions below are what they are made of.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from illama.recipes.rules import kept_patches

if TYPE_CHECKING:
    from illama.recipes.schema import Recipe

SoftnessMode = Literal["soft", "standard"]
DropPathMode = Literal["standard", "early", "late"]
ScheduleShape = Literal["constant", "linear"]


def linspace(step: int, start: float, stop: float, steps: int) -> float:
    """Value `step` of `steps` evenly spaced ones, both ends included; a single value is `start`, as in numpy."""
    if steps > 1 and step == steps - 1:
        return stop
    return start + step * ((stop - start) / max(1, steps - 1))


def cosine(step: int, start: float, stop: float, steps: int) -> float:
    """Half a cosine from `start`, which step 0 has, to `stop`, which step `steps` would have (it is not reached)."""
    return stop + 0.5 * (start - stop) * (1 + math.cos(math.pi * step / steps))


def learning_rate(
    step: int, *, base: float, minimum: float, warmup_steps: int, total_steps: int, start: float = 0.0
) -> float:
    """Linear warm-up, then a cosine.

    Args:
        step: Optimizer step, 0 to total_steps - 1.
        base: Highest value; the last warm-up step and the one after it have it.
        minimum: What the cosine approaches; the last step is slightly above.
        warmup_steps: Steps of the warm-up, 0 to total_steps. One step of warm-up has `start`.
        total_steps: Steps of the whole run.
        start: Value of the first warm-up step.

    Raises:
        ValueError: `step` is not a step of the run.
    """
    _check(step, total_steps, warmup_steps)
    if step < warmup_steps:
        return linspace(step, start, base, warmup_steps)
    return cosine(step - warmup_steps, base, minimum, total_steps - warmup_steps)


def softness(
    step: int, *, value: float, mode: SoftnessMode, shape: ScheduleShape, cutoff_steps: int, total_steps: int
) -> float:
    """How much of later tokens attention sees: 1 bidirectional, 0 causal.

    Args:
        step: Optimizer step, 0 to total_steps - 1.
        value: Softness at the start.
        mode: "soft" falls to 0 at `cutoff_steps`; "standard" keeps `value` for the whole run.
        shape: Until the cutoff "constant" keeps `value`, "linear" falls to 0 in the last step before it.
        cutoff_steps: First step of the causal mask, 0 to total_steps.
        total_steps: Steps of the whole run.

    Raises:
        ValueError: `step` is not a step of the run.
    """
    _check(step, total_steps, cutoff_steps)
    return value if mode == "standard" else _until(step, value, shape, cutoff_steps)


def drop_path(
    step: int, *, rate: float, mode: DropPathMode, shape: ScheduleShape, cutoff_steps: int, total_steps: int
) -> float:
    """Stochastic-depth rate of the whole model (each block takes its share of it).

    Args:
        step: Optimizer step, 0 to total_steps - 1.
        rate: The model's rate.
        mode: "standard" is the whole run, "early" before `cutoff_steps` only, "late" from there on only.
        shape: "early" only: "constant", or "linear" from `rate` to 0 in the last step before the cutoff.
        cutoff_steps: The step of the change, 0 to total_steps.
        total_steps: Steps of the whole run.

    Raises:
        ValueError: `step` is not a step of the run, or "late" is asked to be linear.
    """
    _check(step, total_steps, cutoff_steps)
    if mode == "late":
        if shape == "linear":
            raise ValueError("a late drop path starts at once; allowed with shape constant only")
        return rate if step >= cutoff_steps else 0.0
    return rate if mode == "standard" else _until(step, rate, shape, cutoff_steps)


def mix_prob(step: int, *, prob: float, mode: DropPathMode, cutoff_steps: int, total_steps: int) -> float:
    """Probability that a batch is mixed: `prob` where a drop path of this mode acts, 0 elsewhere.

    Args:
        step: Optimizer step, 0 to total_steps - 1.
        prob: The recipe's probability.
        mode: "standard" is the whole run, "early" before `cutoff_steps` only, "late" from there on only.
        cutoff_steps: The step of the change, 0 to total_steps.
        total_steps: Steps of the whole run.

    Raises:
        ValueError: `step` is not a step of the run.
    """
    return drop_path(step, rate=prob, mode=mode, shape="constant", cutoff_steps=cutoff_steps, total_steps=total_steps)


def _until(step: int, value: float, shape: ScheduleShape, cutoff_steps: int) -> float:
    """`value`, constant or falling to 0, for the first `cutoff_steps` steps; 0 afterwards."""
    if step >= cutoff_steps:
        return 0.0
    return value if shape == "constant" else linspace(step, value, 0.0, cutoff_steps)


def _check(step: int, total_steps: int, part_steps: int) -> None:
    if not 0 <= step < total_steps:
        raise ValueError(f"step {step} is outside the run; allowed: 0 to {total_steps - 1}")
    if not 0 <= part_steps <= total_steps:
        raise ValueError(f"{part_steps} steps do not fit into a run of {total_steps}")


@dataclass(frozen=True)
class Schedules:
    """The schedules of one run.

    Attributes:
        recipe: Gives the shapes, and the highest softness and drop-path rate.
        base_lr: Highest learning rate.
        steps_per_epoch: Optimizer steps per epoch: training images // total batch.
    """

    recipe: Recipe
    base_lr: float
    steps_per_epoch: int

    @classmethod
    def of(cls, recipe: Recipe, steps_per_epoch: int, lr: float | None = None) -> Schedules:
        """The schedules of a recipe.

        Args:
            recipe: The recipe.
            steps_per_epoch: Training images // total batch.
            lr: Highest learning rate where it was scaled to another total batch (`BatchPlan.lr`).

        Raises:
            ValueError: No step per epoch, or the recipe scales its learning rate and `lr` is not given.
        """
        if steps_per_epoch < 1:
            raise ValueError(f"steps_per_epoch: allowed: at least 1, given {steps_per_epoch}")
        if lr is None and recipe.optimizer.lr_scaling == "linear":
            raise ValueError("optimizer.lr_scaling is linear: pass lr=plan_batches(...).lr")
        return cls(recipe, recipe.optimizer.lr if lr is None else lr, steps_per_epoch)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.recipe.schedule.epochs * self.steps_per_epoch

    @property
    def warmup_steps(self) -> int:
        """Steps of the learning rate's warm-up."""
        return self.recipe.schedule.warmup_epochs * self.steps_per_epoch

    @property
    def softness_end_step(self) -> int:
        """First step after the soft mask; `total_steps` where the softness is kept to the end."""
        soft = self.recipe.schedule.softness
        return self.total_steps if soft.mode == "standard" else soft.cutoff_epochs * self.steps_per_epoch

    @property
    def final_softness(self) -> float:
        """Softness of the last step."""
        return self.softness(self.total_steps - 1)

    @property
    def ends_soft(self) -> bool:
        """Whether the run is judged at a softness above 0."""
        return self.recipe.schedule.softness.ends_soft(self.recipe.schedule.epochs)

    @property
    def drop_path_change_step(self) -> int:
        """Step at which an early drop path ends or a late one starts; 0 where it never changes."""
        return self.recipe.schedule.drop_path.cutoff_epochs * self.steps_per_epoch

    @property
    def patch_drop_end_step(self) -> int:
        """First step with all patches; 0 where none is ever left out."""
        return self.recipe.schedule.patch_drop.cutoff_epochs * self.steps_per_epoch

    @property
    def mixing_change_step(self) -> int:
        """Step at which early mixing ends or late mixing starts; 0 where it never changes."""
        return self.recipe.schedule.mixing.cutoff_epochs * self.steps_per_epoch

    def lr(self, step: int) -> float:
        """Learning rate of a step; groups with a rate of their own multiply it."""
        return learning_rate(
            step,
            base=self.base_lr,
            minimum=self.recipe.optimizer.min_lr,
            warmup_steps=self.warmup_steps,
            total_steps=self.total_steps,
        )

    def softness(self, step: int) -> float:
        """Softness of a step."""
        soft = self.recipe.schedule.softness
        return softness(
            step,
            value=soft.value,
            mode=soft.mode,
            shape=soft.shape,
            cutoff_steps=soft.cutoff_epochs * self.steps_per_epoch,
            total_steps=self.total_steps,
        )

    def drop_path(self, step: int) -> float:
        """Stochastic-depth rate of a step."""
        drop = self.recipe.schedule.drop_path
        return drop_path(
            step,
            rate=self.recipe.model.drop_path,
            mode=drop.mode,
            shape=drop.shape,
            cutoff_steps=self.drop_path_change_step,
            total_steps=self.total_steps,
        )

    def mix_prob(self, step: int) -> float:
        """Probability that a batch of a step is mixed; after the last step, for loaders work ahead, as in that."""
        return mix_prob(
            min(step, self.total_steps - 1),
            prob=self.recipe.augment.mix_prob,
            mode=self.recipe.schedule.mixing.mode,
            cutoff_steps=self.mixing_change_step,
            total_steps=self.total_steps,
        )

    def kept_patches(self, step: int) -> int:
        """Patches of an image that a step computes; after the last step as in that."""
        rate = _until(step, self.recipe.schedule.patch_drop.rate, "constant", self.patch_drop_end_step)
        return kept_patches(self.recipe.model.num_patches, rate)
