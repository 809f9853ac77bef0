"""`illama verify`: do published weights reach their published accuracy here?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from illama.cli.output import Device, Json, check_targets, hand_over, say
from illama.errors import UserError

if TYPE_CHECKING:
    from illama.evaluation.verify import Verification


def verify_command(
    checkpoint: Path,
    /,
    *,
    data: str,
    split: str | None = None,
    batch_size: int | None = None,
    device: Device = None,
    json: Json = None,
) -> None:
    """Compare the accuracy of published weights with the published one, to 0.1 points. Exit code 2 where they differ.

    Only ImageNet's 50,000 validation images verify; with fewer the accuracy is measured and its interval shown.

    Args:
        checkpoint: Published weights: a name (illama_tiny.in1k), the authors' file, or what illama convert made of it.
        data: ImageNet: a folder, a parquet file, or a data set's name.
        split: Which split; the validation split by default.
        batch_size: Images at a time.
    """
    from illama.evaluation.verify import verify

    check_targets(json=json)
    outcome = verify(checkpoint, data=data, split=split, batch_size=batch_size, device=device, progress=True)
    for where, why in outcome.result.skipped.items():
        say(f"illama: skipped {where}: {why}")
    hand_over(json, outcome.to_dict, lambda: print(report(outcome)))
    if outcome.complete and not outcome.agrees:
        raise UserError(mismatch(outcome))


def report(outcome: Verification) -> str:
    """The comparison for people."""
    from illama.evaluation.verify import TOLERANCE, VALIDATION_IMAGES

    row, result = outcome.published, outcome.result
    lines = [
        f"{row.name} ({row.file}) on {result.data}",
        f"measured   top-1 {result.top1:.3f} % of {result.count} images, 95 % interval {outcome.low:.2f} to "
        f"{outcome.high:.2f} %",
        f"published  top-1 {row.top1:.1f} % in the paper, {row.top1_log:.3f} % at the end of the authors' log, "
        f"best epoch {row.best_log:.3f} %",
        f"difference {outcome.difference:+.3f} points from the paper, {result.top1 - row.top1_log:+.3f} from the log",
    ]
    if not outcome.complete:
        place = "in" if outcome.in_interval else "outside"
        lines.append(
            f"not a verification: that takes ImageNet's {VALIDATION_IMAGES} validation images, all of them readable; "
            f"the published value lies {place} the interval"
        )
    elif outcome.agrees:
        lines.append(
            f"verified: within {TOLERANCE} points of what the paper and the log give (image libraries round pixels "
            "differently, hardware adds in another order)"
        )
    return "\n".join(lines)


def mismatch(outcome: Verification) -> str:
    """One line for accuracy that is not the published one."""
    from illama.evaluation.verify import TOLERANCE

    low, high = outcome.published_range
    return (
        f"{outcome.published.name} reaches {outcome.result.top1:.3f} %, {low:.3f} to {high:.3f} % are published "
        f"(allowed: {TOLERANCE} points more or less); check that the images are the original ones and the classes in "
        "WordNet order"
    )
