"""Reading the golden files and the error measure they are judged by."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file

from illama.models import ILlama, ModelConfig

DATA = Path(__file__).parent / "data"

# The ways to run a micro network: dtype -> (tolerance, tolerance of gradients), relative L2 against the double run.
# Tolerances are those of index.json; feed-forward gradients are stored in float32, which sets their own floor.
TOLERANCE = {torch.float64: (1e-10, 1e-10), torch.float32: (5e-6, 1e-5)}
STORED_FLOAT32 = 1e-7


def load(name: str) -> dict[str, torch.Tensor]:
    return load_file(DATA / name)


def read_json(name: str) -> Any:
    return json.loads((DATA / name).read_text())


def metadata(name: str) -> dict[str, str]:
    with safe_open(DATA / name, framework="pt") as file:
        return file.metadata()


def micro_config(name: str, **edits: Any) -> ModelConfig:
    given = read_json("index.json")["files"][name]["config"]
    fields = ("img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads")
    return ModelConfig(**{field: given[field] for field in fields} | edits)


def relative_l2(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.detach().double(), b.double()
    assert a.shape == b.shape, f"{tuple(a.shape)} against {tuple(b.shape)}"
    return float((a - b).norm() / b.norm())


def run(model: ILlama, images: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
    """One forward and backward pass; every item under its golden name."""
    images = images.clone().requires_grad_()
    found = {"tokens.embed": model.embed(images)}
    x = model.run_blocks(found["tokens.embed"], after_block=lambda i, x: found.update({f"tokens.block{i}": x}))
    found["tokens.norm"] = model.norm(x)
    logits = model.forward_head(found["tokens.norm"])
    loss = F.cross_entropy(logits, targets)
    loss.backward()
    found |= {"logits": logits, "loss": loss, "grad_input": images.grad}
    found |= {f"attn.block{i}": model.get_attention(images, block=i) for i in range(model.config.depth)}
    return found | {f"grad.{name}": parameter.grad for name, parameter in model.named_parameters()}


def rebuilt_parameter(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """A full-size parameter from the formula of family_outputs.json, float64 before the cast."""
    x = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    if key in ("pos_embed", "cls_token") or key.endswith(".bias"):
        return 0.1 * x
    if key.endswith(("norm.weight", "norm1.weight", "norm2.weight")):
        return 1 + 0.1 * x
    return x / np.sqrt(np.prod(shape[1:]))
