"""Image sets: sources by name, decoding as a person sees, augmentation, and loaders that resume exactly."""

from illama.data.decode.images import BrokenImage, read_image
from illama.data.eval_transform import EvalTransform
from illama.data.layout import KINDS, Layout, look, open_source
from illama.data.loading.batch import Batch
from illama.data.loading.loader import EvalLoader, TrainLoader
from illama.data.source import Source

__all__ = [
    "KINDS",
    "Batch",
    "BrokenImage",
    "EvalLoader",
    "EvalTransform",
    "Layout",
    "Source",
    "TrainLoader",
    "look",
    "open_source",
    "read_image",
]
