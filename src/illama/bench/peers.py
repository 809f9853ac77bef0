"""What illama is compared with: timm's ViT of the same size, or any network that the user names."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from illama.errors import UserError
from illama.models.config import ModelConfig
from illama.models.cost import (
    forward_bytes,
    multiply_adds,
    peer_config,
    training_bytes,
    training_multiply_adds,
    working_set_bytes,
)
from illama.models.variants import VARIANTS
from illama.optional import import_timm


@dataclass(frozen=True)
class Cost:
    """Per image or per call, as its field says.

    Attributes:
        flops: Floating-point operations per image.
        bytes: Least traffic with memory per call.
        working_set: Bytes that a cache would have to hold.
    """

    flops: float
    bytes: float
    working_set: float


def timm_vit(config: ModelConfig) -> tuple[str, nn.Module]:
    """Name and network (random weights) of timm's ViT of the same width, depth, heads, patches, images and classes."""
    import_timm()
    import timm
    from timm.models import VisionTransformer

    same: dict[str, Any] = {
        "img_size": config.height_width,
        "num_classes": config.num_classes,
        "in_chans": config.in_chans,
    }
    full_name = _registered(config)
    if full_name is not None:
        return timm_vit_name(config), timm.create_model(full_name, pretrained=False, **same)
    vit = VisionTransformer(
        patch_size=config.patch_size,
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        **same,
    )
    return timm_vit_name(config), vit


def timm_vit_name(config: ModelConfig) -> str:
    """What `timm_vit` calls its network, without building it."""
    full_name = _registered(config)
    return f"timm ViT {config.embed_dim} x {config.depth}" if full_name is None else f"timm {full_name}"


def _registered(config: ModelConfig) -> str | None:
    """timm's own name of the ViT of that size."""
    px = 384 if config.height_width == (384, 384) else 224
    same = (name for name, variant in VARIANTS.items() if _size(variant) == _size(config))
    return next((f"vit_{name}_patch16_{px}" for name in same), None)


def vit_cost(config: ModelConfig, batch: int, bytes_per_value: int, *, training: bool) -> Cost:
    """What timm's ViT of that size computes: everything, no token and no product left out."""
    vit = peer_config(config)
    return cost(vit, multiply_adds(vit), batch, bytes_per_value, training=training)


def cost(config: ModelConfig, forward: int, batch: int, bytes_per_value: int, *, training: bool) -> Cost:
    """Operations, traffic and working set of a network of this configuration.

    Args:
        config: The network.
        forward: Multiply-adds of its forward pass per image.
        batch: Images per call.
        bytes_per_value: Of weights and activations.
        training: A training step instead of a forward pass.
    """
    if training:
        products = training_multiply_adds(config, forward)
        moved = training_bytes(config, batch, bytes_per_value)
    else:
        products, moved = forward, forward_bytes(config, batch, bytes_per_value)
    return Cost(2.0 * products, moved, working_set_bytes(config, batch, bytes_per_value))


def load_peer(spec: str, config: ModelConfig) -> tuple[nn.Module, int]:
    """The network of a user's `module:factory`, and its number of classes.

    The factory is called with `num_classes=` where it takes that, otherwise with nothing. The current folder
    counts as a place where modules are.

    Raises:
        UserError: It cannot be imported, fails, gives no torch module, or one that does not take these images.
    """
    module_name, colon, factory_name = spec.partition(":")
    if not colon or not module_name or not factory_name:
        raise UserError(f"--peer {spec!r} is not of the form module:factory, such as my_models:build_vit")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        factory = getattr(importlib.import_module(module_name), factory_name)
    except ImportError as error:
        raise UserError(f"--peer {spec}: module {module_name} cannot be imported: {error}") from error
    except AttributeError:
        raise UserError(f"--peer {spec}: module {module_name} has no {factory_name}") from None
    if not callable(factory):
        raise UserError(f"--peer {spec} is a {type(factory).__name__}, not something to call")
    try:
        takes_classes = "num_classes" in inspect.signature(factory).parameters
        peer = factory(num_classes=config.num_classes) if takes_classes else factory()
    except Exception as error:
        raise UserError(f"--peer {spec} failed when called: {type(error).__name__}: {error}") from error
    if not isinstance(peer, nn.Module):
        raise UserError(f"--peer {spec} returned a {type(peer).__name__}; it must return a torch.nn.Module")
    return peer, _classes(spec, peer, config)


def _classes(spec: str, peer: nn.Module, config: ModelConfig) -> int:
    """Try one image; the number of logits it gives."""
    images = torch.rand(1, config.in_chans, *config.height_width)
    try:
        with torch.no_grad():
            logits = peer.eval()(images)
    except Exception as error:
        shape = tuple(images.shape)
        raise UserError(f"--peer {spec} does not take images of shape {shape}: {error}".splitlines()[0]) from error
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2:
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UserError(f"--peer {spec} gave {found} for one image; it must give logits of shape (B, classes)")
    return logits.shape[1]


def counted_cost(peer: nn.Module, config: ModelConfig, batch: int, bytes_per_value: int, *, training: bool) -> Cost:
    """Cost of a network that no formula is known for: its products counted by torch at batch 1.

    Traffic is the weights, images and logits only: a floor that is certain, and low.
    """
    images = torch.rand(1, config.in_chans, *config.height_width)
    peer.eval()  # one image has no batch statistics
    # The fused CPU attention is invisible to torch's counter; written out it is counted right.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.set_grad_enabled(training):
        logits = peer(images)
        if training:
            logits.sum().backward()
    peer.zero_grad(set_to_none=True)
    weights = sum(p.numel() for p in peer.parameters())
    moved = (40 if training else bytes_per_value) * weights
    moved += bytes_per_value * batch * (images.numel() + logits.numel())
    return Cost(float(counter.get_total_flops()), moved, bytes_per_value * weights)


def _size(config: ModelConfig) -> tuple[int, int, int, int]:
    return config.embed_dim, config.depth, config.num_heads, config.patch_size
