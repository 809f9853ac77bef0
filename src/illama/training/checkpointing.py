"""Saving a run and going on with it, on one process or several."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from illama.checkpoint import Checkpoint, Meta, Saver, kept_tag, load_checkpoint, newest_checkpoint
from illama.data import EvalTransform
from illama.data.sources.class_names import difference
from illama.errors import UserError
from illama.evaluation.origin import Origin
from illama.recipes import Recipe, parse_recipe
from illama.training.run_folder import changed_keys
from illama.training.saved_state import demand_fitting
from illama.training.state import TrainState


@dataclass(frozen=True)
class Keeper:
    """What every checkpoint of a run shares.

    Attributes:
        run_dir: The run's folder, on a disk that all processes see.
        recipe: The run's recipe.
        classes: Class names in index order.
        transform: How evaluation looks at images.
        state: What is saved and restored.
        saver: Writes in the background, on rank 0.
        total_steps: Optimizer steps of the whole run.
        final_softness: Softness that the run ends with; the best checkpoint is judged at it.
    """

    run_dir: Path
    recipe: Recipe
    classes: tuple[str, ...]
    transform: EvalTransform
    state: TrainState
    saver: Saver
    total_steps: int
    final_softness: float

    def save(self, epoch: int, *, best: bool = False, keep: bool = False) -> None:
        """Copy the state and have it written as "last". A collective; the caller may go on at once.

        Args:
            epoch: Epochs finished.
            best: Whether it is the best checkpoint too. That is written first: a crash between the two repeats the
                evaluation, and "best" is what its name says.
            keep: Whether a copy of it stays for good.

        Raises:
            UserError: The save before this one failed: the disk is full, ...
        """
        state, weights, average = self.state.to_dict(), self.state.weights(), self.state.average_weights()
        if not self.state.world.is_main:
            return
        state["run"] = self._run
        tags = [("best", self._meta(self.final_softness, epoch))] if best else []
        tags.append(("last", self._meta(float(self.state.model.softness), epoch)))
        kept = [kept_tag(self.state.progress.step)] if keep else []
        self.saver.save(tags, model_state=weights, training_state=state, ema_state=average, keep=kept)

    def resume(self) -> list[str]:
        """Take over the newest checkpoint that is whole.

        Returns:
            What a person should know about it, line by line.

        Raises:
            UserError: All that could be taken over is damaged, or not every process sees the folder.
        """
        world, processes = self.state.world, self.state.world.size
        newest = world.lead(lambda: newest_checkpoint(self.run_dir))
        assert newest is not None, "check_run_folder said that the run has begun"
        saved = world.agree(lambda: self._load(newest.tag))
        if len(set(world.gather(saved.meta.step))) > 1:
            raise world.error(f"the processes see different runs in {self.run_dir}; it must lie on a disk they share")
        self.state.load(saved)
        self.state.model.set_softness(saved.meta.softness)
        before = saved.training_state.get("processes", 1)
        others = f", then on {before} process{'es' * (before > 1)}" if before != processes else ""
        notes = [f"continuing {self.run_dir} after step {saved.meta.step}{others}"]
        return notes if newest.warning is None else [f"ATTENTION: {newest.warning}", *notes]

    def last_step(self) -> int | None:
        """Step of the newest checkpoint on disk; None without one."""
        newest = newest_checkpoint(self.run_dir)
        saved = None if newest is None else load_checkpoint(self.run_dir, newest.tag, verify=False)
        return None if saved is None else saved.meta.step

    def _load(self, tag: str) -> Checkpoint:
        saved = load_checkpoint(self.run_dir, tag, verify=False)  # rank 0 has compared the checksums
        if saved is None:
            raise UserError(f"no checkpoint {tag} is seen in {self.run_dir}; the folder must lie on a shared disk")
        demand_fitting(saved, self.state, self.total_steps)
        self._demand_own(saved)
        return saved

    @cached_property
    def _run(self) -> str | None:
        """The run's name for itself, which its checkpoints bear; runs of earlier versions have none."""
        origin = Origin.read(self.run_dir)
        return None if origin is None else origin.run

    def _demand_own(self, saved: Checkpoint) -> None:
        """A checkpoint says which recipe, classes and run it belongs to: those of this run."""
        where = f"{saved.path} is of another run"
        undo = f"take the run's own from a copy, or delete {saved.path} to do without"
        listed = changed_keys(parse_recipe(saved.meta.recipe or {}, f"the recipe in {saved.path}"), self.recipe)
        if listed:
            raise UserError(f"{where}; its recipe differs: {listed}; {undo}")
        changed = difference(saved.meta.classes, self.classes)
        if changed is not None:
            raise UserError(f"{where}; its classes differ: {changed}; {undo}")
        if self._run is not None and saved.training_state.get("run") != self._run:
            raise UserError(f"{where} of the same recipe, begun with other data or other start weights; {undo}")

    def _meta(self, softness: float, epoch: int) -> Meta:
        return Meta(
            config=self.recipe.model,
            classes=self.classes,
            eval_transform=self.transform.to_dict(),
            softness=softness,
            step=self.state.progress.step,
            epoch=epoch,
            recipe=self.recipe.to_dict(),
        )
