"""What a task has to decide; everything else of a run is the same for all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from illama.data import EvalLoader, EvalTransform, Source
from illama.data.targets import Targets
from illama.distributed import World
from illama.evaluation.classify import Forward
from illama.models import ILlama
from illama.recipes import Recipe

# (output of the model, targets) -> 0-d float32.
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TaskData:
    """A recipe and its data, opened.

    Attributes:
        recipe: With what only the data knows: the number of classes, an absolute path.
        train: The training images.
        evaluated: The evaluation images, with the same classes.
        notes: What people should know of them, line by line.
    """

    recipe: Recipe
    train: Source
    evaluated: Source
    notes: list[str]


@dataclass(frozen=True)
class Judgement:
    """What a pass over the evaluation images says of a network.

    Attributes:
        scores: By name, finite; the task's `Score.key` and "loss" are among them.
        count: Images that were judged.
        skipped: Location of each unreadable image, and why.
    """

    scores: dict[str, float]
    count: int
    skipped: dict[str, str]


class Task(ABC):
    """What is learned. It holds no state: all of that is the run's.

    Attributes:
        targets: What a sample's target is, and how augmentation moves it with its image.
    """

    targets: Targets

    @abstractmethod
    def open(self, recipe: Recipe, num_devices: int = 1) -> TaskData:
        """Open the data of a recipe.

        Args:
            recipe: What is to be trained.
            num_devices: Devices that share a step.

        Raises:
            UserError: The data cannot be opened, or the recipe does not fit it or the task; the message names all that
                does not, and what does.
        """

    def build_model(self, recipe: Recipe) -> ILlama:
        """The network, newly initialised from torch's global generator."""
        return ILlama(recipe.model)

    @abstractmethod
    def loss(self, recipe: Recipe) -> Loss:
        """What training makes smaller.

        Raises:
            UserError: `train.loss` does not fit the targets.
        """

    @abstractmethod
    def example_targets(self, recipe: Recipe, batch: int, device: torch.device) -> Tensor:
        """Targets as the loader would hand them out, of any value: more than two processes settle the order in which
        they add up gradients by a step that counts for nothing."""

    @abstractmethod
    def judge(
        self, asked: Sequence[tuple[ILlama, float | None]], loader: EvalLoader, world: World, forward: Forward
    ) -> list[Judgement]:
        """One pass over the evaluation images for several networks, or one at several values of softness. A collective.

        Args:
            asked: Networks, each with the softness of its mask; its own when None.
            loader: This process's share of the images.
            world: The processes that share the pass; all get what one with all images would get.
            forward: How a network's output is computed.
        """

    @abstractmethod
    def draw_predictions(
        self, path: Path | None, model: ILlama, source: Source, transform: EvalTransform, device: torch.device
    ) -> None:
        """Draw what the model says of some evaluation images; unreadable ones are left out.

        Args:
            path: The picture to write. None: the model is asked and nothing is drawn, which is what the other processes
                of a sharded model have to do.
            model: The network, in evaluation mode.
            source: The evaluation images.
            transform: How evaluation looks at them.
            device: Where the model is.

        Raises:
            UserError: The picture cannot be written.
        """
