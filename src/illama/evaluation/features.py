"""Frozen features of all images of a source: one vector each, from any block.

Letters: N images, D width, L depth.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor
from typing_extensions import TypedDict

from illama.errors import UserError
from illama.evaluation.cache import make_workspace, read_tensors, write_tensors
from illama.evaluation.classify import evaluating
from illama.evaluation.origin import data_id, network_id, short_name

if TYPE_CHECKING:
    from illama.evaluation.subject import Subject
    from illama.models import ILlama

Pooled = Literal["class", "mean"]
KEY = "illama_features"  # of the safetensors header


@dataclass(frozen=True)
class Features:
    """What a network makes of each image of a source, in the order of the source.

    Attributes:
        values: (N, D) float32, after the final norm.
        labels: Class of each image, (N,) int64.
        positions: Its position in the source, (N,) int64; unreadable images are absent.
        classes: Class names; a label is a position in it.
        block: Whose output, 0 to L - 1.
        tokens: The "class" token, or the "mean" of the patches.
        identity: All that the values depend on, as `features_identity` says.
        weights: Which weights, for people.
        data: Which images, for people.
        skipped: Images that could not be read: location -> reason.
    """

    values: Tensor
    labels: Tensor
    positions: Tensor
    classes: tuple[str, ...]
    block: int
    tokens: Pooled
    identity: dict[str, Any]
    weights: str = ""
    data: str = ""
    skipped: dict[str, str] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write a .safetensors file: values, labels, positions, and the rest as JSON in its header.

        `safetensors.numpy.load_file(path)["values"]` reads it without this package; so do "labels" and "positions".

        Raises:
            UserError: It cannot be written.
        """
        tensors = {name: getattr(self, name).contiguous() for name in ("values", "labels", "positions")}
        about = {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.name not in tensors}
        write_tensors(path, KEY, tensors, about)

    @classmethod
    def load(cls, path: Path) -> Features:
        """Read back what `save` wrote.

        Raises:
            UserError: No such file, damaged, or not one of features.
        """
        tensors, about = read_tensors(path, KEY, "features")
        kinds = {name: (tensor.dtype, tensor.ndim) for name, tensor in tensors.items()}
        try:
            fields: dict[str, Any] = dict(TypeAdapter(_About).validate_python(about))
        except ValidationError:
            fields = {}
        if not fields or kinds != _TENSORS:
            raise UserError(f"{path} holds features of another version of illama; make them again")
        if len({len(tensor) for tensor in tensors.values()}) > 1:
            raise UserError(f"{path} has features, labels and positions of different numbers of images; make it again")
        parts: dict[str, Any] = {**tensors, **fields, "classes": tuple(fields["classes"])}
        return cls(**parts)


class _About(TypedDict):
    """The description in a file's header."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)  # type: ignore[misc]

    classes: list[str]
    block: int
    tokens: Pooled
    identity: dict[str, Any]
    weights: str
    data: str
    skipped: dict[str, str]


_TENSORS = {"values": (torch.float32, 2), "labels": (torch.int64, 1), "positions": (torch.int64, 1)}


def collect_features(subject: Subject, block: int = -1, tokens: Pooled = "class") -> Features:
    """Features of all readable images in one pass.

    Args:
        subject: Which network, on which images.
        block: Whose output is taken: 0 to L - 1, or negative from the end. The final norm is applied to any block's.
        tokens: The "class" token, or the "mean" of the patches.

    Raises:
        UserError: No such block, no readable image, or a feature that is not finite.
    """
    return collect_blocks(subject, [block], tokens)[0]


def collect_blocks(subject: Subject, blocks: Sequence[int], tokens: Pooled = "class") -> list[Features]:
    """Features of several blocks in one pass, in the order of `blocks`; else as `collect_features`."""
    from illama.console.progress import WorkProgress

    wanted = [subject.model.block_index(block) for block in blocks]
    loader = subject.loader()
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    with evaluating(subject.model, None), WorkProgress("features", len(subject.source)) as progress:
        for batch in loader:
            values_BLD = _pooled(subject.model, batch.images, wanted, tokens)
            parts.append((values_BLD.cpu(), batch.targets.cpu(), batch.indices))
            progress.advance(len(batch.indices))
    if not parts:
        raise UserError(f"{subject.source.description}: none of the {len(loader.skipped)} images can be read")
    values_NLD, labels, positions = (torch.cat(column) for column in zip(*parts, strict=True))
    order = torch.argsort(positions)
    _demand_finite(values_NLD, subject)
    return [
        Features(
            values=values_NLD[order, i],
            labels=labels[order],
            positions=positions[order],
            classes=tuple(subject.source.classes),
            block=block,
            tokens=tokens,
            identity=features_identity(subject, block, tokens),
            weights=subject.weights,
            data=subject.source.description,
            skipped=dict(loader.skipped),
        )
        for i, block in enumerate(wanted)
    ]


def cached_features(subject: Subject, blocks: Sequence[int], tokens: Pooled, workspace: Path | None) -> list[Features]:
    """`collect_blocks`, but what lies in a folder from an earlier call is read, and what does not is put there.

    Args:
        subject: Which network, on which images.
        blocks: As for `collect_features`.
        tokens: As for `collect_features`.
        workspace: The folder, made if absent; None keeps nothing. A file's name follows from all that the features
            depend on, so those of other weights, images or softness lie side by side.

    Raises:
        UserError: As `collect_features`; or a file of the folder does not hold what its name says.
    """
    if workspace is None:
        return collect_blocks(subject, blocks, tokens)
    wanted = [subject.model.block_index(block) for block in blocks]
    files = {block: _cache_file(workspace, features_identity(subject, block, tokens)) for block in wanted}
    missing = [block for block, file in files.items() if not file.is_file()]
    if missing:
        make_workspace(workspace)
        for found in collect_blocks(subject, missing, tokens):
            found.save(files[found.block])
    return [_load_checked(files[block], features_identity(subject, block, tokens)) for block in wanted]


def features_identity(subject: Subject, block: int, tokens: Pooled) -> dict[str, Any]:
    """All that features depend on, as plain values."""
    block = subject.model.block_index(block)
    return {
        "network": network_id(subject.model, subject.transform),
        "data": data_id(subject.source),
        "block": block,
        "tokens": tokens,
    }


def _pooled(model: ILlama, images: Tensor, blocks: Sequence[int], tokens: Pooled) -> Tensor:
    """Features of a batch, (B, len(blocks), D) float32."""
    found: dict[int, Tensor] = {}

    def keep(index: int, x_BND: Tensor) -> None:
        if index in blocks:
            normed_BND = model.norm(x_BND)
            pooled = normed_BND[:, model.cls_index] if tokens == "class" else model.patch_tokens(normed_BND).mean(dim=1)
            found[index] = pooled.float()

    alone = tokens == "class" and model.only_needed_tokens
    model.run_blocks(model.embed(images), keep, stop_after=max(blocks), only_class_token=alone)
    return torch.stack([found[block] for block in blocks], dim=1)


def _demand_finite(values_NLD: Tensor, subject: Subject) -> None:
    bad = int((~torch.isfinite(values_NLD).flatten(1).all(dim=1)).sum())
    if bad:
        raise UserError(
            f"{bad} of {len(values_NLD)} images have features that are not finite; the weights ({subject.weights}) "
            "are damaged or training has diverged"
        )


def _cache_file(workspace: Path, identity: dict[str, Any]) -> Path:
    return workspace / f"features-{short_name(identity)}.safetensors"


def _load_checked(file: Path, identity: dict[str, Any]) -> Features:
    try:
        found = Features.load(file)
    except UserError:
        raise UserError(f"{file} is damaged, or of another version of illama; delete it") from None
    if found.identity != identity:
        raise UserError(f"{file} holds features of other weights, images or blocks than its name says; delete it")
    return found
