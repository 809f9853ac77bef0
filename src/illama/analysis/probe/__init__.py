"""Linear probe and nearest neighbours on frozen features: how much of the classes a network has laid out already.

Letters: n training images, N test images, D width, C classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from illama.analysis.options import ProbeOptions
from illama.analysis.probe.figures import layer_figure, scatter_figure
from illama.analysis.probe.measures import (
    LinearProbe,
    ProbeSplit,
    covered,
    in_numbers_of,
    knn_votes,
    linear_probe,
    split_for_probe,
)
from illama.analysis.result import AnalysisResult, Measure
from illama.evaluation.features import Features, cached_features
from illama.evaluation.statistics import wilson
from illama.report import Block, Section, Table, Text, csv_text

if TYPE_CHECKING:
    from illama.evaluation.subject import Subject

FEW = 1000  # test images; of fewer the summary says how many


def why_not(subject: Subject, options: ProbeOptions) -> str | None:
    """Why no classifier can be fitted on these images; None if one can."""
    if len(np.unique(subject.source.labels)) < 2:
        return "all images are of one class, so there is nothing to classify"
    return None


def probe(subject: Subject, options: ProbeOptions, workspace: Path | None = None) -> AnalysisResult:
    """Classify the subject's images by those of the training split, on features that stay as they are.

    Args:
        subject: Which network, on which images. Their classes need not be the network's.
        options: Whose features, and how many neighbours.
        workspace: Where features are kept for a later call; None keeps nothing.

    Raises:
        UserError: No such block, more neighbours than training images, images of one class, ...
    """
    split = split_for_probe(subject, options.train_images, options.seed)
    block = subject.model.block_index(options.block)
    blocks = list(range(len(subject.model.blocks))) if options.every_block else [block]
    train = cached_features(split.train, blocks, options.tokens, workspace)
    test = cached_features(split.test, blocks, options.tokens, workspace)
    classes, at = train[0].classes, blocks.index(block)
    labels = in_numbers_of(classes, test[0].labels, test[0].classes)
    neighbors = {
        each: _knn_predictions(train[i], test[i].values, options, subject) for i, each in enumerate(blocks)
    }  # before the slower fits: it refuses what is asked wrongly
    linear = linear_probe(train[at].values, train[at].labels, test[at].values, seed=options.seed)
    by_block = {each: _percent(predicted, labels) for each, predicted in neighbors.items()}
    values: dict[str, Any] = {
        "block": block,
        "tokens": options.tokens,
        "train_images": len(train[0].labels),
        "images": len(labels),
        "skipped": len(train[0].skipped) + len(test[0].skipped),
        "test_images_of_unseen_classes": len(labels) - covered(labels, train[0].labels),
        "linear_top1": _percent(linear.predictions, labels),
        "linear_interval": _interval(linear.predictions, labels),
        "linear_strength": linear.strength,
        "linear_tried": {str(strength): accuracy for strength, accuracy in linear.tried.items()},
        "linear_converged": linear.converged,
        "knn_top1": by_block[block],
        "knn_interval": _interval(neighbors[block], labels),
        "knn_neighbors": options.neighbors,
        "knn_temperature": options.temperature,
        "knn_top1_by_block": {str(each): accuracy for each, accuracy in by_block.items()},
    }
    tables = {"probe_predictions.csv": _predictions_csv(test[at], classes, labels, linear, neighbors[block])}
    if options.every_block:
        by_layer = [(each + 1, found) for each, found in by_block.items()]
        tables["probe_layers.csv"] = csv_text(("layer", "knn_top1_percent"), by_layer)
    content = _report(values, split, linear, options)
    content.append(scatter_figure(test[at].values, labels, classes, options.seed))
    if options.every_block and len(blocks) > 1:
        content.append(layer_figure(by_block, values["linear_top1"], block, options.neighbors))
    summary = (
        Measure(f"linear probe, top-1, layer {block + 1}", _shown(values, "linear")),
        Measure(f"{options.neighbors} nearest neighbours, top-1, layer {block + 1}", _shown(values, "knn")),
    )
    section = Section("Frozen features: linear probe and nearest neighbours", tuple(content))
    return AnalysisResult("probe", summary, section, values, tables)


def _knn_predictions(train: Features, values_ND: Tensor, options: ProbeOptions, subject: Subject) -> Tensor:
    votes_NC = knn_votes(
        train.values.to(subject.device),
        train.labels.to(subject.device),
        values_ND.to(subject.device),
        num_classes=len(train.classes),
        neighbors=options.neighbors,
        temperature=options.temperature,
    )
    return votes_NC.argmax(dim=1).cpu()


def _percent(predictions: Tensor, labels: Tensor) -> float:
    return 100.0 * int((predictions == labels).sum()) / len(labels)


def _interval(predictions: Tensor, labels: Tensor) -> list[float]:
    """95 % interval of the accuracy in percent by Wilson's score."""
    return [100.0 * bound for bound in wilson(int((predictions == labels).sum()), len(labels))]


def _shown(values: dict[str, Any], kind: str) -> str:
    low, high = values[f"{kind}_interval"]
    few = f"; {values['images']:,} test images" if values["images"] < FEW else ""
    return f"{values[f'{kind}_top1']:.2f} % ({low:.2f} to {high:.2f}{few})"


def _report(values: dict[str, Any], split: ProbeSplit, linear: LinearProbe, options: ProbeOptions) -> list[Block]:
    pooled = "the class token" if options.tokens == "class" else "the mean of the patches"
    skipped = f" {values['skipped']} unreadable images are left out." if values["skipped"] else ""
    how = (
        f"Features are {pooled} after layer {values['block'] + 1} and the final norm; the network is not trained. "
        f"{split.how} {values['train_images']:,} train images, {values['images']:,} test images.{skipped}"
    )
    if values["test_images_of_unseen_classes"]:
        how += (
            f" {values['test_images_of_unseen_classes']:,} test images are of classes without a training image: they "
            "count as wrong."
        )
    end = "" if linear.converged else " **The fit stopped at its largest number of iterations before it converged.**"
    rows = (
        (
            "linear probe",
            _shown(values, "linear"),
            f"logistic regression on standardised features, C = {linear.strength:g} chosen on "
            f"{linear.chosen_on:,} of the train images",
        ),
        (
            "nearest neighbours",
            _shown(values, "knn"),
            f"the {options.neighbors} nearest by cosine, each with a vote of exp(cosine / {options.temperature:g})",
        ),
    )
    caption = f"Top-1 accuracy and its 95 % interval (Wilson) on {values['images']:,} test images.{end}"
    return [Text(how), Table(("classifier", "top-1", "how"), rows, caption)]


def _predictions_csv(
    test: Features, classes: tuple[str, ...], labels: Tensor, linear: LinearProbe, neighbors: Tensor
) -> str:
    columns = (labels, linear.predictions, neighbors)
    named = ([classes[label] for label in column.tolist()] for column in columns)
    rows = zip(test.positions.tolist(), *named, strict=True)
    return csv_text(("position", "class", "linear_probe", "nearest_neighbours"), list(rows))
