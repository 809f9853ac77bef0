"""Frozen features of all images of a source: one vector each, from any block.

Letters: N images, D width, L depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from illama.errors import UserError
from illama.evaluation.cache import About, TensorFile, checked, make_workspace, read_tensors
from illama.evaluation.classify import evaluating
from illama.evaluation.origin import data_id, network_id, short_name

if TYPE_CHECKING:
    from illama.evaluation.subject import Subject
    from illama.models import ILlama

Pooled = Literal["class", "mean"]
_TENSORS = {"values": (torch.float32, 2), "labels": (torch.int64, 1), "positions": (torch.int64, 1)}


class _About(About):
    """The description in a file's header."""

    block: int
    tokens: Pooled
    identity: dict[str, Any]


@dataclass(frozen=True)
class Features(TensorFile):
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

    KEY = "illama_features"
    ARRAYS = ("values", "labels", "positions")

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

    @classmethod
    def load(cls, path: Path) -> Features:
        tensors, about = read_tensors(path, cls.KEY, "features", "make it")
        description = checked(about, _About)
        if description is None or {name: (tensor.dtype, tensor.ndim) for name, tensor in tensors.items()} != _TENSORS:
            raise UserError(f"{path} holds features of another version of illama; make them again")
        if len({len(tensor) for tensor in tensors.values()}) > 1:
            raise UserError(f"{path} has features, labels and positions of different numbers of images; make it again")
        parts: dict[str, Any] = {**tensors, **description}
        return cls(**parts)


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
    identities = {block: features_identity(subject, block, tokens) for block in wanted}
    files = {
        block: workspace / f"features-{short_name(identity)}.safetensors" for block, identity in identities.items()
    }
    missing = [block for block, file in files.items() if not file.is_file()]
    if missing:
        make_workspace(workspace)
        for features in collect_blocks(subject, missing, tokens):
            features.save(files[features.block])
    kept = [Features.load_kept(files[block]) for block in wanted]
    for features, block in zip(kept, wanted, strict=True):
        if features.identity != identities[block]:
            raise UserError(
                f"{files[block]} holds features of other weights, images or blocks than its name says; delete it"
            )
    return kept


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
    of_block: dict[int, Tensor] = {}

    def keep(index: int, x_BND: Tensor) -> None:
        if index in blocks:
            normed_BND = model.norm(x_BND)
            pooled = normed_BND[:, model.cls_index] if tokens == "class" else model.patch_tokens(normed_BND).mean(dim=1)
            of_block[index] = pooled.float()

    alone = tokens == "class" and model.only_needed_tokens
    model.run_blocks(model.embed(images), keep, stop_after=max(blocks), only_class_token=alone)
    return torch.stack([of_block[block] for block in blocks], dim=1)


def _demand_finite(values_NLD: Tensor, subject: Subject) -> None:
    bad = int((~torch.isfinite(values_NLD).flatten(1).all(dim=1)).sum())
    if bad:
        raise UserError(
            f"{bad} of {len(values_NLD)} images have features that are not finite; the weights ({subject.weights}) "
            "are damaged or training has diverged"
        )
