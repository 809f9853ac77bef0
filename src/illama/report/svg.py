"""A matplotlib figure as SVG whose bytes depend on nothing but the figure."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

from illama.console.text import safe_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
