"""A document as GitHub's Markdown, its figures as files beside it."""

from __future__ import annotations

import re

from illama.console.text import safe_lines
from illama.report.document import Block, Bullets, Code, Document, Figure, Table, Text
from illama.report.inline import to_markdown, to_plain


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
