"""Tables: cells as they are, columns that stand below each other, whatever the cells hold."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from illama.console import Terminal
from illama.console.table import aligned, terminal_table


def test_columns_of_words_and_numbers() -> None:
    assert aligned([("run", "state", "epoch"), ("a", "on", "3"), ("long", "off", "")], left=2) == [
        "run   state  epoch",
        "a     on         3",
        "long  off",
    ]
    wide = aligned([("日本", "1"), ("a", "22")])
    assert {cell_len(line) for line in wide} == {8}


def test_cells_are_no_markup_and_move_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal(piped_width=60).print(terminal_table(("name", "n"), [("[bold]x[/] \x1b[2J", "1.5")]))
    said = capsys.readouterr().out
    assert "[bold]x[/] \\x1b[2J" in said
    assert max(map(len, said.splitlines())) <= 60
