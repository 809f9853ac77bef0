"""`illama predict`: what is in these pictures?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from illama.cli.output import STDOUT, CheckpointPath, Csv, Device, Json, check_targets, say, write_result
from illama.console.text import as_json, shown
from illama.errors import UserError

if TYPE_CHECKING:
    from illama.evaluation import Prediction


def predict_command(
    checkpoint: CheckpointPath,
    image: str,
    /,
    *images: str,
    top_k: int = 5,
    device: Device = None,
    json: Json = None,
    csv: Csv = None,
) -> None:
    """Class names with probabilities. Unreadable images are named, stop no other, and make the exit code 2.

    Args:
        image: Image file, folder of images, or pattern such as 'photos/*.jpg'.
        images: More of them.
        top_k: How many classes to name.
    """
    from illama.evaluation.predict import find_images, predict

    check_targets(json=json, csv=csv)
    files, passed_over = find_images([image, *images])
    predictions = predict(checkpoint, files, top_k=top_k, device=device)
    if json is not None:
        plain = [one.to_dict() for one in predictions]
        write_result(json, as_json(plain))
    if csv is not None:
        write_result(csv, as_csv(predictions))
    if STDOUT not in (json, csv):
        for one in predictions:
            print(line(one))
    if passed_over.total:
        say(f"illama: passed over: {passed_over.line()}")
    broken = [f"{shown(one.path)} ({one.problem})" for one in predictions if one.problem is not None]
    if broken:
        named = ", ".join(broken[:3]) + (f" and {len(broken) - 3} more" if len(broken) > 3 else "")
        raise UserError(f"{len(broken)} of {len(predictions)} images cannot be read: {named}; the others are done")
    if passed_over.lost():
        raise UserError(f"pictures are passed over: {passed_over.lost()}; the others are done")


def line(one: Prediction) -> str:
    """One prediction for people, who know few WordNet ids by heart."""
    from illama.data.imagenet import readable

    if one.problem is not None:
        return f"{shown(one.path)}: cannot be read: {one.problem}"
    pairs = zip(one.classes, one.probabilities, strict=True)
    named = (f"{shown(readable(name))} {100 * probability:.1f} %" for name, probability in pairs)
    return f"{shown(one.path)}: " + ", ".join(named)


def as_csv(predictions: Sequence[Prediction]) -> str:
    """One row per image and class; an unreadable image has one row with its problem."""
    from illama.report import csv_text

    rows: list[tuple[object, ...]] = []
    for one in predictions:
        if one.problem is not None:
            rows.append((one.path, "", "", "", one.problem))
        for rank, (name, probability) in enumerate(zip(one.classes, one.probabilities, strict=True), start=1):
            rows.append((one.path, rank, name, probability, ""))
    return csv_text(("path", "rank", "class", "probability", "problem"), rows)
