"""The pictures of a study: every number is drawn, on a scale on which rows can be told apart."""

from __future__ import annotations

import itertools
import math
import random
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from illama.reproduce import figures
from illama.reproduce.figures import (
    COLORS,
    SWITCH,
    Line,
    Step,
    StudyPanel,
    draw_steps,
    draw_study_curves,
    far_from_most,
    with_margin,
)

NAN = math.nan


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures on their way to bytes."""
    kept: list[Figure] = []
    original: Callable[[Figure], bytes] = figures.svg_bytes

    def svg_bytes(figure: Figure) -> bytes:
        kept.append(figure)
        return original(figure)

    monkeypatch.setattr(figures, "svg_bytes", svg_bytes)
    return kept


def curves(label: str, end: float, *, seeds: int = 3, epochs: int = 30, switch: float | None = None) -> Line:
    rng = random.Random(label)
    values = tuple(
        tuple(end * (1 - math.exp(-epoch / 4)) + rng.gauss(0, 0.2) for epoch in range(1, epochs + 1))
        for _ in range(seeds)
    )
    return Line(label, tuple(range(1, epochs + 1)), values, switch)


def study(rows: int = 12) -> StudyPanel:
    lines = (curves(f"row {at}", 85 + at / 2, switch=10.0 * (at % 3) or None) for at in range(rows))
    return StudyPanel("Test accuracy", "test top-1 (%)", tuple(lines))


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def bodies(axes: Axes) -> list[list[float]]:
    """y values of the curves, without the marks."""
    return [list(line.get_ydata()) for line in axes.lines if len(line.get_xdata()) > 2]


@pytest.mark.parametrize(("rows", "panels"), [(1, 1), (2, 2), (12, 3)])
def test_a_study_is_an_svg_and_the_same_twice(rows: int, panels: int) -> None:
    first = draw_study_curves([study(rows)] * panels)
    assert ElementTree.fromstring(first).tag.endswith("svg")
    assert first == draw_study_curves([study(rows)] * panels)


def test_mean_and_standard_deviation(drawn: list[Figure]) -> None:
    line = Line("a", (1, 2, 3, 4), ((1.0, 2.0, NAN, NAN), (3.0, 4.0, 5.0, NAN), (5.0, math.inf, 7.0, NAN)))
    draw_study_curves([StudyPanel("", "", (line,))])
    axes = drawn[0].axes[0]
    assert bodies(axes)[0] == pytest.approx([3.0, 3.0, 6.0, NAN], nan_ok=True)
    band = axes.collections[0].get_paths()[0].vertices
    corners = {(x, round(y, 6)) for x, y in band.tolist()}
    root = round(math.sqrt(2), 6)
    assert {(1, 1.0), (1, 5.0), (2, 3 - root), (2, 3 + root), (3, 6 - root), (3, 6 + root)} <= corners


def test_one_seed_is_a_thin_line_without_a_band(drawn: list[Figure]) -> None:
    draw_study_curves([StudyPanel("", "", (curves("one", 90, seeds=1), curves("three", 91)))])
    axes = drawn[0].axes[0]
    assert len(axes.collections) == 1
    assert axes.lines[0].get_linewidth() < axes.lines[1].get_linewidth()


def test_twelve_rows_differ_and_keep_their_look_in_every_panel(drawn: list[Figure]) -> None:
    panel = study(12)
    draw_study_curves([panel, StudyPanel("Loss", "nats", panel.lines[::-1])])
    looks = [
        [(line.get_color(), str(line.get_linestyle()), line._unscaled_dash_pattern) for line in axes.lines[:12]]
        for axes in drawn[0].axes
    ]
    assert len(set(map(str, looks[0]))) == 12
    assert looks[0] == looks[1][::-1]
    assert set(COLORS) == {look[0] for look in looks[0]}
    legend = drawn[0].legends[0]
    assert [text.get_text() for text in legend.get_texts()] == [*(f"row {at}" for at in range(12)), SWITCH]


def test_the_switch_is_marked_by_a_line_and_a_dot(drawn: list[Figure]) -> None:
    line = Line("soft", (1, 2, 3, 4), ((10.0, 20.0, 30.0, 40.0),), switch=2.5)
    draw_study_curves([StudyPanel("", "", (line, Line("hard", (1, 2, 3, 4), ((9.0, 19.0, 29.0, 39.0),))))])
    lines = drawn[0].axes[0].lines
    dots = [(list(mark.get_xdata()), list(mark.get_ydata())) for mark in lines if len(mark.get_xdata()) == 1]
    assert dots == [([2.5], [25.0])]
    (vertical,) = (mark for mark in lines if list(mark.get_xdata()) == [2.5, 2.5])
    assert (vertical.get_color(), vertical.get_linestyle()) == (COLORS[0], ":")


def test_no_switch_no_mark(drawn: list[Figure]) -> None:
    draw_study_curves([StudyPanel("", "", (curves("a", 90),))])
    assert len(drawn[0].axes[0].lines) == 1
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["a"]


def test_the_late_part_can_be_read(drawn: list[Figure]) -> None:
    """A cliff of the first epochs takes no room, and what comes later is all in the picture."""
    panel = StudyPanel("", "", tuple(curves(f"{at}", 85 + at) for at in range(5)))
    draw_study_curves([panel])
    low, high = drawn[0].axes[0].get_ylim()
    late = [value for line in panel.lines for seed in line.seeds for value in seed[15:]]
    assert low < min(late) < max(late) < high
    assert low > 50  # all curves begin below 25


def test_the_drop_after_a_switch_is_in_the_picture(drawn: list[Figure]) -> None:
    values = [float(60 + epoch) for epoch in range(30)]
    values[3] = 40.0
    draw_study_curves([StudyPanel("", "", (Line("soft", tuple(range(30)), (tuple(values),), switch=2),))])
    assert drawn[0].axes[0].get_ylim()[0] < 40


def test_a_collapsed_row_is_named_at_the_edge(drawn: list[Figure]) -> None:
    lines = [curves(f"row {at}", 88 + at) for at in range(4)]
    collapsed = Line("$collapsed$", lines[0].epochs, (tuple([10.0] * 30),) * 3)
    draw_study_curves([StudyPanel("", "", (*lines, collapsed))])
    axes = drawn[0].axes[0]
    assert axes.get_ylim()[0] > 50
    assert texts(axes) == ["$collapsed$ \N{DOWNWARDS ARROW} 10"]


def test_rows_without_values(drawn: list[Figure]) -> None:
    lines = (Line("nan", (1, 2), ((NAN, NAN),) * 2, 1), Line("never", (1, 2), ()), Line("empty", (), ()))
    draw_study_curves([StudyPanel("", "", lines), StudyPanel("none", "", ())])
    assert len(drawn[0].legends[0].get_texts()) == 4


def test_titles_and_labels_are_no_formulas_and_stay_inside(drawn: list[Figure]) -> None:
    long = "a quantity with a very long name $x_1 of many words " * 3
    draw_study_curves([StudyPanel(long, long, (curves("$\\frac{a}{$", 90, epochs=2),))])
    figure = drawn[0]
    figure.draw_without_rendering()
    width, height = figure.get_size_inches() * figure.dpi
    axes = figure.axes[0]
    for text in (axes.title, axes.yaxis.label, *figure.legends[0].get_texts()):
        box = text.get_window_extent()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height


def test_a_seed_has_a_value_for_each_epoch() -> None:
    with pytest.raises(ValueError, match="row: 2 values for 3 epochs"):
        Line("row", (1, 2, 3), ((1.0, 2.0),))


ROADMAP = (
    Step("ViT", 73.8, (91.2, 91.4, 91.0)),
    Step("+ SwiGLU", 74.3, (91.5, 91.6, 91.2)),
    Step("+ causal mask", 0.1, (10.0, 10.0, 10.0)),
    Step("+ PS [cls]", 71.9, (89.1,)),
    Step("peer, as nobody published it", None, (92.0, NAN)),
    Step("not run", 75.0, ()),
)


def test_the_roadmap_beside_ours(drawn: list[Figure]) -> None:
    first = draw_steps(ROADMAP, "paper", "ours")
    assert ElementTree.fromstring(first).tag.endswith("svg")
    assert first == draw_steps(ROADMAP, "paper", "ours")
    paper, ours = drawn[0].axes
    assert [label.get_text() for label in paper.get_yticklabels()] == [step.label for step in ROADMAP]
    assert paper.get_ylim() == (5.5, -0.5)  # the first row on top
    column = [(text.get_text(), text.xy[1]) for text in paper.texts if text.xy[0] == 1]
    assert column == [("73.8", 0), ("74.3", 1), ("0.1", 2), ("71.9", 3), ("75.0", 5)]
    column = [(text.get_text(), text.xy[1]) for text in ours.texts if text.xy[0] == 1]
    pm = "\N{PLUS-MINUS SIGN}"
    assert column == [
        (f"91.20 {pm} 0.20", 0),
        (f"91.43 {pm} 0.21", 1),
        (f"10.00 {pm} 0.00", 2),
        ("89.10", 3),
        ("92.00", 4),
    ]


def test_a_collapsed_step_does_not_squash_the_others(drawn: list[Figure]) -> None:
    draw_steps(ROADMAP, "paper", "ours")
    for axes, rest, label in zip(drawn[0].axes, ((71.9, 75.0), (89.1, 92.0)), ("0.1", "10.0"), strict=True):
        low, high = axes.get_xlim()
        assert low < rest[0] < rest[1] < high
        assert high - low < 2 * (rest[1] - rest[0])
        assert [text.get_text() for text in axes.texts if text.xy[0] == 0] == [label]
        assert "<" in [line.get_marker() for line in axes.lines]


def test_every_seed_is_a_dot_at_its_place(drawn: list[Figure]) -> None:
    draw_steps(ROADMAP[:2], "paper", "ours")
    dots = [list(line.get_xdata()) for line in drawn[0].axes[1].lines if line.get_markersize() < 3]
    assert dots == [[91.2, 91.4, 91.0], [91.5, 91.6, 91.2]]


@pytest.mark.parametrize("rows", [1, 12])
def test_labels_of_steps_do_not_overlap(drawn: list[Figure], rows: int) -> None:
    label = "a label of many words that has to be broken into several lines $x_1 "
    draw_steps([Step(f"{label}{at}", 70.0 + at, (80.0 + at, 81.0)) for at in range(rows)], "long title " * 9, "ours")
    figure = drawn[0]
    figure.draw_without_rendering()
    paper, ours = figure.axes
    width, height = figure.get_size_inches() * figure.dpi
    labels = [text.get_window_extent() for text in paper.get_yticklabels()]
    numbers = [text.get_window_extent() for text in paper.texts]
    assert all(above.y0 >= below.y1 for above, below in itertools.pairwise(labels))
    assert all(box.x0 >= 0 and box.x1 <= paper.get_window_extent().x0 for box in labels)
    assert all(box.x1 <= ours.get_window_extent().x0 for box in numbers)
    titles = [axes._left_title.get_window_extent() for axes in figure.axes]
    assert titles[0].x1 <= titles[1].x0
    assert all(box.y1 <= height and box.x1 <= width for box in titles)


def test_steps_without_any_value(drawn: list[Figure]) -> None:
    draw_steps([Step("a", None, ()), Step("b", None, (NAN,))], "paper", "ours")
    assert [axes.texts[:] for axes in drawn[0].axes] == [[], []]


@pytest.mark.parametrize(
    ("values", "far"),
    [
        ([], []),
        ([3.0], [False]),
        ([0.1, 73.0], [False, False]),  # which of two is the exception?
        ([0.1, 73.0, 74.0], [True, False, False]),
        ([90.0, 90.0, 91.0], [False, False, False]),
        ([74.0, 0.1, 72.0, 71.0, 0.2], [False, True, False, False, True]),
        ([0.7, 0.8, 0.75, 2.3], [False, False, False, True]),
        ([1.0, 3.0, 9.0, 27.0, 81.0, 243.0], [False, False, False, False, True, True]),  # a majority stays
        ([10.0, 50.0, 90.0], [False, False, False]),
    ],
)
def test_what_is_far_from_most(values: list[float], far: list[bool]) -> None:
    assert far_from_most(values) == far


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [1.0, 3.0]])
def test_a_scale_has_its_values_inside(values: list[float]) -> None:
    low, high = with_margin(values)
    assert low < min(values) <= max(values) < high
