"""Which checkpoint a run stands for: damage is noticed, the one before it is taken, and never lost again."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch

from illama.checkpoint import (
    Meta,
    folder,
    keep_checkpoint,
    kept_tag,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from illama.checkpoint import folder as tags
from illama.checkpoint import format as io
from illama.errors import UserError
from illama.models import ILlama
from illama.weights import load_model
from tests.checkpoint.conftest import loaded

FILES = ("model.safetensors", "training_state.pt", "ema.safetensors", "meta.json")


def save(run: Path, model: ILlama, meta: Meta, step: int, tag: str = "last") -> Path:
    return save_checkpoint(
        run,
        tag,
        model_state={name: tensor + step for name, tensor in model.state_dict().items()},
        training_state={"step": step},
        meta=dataclasses.replace(meta, step=step),
        ema_state=model.state_dict(),
    )


@pytest.fixture
def run(tmp_path: Path, model: ILlama, meta: Meta) -> Path:
    """A run with checkpoints of steps 10 (previous) and 20 (last)."""
    for step in (10, 20):
        save(tmp_path, model, meta, step)
    return tmp_path


def steps(run: Path) -> dict[str, int]:
    """Steps of the checkpoints that are whole, by tag."""
    found = {}
    for path in (run / "checkpoints").iterdir():
        try:
            found[path.name] = folder.read_meta(path)["step"]
        except UserError:
            found[path.name] = 0
    return found


def damage(file: Path, how: str) -> None:
    content = file.read_bytes()
    if how == "delete":
        file.unlink()
    elif how == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        file.write_bytes(b"")
    else:
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 0x55]) + content[middle + 1 :])


def one_line(text: str | None) -> str:
    assert text is not None
    assert "\n" not in text
    return text


def test_the_last_one_while_it_is_whole(run: Path) -> None:
    assert newest_checkpoint(run) == ("last", None)
    assert newest_checkpoint(run / "nowhere") is None


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("how", ["flip", "cut", "empty", "delete"])
def test_the_one_before_a_damaged_one(run: Path, file: str, how: str) -> None:
    damage(run / "checkpoints" / "last" / file, how)
    named = "differs" if (file, how) == ("meta.json", "flip") else file  # a wrong sum accuses the file it is of
    with pytest.raises(UserError, match=named) as caught:
        load_checkpoint(run, "last")
    one_line(str(caught.value))
    newest = newest_checkpoint(run)
    assert newest is not None
    assert newest.tag == "previous"
    assert "step 10" in one_line(newest.warning)
    assert ("step 20" if file != "meta.json" else "unknown step") in newest.warning
    if named == file:
        assert str(run / "checkpoints" / "last" / file) in newest.warning
    checkpoint = loaded(run, newest.tag, verify=False)
    assert (checkpoint.meta.step, checkpoint.training_state) == (10, {"step": 10})


def test_no_flipped_bit_passes(run: Path) -> None:
    """Any bit of any file; in meta.json a few (a blank, the name of its own sum) change nothing that counts."""
    last, numbers = run / "checkpoints" / "last", random.Random(seed := random.randrange(2**32))
    print(f"bits: seed {seed}")
    meta, sound = (last / "meta.json").read_bytes(), folder.read_meta(last)
    places = [("meta.json", place) for place in range(len(meta))]
    places += [(file, numbers.randrange((last / file).stat().st_size)) for file in FILES[:3] for _ in range(25)]
    for file, place in places:
        content = (last / file).read_bytes()
        flipped = bytearray(content)
        flipped[place] ^= 1 << numbers.randrange(8)
        (last / file).write_bytes(flipped)
        newest = newest_checkpoint(run)
        if newest is None or newest.tag != "previous":
            assert file == "meta.json"
            assert folder.read_meta(last).items() >= sound.items()
        (last / file).write_bytes(content)
    assert newest_checkpoint(run) == ("last", None)


def test_a_folder_that_is_being_deleted(run: Path) -> None:
    for path in sorted((run / "checkpoints" / "last").iterdir()):
        path.unlink()
        newest = newest_checkpoint(run)
        assert newest is not None
        assert newest.tag == "previous"
        assert newest.warning is not None
    (run / "checkpoints" / "last").rmdir()
    assert newest_checkpoint(run) == ("previous", None)  # as a crash between two renames leaves it: nothing is damaged


def test_a_file_that_cannot_be_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = folder.sha256

    def failing(path: Path) -> str:
        if "last" in path.parts:
            raise OSError(errno.EIO, "Input/output error")
        return original(path)

    monkeypatch.setattr(folder, "sha256", failing)
    newest = newest_checkpoint(run)
    assert newest is not None
    assert newest.tag == "previous"
    assert "Input/output error" in one_line(newest.warning)


def test_two_damaged_ones_are_the_users_to_mend(run: Path, model: ILlama, meta: Meta) -> None:
    for tag in ("last", "previous"):
        damage(run / "checkpoints" / tag / "training_state.pt", "flip")
    with pytest.raises(
        UserError, match=r"last/training_state\.pt .*previous/training_state\.pt .*another folder"
    ) as bad:
        newest_checkpoint(run)
    one_line(str(bad.value))
    with pytest.raises(UserError, match="both checkpoints"):
        load_model(run)
    save(run, model, meta, 5, kept_tag(5))
    with pytest.raises(UserError, match=r"rename .*step-00000005 to last"):
        newest_checkpoint(run)
    shutil.rmtree(run / "checkpoints" / "last")
    (run / "checkpoints" / "step-00000005").rename(run / "checkpoints" / "last")
    assert newest_checkpoint(run) == ("last", None)


def test_a_damaged_one_with_none_before_it(tmp_path: Path, model: ILlama, meta: Meta) -> None:
    damage(save(tmp_path, model, meta, 1) / "model.safetensors", "cut")
    with pytest.raises(UserError, match=r"model\.safetensors differs"):
        newest_checkpoint(tmp_path)


def test_weights_of_a_run_fall_back_with_a_warning(run: Path, model: ILlama, caplog: pytest.LogCaptureFixture) -> None:
    damage(run / "checkpoints" / "last" / "model.safetensors", "flip")
    _, meta = load_model(run)
    assert meta.step == 10
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("illama", "WARNING")
    assert "last/model.safetensors" in record.message
    with pytest.raises(UserError, match="damaged"):  # named by its own path it is what is asked for
        load_model(run / "checkpoints" / "last")


def test_the_next_save_keeps_the_one_that_was_whole(run: Path, model: ILlama, meta: Meta) -> None:
    damage(run / "checkpoints" / "last" / "ema.safetensors", "flip")
    save(run, model, meta, 30)
    assert steps(run) == {"last": 30, "previous": 10}
    save(run, model, meta, 40)
    assert steps(run) == {"last": 40, "previous": 30}


@pytest.mark.parametrize("operation", ["rename", "fsync"])
def test_a_failing_save_after_damage_costs_nothing(
    operation: str, run: Path, model: ILlama, meta: Meta, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far the save gets, the one checkpoint that is whole stays, or the new one is there."""
    damage(run / "checkpoints" / "last" / "ema.safetensors", "flip")
    original = Path.rename if operation == "rename" else os.fsync
    for good in range(12):
        left = iter(range(good))

        def failing(*args: object, left=left) -> object:
            if next(left, None) is None:
                raise OSError(errno.EIO, "Input/output error")
            return original(*args)  # type: ignore[operator]

        with monkeypatch.context() as patch:
            if operation == "rename":
                patch.setattr(Path, "rename", failing)
            else:
                patch.setattr(folder.os, "fsync", failing)
            try:
                save(run, model, meta, 30)
            except UserError:
                failed = True
            else:
                failed = False
        assert {10, 30} & set(steps(run).values())
        assert newest_checkpoint(run) is not None
        if not failed:
            break
    assert not failed
    assert steps(run)["last"] == 30


def test_a_swap_while_reading_is_no_damage(
    run: Path, model: ILlama, meta: Meta, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process saves between two files of a reader: sums of one checkpoint, files of the next."""
    original, swaps = folder.sha256, iter([30])

    def swapping(path: Path) -> str:
        found = original(path)
        for step in swaps:
            save(run, model, meta, step)
        return found

    monkeypatch.setattr(folder, "sha256", swapping)
    assert newest_checkpoint(run) == ("last", None)
    assert steps(run) == {"last": 30, "previous": 20}


def test_without_verification_no_file_is_hashed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(path: Path) -> str:
        raise AssertionError(path)

    monkeypatch.setattr(folder, "sha256", never)
    checkpoint = loaded(run, verify=False)
    assert checkpoint.meta.step == 20
    damage(run / "checkpoints" / "last" / "training_state.pt", "cut")
    with pytest.raises(UserError, match=r"training_state\.pt differs from what was saved: \d+ bytes instead of \d+"):
        load_checkpoint(run, "last", verify=False)


def test_checkpoints_of_the_first_release_are_read(run: Path) -> None:
    """They have no checksum of meta.json itself."""
    file = run / "checkpoints" / "last" / "meta.json"
    meta = json.loads(file.read_text())
    del meta["sha256_of_meta"]
    file.write_text(json.dumps(meta))
    assert newest_checkpoint(run) == ("last", None)


@pytest.mark.parametrize("links", [True, False])
def test_a_kept_one_stays_when_the_last_one_moves_on(
    links: bool, run: Path, model: ILlama, meta: Meta, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(folder.os, "link", no_links)
    kept = keep_checkpoint(run, "last", kept_tag(20))
    assert kept.name == "step-00000020"
    for file in FILES:
        same = (kept / file).samefile(run / "checkpoints" / "last" / file)
        assert same == links
    for step in (30, 40, 50):
        save(run, model, meta, step)
    assert steps(run) == {"last": 50, "previous": 40, "step-00000020": 20}
    assert tags.kept_tags(run) == ["step-00000020"]
    loaded, about = load_model(kept)
    assert about.step == 20
    assert all(torch.equal(tensor, model.state_dict()[name] + 20) for name, tensor in loaded.state_dict().items())
    keep_checkpoint(run, "last", kept_tag(20))  # a run that replays the step after a crash
    assert steps(run)["step-00000020"] == 50


def test_a_full_disk_while_keeping(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folder.os, "link", full)
    monkeypatch.setattr(folder.shutil, "copyfile", full)
    with pytest.raises(UserError, match=r"cannot save .*step-00000020: No space left on device"):
        keep_checkpoint(run, "last", kept_tag(20))
    assert steps(run) == {"last": 20, "previous": 10}
    with pytest.raises(UserError, match="no checkpoint best"):
        io.keep_checkpoint(run, "best", kept_tag(20))
