"""Linear probe and nearest neighbours on frozen features: how much of the classes a network has laid out already.

Letters: n training images, N test images, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from illama.analysis.probe.measures import (
    LinearProbe,
    ProbeSplit,
    covered,
    in_numbers_of,
    knn_votes,
    linear_probe,
    split_for_probe,
)
from illama.analysis.registry import ProbeOptions
from illama.analysis.report import GRID, AnalysisResult, Measure, canvas, open_frame, short
from illama.evaluation.features import Features, cached_features
from illama.evaluation.scores import percent
from illama.evaluation.statistics import wilson
from illama.report import Block, Figure, Section, Table, Text, csv_text, svg_bytes
from illama.report.formats import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, YELLOW

if TYPE_CHECKING:
    from illama.evaluation.subject import Subject

FEW = 1000  # test images; of fewer the summary says how many
SHOWN = 2000  # images in the scatter plot
COLORED = 10  # classes told apart in it
_COLORS = (BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW)
_MARKERS = "o^"


def why_not(subject: Subject, options: ProbeOptions) -> str | None:
    """Why no classifier can be fitted on these images; None if one can."""
    if len(np.unique(subject.source.labels)) < 2:
        return "all images are of one class, so there is nothing to classify"
    return None


def probe(subject: Subject, options: ProbeOptions, workspace: Path | None = None) -> AnalysisResult:
    """Classify the subject's images by those of the training split, on features that stay as they are.

    The images' classes need not be the network's. The workspace keeps the features.

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
        block: _knn_predictions(train[i], test[i].values, options, subject) for i, block in enumerate(blocks)
    }  # before the slower fits: it refuses what is asked wrongly
    linear = linear_probe(train[at].values, train[at].labels, test[at].values, seed=options.seed)
    by_block = {number: percent(predictions == labels) for number, predictions in neighbors.items()}
    values: dict[str, Any] = {
        "block": block,
        "tokens": options.tokens,
        "train_images": len(train[0].labels),
        "images": len(labels),
        "skipped": len(train[0].skipped) + len(test[0].skipped),
        "test_images_of_unseen_classes": len(labels) - covered(labels, train[0].labels),
        "linear_top1": percent(linear.predictions == labels),
        "linear_interval": _interval(linear.predictions == labels),
        "linear_strength": linear.strength,
        "linear_tried": {str(strength): accuracy for strength, accuracy in linear.tried.items()},
        "linear_converged": linear.converged,
        "knn_top1": by_block[block],
        "knn_interval": _interval(neighbors[block] == labels),
        "knn_neighbors": options.neighbors,
        "knn_temperature": options.temperature,
        "knn_top1_by_block": {str(number): accuracy for number, accuracy in by_block.items()},
    }
    predicted = ([classes[i] for i in column.tolist()] for column in (labels, linear.predictions, neighbors[block]))
    rows = list(zip(test[at].positions.tolist(), *predicted, strict=True))
    tables = {"probe_predictions.csv": csv_text(("position", "class", "linear_probe", "nearest_neighbours"), rows)}
    if options.every_block:
        by_layer = [(number + 1, accuracy) for number, accuracy in by_block.items()]
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


def _interval(hits: Tensor) -> list[float]:
    """95 % interval of the accuracy in percent by Wilson's score."""
    return list(wilson(int(hits.sum()), len(hits)).in_percent())


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


def principal_plane(values_ND: Tensor) -> tuple[Tensor, tuple[float, float]]:
    """The two directions of largest variance.

    Each direction is turned so that its largest component is positive: the same picture every time.

    Args:
        values_ND: Features, two-dimensional or wider.

    Returns:
        Coordinates (N, 2) float64, and the share of the variance along each; shares are 0 where nothing varies.
    """
    centred_ND = (values_ND.double() - values_ND.double().mean(dim=0)).cpu()
    variances_D, directions_DD = torch.linalg.eigh(centred_ND.T @ centred_ND)
    plane_D2 = directions_DD[:, [-1, -2]]
    largest = plane_D2.abs().argmax(dim=0)
    plane_D2 = plane_D2 * plane_D2[largest, [0, 1]].sign()
    shares = variances_D[[-1, -2]].clamp(min=0) / variances_D.clamp(min=0).sum().clamp(min=1e-300)
    return centred_ND @ plane_D2, (float(shares[0]), float(shares[1]))


def scatter_figure(values_ND: Tensor, labels: Tensor, classes: tuple[str, ...], seed: int) -> Figure:
    """The features of at most `SHOWN` images on their principal plane; the most frequent classes are coloured."""
    places_N2, shares = principal_plane(values_ND)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:SHOWN]
    places_N2, labels = places_N2[order], labels[order]
    counts = torch.bincount(labels, minlength=len(classes))
    coloured = sorted(torch.argsort(counts, descending=True, stable=True)[:COLORED].tolist())
    coloured = [label for label in coloured if counts[label]]
    figure = canvas(8, 4.8)
    axes = open_frame(figure.add_subplot())
    others = ~torch.isin(labels, torch.tensor(coloured))
    if others.any():
        x, y = places_N2[others].T.tolist()
        axes.scatter(x, y, s=5, color=GREY, alpha=0.3, linewidths=0, label="other classes", rasterized=True)
    for i, label in enumerate(coloured):
        x, y = places_N2[labels == label].T.tolist()
        # Neighbours in the list differ in colour, and those of one colour in shape.
        color, marker = _COLORS[i % len(_COLORS)], _MARKERS[i // len(_COLORS)]
        name = short(classes[label])
        name = f"\N{HAIR SPACE}{name}" if name.startswith("_") else name  # which matplotlib would leave out
        axes.scatter(x, y, s=12, color=color, marker=marker, alpha=0.7, linewidths=0, label=name, rasterized=True)
    axes.set_xlabel(f"first principal component, {100 * shares[0]:.0f} % of the variance")
    axes.set_ylabel(f"second, {100 * shares[1]:.0f} % of the variance")
    legend = figure.legend(loc="outside right upper", frameon=False, fontsize=9, markerscale=1.8)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return Figure(
        "features",
        svg_bytes(figure),
        "Scatter plot of image features on their two principal components, coloured by class",
        "Each point is an image, near others with similar features; classes that lie apart here are easy to classify, "
        "while those that overlap may still be apart along the other "
        f"{values_ND.shape[1] - 2} dimensions. {len(labels):,} images chosen at random"
        + (f"; the {len(coloured)} most frequent of {len(classes)} classes are coloured." if others.any() else "."),
    )


def layer_figure(by_block: Mapping[int, float], linear_top1: float, linear_block: int, neighbors: int) -> Figure:
    """Accuracy of nearest neighbours after each layer, and of the linear probe where it was fitted."""
    figure = canvas(7, 3.6)
    axes = open_frame(figure.add_subplot())
    layers = [block + 1 for block in by_block]
    axes.plot(layers, list(by_block.values()), color=BLUE, marker="o", label=f"{neighbors} nearest neighbours")
    axes.plot([linear_block + 1], [linear_top1], color=ORANGE, marker="D", linestyle="none", label="linear probe")
    axes.set_xlabel("layer")
    axes.set_ylabel("top-1 accuracy, %")
    axes.set_xticks(layers)
    axes.set_ylim(0, 100)
    axes.grid(axis="y", color=GRID)
    axes.legend(frameon=False, loc="best")
    return Figure(
        "features_by_layer",
        svg_bytes(figure),
        "Line of nearest-neighbour accuracy over the layers, with the linear probe as a single mark",
        "The height of the line says how well images of a class lie together after each layer; the final norm, which "
        "was trained for the last layer alone, is applied after every layer.",
    )
