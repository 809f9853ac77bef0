"""Studies at toy scale, trained in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from pathlib import Path

import pytest

from illama.reproduce import command
from illama.reproduce.runner import Slot, Work, attempt
from illama.reproduce.study import PlannedRun

TOY = (
    *("model.embed_dim=16", "model.depth=2", "model.num_heads=2"),
    *("schedule.epochs=3", "schedule.warmup_epochs=1", "train.total_batch=32", "optimizer.lr_batch=32"),
    *("data.max_train_images=64", "data.max_eval_images=30", "train.log_every_steps=1"),
)


class InlineSlot(Slot):
    """A slot that works here and now.

    Attributes:
        trained: Folders of the runs that it was given.
    """

    def __init__(self) -> None:
        super().__init__("cpu")
        self.trained: list[Path] = []

    def submit(self, work: Work, run: PlannedRun, log: Path) -> None:
        self.last = run.recipe
        self.trained.append(run.folder)
        self.pipe, end = Pipe()
        end.send(tuple(attempt(work, run.recipe, run.folder, run.weights, self.device, log)))
        end.close()

    @property
    def is_alive(self) -> bool:
        return True


@pytest.fixture
def slot(monkeypatch: pytest.MonkeyPatch) -> InlineSlot:
    """The one slot of every `reproduce` in the test."""
    slot = InlineSlot()

    @contextmanager
    def here(devices: list[str], jobs: int) -> Iterator[list[InlineSlot]]:
        slot.last = None  # as of new ones
        yield [slot]

    monkeypatch.setattr(command, "open_slots", here)
    return slot
