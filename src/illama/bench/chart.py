"""The ratios of a benchmark as a bar chart."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

from illama.bench.results import Report

# The colours of the other figures of this project (Okabe and Ito's, which colour-blind readers can tell apart).
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#777777")


def draw_ratios(report: Report) -> bytes:
    """Horizontal bars, one for each row that has a ratio, with quartiles; equality is a line. A PNG file's bytes."""
    bars = [(group, row) for group in report.groups for row in group.rows if row.ratio is not None]
    names = list(dict.fromkeys(row.name for _, row in bars))
    figure = Figure(figsize=(9, 1.6 + 0.42 * len(bars)), layout="constrained")
    axes = figure.subplots()
    for place, (group, row) in enumerate(bars):
        assert row.ratio is not None
        error = [[row.ratio.median - row.ratio.low], [row.ratio.high - row.ratio.median]]
        color = COLORS[names.index(row.name) % len(COLORS)]
        label = row.name if row.name not in axes.get_legend_handles_labels()[1] else None
        axes.barh(place, row.ratio.median, 0.7, xerr=error, color=color, label=label, error_kw={"capsize": 3})
        axes.annotate(
            f"{row.ratio.median:.2f}", (row.ratio.high, place), (5, 0), textcoords="offset points", va="center"
        )
        first_peer = group.rows[1] is row
        if first_peer and group.arithmetic_ratio is not None:
            marked = "what arithmetic alone would give"
            known = marked in axes.get_legend_handles_labels()[1]
            axes.plot(group.arithmetic_ratio, place, "k|", markersize=18, label=None if known else marked)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_yticks(range(len(bars)), [group.title for group, _ in bars], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(row.ratio.high for _, row in bars if row.ratio is not None))
    axes.set_xlabel(f"{report.ratio_title} (median and quartiles of the rounds)")
    axes.set_title(f"illama bench {report.what}, {report.environment['processor']}, {report.environment['device']}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()
