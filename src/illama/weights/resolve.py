"""From what a user types to the weights file that it stands for."""

from __future__ import annotations

from pathlib import Path

from illama.checkpoint.format import find_weights
from illama.errors import UserError
from illama.registry import closest
from illama.weights.foreign import PICKLE_ENDINGS
from illama.weights.hub_folder import weights_in
from illama.weights.published import PUBLISHED, fetch

WEIGHTS_ENDINGS = (".safetensors", *PICKLE_ENDINGS)
LONGEST_PATH = 200  # characters of it in a message


def resolve(checkpoint: Path | str) -> Path:
    """The weights file behind a run, a checkpoint, a file, a hub folder, or the name of published weights.

    What exists on the disk comes before a published name. Published weights are downloaded once (`published.fetch`).

    Args:
        checkpoint: A run's folder (its last checkpoint), a checkpoint's folder, a weights file, a folder with
            config.json and weights (timm, transformers), or a name such as "illama_tiny.in1k".

    Raises:
        UserError: Nothing there, damaged, not readable, or published weights that cannot be fetched.
    """
    try:
        return _resolved(Path(checkpoint), str(checkpoint))
    except OSError as error:  # a folder that may not be read, a name that is too long
        raise UserError(f"cannot read {str(checkpoint)[:LONGEST_PATH]}: {error.strerror or error}") from None


def _resolved(path: Path, text: str) -> Path:
    in_hub_folder = weights_in(path) if path.is_dir() else None
    if in_hub_folder is not None:
        return in_hub_folder
    if not path.exists() and text in PUBLISHED:
        return fetch(text)
    try:
        return find_weights(path)
    except UserError as error:
        if path.exists() or len(path.parts) > 1 or path.suffix in WEIGHTS_ENDINGS:
            raise
        raise UserError(f"{error}, nor published weights of that name; {closest(text, PUBLISHED)}") from None
