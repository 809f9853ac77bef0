"""`illama features`: what a network makes of each image, as a file of vectors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from illama.cli.output import Device, check_targets, say
from illama.errors import UserError

if TYPE_CHECKING:
    from illama.evaluation.features import Features

ENDING = ".safetensors"


def features_command(
    checkpoint: str,
    /,
    *,
    out: Path,
    data: str | None = None,
    split: str | None = None,
    block: int = -1,
    tokens: Literal["class", "mean"] = "class",
    batch_size: int | None = None,
    softness: float | None = None,
    device: Device = None,
) -> None:
    """Frozen features of all images, one vector each; classes need not be the network's. Unreadable images are named.

    Args:
        checkpoint: A run folder, a checkpoint, a weights file, or the name of published weights.
        out: The file to write, .safetensors; safetensors.numpy.load_file(FILE) gives values, labels and positions.
        data: Another data set than the recipe's: a folder, a parquet file, or a name such as digits.
        split: Which split; the recipe's evaluation split by default.
        block: Whose output: 0 to the depth minus 1, or negative from the end. The final norm is applied.
        tokens: The class token, or the mean of the patches.
        batch_size: Images at a time.
        softness: Softness of the mask, 0 (causal) to 1; the one saved with the weights by default.
    """
    from illama.evaluation.features import collect_features
    from illama.evaluation.subject import open_subject

    if out.suffix != ENDING:
        raise UserError(f"--out {out} must end in {ENDING}")
    check_targets(out=str(out))
    subject = open_subject(
        checkpoint,
        data=data,
        split=split,
        batch_size=batch_size,
        softness=softness,
        device=device,
        numbering="data",
    )
    found = collect_features(subject, block, tokens)
    for where, why in found.skipped.items():
        say(f"illama: skipped {where}: {why}")
    found.save(out)
    print(report(found, out))


def report(found: Features, out: Path) -> str:
    """What was written, for people."""
    images, width = found.values.shape
    pooled = "class token" if found.tokens == "class" else "mean of the patches"
    skipped = f", {len(found.skipped)} unreadable images skipped" if found.skipped else ""
    return (
        f"{found.weights}, on {found.data}\n"
        f"{images} images{skipped}: {pooled} after block {found.block} (layer {found.block + 1}), "
        f"{width} numbers each\n{out}"
    )
