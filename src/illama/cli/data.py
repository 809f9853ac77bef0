"""`illama data`: look after a data set before hours of training are spent on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter
from cyclopts.validators import Number

from illama.cli.output import STDOUT, Json, check_targets, hand_over
from illama.errors import UserError

if TYPE_CHECKING:
    from illama.data.check import CheckResult
    from illama.recipes.schema import DataConfig

data_command = App(name="data", help="Check a data set, or write it as WebDataset shards.")

Workers = Annotated[int | None, Parameter(validator=Number(gte=1), help="How many work at a time; fits the machine.")]
Positive = Annotated[int, Parameter(validator=Number(gte=1))]


@data_command.command(name="shard")
def shard_command(
    source: Path,
    target: Path,
    /,
    *,
    images_per_shard: Positive = 1000,
    seed: Annotated[int, Parameter(validator=Number(gte=0, lt=2**32))] = 0,
    workers: Workers = None,
    json: Json = None,
) -> None:
    """Write an image folder as WebDataset shards; the same command again continues what was stopped.

    The files are copied as they are. Training images are shuffled, so that readers who take shard after shard see
    mixed classes; the other splits stay in order. A file that cannot be read is left out and named, and makes the
    exit code 2; the same command adds it once it can be read.

    Args:
        source: Folder of images: SPLIT/CLASS/image.jpg, or CLASS/image.jpg for a set without splits.
        target: New or empty folder, or one that was begun by the same command.
        images_per_shard: Images in a shard.
        seed: Decides the order of the training images.
    """
    from illama.cli.data_report import named, shard_report
    from illama.data.write_shards import write_shards

    check_targets(json=json)
    result = write_shards(source, target, images_per_shard=images_per_shard, seed=seed, threads=workers)
    hand_over(json, result.to_dict, lambda: print(shard_report(result)))
    if result.left_out:
        total = len(result.left_out) + sum(split.images for split in result.splits)
        raise UserError(
            f"{len(result.left_out)} of {total} files cannot be read and are left out: {named(result.left_out)}; all "
            f"others are written (list: {Path(result.target) / '_shards.jsonl'}); when they can be read, the same "
            "command adds them"
        )


@data_command.command(name="check")
def check_command(
    source: str,
    /,
    *overrides: str,
    data: str | None = None,
    min_side: Positive = 32,
    workers: Workers = None,
    quick: Annotated[bool, Parameter(negative="")] = False,
    strict: Annotated[bool, Parameter(negative="")] = False,
    json: Json = None,
) -> None:
    """What a data set is taken for, and what is broken, tiny, duplicate, wrongly named or passed over in it.

    Exit code 2 when training would fail or lose images: a layout that is not understood, broken images, pictures of
    formats that are not read (one line on stderr says which); with --strict also for tiny and wrongly named images,
    duplicates and classes that a split lacks. The report goes to stdout.

    Args:
        source: A folder of images or shards, a list of files (.csv), a parquet file or a folder of them, or a data
            set's name such as digits.
        overrides: Keys of a recipe's data section such as data.class_depth=2.
        data: Folder of a data set that is given by its name (torch/cifar10).
        min_side: An image whose shorter side has fewer pixels is called tiny.
        quick: Look at names only; no image is read.
        strict: Exit code 2 for warnings, too.
    """
    from illama.cli.data_report import check_report
    from illama.data.check import check_data

    check_targets(json=json)
    config = _config(source, data, overrides)
    result = check_data(config, min_side=min_side, workers=workers, decode=not quick)
    hand_over(json, result.to_dict, lambda: print(check_report(result)))
    verdict = _verdict(result, strict=strict)
    if verdict:
        raise UserError(f"{verdict}; " + ("--json FILE lists them all" if json in (None, STDOUT) else f"list: {json}"))


def _config(source: str, data: str | None, overrides: Sequence[str]) -> DataConfig:
    """The data section that opens what was given."""
    from illama.evaluation.subject import choose_data
    from illama.recipes import edit_data

    config = edit_data(choose_data(None, source), overrides)
    if data is not None:
        if config.path is not None:
            raise UserError(f"--data {data} is for a data set that is given by its name; {source} is a place itself")
        config = config.model_copy(update={"path": data})
    elif config.name.startswith("torch/"):
        raise UserError(f"{source} is read from a folder; give it with --data FOLDER")
    return config


def _verdict(result: CheckResult, *, strict: bool) -> str:
    """Why the data set is not to be used as it is, in a line; empty when it can be."""
    from illama.cli.data_report import named
    from illama.data.check import Issue
    from illama.data.layout import one_class

    broken = {place.where: place.detail for place in result.places(Issue.BROKEN)}
    reasons = [f"{len(broken)} of {result.images} images are broken: {named(broken)}"] if broken else []
    lost = result.layout.passed_over.lost()
    reasons += [f"pictures are passed over: {lost}"] if lost else []
    if len(result.classes) < 2:
        reasons.append(one_class(result.classes, result.layout))
    if strict:
        lacking = sum(len(split.missing_classes) for split in result.splits)
        counts = {
            "tiny images": result.count(Issue.TINY),
            "wrongly named images": result.count(Issue.WRONG_ENDING),
            "groups of duplicates": len(result.duplicates),
            "classes missing in a split": lacking,
        }
        reasons += [f"{count} {what}" for what, count in counts.items() if count]
    return "; ".join(reasons)
