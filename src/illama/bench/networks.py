"""Networks as cases: a forward pass or a training step of illama and of its peers, all treated alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from illama.bench.interleave import Case
from illama.bench.options import BenchPrecision, CompileMode, ModelOptions
from illama.bench.peers import Cost, cost, counted_cost, load_peer, timm_vit, timm_vit_name, vit_cost
from illama.device import autocast
from illama.device.matmul_rate import DTYPES
from illama.models import ILlama, ModelConfig
from illama.models.cost import needed_multiply_adds

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
    config, softness = treatment.config, treatment.softness
    model = ILlama(config)
    model.set_softness(softness)
    needed = needed_multiply_adds(config, softness)
    price = cost(config, needed, treatment.batch, treatment.bytes_per_value, training=treatment.training)
    return _network(OURS, model, price, treatment)


def _build_vit(treatment: Treatment) -> Network:
    config = treatment.config
    name, vit = timm_vit(config)
    price = vit_cost(config, treatment.batch, treatment.bytes_per_value, training=treatment.training)
    return _network(name, vit, price, treatment)


def _build_peer(spec: str, treatment: Treatment) -> Network:
    config = treatment.config
    peer, classes = load_peer(spec, config)
    price = counted_cost(peer, config, treatment.batch, treatment.bytes_per_value, training=treatment.training)
    return _network(spec, peer, price, treatment, classes)


def random_batch(treatment: Treatment, classes: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, C, H, W) of the right type, and labels (B,)."""
    config, device = treatment.config, treatment.device
    dtype = torch.float32 if treatment.training else DTYPES[treatment.precision]
    images = torch.randn(treatment.batch, config.in_chans, *config.height_width, device=device).to(dtype)
    return images, torch.randint(classes or config.num_classes, (treatment.batch,), device=device)


def _network(name: str, module: nn.Module, price: Cost, treatment: Treatment, classes: int | None = None) -> Network:
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
        if optimizer is None:
            return _prediction(network, images)
        return _training_step(network, images, labels, optimizer, treatment)

    def held_bytes() -> int:
        tensors = [*module.parameters(), *module.buffers()]
        if optimizer is not None:
            tensors += [t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    flops = price.flops * treatment.batch
    case = Case(name, runs(call), treatment.batch, flops, price.bytes, price.working_set)
    return Network(case, module, runs(module), held_bytes, treatment.device)


def _prediction(network: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> Callable[[], object]:
    def predict() -> object:
        with torch.inference_mode():
            return network(images)

    return predict


def _training_step(
    network: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    labels: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    treatment: Treatment,
) -> Callable[[], object]:
    def step() -> object:
        with autocast(treatment.device, treatment.precision):
            loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def treatments(
    options: ModelOptions, configs: dict[str, ModelConfig], device: torch.device, *, training: bool
) -> list[tuple[str, Treatment]]:
    """Every combination of size, precision and batch, with its title."""
    mode: CompileMode | None = (options.compile_mode or "default") if options.compile else None
    compiled = "" if mode is None else ", compiled" if mode == "default" else f", compiled ({mode})"
    found = []
    for name, config in configs.items():
        sized = dataclasses.replace(config, img_size=options.img_size)
        for precision in options.precision:
            for batch in options.batch:
                title = f"{name}, {options.img_size} px, batch {batch}, {precision}{compiled}"
                treatment = Treatment(sized, batch, precision, device, training, mode, options.softness)
                found.append((title, treatment))
    return found
