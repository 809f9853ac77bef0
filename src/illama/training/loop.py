"""The one training loop: recipe in, run folder out. Running the same command again continues the run exactly."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from illama.checkpoint import Meta, initialize_from, load_checkpoint, save_checkpoint
from illama.data import EvalTransform, build_eval_loader, build_train_loader, open_source
from illama.data.loader import EvalLoader, TrainLoader
from illama.data.source import Source
from illama.device import resolve_device, resolve_precision
from illama.errors import Stopped, UserError
from illama.models import ILlama
from illama.recipes import BatchPlan, Recipe, plan_batches
from illama.training.ema import WeightAverage
from illama.training.figures import draw_curves
from illama.training.guard import LossGuard
from illama.training.log import RunLog
from illama.training.losses import build_loss
from illama.training.objective import build_objective
from illama.training.optim import build_adamw, param_groups, set_lr
from illama.training.predictions import draw_test_predictions
from illama.training.run_folder import check_run_folder, write_run_folder
from illama.training.schedules import Schedules
from illama.training.signals import stop_signals
from illama.training.state import TrainState
from illama.training.stopwatch import Stopwatch
from illama.training.validation import Validation, in_words


@dataclass(frozen=True)
class TrainResult:
    """What a finished run has to show.

    Attributes:
        run_dir: The run folder.
        steps: Optimizer steps of the run.
        top1: Test accuracy in percent at the softness in force at the end.
        top1_causal: The same at softness 0.
        best: Highest accuracy in percent of all evaluations, at the softness the run ends with.
        softness: Softness in force at the end.
        seconds: Training time, all sittings together.
        skipped: Training images that could not be read, location -> reason.
    """

    run_dir: Path
    steps: int
    top1: float
    top1_causal: float
    best: float
    softness: float
    seconds: float
    skipped: dict[str, str]


def train(
    recipe: Recipe,
    out: Path | str | None = None,
    *,
    device: str | None = None,
    init_from: Path | str | None = None,
) -> TrainResult:
    """Train a recipe, or continue where the run in `out` stopped.

    Args:
        recipe: From `illama.load_recipe`.
        out: The run folder; runs/<recipe name> when None.
        device: "cpu", "cuda", "cuda:1", "mps"; the best there is when None.
        init_from: Weights that a new run starts from; the position embedding is resized and the head newly
            initialised where the class count differs.

    Raises:
        UserError: Data, recipe, weights or folder cannot be used; nothing has been written then.
        Stopped: A signal asked for the end; the run was saved and the same call continues it.
    """
    run_dir = Path(out) if out is not None else Path("runs") / recipe.name
    start_weights = None if init_from is None else Path(init_from)
    begun = check_run_folder(run_dir, recipe, start_weights)
    target = resolve_device(device)
    run = Run(recipe, run_dir, target, start_weights, begun)
    return run.complete()


class Run:
    """One sitting of a training run.

    Building it checks everything and reads the data; only then is the folder written.
    """

    def __init__(
        self, recipe: Recipe, run_dir: Path, device: torch.device, init_from: Path | None, begun: bool
    ) -> None:
        self.recipe, self.run_dir, self.device = recipe, run_dir, device
        self.plan: BatchPlan = plan_batches(recipe)
        self.precision = resolve_precision(recipe.train.precision, device)
        self.transform = EvalTransform.of(recipe)
        train_source, eval_source = _open_sources(recipe)
        self.classes, self.eval_source = train_source.classes, eval_source
        self.train_loader: TrainLoader = build_train_loader(recipe, train_source, device, self.plan)
        self.eval_loader: EvalLoader = build_eval_loader(
            eval_source, self.transform, recipe.train.eval_batch, device, recipe.data.workers
        )
        self.validation = Validation(self.eval_loader, device, self.precision)
        self.schedules = Schedules.of(recipe, self.train_loader.steps_per_epoch, lr=self.plan.lr)
        loss = build_loss(recipe.train.loss, recipe.augment)
        torch.manual_seed(recipe.seed)
        self.model = ILlama(recipe.model)
        self.notes = [train_source.description, self.train_loader.description, eval_source.description]
        if init_from is not None:
            self.notes.append(str(initialize_from(init_from, self.model)))
        self.model.to(device).set_grad_checkpointing(recipe.train.grad_checkpointing)
        self.objective = build_objective(
            self.model,
            loss,
            device,
            self.precision,
            compiled=recipe.train.compile,
            cuda_graphs=recipe.train.cuda_graphs,
        )
        self.state = self._new_state()
        self.guard = LossGuard(device, self.state.optimizer)
        if begun:
            self._resume()
        else:
            write_run_folder(run_dir, recipe, self.classes, device)
        self.last_eval: dict[str, Any] = {}

    def complete(self) -> TrainResult:
        """Train until the last step, evaluate, draw the pictures."""
        progress, total = self.state.progress, self.schedules.total_steps
        self.log = RunLog(self.run_dir, keep_bytes=progress.log_bytes, step=progress.step, total_steps=total)
        with self.log.progress(), stop_signals() as stop_asked:
            self._introduce()
            if progress.step < total:
                self._train_steps(stop_asked)
            else:
                self.log.say("This run is finished; it is evaluated again, its weights stay as they are.")
                self.last_eval = self._evaluate(write=False)
            self._report()
        draw_curves(self.run_dir)
        draw_test_predictions(self.run_dir, self.model, self.eval_source, self.transform, self.device)
        return self._result()

    def _train_steps(self, stop_asked: threading.Event) -> None:
        progress, per_epoch = self.state.progress, self.schedules.steps_per_epoch
        batches = self.train_loader.batches(progress.step)
        since = Stopwatch()
        try:
            while progress.step < self.schedules.total_steps:
                waited = self._step(batches)
                since.count(self.plan.total_batch, waited)
                step = progress.step = progress.step + 1
                at_log = step % self.recipe.train.log_every_steps == 0 or step % per_epoch == 0
                self.log.advance(step, self._log_step(since) if at_log else None)
                self._end_of_step(step, per_epoch, since)
                if stop_asked.is_set() and step < self.schedules.total_steps:
                    self._save("last", since)
                    raise Stopped(f"stopped at step {step} and saved; run the same command again to continue")
        finally:
            batches.close()

    def _step(self, batches: Iterator[Any]) -> float:
        """One optimizer step; returns the seconds spent waiting for data."""
        state, step, waited = self.state, self.state.progress.step, 0.0
        self._apply_schedules(step)
        self.model.train()
        for _ in range(self.plan.accumulation):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            loss = self.objective(batch.images, batch.targets) / self.plan.accumulation
            loss.backward()
            state.loss_sum += loss.detach()
            self.guard.watch(loss.detach(), step)
        if self.recipe.optimizer.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optimizer.clip_grad)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.loss_steps += 1
        if state.average is not None:
            state.average.update(self.model)
        return waited

    def _apply_schedules(self, step: int) -> None:
        """The one place where schedules touch model and optimizer: once per optimizer step."""
        set_lr(self.state.optimizer, self.schedules.lr(step))
        self.model.set_softness(self.schedules.softness(step))
        self.model.set_drop_path(self.schedules.drop_path(step))

    def _end_of_step(self, step: int, per_epoch: int, since: Stopwatch) -> None:
        """Evaluate and save where it is due."""
        every, total = self.recipe.train, self.schedules.total_steps
        epoch, within = divmod(step, per_epoch)
        saves = every.save_every_steps is not None and step % every.save_every_steps == 0
        if within and not saves:
            return
        self._check_finite()
        since.pause()
        improved = False
        if not within and (epoch % every.eval_every_epochs == 0 or step == total):
            self.last_eval = self._evaluate(write=True)
            judged = self.last_eval["top1" if self._final_softness() else "top1_causal"]
            improved = self.state.progress.best is None or judged > self.state.progress.best
            if improved:
                self.state.progress.best = judged
        if improved:  # first: a crash between the two replays this evaluation, and "best" is what its name says
            self._save("best", since)
        self._save("last", since)
        since.go_on()

    def _log_step(self, since: Stopwatch) -> str:
        """Write a log line; the only place in the step where the host waits for the device."""
        self._check_finite()
        state, step = self.state, self.state.progress.step
        loss = float(state.loss_sum) / state.loss_steps
        state.loss_sum.zero_()
        state.loss_steps = 0
        images_per_s, data_wait = since.rates()
        record = {
            "kind": "train",
            "step": step,
            "epoch": step / self.schedules.steps_per_epoch,
            "loss": loss,
            "lr": self.schedules.lr(step - 1),
            "softness": self.schedules.softness(step - 1),
            "drop_path": self.schedules.drop_path(step - 1),
            "images_per_s": images_per_s,
            "data_wait": data_wait,
        }
        self.log.write(record)
        return (
            f"epoch {record['epoch']:.1f}  loss {loss:.3f}  softness {record['softness']:.2f}  "
            f"{images_per_s:.0f} images/s  data wait {data_wait:.0%}"
        )

    def _check_finite(self) -> None:
        bad = self.guard.first_bad_step()
        if bad is None:
            return
        last = load_checkpoint(self.run_dir, "last")
        good = "there is no checkpoint yet" if last is None else f"the last good checkpoint is step {last.meta.step}"
        raise UserError(
            f"the loss is not finite at step {bad} (learning rate {self.schedules.lr(bad):.3g}); no weight was changed "
            f"by it; {good} ({self.run_dir / 'checkpoints' / 'last'}); "
            "lower optimizer.lr or set optimizer.clip_grad=1.0, in a new folder (--out)"
        )

    def _evaluate(self, *, write: bool) -> dict[str, Any]:
        step = self.state.progress.step
        epoch = step // self.schedules.steps_per_epoch
        record = self.validation(self.model, self.state.average, step=step, epoch=epoch)
        if write:
            self.log.write(record)
            self.log.say(in_words(record))
        return record

    def _save(self, tag: str, since: Stopwatch) -> None:
        self._check_finite()
        progress = self.state.progress
        progress.log_bytes = self.log.bytes_written
        progress.seconds += since.taken()
        softness = self._final_softness() if tag == "best" else float(self.model.softness)
        average = self.state.average
        save_checkpoint(
            self.run_dir,
            tag,
            model_state=self.model.state_dict(),
            training_state=self.state.to_dict(),
            meta=self._meta(softness),
            ema_state=None if average is None else average.model.state_dict(),
        )

    def _meta(self, softness: float) -> Meta:
        step = self.state.progress.step
        return Meta(
            config=self.recipe.model,
            classes=self.classes,
            eval_transform=self.transform.to_dict(),
            softness=softness,
            step=step,
            epoch=step // self.schedules.steps_per_epoch,
            recipe=self.recipe.to_dict(),
        )

    def _resume(self) -> None:
        saved = load_checkpoint(self.run_dir, "last")
        assert saved is not None, "check_run_folder said that the run has begun"
        self.model.load_state_dict(saved.model_state)
        self.state.load(saved.training_state, saved.ema_state)
        self.model.set_softness(saved.meta.softness)
        self.notes.append(f"continuing {self.run_dir} after step {saved.meta.step}")

    def _new_state(self) -> TrainState:
        optimizer, decay = self.recipe.optimizer, self.recipe.train.ema_decay
        groups = param_groups(self.model, optimizer.weight_decay, optimizer.layer_decay)
        return TrainState(
            model=self.model,
            optimizer=build_adamw(groups, betas=optimizer.betas, eps=optimizer.eps),
            average=None if decay is None else WeightAverage(self.model, decay),
            device=self.device,
        )

    def _final_softness(self) -> float:
        return self.schedules.softness(self.schedules.total_steps - 1)

    def _introduce(self) -> None:
        plan, total = self.plan, self.schedules.total_steps
        parameters = sum(p.numel() for p in self.model.parameters())
        self.log.say(
            f"{self.recipe.name}: {parameters / 1e6:.2f} M parameters on {self.device} in {self.precision}, "
            f"{total} steps of {plan.device_batch} x {plan.accumulation} = {plan.total_batch} images -> {self.run_dir}"
        )
        for note in self.notes:
            self.log.say(f"  {note}", style="dim")
        for loader, what in ((self.train_loader, "training"), (self.eval_loader, "test")):
            self.log.say_skipped(loader.skipped, what)

    def _report(self) -> None:
        softness = self._final_softness()
        if softness:
            self.log.say(
                f"ATTENTION: this run ended at softness {softness:g}, not 0: its mask is not causal. "
                f"Top-1 {self.last_eval['top1']:.2f} % holds at that softness, "
                f"{self.last_eval['top1_causal']:.2f} % at softness 0.",
                style="bold red",
            )
        self.log.say_skipped(self.train_loader.skipped, "training")

    def _result(self) -> TrainResult:
        progress = self.state.progress
        return TrainResult(
            run_dir=self.run_dir,
            steps=progress.step,
            top1=self.last_eval["top1"],
            top1_causal=self.last_eval["top1_causal"],
            best=self.last_eval["top1"] if progress.best is None else progress.best,
            softness=self._final_softness(),
            seconds=progress.seconds,
            skipped=dict(self.train_loader.skipped),
        )


def _open_sources(recipe: Recipe) -> tuple[Source, Source]:
    channels, seed = recipe.model.in_chans, recipe.seed
    train_source = open_source(recipe.data, "train", in_chans=channels, seed=seed)
    classes = train_source.classes
    if len(classes) != recipe.model.num_classes:
        raise UserError(
            f"the data has {len(classes)} classes, model.num_classes is {recipe.model.num_classes}; "
            f"give model.num_classes={len(classes)}"
        )
    return train_source, open_source(recipe.data, "eval", in_chans=channels, classes=classes, seed=seed)
