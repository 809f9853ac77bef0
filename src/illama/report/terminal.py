"""A table on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from illama.console.text import safe_lines

if TYPE_CHECKING:
    from rich.table import Table


def terminal_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """The first column stands left, the others right; cells are shown as they are, without markup."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number == 0 else "right", overflow="fold", min_width=5)
    for cells in rows:
        table.add_row(*(Text(safe_lines(cell)) for cell in cells))
    return table
