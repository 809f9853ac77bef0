"""The weights that the authors published: one row per file, and fetching them (specification: model, section 4)."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from illama.errors import UserError
from illama.models.config import ModelConfig
from illama.models.variants import roadmap_config
from illama.registry import Registry

REPOSITORY = "techmonsterwang/iLLaMA"
LICENCE_NOTE = "licence not stated"
HUB = "https://huggingface.co"
REASON_LENGTH = 120
_log = logging.getLogger("illama")


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """One published file.

    Attributes:
        name: Our name, which is also timm's: architecture, dot, tag.
        file: The file in `REPOSITORY`.
        variant: A name of `illama.models.variants.VARIANTS`.
        img_size: Pixels of a side.
        top1: Accuracy on ImageNet-1K's validation split as the paper prints it, percent.
        top1_log: The same after the last epoch of the authors' log.
        best_log: The best epoch of that log.
    """

    name: str
    file: str
    variant: str
    img_size: int
    top1: float
    top1_log: float
    best_log: float

    @property
    def config(self) -> ModelConfig:
        """The model that the weights belong to."""
        return roadmap_config("learned_position", self.variant, img_size=self.img_size)

    @property
    def url(self) -> str:
        """Where the file can be downloaded by hand."""
        return f"{HUB}/{REPOSITORY}/resolve/main/{self.file}"


_TABLE = (  # name, the distinguishing part of the file's name, and the three accuracies
    ("illama_tiny.in1k", "tiny-in1k", 75.0, 75.000, 75.000),
    ("illama_small.in1k", "small-in1k", 79.9, 79.832, 79.852),
    ("illama_base.in1k", "base-in1k", 81.6, 81.612, 81.646),
    ("illama_base.in1k_384", "base-in1k-384", 83.0, 82.998, 82.998),
    ("illama_base.in21k_ft_in1k", "base-in21kin1k-224", 83.6, 83.564, 83.604),
    ("illama_base.in21k_ft_in1k_384", "base-in21kin1k-384", 85.0, 84.984, 84.990),
    ("illama_large.in21k_ft_in1k", "large-in21kin1k-224", 84.8, 84.786, 84.830),
    ("illama_large.in21k_ft_in1k_384", "large-in21kin1k-384", 86.0, 85.864, 85.950),
)
PUBLISHED: Registry[PublishedWeights] = Registry("published weights")
for _name, _file, _top1, _top1_log, _best_log in _TABLE:
    _row = PublishedWeights(
        name=_name,
        file=f"illama-{_file}-{_top1:.1f}.pth",
        variant=_name.removeprefix("illama_").partition(".")[0],
        img_size=384 if _name.endswith("_384") else 224,
        top1=_top1,
        top1_log=_top1_log,
        best_log=_best_log,
    )
    PUBLISHED.add(_name, _row)


def find_published(name: str | None) -> PublishedWeights | None:
    """The row of a name, or of a file by its name; None for all that the authors did not publish."""
    return next((row for row in PUBLISHED.values() if name in (row.name, row.file)), None)


def fetch(name: str, cache_dir: Path | str | None = None) -> Path:
    """Download published weights into huggingface_hub's cache, or find them there.

    Args:
        name: A name of `PUBLISHED`.
        cache_dir: Another cache than huggingface_hub's own.

    Returns:
        The file; its name is that of the row.

    Raises:
        UserError: An unknown name, huggingface_hub is not installed, or the file can neither be found nor downloaded.
    """
    row = PUBLISHED[name]
    instead = f"download {row.url} elsewhere and give the path of that file"
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            f"{name} has to be downloaded, which needs huggingface_hub; pip install huggingface_hub, or {instead}"
        ) from None
    for only_cached in (True, False):  # asking the hub about a file that is there takes half a minute without network
        if not only_cached:
            _log.info("fetching %s", row.url)
        try:
            with _without_retry_lines():
                return Path(
                    huggingface_hub.hf_hub_download(
                        REPOSITORY, row.file, cache_dir=cache_dir, local_files_only=only_cached
                    )
                )
        except Exception as error:  # no network, offline mode, no such repository, a full disk: dozens of classes
            reason = textwrap.shorten(f"{type(error).__name__}: {error}", REASON_LENGTH, placeholder=" ...")
    raise UserError(f"cannot fetch {row.file} from {HUB}/{REPOSITORY} ({reason}); {instead}")


@contextmanager
def _without_retry_lines() -> Iterator[None]:
    """Without network huggingface_hub tries for half a minute and writes two lines about each try."""
    from huggingface_hub.utils import logging as hub_logging

    before = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        hub_logging.set_verbosity(before)
