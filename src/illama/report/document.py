"""What a report consists of. Texts may hold the inline Markdown of `illama.report.inline` and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

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
    """A heading and what stands under it."""

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
