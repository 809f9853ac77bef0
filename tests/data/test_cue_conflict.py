"""Cue-conflict folders: what the names say, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from illama.analysis.shape import open_cue_conflict
from illama.errors import UserError


def _picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def test_shape_and_texture_come_from_the_name(tmp_path: Path) -> None:
    for name in ("dog/dog2-clock1.png", "cat/cat10-elephant3.jpg", "cat/cat2-cat1.jpg"):
        _picture(tmp_path / name)
    (tmp_path / "categories_1000_to_16.json").write_text("{}")
    source = open_cue_conflict(tmp_path)
    found = [(source.classes[s], source.classes[t]) for s, t in zip(source.labels, source.textures, strict=True)]
    assert found == [("cat", "elephant"), ("cat", "cat"), ("dog", "clock")]
    assert source.description.endswith("3 of 1,280 images, 1 without a conflict")
    assert source.read(0).size == (4, 4)


def test_the_160_real_pictures_open(shared_data: Path) -> None:
    source = open_cue_conflict(shared_data / "cue_conflict")
    assert len(source) == 160
    assert (source.labels == source.textures).sum() == 16
    assert np.bincount(source.labels).tolist() == np.bincount(source.textures).tolist() == [10] * 16
    assert len(source.classes) == 16


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("wolf/wolf1-cat2.png", "none of the 16 categories; known: airplane, bear"),
        ("cta/cat1-dog2.png", "did you mean cat?"),
        ("cat/cat1-wolf2.png", "names the category 'wolf'"),
        ("cat/dog1-cat2.png", "has the shape 'dog' by its name, but lies in the folder 'cat'"),
        ("cat/cat1.png", "is not named like a cue-conflict picture, SHAPEn-TEXTUREm"),
        ("cat1-dog2.png", "lies outside of a shape category's folder"),
    ],
)
def test_what_fits_no_cue_conflict_set_is_one_line(tmp_path: Path, file: str, words: str) -> None:
    _picture(tmp_path / "set" / file)
    with pytest.raises(UserError, match=words.replace("?", "[?]")) as refusal:
        open_cue_conflict(tmp_path / "set")
    assert "\n" not in str(refusal.value)


def test_a_missing_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        open_cue_conflict(tmp_path / "none")
    (tmp_path / "cat").mkdir()
    with pytest.raises(UserError, match="no cue-conflict pictures"):
        open_cue_conflict(tmp_path)
