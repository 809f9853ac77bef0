"""A document of paragraphs, tables and figures, written as one HTML page and as Markdown."""

from __future__ import annotations

from illama.report.csv_text import csv_text
from illama.report.document import Block, Bullets, Code, Document, Figure, Section, Table, Text
from illama.report.markdown_text import markdown
from illama.report.page import html
from illama.report.svg import svg_bytes
from illama.report.terminal import terminal_table
from illama.report.write import write_document

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
    "terminal_table",
    "write_document",
]
