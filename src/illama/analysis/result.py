"""What every analysis returns: numbers for machines, tables and pictures for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from illama.console.json_text import as_json
from illama.report import Section


@dataclass(frozen=True)
class Measure:
    """One line of a report's summary.

    Attributes:
        name: What was measured: "expected calibration error, 15 bins".
        value: The number in words with its unit and, where there is one, its interval: "0.034 (0.029 to 0.041)".
        published: The paper's number for a published network of this kind; "" where there is none.
    """

    name: str
    value: str
    published: str = ""


@dataclass(frozen=True)
class AnalysisResult:
    """What one analysis found.

    Attributes:
        name: The analysis: "calibration".
        summary: The few numbers that stand at the head of a report.
        section: Heading, figures and tables. Each figure's caption begins with one sentence that says how to read it.
        values: All numbers as plain values for JSON: no NaN, no tensors.
        tables: File name -> CSV text, for what one would draw again.
    """

    name: str
    summary: tuple[Measure, ...]
    section: Section
    values: dict[str, Any]
    tables: Mapping[str, str] = field(default_factory=dict)

    def json(self) -> str:
        """`values` as JSON; a number that is not finite is a bug of the analysis."""
        return as_json(self.values, allow_nan=False)
