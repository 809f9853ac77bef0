"""`illama eval`: accuracy and loss of a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from illama.cli.output import CheckpointPath, Json, SubjectOptions, check_targets, hand_over, say
from illama.console.text import shown

if TYPE_CHECKING:
    from illama.evaluation import EvalResult

SHOWN_CLASSES = 20  # with more classes the terminal shows the weakest ones only
WEAKEST = 10


def eval_command(
    checkpoint: CheckpointPath,
    /,
    *,
    options: SubjectOptions = SubjectOptions(),  # noqa: B008 - frozen
    save_logits: Path | None = None,
    json: Json = None,
) -> None:
    """Top-1, top-5, loss, per-class accuracy and speed. Each image counts once; unreadable ones are named.

    Args:
        save_logits: A .safetensors file that the logits go to, for `illama analyze compare` and measures of your own.
    """
    from illama.distributed import is_main_process
    from illama.evaluation.classify import evaluate

    check_targets(json=json)
    result = evaluate(checkpoint, **options.given(), progress=True, save_logits=save_logits)
    if not is_main_process():
        return
    hand_over(json, result.to_dict, lambda: print(report(result)))
    for where, why in result.skipped.items():
        say(f"illama: skipped {where}: {why}")
    if save_logits is not None:
        say(f"illama: the logits are in {save_logits}")


def report(result: EvalResult) -> str:
    """The result for people."""
    skipped = f", {len(result.skipped)} unreadable images skipped" if result.skipped else ""
    # of five classes or fewer the right one is always among the first five
    top5 = f"top-5 {result.top5:.2f} %   " if len(result.class_counts) > 5 else ""
    lines = [
        f"{result.weights}, on {result.data}",
        f"top-1 {result.top1:.2f} %   {top5}loss {result.loss:.4f}   softness {result.softness:g}",
        f"{result.count} images{skipped}, {result.images_per_s:.0f} images/s",
    ]
    rows = [
        (accuracy, name, count)
        for (name, accuracy), count in zip(result.per_class.items(), result.class_counts, strict=True)
        if accuracy is not None
    ]
    if len(rows) > SHOWN_CLASSES:
        lines.append(f"the {WEAKEST} weakest of {len(rows)} classes (--json has all):")
        rows = sorted(rows)[:WEAKEST]
    width = max(len(shown(name)) for _, name, _ in rows)
    lines += [f"  {shown(name):<{width}}  {accuracy:6.2f} %  of {count}" for accuracy, name, count in rows]
    return "\n".join(lines)
