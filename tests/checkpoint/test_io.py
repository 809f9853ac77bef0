"""Checkpoints: what is saved comes back, damage is named, and no failure costs the previous one."""

from __future__ import annotations

import dataclasses
import errno
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from illama.checkpoint import Meta, folder, io, load_checkpoint, save_checkpoint, save_weights
from illama.checkpoint.io import read_safetensors
from illama.errors import UserError
from illama.models import ILlama


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


def step_of(run: Path) -> int | None:
    found = load_checkpoint(run, "last")
    return None if found is None else found.meta.step


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


@pytest.mark.parametrize("ema", [False, True])
def test_everything_comes_back(tmp_path: Path, model: ILlama, meta: Meta, ema: bool) -> None:
    assert load_checkpoint(tmp_path, "last") is None
    save(tmp_path, model, meta, 3, ema)
    found = load_checkpoint(tmp_path, "last")
    assert found is not None
    assert found.meta == dataclasses.replace(meta, step=3)
    assert found.meta.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.model_state[name], tensor)
        assert found.ema_state is None or torch.equal(found.ema_state[name], 2 * tensor)
    assert (found.ema_state is not None) == ema
    assert found.training_state["optimizer"]["state"][0]["step"] == 3
    assert torch.equal(found.training_state["rng"], torch.get_rng_state())
    if ema:
        _, about = read_safetensors(found.path / "ema.safetensors")
        assert about is not None
        assert about.ema


def test_a_new_save_replaces_the_old_one_and_leaves_nothing_beside_it(
    tmp_path: Path, model: ILlama, meta: Meta
) -> None:
    save(tmp_path, model, meta, 1)
    save(tmp_path, model, meta, 2)
    assert step_of(tmp_path) == 2
    assert names(tmp_path) == ["last"]


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


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"config": 3}', '{"format_version": 1, "config": {"depth": "x"}}'])
def test_other_metadata_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="some/file"):
        Meta.from_json(text, "some/file")


def test_a_newer_format_is_refused(meta: Meta) -> None:
    newer = meta.to_json().replace('"format_version": 1', '"format_version": 2')
    with pytest.raises(UserError, match="update illama"):
        Meta.from_json(newer, "some/file")


@pytest.mark.parametrize("file", ["model.safetensors", "training_state.pt", "ema.safetensors", "meta.json"])
@pytest.mark.parametrize("how", ["flip", "cut", "delete"])
def test_damage_is_found_and_the_file_named(tmp_path: Path, model: ILlama, meta: Meta, file: str, how: str) -> None:
    path = save(tmp_path, model, meta, 1, ema=True) / file
    content = path.read_bytes()
    if how == "delete":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 0x55]) + content[middle + 1 :])
    named = "differs" if (file, how) == ("meta.json", "flip") else file  # a wrong sum accuses the file it is of
    with pytest.raises(UserError, match=named) as caught:
        load_checkpoint(tmp_path, "last")
    assert "\n" not in str(caught.value)


class Crash(BaseException):
    """The process ends here: nothing of ours may clean up afterwards."""


def crash_after(calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the process die at the given disk operation of a save: each fsync and each rename counts."""
    left = iter(range(calls))

    def dying(original):
        def operation(*args, **kwargs):
            if next(left, None) is None:
                raise Crash
            return original(*args, **kwargs)

        return operation

    monkeypatch.setattr(folder.os, "fsync", dying(folder.os.fsync))
    monkeypatch.setattr(Path, "rename", dying(Path.rename))


def test_a_crash_at_any_instant_leaves_the_old_or_the_new_one(
    tmp_path: Path, model: ILlama, meta: Meta, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Walk the crash through every operation; after each, load, then save again and find nothing left over."""
    seen = []
    for calls in range(40):
        run = tmp_path / str(calls)
        save(run, model, meta, 1)
        with monkeypatch.context() as patch:
            crash_after(calls, patch)
            try:
                save(run, model, meta, 2)
            except Crash:
                finished = False
            else:
                finished = True
        seen.append(step_of(run))
        save(run, model, meta, 3)
        assert step_of(run) == 3
        assert names(run) == ["last"]
        if finished:
            break
    assert finished
    assert seen == sorted(seen)  # once the new one is there, it stays
    assert set(seen) == {1, 2}
    assert len(seen) > 6  # three files, the folder, two renames, the parent


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
        if self.name == ".last.new":
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


@pytest.mark.parametrize("big", ["model", "state"])
def test_a_real_limit_on_the_file_size(tmp_path: Path, big: str) -> None:
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
        model, state = (large, small) if sys.argv[2] == "model" else (small, large)
        try:
            save_checkpoint(run, "last", model_state=model, training_state=state, meta=meta)
        except UserError as error:
            print(error)
        assert load_checkpoint(run, "last").meta.step == 1
        assert [path.name for path in (run / "checkpoints").iterdir()] == ["last"]
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path), big], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "File too large" in done.stdout
    assert "the previous checkpoint is untouched" in done.stdout
    assert done.stdout.count("\n") == 1


def test_a_folder_that_cannot_be_made(tmp_path: Path, model: ILlama, meta: Meta) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot save the checkpoint"):
        save(tmp_path, model, meta, 1)


def test_a_state_that_would_not_load_is_refused_at_once(tmp_path: Path, model: ILlama, meta: Meta) -> None:
    save(tmp_path, model, meta, 1)
    with pytest.raises(TypeError, match="plain containers"):
        save_checkpoint(tmp_path, "last", model_state=model.state_dict(), training_state={"path": tmp_path}, meta=meta)
    assert step_of(tmp_path) == 1
