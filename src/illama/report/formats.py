"""Parts that documents share: colours, CSV, SVG whose bytes depend on the figure alone."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from illama.console.text import safe_lines
from illama.errors import UserError
from illama.system.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
GREY = "#777777"


_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A header and rows as CSV with "\\n" at line ends; None is an empty cell, numbers keep all their digits.

    A text that a spreadsheet would take for a formula begins with an apostrophe, which it does not show.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(_cell, header))
    writer.writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = value.replace("\r", "\\x0d")  # alone it would end the row, which the csv module does not see
    return f"'{text}" if value.startswith(_FORMULA) else text


def svg_bytes(figure: Figure) -> bytes:
    """The figure as an SVG file on white, without date and program name: the same bytes every time.

    Titles and names stand with codes for the characters that no such file may hold.
    """
    import matplotlib
    from matplotlib.text import Text

    # Glyphs are drawn as paths: the reader's machine may lack the font that the layout was made for. The salt names the
    # parts of the file, which are random without it.
    style = matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "illama", "svg.image_inline": True})
    file = io.BytesIO()
    for text in figure.findobj(Text):
        text.set_text(safe_lines(text.get_text()))
    with style, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a box is drawn in its place
        nothing = {"Date": None, "Creator": None}
        figure.savefig(file, format="svg", facecolor="white", metadata=nothing)
    return file.getvalue()


def save_png(figure: Figure, path: Path, dpi: int) -> Path:
    """Write the picture; it appears only when it is complete.

    Raises:
        UserError: It cannot be written.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a box is drawn in its place
            with replacing(path) as partial:
                figure.savefig(partial, dpi=dpi, format="png")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return path
