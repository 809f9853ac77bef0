"""Decoding processes that die, hang or fail: the batches go on bit for bit, or one line says what is wrong."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from illama.data.decode.images import BrokenImage
from illama.data.decode.lazy_image import Picture
from illama.data.eval_transform import EvalTransform
from illama.data.loading import workers as workers_module
from illama.data.loading.samples import EvalSamples, RawBatch, TrainSamples
from illama.data.loading.workers import RESTARTS, Keys, decoded_batches
from illama.data.source import Source
from illama.errors import UserError
from illama.recipes import load_recipe

IMAGES, BATCH = 40, 8


class Noise(Source):
    """Noise images; image 5 is broken."""

    def __init__(self) -> None:
        self.classes = ("a", "b")
        self.labels = np.arange(IMAGES) % 2
        self.description = "noise"

    def read(self, i: int) -> Image.Image:
        if i == 5:
            raise BrokenImage(self.location(i), "made broken")
        return Image.fromarray(np.random.default_rng(i).integers(0, 256, (30, 40, 3), dtype=np.uint8))

    def location(self, i: int) -> str:
        return f"image {i}"


class Trouble(Noise):
    """At image 13 a worker gets into trouble."""

    def __init__(self, trouble: Callable[[], None]) -> None:
        super().__init__()
        self._trouble = trouble

    def picture(self, i: int) -> Picture:
        if i == 13 and multiprocessing.parent_process() is not None:
            self._trouble()
        return super().picture(i)


@pytest.fixture(autouse=True)
def few_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "_AHEAD_IMAGES", BATCH)


def _samples(source: Source | None = None) -> TrainSamples:
    overrides = ["model.img_size=32", "augment.crop=resized", "augment.rotate=5"]
    return TrainSamples(load_recipe("imagenet1k_tiny", ["seed=3", *overrides]), source or Noise(), "resized")


def _keys(batches: int = 30) -> Iterator[Keys]:
    order = np.random.default_rng(0)
    return ((n // 5, order.permutation(IMAGES)[: BATCH - n % 3]) for n in range(batches))


def _stream(workers: int, timeout_s: int = 0, source: Source | None = None) -> Iterator[RawBatch]:
    return decoded_batches(_samples(source), _keys(), workers, timeout_s, pin_memory=False)


def _same(first: list[RawBatch], second: list[RawBatch]) -> bool:
    return all(
        torch.equal(a.images, b.images)
        and torch.equal(a.targets, b.targets)
        and torch.equal(a.indices, b.indices)
        and a.broken == b.broken
        for a, b in zip(first, second, strict=True)
    )


def _decoders() -> list[multiprocessing.process.BaseProcess]:
    return sorted(
        (p for p in multiprocessing.active_children() if p.name == "illama-decoder"), key=lambda p: p.pid or 0
    )


@pytest.mark.parametrize("workers", [1, 2, 3, 11])  # more than there are images in a batch, too
def test_any_number_of_workers_makes_the_same_batches(workers: int) -> None:
    assert _same(list(_stream(0)), list(_stream(workers)))
    assert _decoders() == []


def test_batches_do_not_share_memory_with_the_next() -> None:
    stream = _stream(2)
    first = next(stream)
    before = first.images.clone()
    for _ in itertools.islice(stream, 12):
        pass
    assert torch.equal(first.images, before)


@pytest.mark.parametrize("deadly", [signal.SIGKILL, signal.SIGUSR1])
def test_killed_workers_are_replaced(deadly: signal.Signals, caplog: pytest.LogCaptureFixture) -> None:
    undisturbed = list(_stream(0))
    stream = _stream(2)
    seen = []
    with caplog.at_level(logging.WARNING, "illama.data"):
        for number, batch in enumerate(stream):
            seen.append(batch)
            if number in (2, 3, 11):
                victim = _decoders()[number % 2]
                assert victim.pid is not None
                os.kill(victim.pid, deadly)
    assert _same(undisturbed, seen)
    assert 3 <= len(caplog.messages) <= 2 * 3  # of each
    for message in caplog.messages:
        assert "killed (signal 9" in message if deadly == signal.SIGKILL else "ended by signal 10" in message
        assert "image " in message
        assert "started again (1 of 3)" in message or "started again (2 of 3)" in message
    assert _decoders() == []


def test_a_stopped_worker_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    undisturbed = list(_stream(0))
    stream = _stream(2, timeout_s=1)
    seen = [next(stream)]
    victim = _decoders()[0]
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGSTOP)
    with caplog.at_level(logging.WARNING, "illama.data"):
        seen += stream
    assert _same(undisturbed, seen)
    assert len(caplog.messages) == 1
    assert "gave nothing for 1 s (data.worker_timeout_s)" in caplog.messages[0]
    assert not victim.is_alive()


def test_an_image_that_kills_every_worker_is_named(caplog: pytest.LogCaptureFixture) -> None:
    stream = _stream(2, source=Trouble(lambda: os.kill(os.getpid(), signal.SIGKILL)))
    with (
        caplog.at_level(logging.WARNING, "illama.data"),
        pytest.raises(
            UserError, match=r"killed .* while it read image 13; 3 new ones did not help.*data\.workers=0"
        ) as e,
    ):
        list(stream)
    assert "\n" not in str(e.value)
    assert 3 <= len(caplog.messages) <= 2 * 3  # of each
    assert _decoders() == []


def test_an_image_that_hangs_every_worker_is_named() -> None:
    with pytest.raises(UserError, match=r"gave nothing for 1 s .* while it read image 13"):
        list(_stream(2, timeout_s=1, source=Trouble(lambda: time.sleep(60))))
    assert _decoders() == []


def test_more_workers_may_be_lost_at_once_than_one_may_be_started_again() -> None:
    """As when a disk stands still for all of them: each has three restarts of its own."""
    stream = _stream(RESTARTS + 2)
    seen = [next(stream)]
    for process in _decoders():
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
    seen += stream
    assert _same(list(_stream(0)), seen)


def test_slow_images_are_not_taken_for_a_hang() -> None:
    """Every image takes a sixth of the limit, so a share of them takes longer than it."""

    class Slow(Noise):
        def picture(self, i: int) -> Picture:
            time.sleep(0.17)
            return super().picture(i)

    stream = decoded_batches(_samples(Slow()), iter([(0, np.arange(16))]), 1, 1, pin_memory=False)
    assert len(next(stream).targets) == 16


def test_time_that_the_model_takes_is_not_the_workers() -> None:
    stream = _stream(2, timeout_s=1)
    undisturbed = list(_stream(0))
    seen = [next(stream)]
    time.sleep(1.5)
    seen += stream
    assert _same(undisturbed, seen)


def _fail() -> None:
    raise ZeroDivisionError("made up")


def _complain() -> None:
    raise UserError("this needs something")


def test_an_error_in_a_worker_comes_with_its_traceback() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)a decoding process failed.*_fail.*ZeroDivisionError: made up"):
        list(_stream(2, source=Trouble(_fail)))
    with pytest.raises(UserError, match=r"^this needs something$"):
        list(_stream(2, source=Trouble(_complain)))
    assert _decoders() == []


def test_workers_leave_signals_to_the_group_to_their_parent() -> None:
    stream = _stream(2)
    seen = [next(stream)]
    for process in _decoders():
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)
        os.kill(process.pid, signal.SIGINT)
    pids = [process.pid for process in _decoders()]
    seen += itertools.islice(stream, 15)
    assert [process.pid for process in _decoders()] == pids
    assert _same(list(_stream(0))[:16], seen)
    stream.close()  # type: ignore[attr-defined]
    assert _decoders() == []


def test_evaluation_survives_a_killed_worker() -> None:
    samples = EvalSamples(Noise(), EvalTransform((32, 32), mode="crop"))
    keys = [(0, np.arange(at, min(at + BATCH, IMAGES))) for at in range(0, IMAGES, BATCH)]
    expected = list(decoded_batches(samples, iter(keys), 0, 0, pin_memory=False))
    stream = decoded_batches(samples, iter(keys), 2, 0, pin_memory=False)
    seen = [next(stream)]
    victim = _decoders()[1]
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    seen += stream
    assert _same(expected, seen)
    assert sum(len(batch.targets) for batch in seen) == IMAGES - 1
    assert {where for batch in seen for where in batch.broken} == {"image 5"}


SCRIPT = """
import multiprocessing, os, signal, sys, time
import numpy as np, torch
from illama.data.loading.samples import Sample
from illama.data.loading.workers import RESTARTS, decoded_batches

class Samples:
    shape, target_shape, target_dtype = (1, 2, 2), (), torch.int64
    def __getitem__(self, key): return Sample(key[1], torch.zeros(1, 2, 2, dtype=torch.uint8), torch.tensor(0))

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    keys = ((0, np.arange(4)) for _ in range(10**9))
    stream = decoded_batches(Samples(), keys, 2, 0, pin_memory=False)
    assert sum(len(next(stream).targets) for _ in range(20)) == 80
    print(*[process.pid for process in multiprocessing.active_children()], flush=True)
    if sys.argv[2] == "stop":
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGSTOP)
    if sys.argv[2] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
"""


def _is_gone(pid: int) -> bool:
    """Whether a process runs no more; one that nobody has waited for yet counts as gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize(
    ("method", "end"),
    [
        ("fork", "die"),
        ("spawn", "exit"),
        *(pytest.param("fork", end, marks=pytest.mark.faults) for end in ("exit", "stop")),
    ],
)
def test_no_worker_outlives_its_parent(method: str, end: str, tmp_path: Path) -> None:
    """Whether the parent ends in the middle of the stream, with a stopped worker, or is killed itself."""
    script = tmp_path / "parent.py"
    script.write_text(textwrap.dedent(SCRIPT), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script), method, end], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == (-signal.SIGKILL if end == "die" else 0), done.stderr
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) >= 2
    deadline = time.monotonic() + 30  # a worker looks for its parent every few seconds
    while not all(_is_gone(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)
