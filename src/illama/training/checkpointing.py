"""Saving a run and going on with it, on one process or several; what a checkpoint may hold for that.

Checksums tell accidents. A file whose sums fit may still be of another run, of another version, or made by somebody: a
moment of another size would end the process in the optimizer's kernel, another learning rate would be followed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from illama.checkpoint import Checkpoint, Meta, Saver, kept_tag, load_checkpoint, newest_checkpoint
from illama.checkpoint.folder import DamagedError, checkpoint_folder, stated_meta
from illama.checkpoint.format import EMA_FILE, MODEL_FILE, STATE_FILE
from illama.console.text import shown
from illama.data.sources.splits import difference
from illama.device.linear import KINDS, LinearKernel
from illama.errors import UserError
from illama.evaluation.origin import Origin
from illama.recipes import parse_recipe
from illama.tasks import Score
from illama.training.optim import MOMENT
from illama.training.run_folder import changed_keys
from illama.training.setup import Parts
from illama.training.state import TrainState

_KEYS = frozenset({"optimizer", "average_updates", "progress", "loss_sum", "loss_steps"})
_LATER_KEYS = frozenset({"linear_kernel", "native", "processes", "run"})  # earlier versions did not save them
_ADAMW_MOMENTS, _MUON_MOMENTS = ("exp_avg", "exp_avg_sq"), (MOMENT,)


class _Odd(Exception):  # noqa: N818 - the end of a sentence, no error of its own
    """Something that the run would not have made, as the end of a sentence about its file."""


def demand_fitting(saved: Checkpoint, state: TrainState, total_steps: int, score: Score) -> None:
    """A checkpoint's weights and training state are such as this run makes them.

    Hyperparameters in it do not count: they are the recipe's.

    Args:
        saved: As `load_checkpoint` gave it.
        state: What is to take it over.
        total_steps: Optimizer steps of the whole run.
        score: What runs of the task are judged by.

    Raises:
        DamagedError: Something is missing, unknown, or of another shape, type or range; file and part are named.
    """
    average = None if state.average is None else state.average.model.state_dict()
    for file, check in (
        (MODEL_FILE, lambda: _demand_like(saved.model_state, state.model.state_dict())),
        (EMA_FILE, lambda: _demand_average(saved.ema_state, average)),
        (STATE_FILE, lambda: _demand_state(saved, state, total_steps, score)),
    ):
        try:
            check()
        except _Odd as odd:
            raise DamagedError(saved.path / file, f"is not of this run: {odd}") from None


def _demand_like(stored: Mapping[str, Any], wanted: Mapping[str, Tensor]) -> None:
    _demand_keys(stored, set(wanted))
    for name, tensor in wanted.items():
        _demand_tensor(name, stored[name], tensor.shape, tensor.dtype)


def _demand_average(stored: Mapping[str, Any] | None, wanted: Mapping[str, Tensor] | None) -> None:
    if (stored is None) != (wanted is None):
        raise _Odd("it is there without averaging" if wanted is None else "it is missing, and the recipe averages")
    if stored is not None and wanted is not None:
        _demand_like(stored, wanted)


def _demand_state(saved: Checkpoint, state: TrainState, total_steps: int, score: Score) -> None:
    stored = saved.training_state
    _demand_keys(stored, set(_KEYS), _LATER_KEYS)
    progress = stored["progress"]
    _demand_keys(progress, set(vars(state.progress)), where="progress")
    step = _number(progress["step"], "progress step", most=total_steps)
    if step != saved.meta.step:
        raise _Odd(f"it is of step {step}, and the weights are of step {saved.meta.step}")
    _number(progress["log_bytes"], "progress log_bytes")
    _number(progress["seconds"], "progress seconds", kind=float)
    if progress["best"] is not None:
        _number(progress["best"], "progress best", score.least, score.most, kind=float)
    _number(stored["loss_steps"], "loss_steps", most=step)
    _demand_tensor("loss_sum", stored["loss_sum"], torch.Size(()), torch.float32)
    _number(stored.get("processes", 1), "processes", least=1)
    kernels = stored.get("linear_kernel")
    kinds = set(KINDS.values())
    by_kind = kernels if isinstance(kernels, dict) else {} if kernels is None else dict.fromkeys(kinds, kernels)
    if any(kind not in kinds or kernel not in get_args(LinearKernel) for kind, kernel in by_kind.items()):
        raise _Odd(f"linear_kernel is {_brief(kernels)}, expected {' or '.join(get_args(LinearKernel))} by kind")
    if not isinstance(stored.get("native"), bool | None):
        raise _Odd(f"native is {_brief(stored['native'])}, expected true or false")
    if (stored["average_updates"] is None) != (state.average is None):
        raise _Odd("average_updates does not go with the recipe's averaging")
    if state.average is not None:
        _number(stored["average_updates"], "average_updates", most=step)
    _demand_optimizer(stored["optimizer"], state.optimizer, step)


def _demand_optimizer(stored: Any, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Moments of all parameters, in the optimizer's order."""
    _demand_keys(stored, {"state", "param_groups"}, where="the optimizer")
    groups = optimizer.param_groups
    parameters = [parameter for group in groups for parameter in group["params"]]
    by_muon = [group.get("muon", False) for group in groups for _ in group["params"]]
    moments = stored["state"]
    _demand_keys(moments, set(range(len(parameters))) if step else set(), where="the optimizer's state")
    for number, entry in moments.items():
        names = _MUON_MOMENTS if by_muon[number] else _ADAMW_MOMENTS
        _demand_keys(entry, {*names} if by_muon[number] else {"step", *names}, where=f"parameter {number}")
        if not by_muon[number]:
            _demand_tensor(f"step of parameter {number}", entry["step"], torch.Size(()), torch.float32)
            _number(float(entry["step"]), f"step of parameter {number}", most=step, kind=float)
        for name in names:
            shape, dtype = parameters[number].shape, parameters[number].dtype
            _demand_tensor(f"{name} of parameter {number}", entry[name], shape, dtype)


def _demand_keys(stored: Any, needed: set[Any], allowed: frozenset[str] = frozenset(), where: str = "") -> None:
    place = f"{where}: " if where else ""
    if not isinstance(stored, Mapping):
        raise _Odd(f"{place}{_brief(stored)} is no mapping")
    missing, unknown = needed - set(stored), set(stored) - needed - allowed
    if missing:
        raise _Odd(f"{place}{_brief(min(missing, key=str))} is missing")
    if unknown:
        raise _Odd(f"{place}{_brief(min(unknown, key=str))} is unknown")


def _demand_tensor(name: str, stored: Any, shape: torch.Size, dtype: torch.dtype) -> None:
    if not isinstance(stored, Tensor) or stored.layout != torch.strided or stored.device.type != "cpu":
        what = f"a tensor on {stored.device}, {stored.layout}" if isinstance(stored, Tensor) else type(stored).__name__
        raise _Odd(f"{name} is {what}, expected a plain tensor on the CPU")
    if stored.shape != shape or stored.dtype != dtype:
        is_now, expected = f"{tuple(stored.shape)} of {stored.dtype}", f"{tuple(shape)} of {dtype}"
        raise _Odd(f"{name} is {is_now}, expected {expected}".replace("torch.", ""))


def _number(value: Any, name: str, least: float = 0, most: float = math.inf, kind: type = int) -> Any:
    fits = isinstance(value, kind | int) and not isinstance(value, bool)
    if not fits or not (math.isfinite(value) and least <= value <= most):
        bounds = f"from {least:g} to {most:g}" if math.isfinite(most) else f"of at least {least:g}"
        raise _Odd(f"{name} is {_brief(value)}, expected a number {bounds}")
    return value


def _brief(value: Any) -> str:
    return shown(repr(value), 60)


@dataclass(frozen=True)
class Keeper:
    """What every checkpoint of a run shares.

    Attributes:
        run_dir: The run's folder, on a disk that all processes see.
        parts: What the run is made of.
        state: What is saved and restored.
        saver: Writes in the background, on rank 0.
    """

    run_dir: Path
    parts: Parts
    state: TrainState
    saver: Saver

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
        tags = [("best", self._meta(self.parts.schedules.final_softness, epoch))] if best else []
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
        others = (
            "" if before == processes else ", then on 1 process" if before == 1 else f", then on {before} processes"
        )
        notes = [f"continuing {self.run_dir} after step {saved.meta.step}{others}"]
        return notes if newest.warning is None else [f"ATTENTION: {newest.warning}", *notes]

    def last_step(self) -> int | None:
        """Step of the newest checkpoint on disk; None without one."""
        newest = newest_checkpoint(self.run_dir)
        return None if newest is None else int(stated_meta(checkpoint_folder(self.run_dir, newest.tag))["step"])

    def _load(self, tag: str) -> Checkpoint:
        saved = load_checkpoint(self.run_dir, tag, verify=False)  # rank 0 has compared the checksums
        if saved is None:
            raise UserError(f"no checkpoint {tag} is seen in {self.run_dir}; the folder must lie on a shared disk")
        demand_fitting(saved, self.state, self.parts.schedules.total_steps, self.parts.score)
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
        listed = changed_keys(parse_recipe(saved.meta.recipe or {}, f"the recipe in {saved.path}"), self.parts.recipe)
        if listed:
            raise UserError(f"{where}; its recipe differs: {listed}; {undo}")
        changed = difference(saved.meta.classes, self.parts.classes)
        if changed is not None:
            raise UserError(f"{where}; its classes differ: {changed}; {undo}")
        if self._run is not None and saved.training_state.get("run") != self._run:
            raise UserError(f"{where} of the same recipe, begun with other data or other start weights; {undo}")

    def _meta(self, softness: float, epoch: int) -> Meta:
        return Meta(
            config=self.parts.recipe.model,
            classes=self.parts.classes,
            eval_transform=self.parts.eval_loader.transform.to_dict(),
            softness=softness,
            step=self.state.progress.step,
            epoch=epoch,
            recipe=self.parts.recipe.to_dict(),
        )
