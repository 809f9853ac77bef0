"""Saving in the background: the same bytes, the state of the call, nothing lost, nothing hanging."""

from __future__ import annotations

import dataclasses
import errno
import io as bytes_io
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from illama.checkpoint import Meta, Saver, load_checkpoint, newest_checkpoint, save_checkpoint, saver
from illama.checkpoint.tensors import snapshot
from illama.errors import UserError
from illama.models import ILlama, ModelConfig
from tests.checkpoint.conftest import loaded


def trained(model: ILlama) -> dict[str, Any]:
    """A training state as the loop has it, after a step of AdamW."""
    optimizer = torch.optim.AdamW(
        [{"params": list(model.blocks.parameters()), "weight_decay": 0.1}, {"params": list(model.head.parameters())}]
    )
    model(torch.randn(2, 1, 8, 8)).square().sum().backward()
    optimizer.step()
    packed = torch.randn(6, 4)
    return {
        "optimizer": optimizer.state_dict(),
        "views": [packed[:2], packed.t(), packed.t()],
        "rng": {"cpu": torch.get_rng_state()},
        "progress": {"step": 3, "best": None, "seconds": 1.5},
        "loss_sum": torch.tensor(2.0),
    }


def save(saver: Saver, model: nn.Module, meta: Meta, step: int, **more: Any) -> None:
    saver.save(
        [("last", dataclasses.replace(meta, step=step))],
        model_state=model.state_dict(),
        training_state={"step": step},
        **more,
    )


class Gate:
    """Holds background saves back until it is opened; tells what was saved, in order."""

    def __init__(self) -> None:
        self.open, self.reached = threading.Event(), threading.Event()
        self.saved: list[tuple[str, int]] = []

    def __call__(self, run_dir: Path, tag: str, **what: Any) -> Path:
        self.reached.set()
        assert self.open.wait(60)
        self.saved.append((tag, what["meta"].step))
        return save_checkpoint(run_dir, tag, **what)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    monkeypatch.setattr(saver, "save_checkpoint", gate)
    yield gate
    gate.open.set()


def contents(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


def test_the_bytes_of_a_save_in_the_foreground(tmp_path: Path, model: ILlama, meta: Meta) -> None:
    state = trained(model)
    soft = dataclasses.replace(meta, softness=0.5)
    what: dict[str, Any] = {
        "model_state": model.state_dict(),
        "training_state": state,
        "ema_state": {name: 2 * tensor for name, tensor in model.state_dict().items()},
    }
    with Saver(tmp_path / "back") as background:
        background.save([("best", soft), ("last", meta)], keep=["step-00000007"], **what)
    save_checkpoint(tmp_path / "front", "best", meta=soft, **what)
    for tag in ("last", "step-00000007"):
        save_checkpoint(tmp_path / "front", tag, meta=meta, **what)
    back, front = contents(tmp_path / "back"), contents(tmp_path / "front")
    assert back.keys() == front.keys()
    assert len(front) == 12
    assert [name for name in front if front[name] != back[name]] == []


def test_what_changes_after_the_call_is_not_in_the_file(tmp_path: Path, model: ILlama, meta: Meta, gate: Gate) -> None:
    """The step goes on while the save does not: weights, optimizer and generator move, the file holds those before."""
    optimizer = torch.optim.AdamW(model.parameters())
    average = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def step() -> None:
        model(torch.randn(2, 1, 8, 8)).square().sum().backward()
        optimizer.step()
        torch._foreach_add_(list(average.values()), 1.0)

    step()
    state = {"optimizer": optimizer.state_dict(), "rng": torch.get_rng_state(), "list": [1]}
    expected = snapshot((model.state_dict(), state, average))
    with Saver(tmp_path) as background:
        background.save([("last", meta)], model_state=model.state_dict(), training_state=state, ema_state=average)
        assert gate.reached.wait(60)
        for _ in range(5):
            step()
            background.check()
        state["list"].append(2)
        assert gate.saved == []
        gate.open.set()
    checkpoint = loaded(tmp_path)
    assert checkpoint.ema_state is not None
    for tensors, name in ((checkpoint.model_state, 0), (checkpoint.ema_state, 2)):
        assert all(torch.equal(tensors[key], tensor) for key, tensor in expected[name].items())
    assert not torch.equal(checkpoint.model_state["head.weight"], model.state_dict()["head.weight"])
    assert checkpoint.training_state["list"] == [1]
    assert torch.equal(checkpoint.training_state["rng"], expected[1]["rng"])
    for number, slots in expected[1]["optimizer"]["state"].items():
        for key, tensor in slots.items():
            assert torch.equal(checkpoint.training_state["optimizer"]["state"][number][key], tensor)


def test_a_snapshot_shares_nothing_but_its_own_structure() -> None:
    packed, betas = torch.arange(12.0).reshape(3, 4), (0.9, 0.999)
    slot = {"exp_avg": packed[1:], "turned": packed.t()}
    original = {"slots": [slot, slot], "groups": [{"betas": betas}, {"betas": betas}], "mixed": (packed, 3, None)}
    copied = snapshot(original)
    before = packed.clone()
    packed.zero_()
    assert copied["slots"][0] is copied["slots"][1]
    assert copied["slots"][0] is not slot
    assert copied["groups"][0]["betas"] is betas
    assert torch.equal(copied["slots"][0]["exp_avg"], before[1:])
    assert torch.equal(copied["slots"][0]["turned"], before.t())
    assert torch.equal(copied["mixed"][0], before)
    assert copied["mixed"][1:] == (3, None)
    for tensor in (*copied["slots"][0].values(), copied["mixed"][0]):
        assert tensor.is_contiguous()
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_best_before_last_and_one_save_after_the_other(tmp_path: Path, model: ILlama, meta: Meta, gate: Gate) -> None:
    """A save that comes too early waits for the one before it, and says how long."""
    background = Saver(tmp_path)
    tags = [("best", dataclasses.replace(meta, step=1)), ("last", dataclasses.replace(meta, step=1))]
    background.save(tags, model_state=model.state_dict(), training_state={})
    assert gate.reached.wait(60)
    opener = threading.Timer(0.05, gate.open.set)
    opener.start()
    save(background, model, meta, 2)
    assert gate.open.is_set()
    assert gate.saved[:2] == [("best", 1), ("last", 1)]
    assert background.waited_s > 0
    background.close()
    assert gate.saved == [("best", 1), ("last", 1), ("last", 2)]
    opener.join()


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("how", ["check", "save", "close", "with"])
def test_the_threads_error_reaches_the_caller_once(
    how: str, tmp_path: Path, model: ILlama, meta: Meta, monkeypatch: pytest.MonkeyPatch
) -> None:
    background = Saver(tmp_path)
    save(background, model, meta, 1)
    background.close()
    with monkeypatch.context() as patch:
        patch.setattr("illama.checkpoint.format.save_file", full_disk)
        save(background, model, meta, 2)
        thread = background._thread
        assert thread is not None
        thread.join()
    checkpoint = loaded(tmp_path)
    assert checkpoint.meta.step == 1
    expected = r"No space left on device .*previous checkpoint is untouched"
    with pytest.raises(UserError, match=expected):  # noqa: PT012 - each way is one call
        if how == "save":
            save(background, model, meta, 3)
        elif how == "with":
            with background:
                pass
        else:
            getattr(background, how)()
    background.check()
    save(background, model, meta, 4)
    background.close()
    assert newest_checkpoint(tmp_path) == ("last", None)


def test_a_state_that_would_not_load_is_our_mistake(tmp_path: Path, model: ILlama, meta: Meta) -> None:
    background = Saver(tmp_path)
    background.save([("last", meta)], model_state=model.state_dict(), training_state={"path": tmp_path})
    with pytest.raises(TypeError, match="plain containers"):
        background.close()


def test_an_exception_in_the_loop_does_not_stop_the_save(
    tmp_path: Path, model: ILlama, meta: Meta, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ZeroDivisionError), Saver(tmp_path) as background:  # noqa: PT012
        save(background, model, meta, 1)
        raise ZeroDivisionError
    assert newest_checkpoint(tmp_path) == ("last", None)
    monkeypatch.setattr("illama.checkpoint.format.save_file", full_disk)
    caplog.set_level(logging.ERROR)
    with pytest.raises(ZeroDivisionError), Saver(tmp_path) as background:  # noqa: PT012
        save(background, model, meta, 2)
        raise ZeroDivisionError
    assert "No space left on device" in caplog.text


def test_the_thread_imports_nothing_and_an_interpreter_that_exits_finishes_the_file(tmp_path: Path) -> None:
    """A module lock that is held at a fork would never be free in the child."""
    script = """
        import sys, time
        from pathlib import Path
        import torch
        from illama.checkpoint import Meta, Saver, saver
        from illama.models import ModelConfig

        what = {"model_state": {"w": torch.ones(3)}, "training_state": {"t": torch.ones(2)}}
        background = Saver(Path(sys.argv[1]))
        before = set(sys.modules)
        for step in range(2):
            meta = Meta(config=ModelConfig(), step=step)
            background.save([("best", meta), ("last", meta)], keep=["step-00000001"], **what)
        background.close()
        print(sorted(set(sys.modules) - before))

        original = saver.save_checkpoint
        def slowly(*args, **what):
            time.sleep(0.5)
            return original(*args, **what)
        saver.save_checkpoint = slowly
        background.save([("last", Meta(config=ModelConfig(), step=4))], **what)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"
    checkpoint = loaded(tmp_path)
    assert checkpoint.meta.step == 4


def save_for_ever(run: Path) -> None:
    """Go on where the run stands and save step after step in the background."""
    torch.set_num_threads(1)
    newest = newest_checkpoint(run)
    found = None if newest is None else load_checkpoint(run, newest.tag)
    step = 0 if found is None else found.meta.step
    with Saver(run) as background:
        while True:
            step += 1
            meta = Meta(config=ModelConfig(), step=step)
            state = {f"w{i}": torch.full((20_000,), float(step)) for i in range(4)}
            background.save([("best", meta), ("last", meta)], model_state=state, training_state={"step": step})


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="kills forked processes")
def test_a_kill_in_the_background_write_leaves_the_old_or_the_new_one(tmp_path: Path) -> None:
    numbers = random.Random(seed := random.randrange(2**32))
    print(f"moments of the kills: seed {seed}")
    step = 0
    for _ in range(15):
        process = multiprocessing.get_context("fork").Process(target=save_for_ever, args=(tmp_path,))
        process.start()
        while process.is_alive() and not (tmp_path / "checkpoints" / "last").exists():
            time.sleep(0.002)
        time.sleep(numbers.random() * 0.1)
        assert process.is_alive()
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        newest = newest_checkpoint(tmp_path)
        assert newest is not None
        assert newest.warning is None
        checkpoint = loaded(tmp_path, newest.tag)
        assert checkpoint.meta.step >= step
        step = checkpoint.meta.step
        assert checkpoint.training_state == {"step": step}
        assert all(bool((tensor == step).all()) for tensor in checkpoint.model_state.values())
    assert step > 0


def use_what_a_loader_worker_uses(number: int) -> None:
    torch.set_num_threads(1)
    buffer = bytes_io.BytesIO()
    torch.save({"image": torch.randn(3, 32, 32).mul(number)}, buffer)
    logging.getLogger("illama.data").info("worker %d", number)
    assert torch.load(bytes_io.BytesIO(buffer.getvalue()))["image"].shape == (3, 32, 32)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="forks processes")
def test_processes_may_be_forked_while_it_writes(tmp_path: Path) -> None:
    """Locks that the thread holds at the fork stay locked in the child, so the child may need none of them."""
    state = {f"w{i}": torch.randn(50_000) for i in range(8)}
    meta, forked = Meta(config=ModelConfig()), 0
    with Saver(tmp_path) as background:
        while forked < 12:
            background.save([("best", meta), ("last", meta)], model_state=state, training_state=dict(state))
            thread = background._thread
            while thread is not None and thread.is_alive() and forked < 12:
                child = multiprocessing.get_context("fork").Process(
                    target=use_what_a_loader_worker_uses, args=(forked,)
                )
                child.start()
                child.join(60)
                assert child.exitcode == 0
                forked += 1
    assert newest_checkpoint(tmp_path) == ("last", None)
