"""The line that a run begins with: what is trained, from which recipe, on what, and how."""

from __future__ import annotations

from pathlib import Path

import torch

from illama.attention import BACKENDS, AttentionRequest, choose_backend
from illama.console.text import shown
from illama.device import Precision
from illama.device.matmul_rate import DTYPES
from illama.models.config import ModelConfig
from illama.models.cost import parameters
from illama.recipes import BatchPlan, Recipe, list_recipes, load_recipe, recipe_diff
from illama.recipes.load import override


def start_line(
    recipe: Recipe,
    plan: BatchPlan,
    *,
    device: torch.device,
    precision: Precision,
    total_steps: int,
    run_dir: Path,
    start: str | None = None,
) -> str:
    """Everything that decides numbers and speed of a run, in one line.

    Args:
        recipe: The run's.
        plan: How its total batch is split.
        device: That of this process; the others have the same kind.
        precision: In force on the device.
        total_steps: Optimizer steps of the whole run.
        run_dir: Where the results go.
        start: What the weights that it starts from are called; None for new ones.
    """
    parts = [
        *([] if start is None else [f"starting from {shown(start)}"]),
        f"{parameters(recipe.model) / 1e6:.2f} M parameters on {_devices(device, plan.num_devices)} in {precision}",
        _attention(recipe.model, device, precision, recipe.train.compile),
        _compilation(recipe),
        f"{total_steps} steps of {_batch(plan)}",
    ]
    return f"{recipe.name} ({overrides(recipe)}): {', '.join(parts)} -> {shown(run_dir)}"


def overrides(recipe: Recipe) -> str:
    """What a recipe changes in the packaged one of its name, as one would type it: "optimizer.lr=0.002 seed=1"."""
    if recipe.name not in list_recipes():
        return "own recipe"
    changes = recipe_diff(load_recipe(recipe.name), recipe)
    return " ".join(shown(override(change.key, change.new)) for change in changes) or "as packaged"


def attention_backend(
    config: ModelConfig, device: torch.device, precision: Precision, *, training: bool, compiled: bool = False
) -> str:
    """Name of the backend that computes attention of all tokens.

    Raises:
        UserError: The backend that the model names cannot serve it.
    """
    tokens, head_dim = config.num_patches + 1, config.embed_dim // config.num_heads
    with torch.set_grad_enabled(training):
        packed = torch.empty(
            1, tokens, 3, config.num_heads, head_dim, device=device, dtype=DTYPES[precision], requires_grad=training
        )
        q, k, v = packed.permute(2, 0, 3, 1, 4)
        softness = torch.zeros((), device=device)
        request = AttentionRequest(q, k, v, softness, config.mask, config.mask_mode, head_dim**-0.5, packed=packed)
        if compiled and config.attention_backend == "auto" and choose_backend(request) == "native":  # for eager mode
            others = (name for name in BACKENDS if name != "native")
            return next(n for n in others if BACKENDS[n].why_not(request) is None and BACKENDS[n].pays(request))
        return choose_backend(request, config.attention_backend)


def _attention(config: ModelConfig, device: torch.device, precision: Precision, compiled: bool) -> str:
    training, evaluation = (
        attention_backend(config, device, precision, training=t, compiled=compiled) for t in (True, False)
    )
    if training == evaluation:
        return f"attention {training}"
    return f"attention {training} in training, {evaluation} in evaluation"


def _compilation(recipe: Recipe) -> str:
    if not recipe.train.compile:
        return "eager"
    return "compiled with CUDA graphs" if recipe.train.cuda_graphs else "compiled"


def _devices(device: torch.device, count: int) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    one = f"{device.type if count > 1 else device} ({name})" if device.type in ("cpu", "cuda") else str(device)
    return f"{count} processes x {one}" if count > 1 else one


def _batch(plan: BatchPlan) -> str:
    devices = f"{plan.num_devices} device{'s' if plan.num_devices > 1 else ''}"
    return f"{plan.total_batch} images ({devices} x {plan.device_batch} x {plan.accumulation} accumulated)"
