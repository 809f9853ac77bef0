"""A ViT that illama trained, saved the way timm saves its models: python docs/analysis/save_as_timm.py RUN FOLDER.

The roadmap's first row is timm's VisionTransformer, tensor for tensor: the weights are loaded strictly, and both
networks must give the same logits before anything is written.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import illama
from illama.hub import import_timm


def save_as_timm(run: Path, folder: Path) -> float:
    """Write config.json and model.safetensors; returns the largest difference of any logit on random images."""
    timm = import_timm()
    from timm.models import save_for_hf

    model, meta = illama.load_model(run)
    config, transform = meta.config, meta.eval_transform
    assert (config.ffn, config.norm, config.mask, config.position) == ("mlp", "layer", "none", "learned"), "not a ViT"
    fields = ("img_size", "patch_size", "num_classes", "embed_dim", "depth", "num_heads")
    arguments = {name: getattr(config, name) for name in fields}
    vit = timm.create_model("vit_tiny_patch16_224", **arguments).eval()
    vit.load_state_dict(model.state_dict(), strict=True)
    images = torch.randn(8, config.in_chans, *config.height_width)
    with torch.no_grad():
        difference = float((vit(images) - model(images)).abs().max())
    assert difference < 1e-4, difference
    how = {"mean": transform["mean"], "std": transform["std"], "crop_pct": 1.0, "interpolation": "bicubic"}
    classes = {"label_names": list(meta.classes)}
    save_for_hf(vit, str(folder), classes, arguments, safe_serialization=True, data_config=how)
    return difference


if __name__ == "__main__":
    print(f"largest difference of a logit: {save_as_timm(Path(sys.argv[1]), Path(sys.argv[2])):.1e}")
