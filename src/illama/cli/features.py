"""`illama features`: what a network makes of each image, as a file of vectors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from illama.cli.output import CheckpointPath, SubjectOptions, check_targets, say
from illama.errors import UserError

if TYPE_CHECKING:
    from illama.evaluation.features import Features

ENDING = ".safetensors"


def features_command(
    checkpoint: CheckpointPath,
    /,
    *,
    out: Path,
    block: int = -1,
    tokens: Literal["class", "mean"] = "class",
    options: SubjectOptions = SubjectOptions(),  # noqa: B008 - frozen
) -> None:
    """Frozen features of all images, one vector each; classes need not be the network's. Unreadable images are named.

    Args:
        out: The file to write, .safetensors; safetensors.numpy.load_file(FILE) gives values, labels and positions.
        block: Whose output: 0 to the depth minus 1, or negative from the end. The final norm is applied.
        tokens: The class token, or the mean of the patches.
    """
    from illama.evaluation.features import collect_features

    if out.suffix != ENDING:
        raise UserError(f"--out {out} must end in {ENDING}")
    check_targets(out=str(out))
    features = collect_features(options.open(checkpoint, "data"), block, tokens)
    for where, why in features.skipped.items():
        say(f"illama: skipped {where}: {why}")
    features.save(out)
    print(report(features, out))


def report(features: Features, out: Path) -> str:
    """What was written, for people."""
    images, width = features.values.shape
    pooled = "class token" if features.tokens == "class" else "mean of the patches"
    skipped = f", {len(features.skipped)} unreadable images skipped" if features.skipped else ""
    return (
        f"{features.weights}, on {features.data}\n"
        f"{images} images{skipped}: {pooled} after block {features.block} (layer {features.block + 1}), "
        f"{width} numbers each\n{out}"
    )
