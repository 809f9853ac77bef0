"""Pictures of frozen features."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from illama.analysis.classes.figures import short
from illama.report import Figure, svg_bytes
from illama.report.formats import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, YELLOW

SHOWN = 2000  # images in the scatter plot
COLORED = 10  # classes told apart in it
_COLORS = (BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW)
_MARKERS = "o^"


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
    from matplotlib.figure import Figure as Canvas

    places_N2, shares = principal_plane(values_ND)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:SHOWN]
    places_N2, labels = places_N2[order], labels[order]
    counts = torch.bincount(labels, minlength=len(classes))
    coloured = sorted(torch.argsort(counts, descending=True, stable=True)[:COLORED].tolist())
    coloured = [label for label in coloured if counts[label]]
    canvas = Canvas(figsize=(8, 4.8), layout="constrained")
    axes = canvas.add_subplot()
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
    axes.spines[["top", "right"]].set_visible(False)
    legend = canvas.legend(loc="outside right upper", frameon=False, fontsize=9, markerscale=1.8)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return Figure(
        "features",
        svg_bytes(canvas),
        "Scatter plot of image features on their two principal components, coloured by class",
        "Each point is an image, near others with similar features; classes that lie apart here are easy to classify, "
        "while those that overlap may still be apart along the other "
        f"{values_ND.shape[1] - 2} dimensions. {len(labels):,} images chosen at random"
        + (f"; the {len(coloured)} most frequent of {len(classes)} classes are coloured." if others.any() else "."),
    )


def layer_figure(by_block: Mapping[int, float], linear_top1: float, linear_block: int, neighbors: int) -> Figure:
    """Accuracy of nearest neighbours after each layer, and of the linear probe where it was fitted."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(7, 3.6), layout="constrained")
    axes = canvas.add_subplot()
    layers = [block + 1 for block in by_block]
    axes.plot(layers, list(by_block.values()), color=BLUE, marker="o", label=f"{neighbors} nearest neighbours")
    axes.plot([linear_block + 1], [linear_top1], color=ORANGE, marker="D", linestyle="none", label="linear probe")
    axes.set_xlabel("layer")
    axes.set_ylabel("top-1 accuracy, %")
    axes.set_xticks(layers)
    axes.set_ylim(0, 100)
    axes.grid(axis="y", color="#dddddd")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="best")
    return Figure(
        "features_by_layer",
        svg_bytes(canvas),
        "Line of nearest-neighbour accuracy over the layers, with the linear probe as a single mark",
        "The height of the line says how well images of a class lie together after each layer; the final norm, which "
        "was trained for the last layer alone, is applied after every layer.",
    )
