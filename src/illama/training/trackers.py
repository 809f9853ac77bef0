"""Where records go besides metrics.jsonl: TensorBoard always, Weights & Biases when asked for."""

from __future__ import annotations

import logging
import os
import threading
import uuid
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from illama.errors import UserError
from illama.system.files import write_file

TRACKERS = ("wandb",)
WANDB_ID_FILE = "wandb_run_id"
WANDB_PROJECT = "illama"  # WANDB_PROJECT in the environment overrules it
log = logging.getLogger(__name__)


class Tracker(Protocol):
    """Takes the records of metrics.jsonl. Whatever it raises costs the run nothing but this tracker."""

    name: str

    def write(self, record: dict[str, Any]) -> None:
        """One record, with its `kind` and `step`."""

    def close(self, failed: bool) -> None:
        """The sitting is over; `failed` when an error or a signal ended it."""


def scalars(record: dict[str, Any]) -> dict[str, float]:
    """The numbers of a record by the name that trackers show: train/loss, eval/top1."""
    return {
        f"{record['kind']}/{key}": value
        for key, value in record.items()
        if isinstance(value, int | float) and key != "step"
    }


class TensorBoard:
    """Event files in run_dir/tensorboard.

    Args:
        run_dir: The run's folder.
        step: Steps done; what an earlier sitting wrote beyond them is hidden.
    """

    name = "TensorBoard"

    def __init__(self, run_dir: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._hook = threading.excepthook
        threading.excepthook = self._without_traceback
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step)

    def write(self, record: dict[str, Any]) -> None:
        for name, value in scalars(record).items():
            self._board.add_scalar(name, value, record["step"])

    def close(self, failed: bool) -> None:
        try:
            self._board.close()
        finally:
            threading.excepthook = self._hook

    def _without_traceback(self, what: Any) -> None:
        """A full disk in TensorBoard's own thread: the next `write` meets it, and one line is enough."""
        if not (isinstance(what.exc_value, OSError) and type(what.thread).__module__.startswith("tensorboard.")):
            self._hook(what)


class Wandb:
    """A run of Weights & Biases whose files lie in run_dir/wandb; every sitting continues the same one.

    Curves are drawn over the record's own step and not over the count of calls: that count only grows, and steps that
    a crash makes again would be refused.

    Args:
        wandb: The module.
        run_dir: The run's folder; its name is that of the W&B run.
        config: The recipe.
        run_id: Identifies the W&B run.
    """

    name = "Weights & Biases"

    def __init__(self, wandb: ModuleType, run_dir: Path, config: dict[str, Any], run_id: str) -> None:
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", WANDB_PROJECT),
            name=run_dir.resolve().name,
            id=run_id,
            resume="allow",
            dir=str(run_dir),
            config=config,
            settings=wandb.Settings(console="off"),  # it would stand between the progress bar and the terminal
        )
        self._run.define_metric("step", hidden=True)
        for kind in ("train", "eval"):
            self._run.define_metric(f"{kind}/*", step_metric="step")

    def write(self, record: dict[str, Any]) -> None:
        self._run.log({**scalars(record), "step": record["step"]})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


def check_tracker(name: str | None) -> None:
    """Refuse a tracker that cannot be used, before a run writes anything.

    Raises:
        UserError: An unknown name, or a package that is not installed.
    """
    if name is not None:
        _module(name)


def open_tracker(name: str | None, run_dir: Path, recipe_dict: dict[str, Any], resume: bool) -> Tracker | None:
    """The tracker that was asked for.

    Args:
        name: "wandb", or None for none. W&B obeys its own environment: WANDB_MODE=offline needs no account and no
            network, `wandb sync` uploads later.
        run_dir: The run's folder, which exists.
        recipe_dict: The recipe, shown as the run's configuration.
        resume: Whether the run goes on; it then goes on in the tracker as well.

    Raises:
        UserError: The tracker is unknown or not installed; or it cannot begin and the run is a new one. A run that
            goes on does so without it, with a warning: a service that is down must not keep it from training.
    """
    if name is None:
        return None
    wandb = _module(name)
    try:
        return Wandb(wandb, run_dir, recipe_dict, _wandb_id(run_dir, resume))
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if not resume:
            raise UserError(
                f"Weights & Biases cannot begin: {reason}; run wandb login, or set WANDB_MODE=offline, or leave "
                "--track out"
            ) from error
        log.warning("Weights & Biases cannot begin, the run goes on without it: %s", reason)
        return None


def _module(name: str) -> ModuleType:
    if name not in TRACKERS:
        raise UserError(f"unknown tracker {name!r}; allowed: {', '.join(TRACKERS)} (TensorBoard is always written)")
    try:
        module = import_module(name)
    except ImportError:
        module = None
    if not hasattr(module, "init"):  # a folder called wandb, which W&B makes, is an empty package to Python
        raise UserError('--track wandb needs the package wandb; pip install "illama[track]", or leave --track out')
    assert module is not None
    return module


def _wandb_id(run_dir: Path, resume: bool) -> str:
    """The W&B run of this folder; a new one for a new run."""
    path = run_dir / WANDB_ID_FILE
    if resume and path.is_file():
        return path.read_text(encoding="utf-8").strip()
    run_id = uuid.uuid4().hex[:12]
    write_file(path, f"{run_id}\n".encode())
    return run_id
