"""What is at this path? The first half of loading: from what a user types to a weights file and what stands beside it.

Nothing of the weights is read here; `load` builds and fills. A new kind of path is a branch of `locate`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from illama.checkpoint.folder import META_FILE, checkpoint_folder, current, newest_checkpoint, read_meta
from illama.checkpoint.format import MODEL_FILE
from illama.errors import UserError
from illama.registry import closest
from illama.weights.foreign import WEIGHTS_ENDINGS
from illama.weights.published import PUBLISHED, PublishedWeights, fetch, find_published

CONFIG_FILE = "config.json"  # of timm's and transformers' folders
HUB_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")  # the weights beside it
LONGEST_PATH = 200  # characters of it in a message
_log = logging.getLogger("illama.checkpoint")


@dataclass(frozen=True)
class Place:
    """Where weights lie.

    Attributes:
        file: The weights file.
        config_file: The config.json beside it, which describes weights that do not describe themselves; None without.
        published: The authors' file that it is by its name; None for all others.
    """

    file: Path
    config_file: Path | None
    published: PublishedWeights | None


def locate(weights: Path | str) -> Place:
    """The weights file behind a run, a checkpoint, a file, a hub folder, or the name of published weights.

    What exists on the disk comes before a published name. Published weights are downloaded once (`published.fetch`).
    Where a run's last checkpoint is damaged, the run stands for the one before it, which is logged as a warning.

    Args:
        weights: A run's folder (its last checkpoint), a checkpoint's folder, a weights file, a folder with config.json
            and weights (timm, transformers), or a name such as "illama_tiny.in1k".

    Raises:
        UserError: Nothing there, damaged, not readable, or published weights that cannot be fetched.
    """
    path, text = Path(weights), str(weights)
    try:
        if path.is_file():
            file = path
        elif (path / CONFIG_FILE).is_file() and not (path / META_FILE).is_file():  # a hub folder
            names = [name for name in HUB_FILES if (path / name).is_file()]
            if not names:
                raise UserError(
                    f"{path} holds {CONFIG_FILE}, but none of {', '.join(HUB_FILES)}; give the weights file"
                )
            file = path / names[0]
        elif not path.exists() and text in PUBLISHED:
            file = fetch(text)
        elif (newest := newest_checkpoint(path)) is not None:
            # The last weights are what the run reports. The best ones are chosen by the evaluation split, so their
            # accuracy on it flatters; RUN/checkpoints/best names them.
            if newest.warning is not None:
                _log.warning(newest.warning)
            file = (current(checkpoint_folder(path, newest.tag)) or path) / MODEL_FILE
        elif (folder := current(path)) is not None:
            file = folder / MODEL_FILE
            if not file.is_file():
                raise UserError(f"{path} holds neither a run (checkpoints/last) nor a checkpoint ({MODEL_FILE})")
            read_meta(folder)
        else:
            is_path = len(path.parts) > 1 or path.suffix in WEIGHTS_ENDINGS
            or_name = "" if is_path else f", nor published weights of that name; {closest(text, PUBLISHED)}"
            raise UserError(f"there is no run, checkpoint or weights file {path}{or_name}")
        config_file = file.with_name(CONFIG_FILE)
        has_config = file.name in HUB_FILES and config_file.is_file()
    except OSError as error:  # a folder that may not be read, a name that is too long
        raise UserError(f"cannot read {text[:LONGEST_PATH]}: {error.strerror or error}") from None
    return Place(file, config_file if has_config else None, find_published(file.name))
