"""A document as one HTML page that loads nothing, as Markdown with its figures, and as files, each whole or absent."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from illama.console.text import safe_lines
from illama.errors import UserError
from illama.report.document import Block, Bullets, Code, Document, Figure, Table, Text
from illama.report.inline import to_html, to_markdown, to_plain
from illama.system.files import utf8, write_file

if TYPE_CHECKING:
    from jinja2 import Template

TABLE_OF_CONTENTS_FROM = 3  # sections; fewer are seen at a glance


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
        parts.append(f"## {to_markdown(section.title)}")
        for block in section.blocks:
            parts += _block(block)
    return "\n\n".join(part for part in parts if part) + "\n"


def _block(block: Block) -> list[str]:
    if isinstance(block, Text):
        return [to_markdown(block.text)]
    if isinstance(block, Bullets):
        return ["\n".join(f"* {to_markdown(item)}" for item in block.items)]
    if isinstance(block, Code):
        return [_fenced(block.text)]
    if isinstance(block, Table):
        return [to_markdown(block.caption), _table(block)]
    return _figure(block)


def _fenced(text: str) -> str:
    """Code between fences that are longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{safe_lines(text.rstrip())}\n{fence}"


def _table(table: Table) -> str:
    rows = [_row(table.header), "|---|" + "---:|" * (len(table.header) - 1), *map(_row, table.rows)]
    return "\n".join(rows)


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(to_markdown(cell, cell=True) or " " for cell in cells) + " |"


def _figure(figure: Figure) -> list[str]:
    # The text of a picture is plain: viewers show it where the picture is missing.
    alt = re.sub(r"[\[\]\\`*_<>]", " ", to_plain(figure.alt))
    return [f"![{' '.join(alt.split())}]({figure.name}.svg)", to_markdown(figure.caption)]


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
        _write(folder / name, content)
    return [folder / name for name in (*texts, *figures)]


def _write(path: Path, content: bytes) -> None:
    try:
        write_file(path, content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; give another folder") from error
