"""The picture of the architecture in the README; the three little masks are computed by the package."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from sklearn.datasets import load_digits

from illama.attention import attention_weights

INK, PATCH, CLS, POSITION, BLOCK, PART, HEAD = (
    "#222222",
    "#CFE3F3",
    "#F9D9B4",
    "#E6E6E6",
    "#F6F6F6",
    "#FFFFFF",
    "#CDEBDD",
)
WIDTH, HEIGHT = 124.0, 59.0  # drawing units; ten to an inch


def draw_architecture() -> Figure:
    """Image to logits from left to right; below, the soft mask."""
    figure = Figure(figsize=(WIDTH / 10, HEIGHT / 10))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    ax.set_axis_off()
    _image_and_tokens(ax)
    _block(ax)
    _ending(ax)
    _masks(figure, ax)
    return figure


def _image_and_tokens(ax: Axes) -> None:
    digit = load_digits().images[0]
    ax.imshow(-digit, cmap="gray", extent=(2, 16, 34, 48), interpolation="nearest", aspect="auto")
    for at in range(5):
        ax.plot([2 + 3.5 * at] * 2, [34, 48], color="#D55E00", linewidth=1)
        ax.plot([2, 16], [34 + 3.5 * at] * 2, color="#D55E00", linewidth=1)
    _text(ax, 9, 50.3, "image, cut into n patches")
    _arrow(ax, (16.5, 41), (21, 41))
    _text(ax, 18.6, 43.6, "linear", size=7.5)
    names = ("p1", "p2", "p3", "...", "pn", "cls")
    for row, name in enumerate(names):
        y = 52.5 - 5 * row
        _box(ax, 22, y - 4, 7, 4, name, CLS if name == "cls" else PATCH)
        _box(ax, 33, y - 4, 7, 4, "..." if name == "..." else str(row + 1) if row < 3 else "n+1", POSITION)
        if name == "pn":
            ax.texts[-1].set_text("n")
        _text(ax, 31, y - 2, "+", size=10)
    _text(ax, 25.5, 55, "tokens")
    _text(ax, 36.5, 55, "learned position")
    _text(ax, 31, 20.6, "the class token\nstands LAST", color="#B35900")
    _arrow(ax, (40.5, 41), (45.5, 41))


def _block(ax: Axes) -> None:
    _box(ax, 46, 27, 50, 30, "", BLOCK)
    _text(ax, 71, 54.8, "L x decoder block", size=10)
    y = 41.0
    ax.plot([46, 49.5], [y, y], color=INK, linewidth=1.2)
    for x, text, width in ((51, "RMSNorm", 8.5), (61.5, "attention:\nRoPE on q, k\nSOFT MASK", 11)):
        _box(ax, x, y - 4.5, width, 9, text, PART)
    for x, text, width in ((78, "RMSNorm", 8.5), (87.8, "SwiGLU", 5.4)):
        _box(ax, x, y - 4.5, width, 9, text, PART)
    ax.texts[-1].set_rotation(90)
    _arrow(ax, (49.5, y), (51, y))
    _arrow(ax, (59.5, y), (61.5, y))
    _arrow(ax, (72.5, y), (74, y))
    _arrow(ax, (76, y), (78, y))
    _arrow(ax, (86.5, y), (87.8, y))
    _plus(ax, 75, y)
    _arrow(ax, (93.2, y), (93.8, y))
    _plus(ax, 94.6, y)
    for start, end in ((49.5, 75.0), (77.0, 94.6)):
        ax.plot([start, start, end], [y, 50, 50], color=INK, linewidth=1.2)
        _arrow(ax, (end, 50), (end, y + 1.1))
        _text(ax, (start + end) / 2, 51.3, "residual", size=7.5)
    _text(ax, 71, 31, "softness falls from 1 to 0 during training", size=8.5, color="#0072B2")


def _ending(ax: Axes) -> None:
    _arrow(ax, (96.2, 41), (99, 41))
    _box(ax, 99, 36.5, 8.5, 9, "RMSNorm", PART)
    _arrow(ax, (107.5, 41), (110, 41))
    _box(ax, 110, 36.5, 12, 9, "linear head\nof the LAST\ntoken", HEAD)
    _arrow(ax, (116, 36.5), (116, 32))
    _text(ax, 116, 30.2, "class logits")


def _masks(figure: Figure, ax: Axes) -> None:
    """The factor on the softmax's result: uniform `attention_weights`, times N."""
    tokens = 8
    nothing = torch.zeros(1, 1, tokens, 4)
    _text(
        ax,
        14,
        13.4,
        "the N x N mask S on the\nattention weights\n(rows look at columns;\nthe last is the class token)",
        size=8.5,
    )
    for x, softness, text in (
        (33.0, 1.0, "softness 1: bidirectional\n(start of training)"),
        (62.0, 0.5, "softness 0.5\n(on the way)"),
        (91.0, 0.0, "softness 0: causal\n(end of training, evaluation)"),
    ):
        weights = attention_weights(nothing, nothing, softness)[0, 0]
        factor_NN = (weights * tokens).tolist()
        side = 14.0 / tokens
        for row in range(tokens):
            for column in range(tokens):
                value = factor_NN[row][column]
                shade = (1 - value, 1 - 0.55 * value, 1 - 0.3 * value)
                at = (x + side * column, 18.5 - side * (row + 1))
                ax.add_patch(Rectangle(at, side, side, facecolor=shade, edgecolor="#555555", linewidth=0.5))
        _text(ax, x + 7, 2.2, text, size=8.5)
    for x in (49.0, 78.0):
        _arrow(ax, (x, 11.5), (x + 11, 11.5))
    ax.plot([67, 67], [36.3, 32.6], color="#0072B2", linewidth=1, linestyle=":")
    ax.plot([67, 69], [29.4, 19.3], color="#0072B2", linewidth=1, linestyle=":")


def _box(ax: Axes, x: float, y: float, width: float, height: float, text: str, color: str) -> None:
    ax.add_patch(
        FancyBboxPatch(
            (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.8", facecolor=color, edgecolor=INK, linewidth=1
        )
    )
    _text(ax, x + width / 2, y + height / 2, text)


def _text(ax: Axes, x: float, y: float, text: str, size: float = 9, color: str = INK) -> None:
    ax.text(x, y, text, ha="center", va="center", fontsize=size, color=color, linespacing=1.25)


def _plus(ax: Axes, x: float, y: float) -> None:
    ax.plot([x], [y], marker="o", markersize=11, markerfacecolor="white", markeredgecolor=INK)
    ax.plot([x], [y], marker="+", markersize=8, color=INK)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    ax.annotate("", xy=end, xytext=start, arrowprops={"arrowstyle": "-|>", "color": INK, "shrinkA": 0, "shrinkB": 0})
