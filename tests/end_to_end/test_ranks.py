"""Processes of a run that were not given the same: all end at once, and one of them says in one line what differs."""

from __future__ import annotations

import functools
import os
import re
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.end_to_end.commands import Command, Ended, needs_proc
from tests.pictures import paint, tiny, tiny_words
from tests.processes import launched
from tests.runs import stopped_run, sum_again

pytestmark = needs_proc
DATA = {"train/cat": 12, "train/dog": 12, "val/cat": 6, "val/dog": 6}
BATCH = ("train.total_batch=12", "optimizer.lr_batch=12")  # for two and for three processes


@dataclass(frozen=True)
class Kind:
    """One difference: what the odd process is given.

    Attributes:
        told: What the line says, a regular expression; {odd} is the rank of the odd process.
        changes: Overrides of the odd process.
        data: Its folder below the test's, painted by `folders`.
        more: Options of all processes.
        odd: Options that the odd process has instead.
        words: All that the odd one types, instead of the command.
        work_in: The folder, by whether it is the odd one, that it works in.
        environment: Variables of the odd process.
        patch: Module, name and value that the odd process finds.
        told_by: Whether the odd process tells it itself.
    """

    told: str
    changes: tuple[str, ...] = ()
    data: str = "data"
    more: tuple[str, ...] = ()
    odd: tuple[str, ...] | None = None
    words: tuple[str, ...] = ()
    work_in: tuple[str, str] = (".", ".")
    environment: Mapping[str, str] = field(default_factory=dict)
    patch: tuple[str, str, str] | None = None


def differs(name: str, first: str, other: str, **more: Any) -> Kind:
    """A value that is one thing for process 0 and another for the odd one."""
    one, two = re.escape(first), re.escape(other)
    values = rf"({one} for process \d and {two}|{two} for process \d and {one})"
    return Kind(rf"{re.escape(name)} is {values} for process \d; give all of them the same", **more)


KINDS = {
    "learning rate": differs("optimizer.lr", "0.01", "0.02", changes=("optimizer.lr=0.02",)),
    "seed": differs("seed", "0", "1", changes=("seed=1",)),
    "label smoothing": differs("augment.label_smoothing", "0.1", "0.3", changes=("augment.label_smoothing=0.3",)),
    "batch": Kind(
        "(train.total_batch is .*12.*24|optimizer.lr_scaling is) ",
        changes=("train.total_batch=24", "optimizer.lr_scaling=none"),
    ),
    "a batch that does not divide": differs("train.total_batch", "12", "7", changes=("train.total_batch=7",)),
    "epochs": differs("schedule.epochs", "3", "5", changes=("schedule.epochs=5",)),
    "width": differs("model.embed_dim", "16", "32", changes=("model.embed_dim=32",)),
    "depth": differs("model.depth", "1", "2", changes=("model.depth=2",)),
    "evaluation images asked for": differs("data.max_eval_images", "None", "3", changes=("data.max_eval_images=3",)),
    "precision": differs("train.precision", "float32", "bf16", changes=("train.precision=bf16",)),
    "how they add up": differs("train.parallel", "ddp", "fsdp", changes=("train.parallel=fsdp",)),
    "compiled or not": differs("train.compile", "False", "True", changes=("train.compile=true",)),
    "training images": differs("training images", "24", "28", data="more"),
    "evaluation images": differs("evaluation images", "12", "9", data="fewer"),
    "a class renamed": differs("class 1", "dog", "emu", data="emu"),
    "a class more": differs("model.num_classes", "2", "3", data="three"),
    "an image in another class": Kind("training images' names and labels is", data="moved"),
    "other pictures under the same names": Kind("training images' content is", data="dark"),
    "no data": Kind(r"process {odd}: .*gone.* does not exist", data="gone"),
    "other start weights": Kind(
        "start weights is those of SHA-256 .* and those of SHA-256",
        more=("--init-from", "source1"),
        odd=("--init-from", "source2"),
    ),
    "no start weights": Kind("--init-from is (not )?given for process", more=("--init-from", "source1"), odd=()),
    "start weights that are not there": Kind(
        "process {odd}: .*nowhere", more=("--init-from", "source1"), odd=("--init-from", "nowhere")
    ),
    "another folder": differs("--out", "run", "elsewhere", more=("--out", "run"), odd=("--out", "elsewhere")),
    "a checkpoint that one does not see": Kind(
        r"the checkpoint last in begun, on a disk .*, is that of step 5 .* and not there for process {odd}",
        more=("--out", "begun"),
        work_in=(".", "empty"),
    ),
    "a checkpoint that one alone sees": Kind(
        r"the checkpoint last in begun, .* is not there for process 0 and that of step 5",
        more=("--out", "begun"),
        work_in=("empty", "."),
    ),
    "a checkpoint of another step": Kind(
        r"the checkpoint last in begun, .* is that of step 5 .* and that of step 4",
        more=("--out", "begun"),
        work_in=(".", "other"),
    ),
    "a checkpoint with other weights": Kind(
        r"the checkpoint last in begun, .* is that of step 5 .* and that of step 5",
        more=("--out", "begun"),
        work_in=(".", "twin"),
    ),
    "version of illama": Kind("the version of illama is", patch=("illama", "__version__", "0.0.9")),
    "version of torch": Kind("the version of torch is", patch=("torch", "__version__", "2.0.0")),
    "number of processes": Kind(r"WORLD_SIZE is", environment={"WORLD_SIZE": "7"}),
    "rank": Kind(r"two processes at this MASTER_ADDR and MASTER_PORT have RANK=0;", environment={"RANK": "0"}),
    "an option that does not exist": Kind(r"process {odd}: .*--outt", odd=("--outt", "x")),
    "an override that does not exist": Kind(r"process {odd}: .*optimizer\.lrr", changes=("optimizer.lrr=1",)),
    "a device for itself": Kind(r"process {odd}: --device cuda:99 names one device", odd=("--device", "cuda:99")),
    "a device that is not there": Kind(r"process {odd}: device 'mps' cannot be used", odd=("--device", "mps")),
    "another command": Kind("the command is", words=("eval", "begun", "--device", "cpu")),
}
SHORT = (("a class renamed", 3),)  # the short form; more, without commands: training/test_distributed.py


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and the same with a class renamed."""
    place = tmp_path_factory.mktemp("ranks")
    paint(place / "data", DATA)
    shutil.copytree(place / "data", place / "emu")
    for split in ("train", "val"):
        (place / "emu" / split / "dog").rename(place / "emu" / split / "emu")
    Command("version", folder=place).end().fine()  # what is forked for each process is prepared now
    return place


@pytest.fixture(scope="module")
def full_place(place: Path) -> Path:
    """Also data that differs in other things, start weights, and begun runs."""
    paint(place / "more", DATA | {"train/cat": 16})
    paint(place / "fewer", DATA | {"val/dog": 3})
    paint(place / "three", DATA | {"train/emu": 4})
    shutil.copytree(place / "data", place / "moved")
    for one, other in (("cat", "dog"), ("dog", "cat")):
        (place / "moved" / "train" / one / "11.png").rename(place / "moved" / "train" / other / f"{one}.png")
    paint(place / "dark", DATA, size=21)
    (place / "empty").mkdir()
    recipe = tiny(place / "data", *BATCH)
    for folder, step in ((".", 5), ("other", 4), ("twin", 5)):
        stopped_run(recipe, place / folder / "begun", step=step)
    for seed in (1, 2):
        stopped_run(tiny(place / "data", *BATCH, f"seed={seed}"), place / f"source{seed}", step=3)
    take_other_weights(place / "twin" / "begun" / "checkpoints" / "last")
    return place


def take_other_weights(checkpoint: Path) -> None:
    """Change the weights of a checkpoint; the sums fit."""
    file = checkpoint / "model.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file, metadata)
    sum_again(checkpoint)


def as_rank(environment: Mapping[str, str], folder: Path, patch: tuple[str, str, str] | None) -> None:
    """What a launcher does before the command."""
    os.environ |= environment
    os.chdir(folder)
    if patch is not None:
        import importlib

        setattr(importlib.import_module(patch[0]), patch[1], patch[2])


def together(kind: Kind, count: int, place: Path, folder: Path) -> tuple[list[Ended], float]:
    """Ends of the processes by rank, the last of which is the odd one, and the seconds until all were gone."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    commands = []
    since = time.monotonic()
    for rank in range(count):
        odd = rank == count - 1
        environment = launched(rank, count, port) | (kind.environment if odd else {})
        options = kind.odd if odd and kind.odd is not None else kind.more
        options = tuple(str(place / word) if word.startswith("source") else word for word in options)
        changes = kind.changes if odd else ()
        device = () if "--device" in options else ("--device", "cpu")
        words: Sequence[str] = [*tiny_words(place / (kind.data if odd else "data"), *BATCH, *changes)[:-2], *device]
        out = () if "--out" in (*options, *kind.more) else ("--out", str(folder / "run"))
        words = kind.words if odd and kind.words else [*words, *options, *out]
        before = functools.partial(as_rank, environment, place / kind.work_in[odd], kind.patch if odd else None)
        commands.append(Command(*words, folder=folder, before=before))
    ends = [command.end() for command in commands]
    return ends, time.monotonic() - since


def told(kind: Kind, count: int, place: Path, folder: Path) -> tuple[str, float]:
    """The one line, after a look at all processes; and how long it took."""
    ends, seconds = together(kind, count, place, folder)
    said = [line for end in ends for line in end.err.splitlines()]
    lines = [line for line in said if "error:" in line]
    assert [end.code for end in ends] == [2] * count, said
    assert len(lines) == 1, said
    assert not [line for line in said if "Traceback" in line or "c10d" in line], said
    assert re.search(kind.told.replace("{odd}", str(count - 1)), lines[0]), lines[0]
    assert not (folder / "run").exists()
    return lines[0], seconds


@pytest.mark.parametrize(("name", "count"), SHORT)
def test_one_difference_is_one_line(name: str, count: int, place: Path, tmp_path: Path) -> None:
    told(KINDS[name], count, place, tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", KINDS)
def test_every_difference_is_one_line(name: str, count: int, full_place: Path, tmp_path: Path) -> None:
    line, seconds = told(KINDS[name], count, full_place, tmp_path)
    print(f"| {name} | {count} | {seconds:.1f} | {line} |")
