"""Studies at toy scale, trained in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from illama.reproduce import command
from illama.reproduce.plan import PlannedRun

TOY = (
    *("model.embed_dim=16", "model.depth=2", "model.num_heads=2"),
    *("schedule.epochs=3", "schedule.warmup_epochs=1", "train.total_batch=32", "optimizer.lr_batch=32"),
    *("data.max_train_images=64", "data.max_eval_images=30", "train.log_every_steps=1"),
)


class InlineSlot:
    """A slot that works here and now.

    Attributes:
        trained: Folders of the runs that it was given.
    """

    def __init__(self) -> None:
        self.device, self.last = "cpu", None
        self.trained: list[Path] = []

    def submit(self, work: Callable[..., Any], run: PlannedRun, log: Path) -> Future[Any]:
        """Do it; what goes wrong is in the future, as with a process."""
        self.last = run.recipe  # type: ignore[assignment]
        self.trained.append(run.folder)
        future: Future[Any] = Future()
        try:
            future.set_result(work(run.recipe, run.folder, run.weights, self.device))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.fixture
def slot(monkeypatch: pytest.MonkeyPatch) -> InlineSlot:
    """The one slot of every `reproduce` in the test."""
    slot = InlineSlot()

    @contextmanager
    def here(devices: list[str], jobs: int) -> Iterator[list[InlineSlot]]:
        yield [slot]

    monkeypatch.setattr(command, "open_slots", here)
    return slot
