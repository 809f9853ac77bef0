"""What a report consists of, and how it is written: one HTML page that loads nothing, and Markdown with its figures.

Texts may hold the inline Markdown of `illama.report.formats` and nothing else.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from illama.console.text import safe_lines
from illama.errors import UserError
from illama.report.formats import to_html, to_markdown, to_plain
from illama.system.files import utf8, write_file

if TYPE_CHECKING:
    from jinja2 import Template

TABLE_OF_CONTENTS_FROM = 3  # sections; fewer are seen at a glance
FILE_STEM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")  # a name that is one on every file system, and in a link


@dataclass(frozen=True)
class Text:
    """One paragraph, with inline `code`, **bold** and [text](url)."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of points, each with inline Markdown."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Code:
    """Lines shown as they are, for commands."""

    text: str


@dataclass(frozen=True)
class Table:
    """Cells with inline Markdown; the first column stands left, the others right.

    Raises:
        ValueError: There is no column, or a row has another number of cells than the header.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""

    def __post_init__(self) -> None:
        if not self.header:
            raise ValueError("a table needs a column")
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f"a row of {len(row)} cells under a header of {len(self.header)}: {row}")


@dataclass(frozen=True)
class Figure:
    """A picture; `name` is its file's stem.

    Raises:
        ValueError: The name is none for a file on every system.
    """

    name: str
    svg: bytes
    alt: str
    caption: str

    def __post_init__(self) -> None:
        if FILE_STEM.fullmatch(self.name) is None:
            raise ValueError(f"{self.name!r} is no name of a figure: letters, digits, - and _ are allowed")


Block = Text | Bullets | Code | Table | Figure


@dataclass(frozen=True)
class Section:
    """A heading, which may be empty, and what stands under it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """A whole report: title, one paragraph that says what it is, sections.

    Raises:
        ValueError: Two figures have one name (upper and lower case are the same on some file systems).
    """

    title: str
    lead: str
    sections: tuple[Section, ...]

    def __post_init__(self) -> None:
        names: set[str] = set()
        for figure in self.figures():
            if figure.name.lower() in names:
                raise ValueError(f"two figures are called {figure.name!r}")
            names.add(figure.name.lower())

    def figures(self) -> Iterator[Figure]:
        """All figures in reading order."""
        for section in self.sections:
            for block in section.blocks:
                if isinstance(block, Figure):
                    yield block


def html(document: Document) -> str:
    """The document as one page. It follows the reader's choice of light or dark, and opens from disk without network.

    Figures are images in the page (data addresses) and not parts of it: names within one cannot clash with names in
    another, and nothing in an image is ever run.
    """
    from markupsafe import Markup

    return _template().render(
        document=document,
        anchors=_anchors(section.title for section in document.sections),
        with_contents=len(document.sections) >= TABLE_OF_CONTENTS_FROM,
        inline=lambda text: Markup(to_html(text)),
        plain=to_plain,
        lines=safe_lines,
        source=lambda svg: "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii"),
        kind=lambda block: type(block).__name__,
    )


@cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("illama.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja")


def _anchors(titles: Iterable[str]) -> list[str]:
    """A name for each section to link to, unique on the page."""
    anchors: list[str] = []
    for number, title in enumerate(titles, start=1):
        name = re.sub(r"[^a-z0-9]+", "-", to_plain(title).lower()).strip("-")
        anchors.append(name if name and name not in anchors else f"{name}-{number}".strip("-"))
    return anchors


def markdown(document: Document) -> str:
    """The document as Markdown text; a figure is linked as NAME.svg in the same folder."""
    parts = [f"# {to_markdown(document.title)}", to_markdown(document.lead)]
    for section in document.sections:
        parts += [f"## {to_markdown(section.title)}" if section.title else "", *map(_block, section.blocks)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _block(block: Block) -> str:
    if isinstance(block, Text):
        return to_markdown(block.text)
    if isinstance(block, Bullets):
        return "\n".join(f"* {to_markdown(item)}" for item in block.items)
    if isinstance(block, Code):  # between fences that are longer than any run of backticks in it
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", block.text)), default=0))
        return f"{fence}\n{safe_lines(block.text.rstrip())}\n{fence}"
    caption = to_markdown(block.caption)
    if isinstance(block, Table):
        rule = "|---|" + "---:|" * (len(block.header) - 1)
        rows = "\n".join([_row(block.header), rule, *map(_row, block.rows)])
        return f"{caption}\n\n{rows}" if caption else rows
    # The text of a picture is plain: viewers show it where the picture is missing.
    alt = " ".join(re.sub(r"[\[\]\\`*_<>]", " ", to_plain(block.alt)).split())
    return f"![{alt}]({block.name}.svg)" + (f"\n\n{caption}" if caption else "")


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(to_markdown(cell, cell=True) or " " for cell in cells) + " |"


def write_document(document: Document, folder: Path, attached: Mapping[str, bytes] | None = None) -> list[Path]:
    """Write report.html, report.md and each figure's NAME.svg into a folder, which is made if absent.

    A file appears, or replaces the one of its name, once it is complete; the figures come before what links them.

    Args:
        document: The report.
        folder: Where it goes.
        attached: Further files, name -> content.

    Returns:
        The files, the page first, figures last.

    Raises:
        UserError: The folder cannot be made, or a file cannot be written.
    """
    texts = {"report.html": utf8(html(document)), "report.md": utf8(markdown(document)), **(attached or {})}
    figures = {f"{figure.name}.svg": figure.svg for figure in document.figures()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be made: {error.strerror or error}; give another one") from error
    for name, content in (*figures.items(), *texts.items()):
        try:
            write_file(folder / name, content)
        except OSError as error:
            why = error.strerror or error
            raise UserError(f"cannot write {folder / name}: {why}; give another folder") from error
    return [folder / name for name in (*texts, *figures)]
