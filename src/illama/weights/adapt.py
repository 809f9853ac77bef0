"""Fitting weights to a model that differs in image size or class count; everything else must agree."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from illama.checkpoint.format import Meta
from illama.checkpoint.tensors import demand_finite, shape_difference, shape_in
from illama.data.sources.splits import composed, difference
from illama.errors import UserError
from illama.models import ILlama, ModelConfig
from illama.models.position import resize_position
from illama.weights.dialects import translate
from illama.weights.foreign import read_weights
from illama.weights.load import locate

POSITION = "pos_embed"
HEAD = "head."
# Fields that may differ without a word: weights are adapted to them, or do not depend on them.
_FREE = {
    "img_size",
    "num_classes",
    "drop_path",
    "drop_rate",
    "drop_path_shape",
    "attention_backend",
    "layer_scale",
}


@dataclass(frozen=True)
class LoadReport:
    """What became of each tensor, by name.

    Attributes:
        matched: Taken as they are.
        resized: Taken after a resize (the position embedding).
        new: Of the model, newly initialised (a head of other classes).
        unexpected: Of the file, not used (a head, where the model has none).
        differences: Fields in which the file's model computes another function: "mask: none -> causal".
        description: The same in one line for people.
    """

    matched: tuple[str, ...]
    resized: tuple[str, ...]
    new: tuple[str, ...]
    unexpected: tuple[str, ...]
    differences: tuple[str, ...]
    description: str

    def __str__(self) -> str:
        return self.description


def initialize_from(path: Path | str, model: ILlama, classes: Sequence[str] | None = None) -> LoadReport:
    """Start a new run from weights of any origin, published names and a run's last checkpoint included.

    Args:
        path: As `locate`.
        model: Changed in place.
        classes: Names of the model's classes in index order. Where those of the weights are known as well, rows of the
            head follow the names; for other classes the head stays new. None takes the head as it is.

    Raises:
        UserError: As `read_weights` and `adapt_state_dict`.
    """
    return adapt_weights(*read_weights(locate(path).file), path, model, classes)


def adapt_weights(
    state: dict[str, Tensor], meta: Meta | None, path: Path | str, model: ILlama, classes: Sequence[str] | None = None
) -> LoadReport:
    """`initialize_from` for weights that were read; `path` names them in messages."""
    try:
        if meta is None:
            # a position embedding with as many rows as the model's needs no more
            position, own = state.get(POSITION), model.pos_embed
            fits = position is not None and own is not None and position.shape == own.shape
            return adapt_state_dict(translate(state, model.config.height_width if fits else None).state, model)
        return adapt_state_dict(state, model, meta.config, (meta.classes, classes) if classes else None)
    except UserError as error:
        raise UserError(f"{path} does not fit: {error}") from None


@torch.no_grad()
def adapt_state_dict(
    state: Mapping[str, Tensor],
    model: ILlama,
    source: ModelConfig | None = None,
    classes: tuple[Sequence[str], Sequence[str]] | None = None,
) -> LoadReport:
    """Load weights into a model; the position embedding is resized, a head of other classes left new.

    Args:
        state: Parameter name -> tensor, in the names of the published files.
        model: Changed in place, once everything is known to fit.
        source: The configuration that the weights belong to; if unknown, their patch grid is taken to be
            square and the place of the class token to be the model's.
        classes: Class names of the weights and of the model, in index order; None, or without names on one side,
            compares the numbers of classes alone.

    Returns:
        What was taken, resized, left new or not used.

    Raises:
        UserError: Weights of another architecture (names the first tensor that differs, counts the others), or
            tensors that are no finite numbers.
    """
    own = model.state_dict()
    old_head, new_head = state.get(HEAD + "weight"), own.get(HEAD + "weight")
    other_head = (None if old_head is None else len(old_head)) != (None if new_head is None else len(new_head))
    order = None if other_head or classes is None or old_head is None else _rows_by_name(*classes)
    if order is not None:
        other_head = not order
        state = {name: t[order] if order and name.startswith(HEAD) else t for name, t in state.items()}
    adapted = {name: tensor for name, tensor in state.items() if not (other_head and name.startswith(HEAD))}
    expected = {name: tensor for name, tensor in own.items() if not (other_head and name.startswith(HEAD))}
    resized = _resize_position(adapted, expected, model.config, source)
    wrong = shape_difference(adapted, expected)
    if wrong is not None:
        raise UserError(f"weights of another architecture: {wrong}; choose the model that the weights belong to")
    demand_finite(adapted)
    model.load_state_dict(adapted, strict=False)

    matched = tuple(name for name in expected if name not in resized)
    new = tuple(name for name in own if name not in expected)
    unexpected = tuple(name for name in state if name not in adapted and name not in new)
    differences = () if source is None else _differences(source, model.config)
    types = {(str(state[name].dtype), str(own[name].dtype)) for name in matched}
    changed = sorted(f"{old} to {new}".replace("torch.", "") for old, new in types if old != new)
    parts = [f"{len(matched)} tensors taken as they are" + (f" (from {'; '.join(changed)})" if changed else "")]
    parts += [f"{name} resized from {shape_in(state, name)} to {shape_in(own, name)}" for name in resized]
    if new:
        shapes = f"{shape_in(state, HEAD + 'weight')} in the file, {shape_in(own, HEAD + 'weight')} in the model"
        parts.append(f"head newly initialised ({shapes})")
    if unexpected:
        parts.append(f"not used: {', '.join(unexpected)}")
    if differences:
        parts.append(f"the file's model differs in {'; '.join(differences)}")
    text = ", ".join(parts)
    if order:
        text += ", rows of the head put into the order of the data's classes"
    elif order is not None and classes is not None:
        text += f": its classes are others ({difference(*classes)})"
    return LoadReport(matched, resized, new, unexpected, differences, text)


def _rows_by_name(old: Sequence[str], new: Sequence[str]) -> list[int] | None:
    """Rows of a head in the order of other names of the same classes; none of them where the classes are others, None
    where nothing needs to be done."""
    if not old or not new or difference(old, new) is None:
        return None
    place = {composed(name): row for row, name in enumerate(old)}
    names = [composed(name) for name in new]
    return [place[name] for name in names] if set(names) == set(place) else []


def _resize_position(
    adapted: dict[str, Tensor],
    expected: Mapping[str, Tensor],
    config: ModelConfig,
    source: ModelConfig | None,
) -> tuple[str, ...]:
    """Resize the position embedding in `adapted` to the model's grid; the names that were resized."""
    old, new = adapted.get(POSITION), expected.get(POSITION)
    if old is None or new is None or old.dim() != 3 or old.shape[-1] != new.shape[-1]:
        return ()
    patches = old.shape[1] - 1
    if source is not None:
        grid, cls_position = source.grid, source.cls_position
    elif patches == config.num_patches:
        return ()
    else:
        side = math.isqrt(max(patches, 0))
        if side * side != patches or side == 0:
            raise UserError(
                f"its {POSITION} has {patches} patch rows, which is no square grid, and the file "
                f"does not say which it is; convert it to a .safetensors file that carries its model configuration"
            )
        grid, cls_position = (side, side), config.cls_position
    if grid == config.grid:
        return ()
    adapted[POSITION] = resize_position(old, grid, config.grid, cls_position)
    return (POSITION,)


def _differences(source: ModelConfig, config: ModelConfig) -> tuple[str, ...]:
    """Fields of which another value is another function of the same tensors."""
    names = [field.name for field in dataclasses.fields(ModelConfig) if field.name not in _FREE]
    pairs = {name: (getattr(source, name), getattr(config, name)) for name in names}
    return tuple(f"{name}: {old} -> {new}" for name, (old, new) in pairs.items() if old != new)
