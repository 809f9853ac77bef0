"""The one training loop: recipe in, run folder out. Running the same command again continues the run exactly."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from illama.checkpoint import Saver
from illama.data import Batch
from illama.data.rng import Purpose, seed_global
from illama.device import autocast, only_repeatable, resolve_precision
from illama.distributed import ALONE, Vote, World, is_sharded, join_world
from illama.errors import Stopped, UserError
from illama.evaluation.origin import DataIdentity, Origin, content_id, names_id
from illama.recipes import Recipe
from illama.system.files import remove_partial
from illama.system.lock import RunLock
from illama.system.processes import stop_signals
from illama.tasks import Score
from illama.training.begun import compare_with_begun, demand_data, given_to_train, what_is_seen
from illama.training.checkpointing import Keeper
from illama.training.figures import draw_curves
from illama.training.log import Log, NoLog, RunLog, summary
from illama.training.objective import build_objective
from illama.training.optim import LossGuard, set_lr
from illama.training.run_folder import check_run_folder, write_run_folder
from illama.training.run_header import start_line
from illama.training.setup import build_state, prepare, start_from
from illama.training.trackers import check_tracker, open_tracker
from illama.training.utilization import StepMeter, Stopwatch
from illama.training.validation import NO_SCORES, Validation


@dataclass(frozen=True)
class TrainResult:
    """What a finished run has to show.

    Attributes:
        run_dir: The run folder.
        steps: Optimizer steps of the run.
        scores: The last evaluation by the names of metrics.jsonl ("top1", "top5", "loss", "top1_causal", ...), at the
            softness in force at the end; at softness 0 those with "_causal".
        score: The one that runs of the task are judged by; its `key` is among the names.
        best: Its best value of all evaluations, at the softness the run ends with.
        softness: Softness in force at the end.
        seconds: Training time, all sittings together.
        skipped: Training images that could not be read, location -> reason.
    """

    run_dir: Path
    steps: int
    scores: dict[str, float]
    score: Score
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
    track: str | None = None,
) -> TrainResult:
    """Train a recipe, or continue where the run in `out` stopped; alone, or as one of the processes of `torchrun`.

    Args:
        recipe: From `illama.load_recipe`.
        out: The run folder; runs/<recipe name> when None.
        device: "cpu", "cuda", "cuda:1", "mps"; the best there is when None. Of several processes on CUDA each takes a
            GPU of its own.
        init_from: Weights that a new run starts from; the position embedding is resized and the head newly
            initialised where the class count differs.
        track: "wandb" for Weights & Biases beside metrics.jsonl and TensorBoard.

    Raises:
        UserError: Data, recipe, weights or folder cannot be used; nothing has been written then.
        Stopped: A signal asked for the end; the run was saved and the same call continues it.
    """
    run_dir = Path(out) if out is not None else Path("runs") / recipe.name
    if recipe.data.path:  # the run's own folder is no place to look for it from
        recipe = recipe.with_data_path(os.path.abspath(os.path.expanduser(recipe.data.path)))
    start_weights = None if init_from is None else Path(init_from)
    lost = f"run the same command again: it goes on from the last checkpoint in {run_dir}"
    with (
        join_world(device, given_to_train(recipe, run_dir, start_weights)) as (world, own_device),
        world.losing_nobody(lost),
        only_repeatable(recipe.train.deterministic, own_device),
    ):
        world.lead(lambda: check_tracker(track))
        return Run(recipe, run_dir, own_device, start_weights, world).complete(track)


class Run:
    """One sitting of a training run, in one of its processes: what it takes to make a step, and where it stands.

    Building it checks everything and reads the data; only then is the folder written, by `complete`.
    """

    def __init__(
        self, recipe: Recipe, run_dir: Path, device: torch.device, init_from: Path | None, world: World = ALONE
    ) -> None:
        self.run_dir, self.device, self.world, self.init_from = run_dir, device, world, init_from
        self.precision = resolve_precision(recipe.train.precision, device)
        self.begun = world.lead(lambda: check_run_folder(run_dir, recipe))
        world.demand_same({"the precision of its device": self.precision})
        start = None if self.begun else init_from
        if self.begun:
            world.agree(lambda: demand_data(recipe, run_dir))
        self.parts = parts = world.agree(lambda: prepare(recipe, device, start, world))
        self._demand_same_everywhere()
        how = parts.recipe.train
        self.validation = Validation(
            parts.task, parts.score, parts.eval_loader, device, self.precision, world, how.compile
        )
        parts.model.set_grad_checkpointing(how.grad_checkpointing)
        self.state = build_state(parts, device, world, self.precision)
        self.objective = build_objective(
            parts.model,
            parts.loss,
            device,
            self.precision,
            compiled=how.compile,
            cuda_graphs=how.cuda_graphs,
            world=world,
            grad_reduce=how.grad_reduce,
        )
        self._frees_gradients = self.objective.prepare_gradients(parts.plan.accumulation)
        self.guard = LossGuard(device, self.state.optimizer, world)
        self.meter = StepMeter(parts.recipe.model, device, self.precision, world.size)
        self.lock = RunLock(run_dir)
        self.keeper = Keeper(run_dir, parts, self.state, Saver(run_dir, self.lock.demand_held))

    def complete(self, track: str | None = None) -> TrainResult:
        """Train until the last step, evaluate, draw the pictures; nobody else may train in the folder meanwhile."""
        with ExitStack() as held:
            self.world.main_only(lambda: held.enter_context(self.lock))
            begun = self.world.lead(lambda: check_run_folder(self.run_dir, self.parts.recipe))
            if begun != self.begun:
                raise self.world.error(
                    f"{self.run_dir} was changed by somebody else meanwhile; run the same command again"
                )
            if self.world.size > 1:
                self.world.demand_same(what_is_seen(self.run_dir))
            notes = list(self.parts.notes)
            if begun:
                notes += self.world.lead(self._compare_with_begun)
                notes += self.keeper.resume()
            else:
                self.world.lead(self._begin_folder)
            log = self.world.main_only(lambda: self._open_log(track, begun)) or NoLog()
            held.enter_context(log.progress())
            stop_asked = held.enter_context(stop_signals(patient=self.world.size > 1))
            held.enter_context(self.keeper.saver)
            self._introduce(log, notes)
            if self.state.progress.step < self.parts.schedules.total_steps:
                evaluation = self._train_steps(log, stop_asked)
            else:
                log.say("This run is finished; it is evaluated again, its weights stay as they are.")
                evaluation = self._evaluate()
            result = self._result(evaluation)
            self._report(log, result)
        self._draw()
        return result

    def _demand_same_everywhere(self) -> None:
        """All processes found the same images, classes and start weights, wherever each has its data."""
        parts = self.parts
        if self.world.size > 1:
            images = {"training images": parts.train_source, "evaluation images": parts.eval_source}
            numbers = {name: str(len(source)) for name, source in images.items()}
            names = {f"{name}' names and labels": names_id(source)[:12] for name, source in images.items()}
            pictures = {f"{name}' content": content_id(source)[:12] for name, source in images.items()}
            started = "new weights" if parts.start is None else f"those of SHA-256 {parts.start.tensors[:12]}"
            classes = {f"class {i}": name for i, name in enumerate(parts.classes)}
            number = {"model.num_classes": parts.recipe.model.num_classes}
            self.world.demand_same({**number, **numbers, **classes, **names, **pictures, "start weights": started})

    @property
    def origin_start(self) -> str | None:
        """What the weights that the run started from are called; None for newly initialised ones."""
        if self.parts.start is not None:
            return self.parts.start.name
        origin = Origin.read(self.run_dir) if self.begun and self.world.is_main else None
        return None if origin is None or origin.start is None else origin.start.name

    def _begin_folder(self) -> None:
        parts = self.parts
        origin = Origin.of(parts.recipe, parts.train_source, parts.eval_source, parts.start)
        write_run_folder(self.run_dir, parts.recipe, parts.classes, self.device, origin.files())

    def _compare_with_begun(self) -> list[str]:
        parts, start = self.parts, None
        if self.init_from is not None:
            with suppress(UserError):  # weights that are gone are compared by their name
                start = start_from(self.init_from)[0]
        origin = Origin(DataIdentity.of(parts.train_source), DataIdentity.of(parts.eval_source), start=start)
        per_epoch = parts.schedules.steps_per_epoch
        return compare_with_begun(self.run_dir, parts.recipe, parts.classes, origin, self.init_from, per_epoch)

    def _open_log(self, track: str | None, begun: bool) -> RunLog:
        progress, schedules, recipe = self.state.progress, self.parts.schedules, self.parts.recipe
        with suppress(OSError):
            remove_partial(self.run_dir)
        return RunLog(
            self.run_dir,
            keep_bytes=progress.log_bytes,
            step=progress.step,
            total_steps=schedules.total_steps,
            eval_every_steps=schedules.steps_per_epoch * recipe.train.eval_every_epochs,
            tracker=open_tracker(track, self.run_dir, recipe.to_dict(), resume=begun),
            before_writing=self.lock.demand_held,
        )

    def _train_steps(self, log: Log, stop_asked: threading.Event) -> dict[str, Any]:
        """All steps that are left; returns the last evaluation's record."""
        progress, schedules, recipe = self.state.progress, self.parts.schedules, self.parts.recipe
        if self.world.size > 2 and recipe.train.parallel == "ddp":
            self._settle_buckets()
        evaluation: dict[str, Any] = {}
        batches = self.parts.train_loader.batches(progress.step, schedules)
        since, vote = Stopwatch(), Vote(self.world)
        try:
            while progress.step < schedules.total_steps:
                waited = self._step(batches)
                since.count(self.parts.plan.total_batch, waited)
                self.keeper.saver.check()
                step = progress.step = progress.step + 1
                at_log = step % recipe.train.log_every_steps == 0 or step % schedules.steps_per_epoch == 0
                log.advance(step, self._log_step(log, since) if at_log else None)
                evaluation = self._end_of_step(step, log, since) or evaluation
                if vote.cast(stop_asked.is_set()) and step < schedules.total_steps:
                    self._save(log, since)
                    self.keeper.saver.close()
                    vote.close()
                    self.world.wait()  # a launcher ends the others when the first one has gone
                    raise Stopped(f"stopped at step {step} and saved; run the same command again to continue")
            vote.close()
        finally:
            batches.close()
        return evaluation

    def _step(self, batches: Iterator[Batch]) -> float:
        """One optimizer step; returns the seconds spent waiting for data."""
        state, step, waited, recipe = self.state, self.state.progress.step, 0.0, self.parts.recipe
        self._apply_schedules(step)
        self.parts.model.train()
        for left in reversed(range(self.parts.plan.accumulation)):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            assert batch.micro is not None
            seed_global(self.device, Purpose.DROP, recipe.seed, step, batch.micro.part)
            with self.objective.exchanging(left == 0):
                loss = self.objective(batch.images, batch.targets, batch.kept) / self.parts.plan.accumulation
                loss.backward()
            state.loss_sum += loss.detach() / self.world.size
            self.guard.watch(loss.detach(), step)
        self.guard.close_step()
        if recipe.optimizer.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(self.parts.model.parameters(), recipe.optimizer.clip_grad)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=self._frees_gradients)
        state.loss_steps += 1
        if state.average is not None:
            state.average.update(self.parts.model)
        return waited

    def _settle_buckets(self) -> None:
        """One backward pass whose gradients are thrown away.

        The order in which more than two processes add up gradients follows from DDP's buckets, which it arranges anew
        after the first pass. So the first step of a continued run adds up as the same step of an undisturbed one.
        """
        parts, config = self.parts, self.parts.recipe.model
        images = torch.zeros(parts.plan.device_batch, config.in_chans, *config.height_width, device=self.device)
        parts.model.train()
        self.objective(images, parts.task.example_targets(parts.recipe, len(images), self.device)).backward()
        self.state.optimizer.zero_grad(set_to_none=True)

    def _apply_schedules(self, step: int) -> None:
        """The one place where schedules touch model and optimizer: once per optimizer step."""
        schedules, model = self.parts.schedules, self.parts.model
        set_lr(self.state.optimizer, schedules.lr(step))
        model.set_softness(schedules.softness(step))
        model.set_drop_path(schedules.drop_path(step))

    def _end_of_step(self, step: int, log: Log, since: Stopwatch) -> dict[str, Any] | None:
        """Evaluate and save where it is due; returns the record of an evaluation."""
        every, schedules, score = self.parts.recipe.train, self.parts.schedules, self.parts.score
        epoch, within = divmod(step, schedules.steps_per_epoch)
        last = step == schedules.total_steps
        evaluates = not within and (epoch % every.eval_every_epochs == 0 or last)
        saves = (not within and (epoch % every.save_every_epochs == 0 or last)) or self._keeps(epoch, within)
        saves = saves or (every.save_every_steps is not None and step % every.save_every_steps == 0)
        if not (evaluates or saves):
            return None
        self._check_finite()
        since.pause()
        evaluation, improved = None, False
        if evaluates:
            evaluation = self._evaluate()
            bad = [key for key, value in evaluation.items() if isinstance(value, float) and not math.isfinite(value)]
            if bad:
                raise self._diverged(f"the evaluation at step {step} gives {bad[0]}={evaluation[bad[0]]}")
            log.write(evaluation)
            log.say(self.validation.in_words(evaluation))
            judged = evaluation[score.judged_key(schedules.ends_soft)]
            improved = score.is_better(judged, self.state.progress.best)
            if improved:
                self.state.progress.best = judged
        if saves or improved:
            self._save(log, since, best=improved)
        since.go_on()
        return evaluation

    def _keeps(self, epoch: int, within: int) -> bool:
        """Whether the checkpoint of this moment stays for good."""
        every = self.parts.recipe.train.keep_every_epochs
        return every is not None and not within and epoch % every == 0

    def _log_step(self, log: Log, since: Stopwatch) -> str:
        """Write a log line; the only place in the step where the host waits for the device."""
        self._check_finite()
        schedules, step = self.parts.schedules, self.state.progress.step
        loss = self.state.mean_loss()
        images_per_s, data_wait = since.rates()
        record: dict[str, Any] = {
            "kind": "train",
            "step": step,
            "epoch": step / schedules.steps_per_epoch,
            "loss": loss,
            "lr": schedules.lr(step - 1),
            "softness": schedules.softness(step - 1),
            "drop_path": schedules.drop_path(step - 1),
            "patches": schedules.kept_patches(step - 1),
            "images_per_s": images_per_s,
            "data_wait": data_wait,
        }
        record |= self.meter.summary(images_per_s, record["softness"], record["patches"])
        log.write(record)
        return summary(record, self.parts.recipe.schedule.epochs)

    def _check_finite(self) -> None:
        bad = self.guard.first_bad_step()
        if bad is None:
            return
        where = f" on process {self.guard.bad_ranks()}" if self.world.size > 1 else ""
        lr = self.parts.schedules.lr(bad)
        raise self._diverged(
            f"the loss is not finite at step {bad}{where} (learning rate {lr:.3g}); no weight was changed by it"
        )

    def _diverged(self, what: str) -> UserError:
        """The error of a run that cannot go on; to be raised by all processes."""
        self.keeper.saver.close()
        last = self.world.lead(self.keeper.last_step)
        good = "there is no checkpoint yet" if last is None else f"the last good checkpoint is step {last}"
        return self.world.error(
            f"{what}; {good} ({self.run_dir / 'checkpoints' / 'last'}); "
            "lower optimizer.lr or set optimizer.clip_grad=1.0, in a new folder (--out)"
        )

    def _evaluate(self) -> dict[str, Any]:
        """The record of an evaluation, now. A collective."""
        step = self.state.progress.step
        epoch = step // self.parts.schedules.steps_per_epoch
        return self.validation(self.parts.model, self.state.average, step=step, epoch=epoch)

    def _save(self, log: Log, since: Stopwatch, *, best: bool = False) -> None:
        self._check_finite()
        self.world.lead(self.lock.demand_held)
        progress = self.state.progress
        progress.log_bytes = log.bytes_written
        progress.seconds += since.taken()
        epoch, within = divmod(progress.step, self.parts.schedules.steps_per_epoch)
        self.keeper.save(epoch, best=best, keep=self._keeps(epoch, within))

    def _introduce(self, log: Log, notes: Sequence[str]) -> None:
        parts = self.parts
        log.say(
            start_line(
                parts.recipe,
                parts.plan,
                device=self.device,
                precision=self.precision,
                total_steps=parts.schedules.total_steps,
                run_dir=self.run_dir,
                start=self.origin_start,
            )
        )
        for note in notes:
            log.say(f"  {note}", style="dim")
        for loader, what in ((parts.train_loader, "training"), (parts.eval_loader, "test")):
            log.say_skipped(loader.skipped, what)

    def _result(self, evaluation: dict[str, Any]) -> TrainResult:
        """The outcome. A collective."""
        parts, progress = self.parts, self.state.progress
        skipped = {where: why for own in self.world.gather(parts.train_loader.skipped) for where, why in own.items()}
        return TrainResult(
            run_dir=self.run_dir,
            steps=progress.step,
            scores={name: value for name, value in evaluation.items() if name not in NO_SCORES},
            score=parts.score,
            best=evaluation[parts.score.key] if progress.best is None else progress.best,
            softness=parts.schedules.final_softness,
            seconds=progress.seconds,
            skipped=skipped,
        )

    def _report(self, log: Log, result: TrainResult) -> None:
        score, scores = result.score, result.scores
        if result.softness:
            log.say(
                f"ATTENTION: this run ended at softness {result.softness:g}, not 0: its mask is not causal. "
                f"{score.title.capitalize()} {score.shown(scores[score.key])} holds at that softness, "
                f"{score.shown(scores[score.causal_key])} at softness 0.",
                style="bold red",
            )
        log.say_skipped(result.skipped, "training")

    def _draw(self) -> None:
        """The pictures of the run; a sharded model is asked by all processes."""
        parts = self.parts
        if self.world.is_main:
            draw_curves(self.run_dir)
        if self.world.is_main or is_sharded(parts.model):
            path = self.run_dir / "predictions.png" if self.world.is_main else None
            transform = parts.eval_loader.transform
            parts.model.eval()
            with autocast(self.device, self.precision):  # blocks that are sharded in bf16 take nothing else
                parts.task.draw_predictions(path, parts.model, parts.eval_source, transform, self.device)
