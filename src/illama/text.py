"""How numbers are said to people."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """A duration as a person writes it: 0.4 s, 45 s, 12 min, 3.4 h."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
