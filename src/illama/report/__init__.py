"""A document of paragraphs, tables and figures, written as one HTML page and as Markdown."""

from __future__ import annotations

from illama.report.document import (
    Block,
    Bullets,
    Code,
    Document,
    Figure,
    Section,
    Table,
    Text,
    html,
    markdown,
    write_document,
)
from illama.report.formats import csv_text, svg_bytes

__all__ = [
    "Block",
    "Bullets",
    "Code",
    "Document",
    "Figure",
    "Section",
    "Table",
    "Text",
    "csv_text",
    "html",
    "markdown",
    "svg_bytes",
    "write_document",
]
