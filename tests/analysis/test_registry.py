"""What can be asked of each analysis, and the words that a report's options are given in."""

from __future__ import annotations

import re
from typing import Any

import pytest

from illama.analysis.registry import ANALYSES, ComparisonOptions, read_options
from illama.errors import UserError


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("landscape.points", "write analysis.option=value"),
        ("landscape=3", "lacks the option"),
        ("landscap.points=3", "did you mean landscape"),
        ("landscape.point=3", "did you mean points"),
        ("landscape.points=many", "landscape.points=many: input should be a valid integer"),
        ("landscape.points=4", "landscape.points must be odd"),
        ("landscape.points=1", "landscape.points must be odd"),
        ("landscape.extent=0.0", "landscape.extent must be a number above 0"),
        ("landscape.extent=.inf", "landscape.extent must be a number above 0"),
        ("landscape.images=0", "landscape.images must be at least 1"),
        ("calibration.bins=0", "calibration.bins must be at least 1; got 0"),
        ("calibration.resamples=0", "calibration.resamples must be at least 1; got 0"),
        ("calibration.fit_share=0.0", "calibration.fit_share must lie between 0 and 1; got 0"),
        ("calibration.fit_share=1.0", "calibration.fit_share must lie between 0 and 1; got 1"),
        ("calibration.fit_share=1.5", "calibration.fit_share must lie between 0 and 1; got 1.5"),
        ("classes.shown=0", "classes.shown must be at least 1; got 0"),
        ("attention.images=0", "attention.images must be at least 1; got 0"),
        ("attention.shown=-1", "attention.shown must be at least 0"),
        ("attention.share=0.0", "attention.share must lie above 0 and be at most 1; got 0"),
        ("attention.share=1.1", "attention.share must lie above 0 and be at most 1; got 1.1"),
        ("causality.images=1", "causality.images must be at least 2, for patches are exchanged; got 1"),
        ("causality.cuts=0", "causality.cuts must be at least 1; got 0"),
        ("probe.neighbors=0", "probe.neighbors must be at least 1"),
        ("probe.temperature=0.0", "probe.temperature must be a number above 0"),
        ("probe.train_images=-1", "probe.train_images must be at least 0"),
        ("probe.tokens=all", "'class' or 'mean'"),
    ],
)
def test_a_wrong_word_is_one_line(word: str, complaint: str) -> None:
    with pytest.raises(UserError, match=re.escape(complaint)) as caught:
        read_options([word])
    assert "\n" not in str(caught.value)
    assert "value error" not in str(caught.value), "pydantic's words for the options' own"


def test_options_name_their_analysis() -> None:
    with pytest.raises(UserError, match=r"compare\.bins must be at least 1; got 0"):
        ComparisonOptions(bins=0)


def test_words_change_what_they_name_and_nothing_else() -> None:
    usual: dict[str, Any] = read_options([])
    changed = read_options(["landscape.points=11", "probe.tokens=mean"])
    assert changed["landscape"].points == 11
    assert changed["probe"].tokens == "mean"
    assert {name for name in ANALYSES if usual[name] != changed[name]} == {"landscape", "probe"}
