"""Tables on a terminal: drawn by rich for what is read, in plain columns for lists that are cut and searched."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from illama.console.text import safe_lines


def terminal_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """The first column stands left, the others right; cells are shown as they are, without markup."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number == 0 else "right", overflow="fold", min_width=5)
    for cells in rows:
        table.add_row(*(Text(safe_lines(cell)) for cell in cells))
    return table


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Rows as lines of columns, two spaces between them, none at the end.

    Args:
        rows: Cells as a terminal may have them; all rows have as many.
        left: So many of the first columns hold words, which stand to the left, the others numbers, to the right.
    """
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for cells in rows:
        room = [" " * (width - cell_len(cell)) for cell, width in zip(cells, widths, strict=True)]
        words = [cell + space for cell, space in zip(cells[:left], room, strict=False)]
        numbers = [space + cell for cell, space in zip(cells[left:], room[left:], strict=True)]
        lines.append("  ".join([*words, *numbers]).rstrip())
    return lines
