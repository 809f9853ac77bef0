"""One pass over the data, what it says of a classifier, and evaluation from paths."""

from __future__ import annotations

import dataclasses
import math
import operator
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from illama.distributed import ALONE, World, is_sharded
from illama.errors import UserError
from illama.evaluation.origin import content_id, names_id, network_id
from illama.evaluation.scores import Scores
from illama.evaluation.subject import Subject, open_subject

if TYPE_CHECKING:
    from illama.data.loading.batch import Batch
    from illama.data.loading.loader import EvalLoader
    from illama.models import ILlama

Forward = Callable[["ILlama", "Tensor"], "Tensor"]  # logits of images


@dataclass(frozen=True)
class EvalResult:
    """What an evaluation found.

    Attributes:
        top1, top5: Accuracy in percent. With five classes or fewer, top-5 is 100.
        loss: Mean cross-entropy in nats.
        count: Images evaluated, each exactly once.
        class_hits: Images of each class that were classified correctly, in index order.
        class_counts: Images of each class.
        softness: Softness of the mask during the pass.
        images_per_s: Images per second over the whole pass, reading included.
        skipped: Images that could not be read: location -> reason. They are not counted.
        classes: Class names in index order; () where they are unknown.
        data: What was evaluated on, for people.
        weights: Which weights, for people: the file and its optimizer step.
    """

    top1: float
    top5: float
    loss: float
    count: int
    class_hits: tuple[int, ...]
    class_counts: tuple[int, ...]
    softness: float
    images_per_s: float
    skipped: dict[str, str] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    data: str = ""
    weights: str = ""

    @property
    def per_class(self) -> dict[str, float | None]:
        """Accuracy in percent by class name (by number where names are unknown); None without images."""
        names = self.classes or tuple(map(str, range(len(self.class_counts))))
        rows = zip(names, self.class_hits, self.class_counts, strict=True)
        return {name: 100.0 * hits / count if count else None for name, hits, count in rows}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        names = ("top1", "top5", "loss", "count", "softness", "images_per_s")
        return {name: getattr(self, name) for name in names} | {
            "per_class": self.per_class,
            "class_counts": list(self.class_counts),
            "skipped": self.skipped,
            "data": self.data,
            "weights": self.weights,
        }


def evaluate_model(
    model: ILlama,
    loader: EvalLoader,
    num_classes: int,
    *,
    softness: float | None = None,
    progress: bool = False,
    world: World = ALONE,
    keep: KeptLogits | None = None,
) -> EvalResult:
    """Classify every image once and judge the logits.

    Args:
        model: Left in the mode and at the softness that it came with.
        loader: Batches of normalised images with integer targets, on the model's device.
        num_classes: Classes to count by.
        softness: Softness of the mask during the pass; the model's own when None.
        progress: Draw a bar with the remaining time on stderr, where that is a terminal.
        world: The processes that share the pass, each with its share of the images in `loader`. All get the result
            that one process with all images would get.
        keep: Where this process's share of the logits goes; None keeps only what the result needs.

    Raises:
        UserError: There was no readable image.
    """
    return evaluate_together([(model, softness)], loader, num_classes, progress=progress, world=world, keep=keep)[0]


def evaluate_together(
    asked: Sequence[tuple[ILlama, float | None]],
    loader: EvalLoader,
    num_classes: int,
    *,
    progress: bool = False,
    world: World = ALONE,
    keep: KeptLogits | None = None,
    forward: Forward = lambda model, images: model(images),
) -> list[EvalResult]:
    """`evaluate_model` of several models, or of one at several values of softness, in one pass over the data.

    Args:
        asked: Models, each with the softness of its mask; its own when None.
        loader, num_classes, progress, world: As for `evaluate_model`.
        keep: Where the logits of the first one go.
        forward: How a model's logits are computed, from the model and images.

    Returns:
        A result for each; images per second are those of the pass that they share.

    Raises:
        UserError: There was no readable image.
    """
    parts: list[list[Scores]] = [[] for _ in asked]

    def judge(number: int, logits: Tensor, batch: Batch) -> None:
        parts[number].append(Scores.of(logits, batch.targets, batch.indices))
        if keep is not None and not number:
            keep.add(number, logits, batch)

    started = time.perf_counter()
    used = classify_each(asked, loader, judge, progress=progress, world=world, forward=forward)
    # Joining waits for the device, so the time below is the pass's.
    joined = [Scores.join(world.gather(Scores.join(scores))) for scores in parts]
    skipped = skipped_by_all(loader, world)
    if not len(joined[0].targets):
        raise world.error(f"no image could be evaluated; {len(skipped)} were skipped as unreadable")
    seconds = time.perf_counter() - started
    results = []
    for scores, softness in zip(joined, used, strict=True):
        hits, counts = scores.per_class(num_classes)
        results.append(
            EvalResult(
                top1=scores.top(1),
                top5=scores.top(5),
                loss=scores.mean_loss(),
                count=len(scores.targets),
                class_hits=tuple(hits),
                class_counts=tuple(counts),
                softness=softness,
                images_per_s=len(scores.targets) / seconds,
                skipped=skipped,
            )
        )
    return results


class KeptLogits:
    """One process's share of the logits of a pass, on the CPU."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, _: int, logits: Tensor, batch: Batch) -> None:
        """Keep one batch's; what `classify_each` calls."""
        self._parts.append((logits.float().cpu(), batch.targets.cpu(), batch.indices.cpu()))

    def join(self, world: World = ALONE) -> tuple[Tensor, Tensor, Tensor]:
        """All processes' in the order of the source; a collective.

        Returns:
            Logits (N, C) float32, targets (N,) and positions in the source (N,), int64.

        Raises:
            UserError: There are none.
        """
        mine = tuple(map(torch.cat, zip(*self._parts, strict=True)))
        shares = [share for share in world.gather(mine) if share]
        if not shares:
            raise world.error("no image could be evaluated; give a data set whose images can be read")
        logits, targets, indices = map(torch.cat, zip(*shares, strict=True))
        order = torch.argsort(indices, stable=True)
        return logits[order], targets[order], indices[order]


def collect_logits(
    model: ILlama,
    loader: EvalLoader,
    *,
    progress: bool = False,
    world: World = ALONE,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same pass as that of `evaluate_model`, keeping the logits for measures of one's own.

    Returns:
        Logits (N, C) float32, targets (N,) and positions in the source (N,), on the CPU, in the order of the source.

    Raises:
        UserError: There was no readable image.
    """
    kept = KeptLogits()
    classify_each([(model, None)], loader, kept.add, progress=progress, world=world)
    return kept.join(world)


def skipped_by_all(loader: EvalLoader, world: World) -> dict[str, str]:
    """Location of each image that a pass could not read, and why, of all processes; a collective."""
    return {where: why for skipped in world.gather(loader.skipped) for where, why in skipped.items()}


def classify_each(
    asked: Sequence[tuple[ILlama, float | None]],
    loader: EvalLoader,
    look: Callable[[int, Tensor, Batch], None],
    *,
    progress: bool = False,
    world: World = ALONE,
    forward: Forward = lambda model, images: model(images),
) -> list[float]:
    """The pass itself: hand the logits of each model (by its number) and batch to `look`.

    Returns:
        The softness of each model during the pass.
    """
    from illama.console.progress import WorkProgress

    softnesses = [float(model.softness) if softness is None else softness for model, softness in asked]
    with ExitStack() as stack:
        bar = WorkProgress("classifying", operator.length_hint(loader), "batches") if progress else None
        if bar is not None:
            stack.enter_context(bar)
        for model, _ in asked:
            stack.enter_context(evaluating(model, None))
        for batch in _in_step(loader, [model for model, _ in asked], world):
            for number, (model, _) in enumerate(asked):
                model.set_softness(softnesses[number])
                look(number, forward(model, batch.images), batch)
            if bar is not None:
                bar.advance(1)
    return softnesses


def _in_step(loader: EvalLoader, models: Sequence[nn.Module], world: World) -> Iterator[Batch]:
    """The loader's batches. Models whose weights are cut into shards are put together by all processes in each forward
    pass, so one that has run out of images takes part until the last one has, with an image that counts for nothing."""
    if world.size == 1 or not any(map(is_sharded, models)):
        yield from loader
        return
    batches, transform = iter(loader), loader.transform
    while True:
        batch = next(batches, None)
        if not any(world.gather(batch is not None)):
            return
        if batch is not None:
            yield batch
            continue
        nothing = torch.zeros(1, transform.in_chans, *transform.img_size, device=loader.device)
        for model in models:
            model(nothing)


@contextmanager
def evaluating(model: ILlama, softness: float | None) -> Iterator[None]:
    """Evaluation mode, no gradients, the given softness; afterwards all is as before."""
    was_training, before = model.training, float(model.softness)
    model.eval()
    if softness is not None:
        model.set_softness(softness)
    try:
        with torch.no_grad():  # not inference_mode: what a module keeps from this pass may be trained on later
            yield
    finally:
        model.set_softness(before)
        model.train(was_training)


def evaluate_subject(
    subject: Subject,
    loader: EvalLoader | None = None,
    *,
    progress: bool = False,
    world: World = ALONE,
    keep: KeptLogits | None = None,
) -> EvalResult:
    """`evaluate_model` of a network on its images, with the names of both; a loader where there is one already."""
    classes = subject.meta.config.num_classes
    loader = subject.loader(world) if loader is None else loader
    result = evaluate_model(subject.model, loader, classes, progress=progress, world=world, keep=keep)
    description = subject.source.description
    return dataclasses.replace(result, classes=subject.meta.classes, data=description, weights=subject.weights)


def evaluate(
    checkpoint: Path | str,
    *,
    data: str | None = None,
    split: str | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    softness: float | None = None,
    progress: bool = False,
    save_logits: Path | str | None = None,
) -> EvalResult:
    """Top-1, top-5, loss and per-class accuracy of a trained model; alone, or as one of the processes of `torchrun`.

    Args:
        checkpoint: Whatever `illama.load_model` takes.
        data: Another data set than the one trained on: a folder or file, or a name ("digits", "torch/cifar10").
        split: Which split; the recipe's evaluation split when None.
        batch_size: Images at a time; the recipe's when None.
        device: "cpu", "cuda", "cuda:1", "mps"; the best there is when None.
        softness: Softness of the mask; the one saved with the weights when None.
        progress: Draw a progress bar on stderr.
        save_logits: A .safetensors file that the logits go to (`illama.evaluation.SavedLogits` reads it).

    Returns:
        The result. Images are read with the evaluation transform that travels with the weights, and classes keep
        the numbers that they had in training.

    Raises:
        UserError: Checkpoint, data or device cannot be used, or the logits cannot be written.
    """
    from illama.distributed import join_world  # imported here: the training loop evaluates too
    from illama.evaluation.saved_logits import check_target, class_mismatch, described

    target_file = None if save_logits is None else Path(save_logits)

    given = {"the command": "eval", "--save-logits": target_file is not None}
    with join_world(device, given) as (world, target), world.losing_nobody("run the same command again"):

        def prepare() -> tuple[Subject, EvalLoader]:
            if target_file is not None:
                check_target(target_file)
            subject = open_subject(
                checkpoint, data=data, split=split, batch_size=batch_size, device=target, softness=softness
            )
            problem = class_mismatch(subject)
            if problem is not None:
                raise UserError(problem)
            return subject, subject.loader(world)

        subject, loader = world.agree(prepare)
        if world.size > 1:
            world.demand_same(_judged(subject))
        keep = None if target_file is None else KeptLogits()
        result = evaluate_subject(subject, loader, progress=progress and world.is_main, world=world, keep=keep)
        if not math.isfinite(result.loss):
            raise world.error(f"{subject.weights} answers with NaN or infinity; these weights cannot be judged")
        if keep is not None and target_file is not None:
            saved = described(subject, keep.join(world), result.skipped)
            world.main_only(lambda: saved.save(target_file))
    return result


def _judged(subject: Subject) -> dict[str, object]:
    """What all processes have to judge, wherever each has it."""
    network = network_id(subject.model, subject.transform)
    return {
        "the network": network[:12],
        "images": len(subject.source),
        "the images' names and labels": names_id(subject.source)[:12],
        "the images' content": content_id(subject.source)[:12],
        "images at a time": subject.batch_size,
    }
