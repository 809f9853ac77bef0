"""CSV that no spreadsheet takes for something else."""

from __future__ import annotations

import csv
import io

import pytest

from illama.report.formats import csv_text


@pytest.mark.parametrize("text", ["=1+1", '=HYPERLINK("x")', "+7", "-x", "@sum", "\t=1", "\r=1"])
def test_texts_are_no_formulas(text: str) -> None:
    rows = list(
        csv.reader(io.StringIO(csv_text(["name", text], [[text, 1.5], ["plain", -2], [None, "7-5"]]), newline=""))
    )
    shown = "'" + text.replace("\r", "\\x0d")
    assert rows == [["name", shown], [shown, "1.5"], ["plain", "-2"], ["", "7-5"]]
