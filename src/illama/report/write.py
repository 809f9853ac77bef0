"""A document's files in a folder, each whole or absent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from illama.errors import UserError
from illama.report.document import Document
from illama.report.markdown_text import markdown
from illama.report.page import html
from illama.system.files import utf8, write_file


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
