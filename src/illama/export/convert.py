"""Weights of any origin as one .safetensors file that says what it is, with a model card beside it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError

from illama.checkpoint.format import Meta, save_weights
from illama.errors import UserError
from illama.export.model_card import model_card
from illama.models import ILlama, ModelConfig
from illama.recipes.load import parse_overrides
from illama.registry import closest
from illama.system.files import replacing, write_file
from illama.weights.adapt import LoadReport, adapt_state_dict
from illama.weights.load import load_weights, standard_transform

Transform = Literal["imagenet", "half"]
HEAD_SEED = 0  # the same command makes the same file, a new head included


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Attributes:
        target: The new weights file.
        card: The model card beside it.
        report: What became of each tensor.
        unused: Names of the source file that the network has no use for.
        meta: What travels with the new weights.
    """

    target: Path
    card: Path
    report: LoadReport
    unused: tuple[str, ...]
    meta: Meta


def convert(
    source: Path | str,
    target: Path,
    *,
    img_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    edits: Mapping[str, Any] | None = None,
    transform: Transform | None = None,
) -> Conversion:
    """Write weights with their description, for another image size or class count where asked.

    Args:
        source: Whatever `load_model` takes.
        target: The new file, .safetensors; TARGET with .md becomes its model card. Neither may exist.
        img_size: Pixels, one number or (height, width): the position embedding is resized on its grid.
        num_classes: Rows of a newly initialised head, where they are others than the source's; 0 leaves it out.
        edits: Fields of `ModelConfig` that describe the source and cannot be read off it (num_heads, mask, ...).
        transform: How evaluation looks at images, for a source that does not say it: "imagenet" as the published
            networks do (`standard_transform`), "half" as transformers does where nothing else is said (mean and
            deviation 0.5, bilinear, a warp).

    Returns:
        What was done. Equal sources and arguments give equal files.

    Raises:
        UserError: The source cannot be read, does not fit, or the target cannot be written; then nothing is written.
    """
    target = Path(target)
    if not target.name:
        raise UserError(f"{target} is no name of a file; give the new one as NAME.safetensors")
    card = target.with_suffix(".md")
    _check_target(target, card)
    weights = load_weights(source, edits)
    if transform is not None:
        weights = weights._replace(meta=_with_transform(weights.meta, transform, source))
    old = weights.meta.config
    config = _resized(old, img_size, num_classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(HEAD_SEED)
        model = ILlama(config)
    report = adapt_state_dict(weights.state, model, old)
    meta = _meta(weights.meta, config, bool(report.resized or report.new or report.unexpected))
    _write(target, card, model, meta, model_card(target, weights, meta, report))
    return Conversion(target, card, report, weights.unused, meta)


def _with_transform(meta: Meta, transform: Transform, source: Path | str) -> Meta:
    """The description with an evaluation transform that the source does not have.

    Raises:
        UserError: It has one, or images of so many channels have none.
    """
    if meta.eval_transform is not None:
        raise UserError(f"{source} says itself how its images are prepared; leave --transform out")
    usual = standard_transform(meta.config)
    if usual is None:
        raise UserError(f"images of {meta.config.in_chans} channels are not read from files; leave --transform out")
    half = [0.5] * meta.config.in_chans
    changes = {"mean": half, "std": half, "mode": "warp", "interpolation": "bilinear"} if transform == "half" else {}
    return dataclasses.replace(meta, eval_transform=usual | changes)


def parse_edits(words: Sequence[str]) -> dict[str, Any]:
    """`model.key=value` words as fields of `ModelConfig`, values written as in YAML.

    Raises:
        UserError: A word is no such edit, the field does not exist, or its value is of another type.
    """
    tree, problems = parse_overrides(words)
    if problems:
        raise UserError(f"{problems[0][0]}: {problems[0][1]}")
    fields = [field.name for field in dataclasses.fields(ModelConfig)]
    for section, values in tree.items():
        if section != "model" or not isinstance(values, dict):
            raise UserError(f"{section}: what can be said of weights is model.key=value; keys: {', '.join(fields)}")
        for key in values:
            if key not in fields:
                raise UserError(f"model.{key}: unknown key; {closest(key, fields)}")
    edits = dict(tree.get("model", {}))
    try:
        TypeAdapter(ModelConfig).validate_json(json.dumps(edits))
    except ValidationError as error:
        for problem in error.errors():
            if problem["loc"]:  # else a rule between fields, some of which only the weights tell
                given = json.dumps(problem["input"], ensure_ascii=False)
                raise UserError(f"model.{problem['loc'][0]}: {problem['msg']}; given {given}") from None
    return edits


def parse_size(text: str) -> int | tuple[int, int]:
    """ "384" or "224x384" (height x width) as pixels.

    Raises:
        UserError: Neither of them.
    """
    sides = text.lower().split("x")
    if len(sides) not in (1, 2) or not all(side.isascii() and side.isdigit() and int(side) > 0 for side in sides):
        raise UserError(f"image size {text!r} is neither pixels (384) nor height x width (224x384)")
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def _check_target(target: Path, card: Path) -> None:
    if target.suffix != ".safetensors":
        raise UserError(f"{target} does not end in .safetensors, the format that is written; give another name")
    if not target.parent.is_dir():
        raise UserError(f"{target}: there is no folder {target.parent}; make it first")
    for file in (target, card):
        if file.exists():
            raise UserError(f"{file} exists; delete it, or give another name")


def _resized(old: ModelConfig, img_size: int | tuple[int, int] | None, num_classes: int | None) -> ModelConfig:
    changes: dict[str, Any] = {}
    if img_size is not None and dataclasses.replace(old, img_size=img_size).height_width != old.height_width:
        changes["img_size"] = img_size
    if num_classes is not None:
        changes["num_classes"] = num_classes
    return dataclasses.replace(old, **changes)


def _meta(old: Meta, config: ModelConfig, changed: bool) -> Meta:
    """The description of the new file; what no longer holds is left out."""
    if config == old.config and not changed:
        return old
    other_head = config.num_classes != old.config.num_classes
    return dataclasses.replace(
        old,
        config=config,
        classes=() if other_head else old.classes,
        eval_transform=_transform_at(old.eval_transform, old.config, config),
        source=None,
        recipe=None,
    )


def _transform_at(old: dict[str, Any] | None, source: ModelConfig, config: ModelConfig) -> dict[str, Any] | None:
    """The evaluation transform at another size: the usual look for that size where it was the usual one before."""
    from illama.data.eval_transform import standard_mode

    if old is None:
        return None
    usual = old.get("mode") == standard_mode(source.height_width)
    mode = {"mode": standard_mode(config.height_width)} if usual else {}
    return old | {"img_size": list(config.height_width)} | mode


def _write(target: Path, card: Path, model: ILlama, meta: Meta, text: str) -> None:
    """Both files appear complete; on an error neither does."""
    try:
        with replacing(target) as new_weights:
            save_weights(new_weights, model.state_dict(), meta)
            write_file(card, text.encode())
    except BaseException as error:  # an interrupted conversion leaves nothing either
        if not target.exists():
            card.unlink(missing_ok=True)
        if not isinstance(error, OSError | SafetensorError):
            raise
        raise UserError(f"cannot write {target}: {getattr(error, 'strerror', None) or error}") from None
