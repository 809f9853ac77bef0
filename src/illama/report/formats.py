"""The formats of a report's parts: inline Markdown, CSV, and SVG whose bytes depend on the figure alone.

Inline Markdown is `code`, **bold**, [text](url); everything else is text and stays text. It is parsed once and written
twice, so that the page and the Markdown file say the same: a lone asterisk is an asterisk in both, and `<` opens no tag
in either.
"""

from __future__ import annotations

import csv
import html
import io
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from markdown_it import MarkdownIt

from illama.console.text import safe_lines
from illama.errors import UserError
from illama.system.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# A scheme that is not among these (javascript:, data:) could run what a cell says; white space, brackets and backticks
# would have to be written otherwise in a file.
_SAFE_URL = re.compile(r"(?:(?:https?|mailto):|(?![A-Za-z][A-Za-z0-9+.-]*:))[^()\s<>`\\]+", re.IGNORECASE)
# The second for texts in which three stars stand together: what they mean beside others is beyond a line, so stars are
# text there.
_PARSERS = [MarkdownIt("zero").enable(rules) for rules in (["backticks", "link", "emphasis"], ["backticks", "link"])]
for _parser in _PARSERS:
    _parser.normalizeLink = lambda url: url  # type: ignore[method-assign]
    _parser.validateLink = lambda url: _SAFE_URL.fullmatch(url) is not None  # type: ignore[method-assign]
_BREAKABLE = re.compile(r"[^\S\N{NO-BREAK SPACE}]+")  # one space for all; a no-break space stays what it is
# What GitHub's Markdown would read as markup; underscores within words mean nothing there and stay readable.
_MARKUP = re.compile(r"[!#]$|[*`~$\[\]<>|]|(?<![^\W_])_|_(?![^\W_])|\\(?=[!-/:-@\[-`{-~]|$)|&(?=#?\w+;)")
_BLOCK_START = re.compile(r"^(#{1,6}(?= |$)|[-+](?=[ -]|$)|\d{1,9}(?=[.)]( |$)))")
_HTML_TAGS = {"strong_open": "<strong>", "strong_close": "</strong>", "link_close": "</a>"}
BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
GREY = "#777777"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def _parts(text: str) -> Iterator[tuple[str, str]]:
    """(kind, content) of the pieces of a text: "text", "code_inline", "strong_open", "strong_close", "link_open" with
    its address, "link_close".

    White space is one space, no-break spaces stay. What a page or a terminal would act upon stands as its code.
    """
    text = safe_lines(_BREAKABLE.sub(" ", text.strip()))
    words = ""
    for token in _PARSERS["***" in text].parseInline(text)[0].children or []:
        if token.type in ("text", "em_open", "em_close") or token.markup == "__":
            words += token.content or token.markup
            continue
        if words:
            yield "text", words
        words = ""
        yield token.type, str(token.attrs["href"]) if token.type == "link_open" else token.content
    if words:
        yield "text", words


def to_html(text: str) -> str:
    """A text with inline Markdown as HTML, everything escaped."""
    written = ""
    for kind, content in _parts(text):
        if kind == "code_inline":
            written += f"<code>{html.escape(content)}</code>"
        elif kind == "link_open":
            written += f'<a href="{html.escape(content)}">'
        else:
            written += _HTML_TAGS.get(kind) or html.escape(content)
    return written


def to_markdown(text: str, *, cell: bool = False) -> str:
    """A text with inline Markdown as GitHub's Markdown; what is not of the subset is escaped.

    Args:
        text: The text.
        cell: It stands in a table, where a bar ends a cell even within code.
    """
    written, url = "", ""
    for kind, content in _parts(text):
        if kind == "code_inline":
            written += _code(content.replace("|", "\\|") if cell else content)
        elif kind == "link_open":
            url = content.replace("&", "&amp;").replace("|", "%7C")
            written += "["
        elif kind == "link_close":
            written += f"]({url})"
        elif kind == "text":
            written += _MARKUP.sub(lambda match: "&amp;" if match[0] == "&" else f"\\{match[0]}", content)
        else:
            written += "**"
    return written if cell else _BLOCK_START.sub(_escape_start, written)


def _code(content: str) -> str:
    """Code between more backticks than stand together in it."""
    fence = "`" * (1 + max(map(len, re.findall("`+", content)), default=0))
    space = " " if "`" in (content[:1], content[-1:]) else ""
    return f"{fence}{space}{content}{space}{fence}"


def _escape_start(match: re.Match[str]) -> str:
    """A paragraph that begins like a heading or a list item is none."""
    return f"{match[0]}\\" if match[0].isdigit() else f"\\{match[0]}"


def to_plain(text: str) -> str:
    """A text without its markup."""
    return "".join(content for kind, content in _parts(text) if kind in ("text", "code_inline"))


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
