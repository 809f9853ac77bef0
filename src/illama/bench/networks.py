"""Networks as cases: a forward pass or a training step of illama and of what it is compared with, all treated alike.

illama's peers are timm's ViT of the same size, and any network that the user names.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from illama.bench.interleave import Case
from illama.bench.options import BenchPrecision, CompileMode, ModelOptions
from illama.device import autocast
from illama.device.matmul_rate import DTYPES
from illama.errors import UserError
from illama.models import ILlama, ModelConfig
from illama.models.cost import (
    forward_bytes,
    multiply_adds,
    needed_multiply_adds,
    peer_config,
    training_bytes,
    training_multiply_adds,
    working_set_bytes,
)
from illama.models.variants import VARIANTS
from illama.optional import import_timm

OURS = "illama"
LR = 1e-4  # small: random labels must not blow the weights up while the step is timed


@dataclass(frozen=True)
class Treatment:
    """What is done to every network of a group, illama's and the peers' alike.

    Attributes:
        config: illama's configuration; peers take its size.
        batch: Images per call.
        precision: "float32" or "bf16".
        device: Where.
        training: Training steps instead of predictions.
        compile_mode: torch.compile's mode; None does not compile.
        softness: Softness of illama's mask.
    """

    config: ModelConfig
    batch: int
    precision: BenchPrecision
    device: torch.device
    training: bool
    compile_mode: CompileMode | None = None
    softness: float = 0.0

    @property
    def bytes_per_value(self) -> int:
        return DTYPES[self.precision].itemsize


def treatments(
    options: ModelOptions, configs: dict[str, ModelConfig], device: torch.device, *, training: bool
) -> list[tuple[str, Treatment]]:
    """Every combination of size, precision and batch, with its title."""
    mode: CompileMode | None = (options.compile_mode or "default") if options.compile else None
    compiled = "" if mode is None else ", compiled" if mode == "default" else f", compiled ({mode})"
    titled = []
    for name, config in configs.items():
        sized = replace(config, img_size=options.img_size)
        for precision in options.precision:
            for batch in options.batch:
                title = f"{name}, {options.img_size} px, batch {batch}, {precision}{compiled}"
                treatment = Treatment(sized, batch, precision, device, training, mode, options.softness)
                titled.append((title, treatment))
    return titled


@dataclass(frozen=True)
class Network:
    """A network ready to be timed.

    Attributes:
        case: Its call.
        module: The network itself, not compiled.
        eager: The same call without torch.compile, for the profile.
        held_bytes: Weights, buffers and optimizer state.
        device: Where it is.
    """

    case: Case
    module: nn.Module
    eager: Callable[[], object]
    held_bytes: Callable[[], int]
    device: torch.device


@dataclass(frozen=True)
class Cost:
    """What a call needs: floating-point operations, least traffic with memory in bytes, and bytes that a cache would
    have to hold to replace memory."""

    flops: float
    bytes: float
    working_set: float


def network_builders(treatment: Treatment, options: ModelOptions) -> dict[str, Callable[[], Network]]:
    """What builds each network, by name: illama first, then the peers, in the order in which they are listed.

    A builder raises a `UserError` where its peer cannot be used.
    """
    builders: dict[str, Callable[[], Network]] = {OURS: lambda: build_illama(treatment)}
    if not options.no_timm:
        builders[timm_vit_name(treatment.config)] = lambda: _build_vit(treatment)
    for spec in options.peer:
        builders[spec] = partial(_build_peer, spec, treatment)
    return builders


def build_illama(treatment: Treatment) -> Network:
    """illama itself, with random weights."""
    model = ILlama(treatment.config)
    model.set_softness(treatment.softness)
    needed = needed_multiply_adds(treatment.config, treatment.softness)
    return _network(OURS, model, cost(treatment, treatment.config, needed), treatment)


def _build_vit(treatment: Treatment) -> Network:
    name, vit = timm_vit(treatment.config)
    return _network(name, vit, vit_cost(treatment), treatment)


def _build_peer(spec: str, treatment: Treatment) -> Network:
    peer, classes = load_peer(spec, treatment.config)
    return _network(spec, peer, counted_cost(peer, treatment), treatment, classes)


def random_batch(treatment: Treatment, classes: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, C, H, W) of the right type, and labels (B,)."""
    config, device = treatment.config, treatment.device
    dtype = torch.float32 if treatment.training else DTYPES[treatment.precision]
    images = torch.randn(treatment.batch, config.in_chans, *config.height_width, device=device).to(dtype)
    return images, torch.randint(classes or config.num_classes, (treatment.batch,), device=device)


def _network(name: str, module: nn.Module, costs: Cost, treatment: Treatment, classes: int | None = None) -> Network:
    module.train(treatment.training)
    module.to(treatment.device, None if treatment.training else DTYPES[treatment.precision])
    mode = treatment.compile_mode
    call = module if mode is None else torch.compile(module, dynamic=False, mode=mode)
    images, labels = random_batch(treatment, classes)
    optimizer = None
    if treatment.training:
        fused = treatment.device.type in ("cpu", "cuda", "mps")
        optimizer = torch.optim.AdamW(module.parameters(), lr=LR, weight_decay=0.05, fused=fused)

    def runs(network: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], object]:
        def predict() -> object:
            with torch.inference_mode():
                return network(images)

        def step() -> object:
            assert optimizer is not None
            with autocast(treatment.device, treatment.precision):
                loss = F.cross_entropy(network(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach()

        return predict if optimizer is None else step

    def held_bytes() -> int:
        tensors = [*module.parameters(), *module.buffers()]
        if optimizer is not None:
            tensors += [t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    case = Case(name, runs(call), treatment.batch, costs.flops, costs.bytes, costs.working_set)
    return Network(case, module, runs(module), held_bytes, treatment.device)


def cost(treatment: Treatment, config: ModelConfig, forward: int) -> Cost:
    """Of a network of a configuration whose forward pass takes `forward` multiply-adds per image."""
    batch, itemsize = treatment.batch, treatment.bytes_per_value
    products, moved = forward, forward_bytes(config, batch, itemsize)
    if treatment.training:
        products, moved = training_multiply_adds(config, forward), training_bytes(config, batch, itemsize)
    return Cost(2.0 * products * batch, moved, working_set_bytes(config, batch, itemsize))


def vit_cost(treatment: Treatment) -> Cost:
    """What timm's ViT of illama's size computes: everything, no token and no product left out."""
    vit = peer_config(treatment.config)
    return cost(treatment, vit, multiply_adds(vit))


def counted_cost(peer: nn.Module, treatment: Treatment) -> Cost:
    """Cost of a network that no formula is known for: its products counted by torch at batch 1.

    Traffic is the weights, images and logits only: a floor that is certain, and low.
    """
    config, itemsize = treatment.config, treatment.bytes_per_value
    images = torch.rand(1, config.in_chans, *config.height_width)
    peer.eval()  # one image has no batch statistics
    # The fused CPU attention is invisible to torch's counter; written out it is counted right.
    with (
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),
        torch.set_grad_enabled(treatment.training),
    ):
        logits = peer(images)
        if treatment.training:
            logits.sum().backward()
    peer.zero_grad(set_to_none=True)
    weights = sum(p.numel() for p in peer.parameters())
    moved = (40 if treatment.training else itemsize) * weights
    moved += itemsize * treatment.batch * (images.numel() + logits.numel())
    return Cost(float(counter.get_total_flops()) * treatment.batch, moved, itemsize * weights)


def timm_vit(config: ModelConfig) -> tuple[str, nn.Module]:
    """Name and network (random weights) of timm's ViT of the same width, depth, heads, patches, images and classes."""
    import_timm()
    import timm
    from timm.models import VisionTransformer

    size: dict[str, Any] = {
        "img_size": config.height_width,
        "num_classes": config.num_classes,
        "in_chans": config.in_chans,
    }
    registered = _registered(config)
    if registered is not None:
        return timm_vit_name(config), timm.create_model(registered, pretrained=False, **size)
    size |= {"patch_size": config.patch_size, "embed_dim": config.embed_dim}
    return timm_vit_name(config), VisionTransformer(depth=config.depth, num_heads=config.num_heads, **size)


def timm_vit_name(config: ModelConfig) -> str:
    """What `timm_vit` calls its network, without building it."""
    registered = _registered(config)
    return f"timm ViT {config.embed_dim} x {config.depth}" if registered is None else f"timm {registered}"


def _registered(config: ModelConfig) -> str | None:
    """timm's own name of the ViT of that size."""
    px = 384 if config.height_width == (384, 384) else 224
    shape = ("embed_dim", "depth", "num_heads", "patch_size")
    for name, variant in VARIANTS.items():
        if all(getattr(variant, field) == getattr(config, field) for field in shape):
            return f"vit_{name}_patch16_{px}"
    return None


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
        raise UserError(
            f"--peer {spec} does not take images of shape {tuple(images.shape)}: {error}".splitlines()[0]
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2:
        shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UserError(f"--peer {spec} gave {shape} for one image; it must give logits of shape (B, classes)")
    return logits.shape[1]
