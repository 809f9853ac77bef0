"""Saving beside the training: the step goes on while a thread writes what was copied from it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

# What torch and safetensors import when they first save. If the thread did it, a process forked at that instant would
# find the module locked for ever.
import numpy.ctypeslib  # noqa: F401
import torch.utils.serialization.config  # noqa: F401
from torch import Tensor

from illama.checkpoint.format import Meta, keep_checkpoint, save_checkpoint
from illama.checkpoint.tensors import snapshot
from illama.errors import UserError

_log = logging.getLogger("illama.checkpoint")


class Saver:
    """Saves checkpoints in the background, one save at a time, with the bytes of `save_checkpoint`.

    `save` copies everything to CPU memory and returns; a thread of that save's own writes the copy. Copies of at most
    one save exist, so a `save` that comes before the last one is written waits for it. What goes wrong in the thread is
    raised by the next call of `check`, `save` or `close`.

    The thread ends with its save: nothing idles, and an interpreter that exits without `close` still finishes the
    file. Processes may be forked meanwhile: a child has no such thread and needs none of its locks.

    Attributes:
        run_dir: The run's folder.
        waited_s: Seconds that all saves have waited for the one before them.

    Args:
        run_dir: The run's folder.
        before_writing: Called before each checkpoint, in the thread; raises where the folder is not this run's any
            more.
    """

    def __init__(self, run_dir: Path, before_writing: Callable[[], None] = lambda: None) -> None:
        self.run_dir = run_dir
        self._before_writing = before_writing
        self.waited_s = 0.0
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(
        self,
        tags: Sequence[tuple[str, Meta]],
        *,
        model_state: Mapping[str, Tensor],
        training_state: Mapping[str, Any],
        ema_state: Mapping[str, Tensor] | None = None,
        keep: Sequence[str] = (),
    ) -> None:
        """Copy the state and have it written. The caller may change its tensors as soon as this returns.

        Args:
            tags: Tag and description of each checkpoint to write, in this order: ("best", ...) before ("last", ...).
            model_state: The trained weights, any device.
            training_state: What resuming needs beside them: tensors and plain containers only.
            ema_state: The averaged weights, where averaging is on.
            keep: Further tags for the last one of `tags`, as `keep_checkpoint`.

        Raises:
            UserError, TypeError: As `save_checkpoint`, of the save before this one; this one is not begun then.
        """
        asked = time.perf_counter()
        self._finish()
        self.waited_s += time.perf_counter() - asked
        self.check()
        copied = snapshot((dict(model_state), dict(training_state), None if ema_state is None else dict(ema_state)))
        self._thread = threading.Thread(target=self._write, args=(list(tags), copied, list(keep)), name="illama-save")
        self._thread.start()

    def check(self) -> None:
        """Raise what went wrong in the background; costs nothing, waits for nothing."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def close(self) -> None:
        """Wait until everything is on disk, then raise what went wrong."""
        self._finish()
        self.check()

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish what is pending, whatever ended the block; its own exception comes before one of the thread."""
        self._finish()
        if kind is not None and self._error is not None:
            _log.error("%s", self._error)
            return
        self.check()

    def _finish(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(
        self,
        tags: list[tuple[str, Meta]],
        copied: tuple[dict[str, Tensor], dict[str, Any], dict[str, Tensor] | None],
        keep: list[str],
    ) -> None:
        model_state, training_state, ema_state = copied
        try:
            for tag, meta in tags:
                self._before_writing()
                save_checkpoint(
                    self.run_dir,
                    tag,
                    model_state=model_state,
                    training_state=training_state,
                    meta=meta,
                    ema_state=ema_state,
                )
            for kept in keep:
                keep_checkpoint(self.run_dir, tags[-1][0], kept)
        except BaseException as error:  # the caller's thread decides what it means
            self._error = error
            try:
                self._before_writing()
            except UserError as cause:  # a folder that is gone explains whatever went wrong in it
                self._error = cause
