"""Predictions for files, folders and patterns; a broken image stops nobody else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import illama
from illama.errors import UserError
from illama.evaluation.predict import BATCH, find_images


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "below").mkdir(parents=True)
    values = np.random.default_rng(0)
    for name in ("b.png", "a.PNG", "below/c.jpg", "with [brackets] é 字.png"):
        Image.fromarray(values.integers(0, 255, (8, 8), dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_files_folders_and_patterns_are_found_once(pictures: Path) -> None:
    everything, _ = find_images([pictures])
    assert [Path(path).name for path in everything] == ["a.PNG", "b.png", "c.jpg", "with [brackets] é 字.png"]
    assert find_images([pictures / "b.png", pictures])[0] == [str(pictures / "b.png")] + [
        path for path in everything if not path.endswith("b.png")
    ]
    assert find_images([str(pictures / "*.png")])[0] == [path for path in everything if path.endswith(".png")]
    assert find_images([str(pictures / "**/*.jpg")])[0] == [str(pictures / "below/c.jpg")]
    assert find_images([str(pictures / "with [brackets] é 字.png")])[0] == [everything[-1]]


def test_nothing_found_is_said(pictures: Path) -> None:
    (pictures / "empty").mkdir()
    for item in (pictures / "absent.png", pictures / "empty", pictures / "*.bmp"):
        with pytest.raises(UserError, match="image") as caught:
            find_images([item])
        assert str(item) in str(caught.value)


def test_probabilities_are_those_of_the_model(digits_run: Path, pictures: Path) -> None:
    found = illama.predict(digits_run, pictures, top_k=10, device="cpu")
    assert [Path(one.path).name for one in found] == ["a.PNG", "b.png", "c.jpg", "with [brackets] é 字.png"]
    for one in found:
        assert one.problem is None
        assert sorted(one.classes) == sorted(map(str, range(10)))
        assert sum(one.probabilities) == pytest.approx(1, abs=1e-5)
        assert list(one.probabilities) == sorted(one.probabilities, reverse=True)
    alone = illama.predict(digits_run, str(pictures / "b.png"), top_k=10, device="cpu")[0]
    assert alone.classes == found[1].classes
    assert alone.probabilities == pytest.approx(found[1].probabilities, abs=1e-5)
    json.dumps([one.to_dict() for one in found])


def test_top_k(digits_run: Path, pictures: Path) -> None:
    assert len(illama.predict(digits_run, pictures, top_k=2, device="cpu")[0].classes) == 2
    assert len(illama.predict(digits_run, pictures, top_k=99, device="cpu")[0].classes) == 10
    with pytest.raises(UserError, match="at least 1"):
        illama.predict(digits_run, pictures, top_k=0)


def test_order_survives_batches_and_broken_images(digits_run: Path, pictures: Path, tmp_path: Path) -> None:
    many = tmp_path / "many"
    many.mkdir()
    broken = {3, BATCH, 2 * BATCH + 1}
    for i in range(2 * BATCH + 2):
        if i in broken:
            (many / f"{i:03}.jpg").write_bytes(b"" if i == 3 else b"no picture")
        else:
            shutil.copy(pictures / "b.png", many / f"{i:03}.jpg")
    found = illama.predict(digits_run, many, device="cpu")
    assert [Path(one.path).stem for one in found] == [f"{i:03}" for i in range(2 * BATCH + 2)]
    assert {i for i, one in enumerate(found) if one.problem} == broken
    assert all(one.classes == () for one in found if one.problem)
    assert len({one.classes for one in found if not one.problem}) == 1


def test_the_messy_set(digits_run: Path, shared_data: Path) -> None:
    """What the manifest calls readable is predicted, the rest is named."""
    manifest = json.loads((shared_data / "messy" / "manifest.json").read_text())["files"]
    paths = [shared_data / "messy" / entry["file"] for entry in manifest]
    found = illama.predict(digits_run, paths, device="cpu")
    for entry, one in zip(manifest, found, strict=True):
        assert (one.problem is None) == entry["readable"], (entry["file"], one.problem)
