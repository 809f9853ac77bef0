"""Checkpoints: what is saved comes back, damage is named, and no failure costs the previous one."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from threading import Timer

import pytest
import torch

from illama.checkpoint import Meta, folder, load_checkpoint, newest_checkpoint, save_checkpoint, save_weights
from illama.checkpoint import format as io
from illama.checkpoint.format import read_safetensors
from illama.errors import UserError
from illama.models import ILlama
from illama.system import files as disk
from illama.weights import load_model
from tests.checkpoint.conftest import loaded


def save(run: Path, model: ILlama, meta: Meta, step: int, ema: bool = False) -> Path:
    state = {
        "optimizer": {"state": {0: {"step": torch.tensor(float(step))}}},
        "rng": torch.get_rng_state(),
        "best": 1.5,
    }
    return save_checkpoint(
        run,
        "last",
        model_state=model.state_dict(),
        training_state=state,
        meta=dataclasses.replace(meta, step=step),
        ema_state={name: 2 * tensor for name, tensor in model.state_dict().items()} if ema else None,
    )


def step_of(run: Path, tag: str | None = None) -> int | None:
    """Step of a checkpoint; without a tag of the one that the run goes on from, which nothing speaks against."""
    if tag is None:
        newest = newest_checkpoint(run)
        if newest is None:
            return None
        assert newest.warning is None
        tag = newest.tag
    found = load_checkpoint(run, tag)
    return None if found is None else found.meta.step


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


@pytest.mark.parametrize("ema", [False, True])
def test_everything_comes_back(tmp_path: Path, model: ILlama, meta: Meta, ema: bool) -> None:
    assert load_checkpoint(tmp_path, "last") is None
    save(tmp_path, model, meta, 3, ema)
    checkpoint = loaded(tmp_path)
    assert checkpoint.meta == dataclasses.replace(meta, step=3)
    assert checkpoint.meta.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(checkpoint.model_state[name], tensor)
        assert checkpoint.ema_state is None or torch.equal(checkpoint.ema_state[name], 2 * tensor)
    assert (checkpoint.ema_state is not None) == ema
    assert checkpoint.training_state["optimizer"]["state"][0]["step"] == 3
    assert torch.equal(checkpoint.training_state["rng"], torch.get_rng_state())
    if ema:
        _, about = read_safetensors(checkpoint.path / "ema.safetensors")
        assert about is not None
        assert about.ema


def test_a_new_save_keeps_the_one_before_it_and_nothing_else(tmp_path: Path, model: ILlama, meta: Meta) -> None:
    for step in (1, 2, 3):
        save(tmp_path, model, meta, step)
    assert (step_of(tmp_path), step_of(tmp_path, "previous")) == (3, 2)
    assert names(tmp_path) == ["last", "previous"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_the_umask_decides_who_may_read(tmp_path: Path, model: ILlama, meta: Meta, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        folder_ = save(tmp_path, model, meta, step=1, ema=True)
        save_weights(tmp_path / "alone.safetensors", model.state_dict(), meta)
    finally:
        os.umask(before)
    files = [path for path in (*folder_.iterdir(), tmp_path / "alone.safetensors") if path.is_file()]
    assert len(files) >= 4
    assert {path.stat().st_mode & 0o777 for path in files} == {mode}


def test_other_tags_keep_none_before_them(tmp_path: Path, model: ILlama, meta: Meta) -> None:
    for step in (1, 2):
        about = dataclasses.replace(meta, step=step)
        save_checkpoint(tmp_path, "best", model_state=model.state_dict(), training_state={}, meta=about)
    assert names(tmp_path) == ["best"]
    assert step_of(tmp_path, "best") == 2
    assert newest_checkpoint(tmp_path) is None


def test_equal_weights_are_equal_files(tmp_path: Path, model: ILlama, meta: Meta) -> None:
    """safetensors alone writes its metadata in an order that changes from call to call."""
    about = dataclasses.replace(meta, classes=("\u00e9t\u00e9", 'a "quoted"\tname', "\u20ac\x01"))
    contents = set()
    for _ in range(12):
        save_weights(tmp_path / "w.safetensors", model.state_dict(), about)
        contents.add((tmp_path / "w.safetensors").read_bytes())
    assert len(contents) == 1
    state, found = read_safetensors(tmp_path / "w.safetensors")
    assert found == about
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_views_into_packed_weights_are_saved_alone(tmp_path: Path, meta: Meta) -> None:
    packed = torch.arange(12.0).reshape(4, 3)
    save_weights(tmp_path / "w.safetensors", {"gate": packed[:2], "value": packed[2:], "turned": packed.t()}, meta)
    state, _ = read_safetensors(tmp_path / "w.safetensors")
    assert torch.equal(state["gate"], packed[:2])
    assert torch.equal(state["value"], packed[2:])
    assert torch.equal(state["turned"], packed.t())


def test_metadata_survives_json(meta: Meta) -> None:
    wide = dataclasses.replace(meta, config=dataclasses.replace(meta.config, img_size=(8, 16)), ema=True, epoch=2)
    assert Meta.from_json(wide.to_json(), "x") == wide


def edited(field: str, value: object) -> Callable[[str], str]:
    """A description with another value of a field."""

    def edit(text: str) -> str:
        plain = json.loads(text)
        section, _, key = field.rpartition(".")
        (plain[section] if section else plain)[key] = value
        return json.dumps(plain)

    return edit


OTHER_TYPES = {
    "softness": "much",
    "step": "7",
    "classes": "abc",
    "eval_transform": "none",
    "source": ["illama_tiny.in1k"],
    "config.layer_scale": "x",
    "config.qkv_bias": "no",
    "config.attention_backend": [],
    "config.flash": True,
    "config.depth": "x",
}


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        *((lambda _, text=text: text, "not a description") for text in ("", "[]", "{}", '{"config": 3}')),
        (lambda _: '{"config":' * 100_000, "not a description"),
        (edited("format_version", 2), "weights format 2, this illama reads 1; update illama"),
        *((edited("softness", value), "not finite") for value in (math.nan, math.inf, -math.inf)),
        *((edited(field, value), f"describe a model: {field}") for field, value in OTHER_TYPES.items()),
        (edited("classes", [1, 2, 3]), "describe a model: classes"),
    ],
)
def test_what_is_no_description_is_refused_in_one_line(meta: Meta, edit: Callable[[str], str], said: str) -> None:
    with pytest.raises(UserError, match=f"some/file: .*{said}") as caught:
        Meta.from_json(edit(meta.to_json()), "some/file")
    assert "\n" not in str(caught.value)


class Crash(BaseException):
    """The process ends here: nothing of ours may clean up afterwards."""


def crash_after(calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the process die at the given disk operation of a save: fsync, rename, and in the middle of deleting."""
    left = iter(range(calls))

    def dying(original):
        def operation(*args, **kwargs):
            if next(left, None) is None:
                raise Crash
            return original(*args, **kwargs)

        return operation

    def rmtree(path: Path, **options: object) -> None:
        if not path.exists():
            return
        for file in sorted(path.iterdir()):
            dying(file.unlink)()
        path.rmdir()

    monkeypatch.setattr(folder.os, "fsync", dying(folder.os.fsync))
    monkeypatch.setattr(Path, "rename", dying(Path.rename))
    monkeypatch.setattr(folder.shutil, "rmtree", rmtree)


def crashes(run: Path, model: ILlama, meta: Meta, monkeypatch: pytest.MonkeyPatch, at: int, step: int) -> bool:
    """Save with a crash at an operation; whether there were so many."""
    with monkeypatch.context() as patch:
        crash_after(at, patch)
        try:
            save(run, model, meta, step)
        except Crash:
            return True
    return False


@pytest.mark.parametrize("saved", [1, 2])
def test_a_crash_at_any_instant_leaves_the_old_or_the_new_one(
    saved: int, tmp_path: Path, model: ILlama, meta: Meta, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Walk the crash through every operation; after each, load, then save again and find nothing left over."""
    seen = []
    for at in range(60):
        run = tmp_path / str(at)
        for step in range(1, saved + 1):
            save(run, model, meta, step)
        crashed = crashes(run, model, meta, monkeypatch, at, saved + 1)
        seen.append(step_of(run))
        save(run, model, meta, 9)
        assert (step_of(run, "last"), step_of(run, "previous")) == (9, seen[-1])
        assert names(run) == ["last", "previous"]
        if not crashed:
            break
    assert not crashed
    assert seen == sorted(seen)  # once the new one is there, it stays
    assert set(seen) == {saved, saved + 1}
    assert len(seen) > (7 if saved == 1 else 12)  # files, folder, renames, parent, and what the third one deletes


def test_two_crashes_in_a_row_leave_one(
    tmp_path: Path, model: ILlama, meta: Meta, monkeypatch: pytest.MonkeyPatch
) -> None:
    for first in range(1, 12):
        for second in range(1 + first % 2, 12, 2):
            run = tmp_path / f"{first}-{second}"
            save(run, model, meta, 1)
            save(run, model, meta, 2)
            for at, step in ((first, 3), (second, 4)):
                crashes(run, model, meta, monkeypatch, at, step)
                assert (step_of(run) or 0) >= 2


def test_what_counts_is_on_disk_first(
    tmp_path: Path, model: ILlama, meta: Meta, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files, then the folder that lists them, then the rename, then the folder around; new folders likewise."""
    run, happened, fresh = tmp_path / "runs" / "x", [], re.compile("new-[0-9a-f]{16}")
    synced, rename = folder.to_disk, Path.rename

    def to_disk(path: Path) -> None:
        happened.append(("sync", fresh.sub("new-XX", str(path.relative_to(tmp_path)))))
        synced(path)

    def renamed(self: Path, target: Path) -> Path:
        happened.append(("rename", str(target.relative_to(tmp_path))))
        return rename(self, target)

    monkeypatch.setattr(folder, "to_disk", to_disk)
    monkeypatch.setattr(disk, "to_disk", to_disk)
    monkeypatch.setattr(Path, "rename", renamed)
    save(run, model, meta, 1)
    new = "runs/x/checkpoints/.last.new-XX"
    assert happened == [
        *(("sync", path) for path in (".", "runs", "runs/x", "runs/x/checkpoints")),
        *(("sync", f"{new}/{file}") for file in ("model.safetensors", "training_state.pt", "meta.json")),
        ("sync", new),
        ("rename", "runs/x/checkpoints/last"),
        ("sync", "runs/x/checkpoints"),
    ]


@pytest.mark.parametrize("instant", ["between the renames", "after the header was read"])
def test_a_save_beside_a_read_is_not_seen(
    instant: str, tmp_path: Path, model: ILlama, meta: Meta, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that was found is gone for a moment, or another one when its tensors are read: never a mixture."""
    save(tmp_path, model, meta, 1)
    last, gone = tmp_path / "checkpoints" / "last", tmp_path / "checkpoints" / "gone"
    original, calls = io.safe_open, []

    def opened(path: Path, **options: str) -> object:
        calls.append(path)
        if len(calls) == 1 and instant == "between the renames":
            last.rename(gone)
            Timer(0.03, lambda: gone.rename(last)).start()
        file = original(path, **options)
        if len(calls) == 1:
            with torch.no_grad():
                model.norm.weight.fill_(2.0)
            save(tmp_path, model, meta, 2)
        return file

    monkeypatch.setattr(io, "safe_open", opened)
    found, told = load_model(tmp_path)
    assert len(calls) > 1
    if instant == "between the renames":
        assert told.step == 1
    else:
        assert told.step == 2
        assert bool((found.norm.weight == 2).all())


def test_an_interrupted_first_save_is_no_checkpoint(
    tmp_path: Path, model: ILlama, meta: Meta, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        crash_after(1, patch)
        with pytest.raises(Crash):
            save(tmp_path, model, meta, 1)
    assert step_of(tmp_path) is None


def test_a_failing_second_rename_puts_the_old_one_back(
    tmp_path: Path, model: ILlama, meta: Meta, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, model, meta, 1)
    original = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name.startswith(".last.new-"):
            raise OSError(errno.EIO, "Input/output error")
        return original(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(UserError, match="Input/output error"):
            save(tmp_path, model, meta, 2)
    assert names(tmp_path) == ["last"]
    assert step_of(tmp_path) == 1


@pytest.mark.parametrize("writer", ["save_file", "torch"])
def test_a_full_disk_is_the_users_to_fix(
    tmp_path: Path, model: ILlama, meta: Meta, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    save(tmp_path, model, meta, 1)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if writer == "torch":
        monkeypatch.setattr(io.torch, "save", full)
    else:
        monkeypatch.setattr(io, "save_file", full)
    with pytest.raises(UserError, match=r"No space left on device.*needs .* MB.*MB are free.*untouched") as caught:
        save(tmp_path, model, meta, 2)
    assert str(tmp_path) in str(caught.value)
    assert names(tmp_path) == ["last"]
    assert step_of(tmp_path) == 1


def test_a_real_limit_on_the_file_size(tmp_path: Path) -> None:
    """The operating system refuses to write on, in the middle of the weights or of the training state."""
    script = """
        import resource, sys
        from pathlib import Path
        import torch
        from illama.checkpoint import Meta, load_checkpoint, save_checkpoint
        from illama.errors import UserError
        from illama.models import ModelConfig

        run, meta = Path(sys.argv[1]), Meta(config=ModelConfig(), step=1)
        small, large = {"weight": torch.zeros(10)}, {"weight": torch.zeros(100_000)}
        save_checkpoint(run, "last", model_state=small, training_state=small, meta=meta)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        for model, state in ((large, small), (small, large)):
            try:
                save_checkpoint(run, "last", model_state=model, training_state=state, meta=meta)
            except UserError as error:
                print(error)
            assert load_checkpoint(run, "last").meta.step == 1
            assert [path.name for path in (run / "checkpoints").iterdir()] == ["last"]
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
    for line in done.stdout.splitlines():
        assert "File too large" in line
        assert "the previous checkpoint is untouched" in line


def test_a_folder_that_cannot_be_made(tmp_path: Path, model: ILlama, meta: Meta) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot save the checkpoint"):
        save(tmp_path, model, meta, 1)


def test_a_state_that_would_not_load_is_refused_at_once(tmp_path: Path, model: ILlama, meta: Meta) -> None:
    save(tmp_path, model, meta, 1)
    with pytest.raises(TypeError, match="plain containers"):
        save_checkpoint(tmp_path, "last", model_state=model.state_dict(), training_state={"path": tmp_path}, meta=meta)
    assert step_of(tmp_path) == 1
