"""What `illama data` found and did, as text for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice

import numpy as np
from rich.filesize import decimal

from illama.console.table import aligned
from illama.console.text import duration, shown
from illama.data.check import INFORMATION, CheckResult, Duplicates, Issue
from illama.data.write_shards import ShardingResult

NAMED = 3  # files in a line of error
EXAMPLES = 5  # images named under each heading
SHOWN_CLASSES = 20  # with more classes the ones with the fewest and with the most images are shown
_INFORMATION = {
    Issue.GREY: "grey",
    Issue.CMYK: "CMYK",
    Issue.DEEP: "16 bit or more",
    Issue.TRANSPARENT: "with transparency",
    Issue.TURNED: "turned by EXIF",
    Issue.ANIMATED: "animated",
}


def named(reasons: Mapping[str, str]) -> str:
    """The first few of what is wrong in one line, and how many more there are.

    Args:
        reasons: Why something is wrong by where it is.
    """
    first = ", ".join(f"{shown(where)} ({why})" for where, why in islice(reasons.items(), NAMED))
    return first + (f" and {len(reasons) - NAMED} more" if len(reasons) > NAMED else "")


def shard_report(result: ShardingResult) -> str:
    """What became of the shards, for people."""
    images = sum(split.images for split in result.splits)
    lines = [f"{result.target}: {images:,} images, {result.num_classes:,} classes"]
    for split in result.splits:
        order = f"shuffled by seed {result.seed}" if split.shuffled else "in order"
        lines.append(
            f"  {shown(split.name)}: {split.images:,} images in {split.shards:,} shards, "
            f"{decimal(split.bytes)}, {order}"
        )
    done = "nothing was left to write"
    if result.written:
        speed = decimal(int(result.written_bytes / result.write_s))
        done = f"{result.written:,} shards written in {duration(result.write_s)} ({speed}/s)"
    if result.kept:
        done += f"; {result.kept:,} kept from before, their checksums are right"
    if result.damaged:
        done += f"; {result.damaged:,} from before were damaged and are written anew"
    if result.passed_over:
        lines.append(f"passed over: {result.passed_over}")
    lines += [done, f"train on them with --data {result.target}"]
    return "\n".join([*lines, f"no image was decoded; this finds damaged ones: illama data check {result.target}"])


def check_report(result: CheckResult) -> str:
    """What a check found."""
    size = sum(int(split.rows["bytes"].sum(dtype=np.int64)) for split in result.splits)
    speed = result.images / result.seconds
    lines = [
        f"{result.images:,} images, {len(result.classes):,} classes{f', {decimal(size)}' if size else ''} "
        f"({duration(result.seconds)}{f', {speed:,.0f} images/s' if result.decoded else ', names only'})",
        *(f"  {line}" for line in result.layout.explain(result.classes)),
        *(f"  {shown(name)} cannot be used: {why}" for name, why in result.unusable.items()),
    ]
    tables = [_split_table(result), _class_table(result), *([_size_table(result)] if result.decoded else [])]
    for paragraph in (*tables, _problems(result)):
        lines += ["", *paragraph]
    counts = [f"{count:,} {_INFORMATION[kind]}" for kind in INFORMATION if (count := result.count(kind))]
    if counts:
        lines += ["", f"for information (training sees them as RGB, upright, on white): {', '.join(counts)}"]
    return "\n".join(lines)


def _split_table(result: CheckResult) -> list[str]:
    rows = [["split", "images", "classes", "in a class: least", "median", "most", "size"]]
    for split in result.splits:
        counts = split.class_counts[split.class_counts > 0]
        spread = [f"{value:,.0f}" for value in (counts.min(), np.median(counts), counts.max())]
        size = int(split.rows["bytes"].sum(dtype=np.int64))
        numbers = (f"{len(split.rows):,}", f"{len(counts):,}", *spread, decimal(size) if size else "")
        rows.append([shown(split.name), *numbers])
    return aligned(rows)


def _class_table(result: CheckResult) -> list[str]:
    """Images of each class in each split; of many classes those at both ends of the first split."""
    first = result.splits[0].class_counts
    order = np.argsort(first, kind="stable")
    few = len(order) <= SHOWN_CLASSES
    half = SHOWN_CLASSES // 4
    places = np.arange(len(order)) if few else np.concatenate([order[:half], order[-half:]])
    rows = [["class", *(shown(split.name) for split in result.splits)]]
    rows += [[shown(result.classes[c]), *(f"{split.class_counts[c]:,}" for split in result.splits)] for c in places]
    lines = aligned(rows)
    if not few:
        lines.insert(1 + half, f"... {len(order) - 2 * half:,} classes between these (--json has all)")
    return lines


def _size_table(result: CheckResult) -> list[str]:
    rows = [["", "least", "median", "most"]]
    for column, title in (("width", "width, px"), ("height", "height, px"), ("bytes", "file size")):
        spread = result.spread(column)
        if spread is not None:
            rows.append([title, *(decimal(int(v)) if column == "bytes" else f"{v:,.0f}" for v in spread)])
    return aligned(rows)


def _problems(result: CheckResult) -> list[str]:
    lines: list[str] = []
    for issue, title in (
        (Issue.BROKEN, "broken, training and evaluation would leave them out"),
        (Issue.TINY, f"tiny, the shorter side has less than {result.min_side} pixels"),
        (Issue.WRONG_ENDING, "named as another format than they are (they are read by their content)"),
    ):
        lines += _examples(
            result.count(issue), title, (f"{shown(place.where)}: {place.detail}" for place in result.places(issue))
        )
    lines += _duplicate_lines(result)
    for split in result.splits:
        missing = split.missing_classes
        title = f"of {len(result.classes):,} classes have no image in {shown(split.name)}"
        lines += _examples(len(missing), title, map(shown, missing))
    if not result.decoded:
        return [*lines, "no image was read; without --quick broken, tiny and duplicate ones are found"]
    return lines or ["nothing is wrong: no image is broken, tiny, duplicate or wrongly named"]


def _duplicate_lines(result: CheckResult) -> list[str]:
    groups = result.duplicates  # one may stand under the first two headings
    labels = [group for group in groups if group.several_labels]
    leaks = [group for group in groups if group.across_splits]
    others = [group for group in groups if not group.across_splits and not group.several_labels]
    lines: list[str] = []
    for chosen, title in (
        (labels, "pictures in several classes, so that a label is wrong"),
        (leaks, "pictures in several splits: what is evaluated on was trained on"),
        (others, "pictures more than once in a class"),
    ):
        lines += _examples(len(chosen), title, (_of_group(result, group) for group in chosen))
    return lines


def _of_group(result: CheckResult, group: Duplicates) -> str:
    """Its images as an equation, first one of each split and class."""
    places = [result.place(*image) for image in group.images]
    first = {(place.split, place.label): place for place in reversed(places)}
    chosen = [*reversed(first.values()), *(place for place in places if place not in first.values())][:NAMED]
    text = " = ".join(shown(place.where) for place in chosen)
    text += f" and {len(places) - len(chosen)} more" if len(places) > len(chosen) else ""
    return text + ("" if group.same_files else " (same pixels, other bytes)")


def _examples(count: int, title: str, examples: Iterable[str]) -> list[str]:
    if not count:
        return []
    lines = [f"{count:,} {title}", *(f"  {text}" for text in islice(examples, EXAMPLES))]
    return [*lines, f"  and {count - EXAMPLES:,} more (--json has all)"] if count > EXAMPLES else lines
