"""`illama convert`: weights of any origin as a .safetensors file with a model card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from illama.export.convert import Conversion


def convert_command(
    source: Path,
    target: Path,
    /,
    *edits: str,
    img_size: str | None = None,
    num_classes: int | None = None,
    transform: Literal["imagenet", "half"] | None = None,
) -> None:
    """Write weights of any origin as .safetensors with their description, and a model card beside them.

    Read are runs and checkpoints of ours, the authors' files and their names (illama_tiny.in1k), timm's ViT, folders of
    timm and transformers with a config.json, and VisionLLaMA. Code inside a file never runs.

    Args:
        source: What to convert.
        target: The new file, .safetensors; its model card has the same name with .md.
        edits: What the tensors do not tell, such as model.num_heads=8 or model.mask=none.
        img_size: Another image size in pixels, 384 or 224x384 (height x width): the position embedding is resized.
        num_classes: Another number of classes: the head is newly initialised; 0 leaves it out.
        transform: How images are prepared, where the source does not say it: as ImageNet's, or with mean and deviation
            0.5 (transformers without a preprocessor_config.json).
    """
    from illama.errors import UserError
    from illama.export.convert import convert, parse_edits, parse_size

    if num_classes is not None and num_classes < 0:
        raise UserError(f"--num-classes {num_classes} is no number of classes; give 0 or more")
    size = None if img_size is None else parse_size(img_size)
    edited = parse_edits(edits)
    print(report(convert(source, target, img_size=size, num_classes=num_classes, edits=edited, transform=transform)))


def report(conversion: Conversion) -> str:
    """What was done, for people."""
    config = conversion.meta.config
    height, width = config.height_width
    unused = f", not needed: {', '.join(conversion.unused)}" if conversion.unused else ""
    return "\n".join(
        [
            f"{conversion.report}{unused}",
            f"{conversion.target}: {height} x {width} px, {config.num_classes} classes, width {config.embed_dim}, "
            f"depth {config.depth}, {config.num_heads} heads",
            f"{conversion.card}: model card",
        ]
    )
