"""Predictions for files, folders and patterns; a broken image stops nobody else."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import illama
from illama.checkpoint import save_weights
from illama.errors import UserError
from illama.evaluation.predict import BATCH, find_images, predict
from illama.weights.foreign import read_weights
from illama.weights.load import locate


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


def test_what_lies_beside_the_images_is_counted(pictures: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "@eaDir").mkdir(parents=True)
    shutil.copy(pictures / "b.png", other / "b.png")
    shutil.copy(pictures / "b.png", other / "@eaDir" / "b.png")
    for name in ("x.txt", "y.txt"):
        (other / name).write_text("no picture")
    for name in ("1.jxl", "2.dng"):
        (other / name).write_bytes(b"a picture of a kind that is not read")
    files, passed_over = find_images([pictures, other])
    assert len(files) == 5
    assert passed_over.total == 1 + 1 + 2 + 2
    assert "3 files that are no pictures" in passed_over.line()
    assert {word for word in passed_over.lost().split() if word.startswith(".")} == {".jxl", ".dng"}
    assert passed_over.lost() in passed_over.line()


def test_links_are_followed_as_training_follows_them(pictures: Path, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    (given / "linked").symlink_to(pictures, target_is_directory=True)
    (given / "loop").symlink_to(given, target_is_directory=True)
    (given / "up").symlink_to(tmp_path, target_is_directory=True)
    assert len(find_images([given])[0]) == 4


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("https://a.b/c.jpg?size=1&x=2", "is an address, and nothing is downloaded.*curl -O 'https"),
        ("http://a.b/[x]*.jpg", "is an address"),
        ("s3://bucket/x.png", "is an address"),
        ("-", "not read from stdin"),
        ("no/such\nfile\x1b2J.png", r"there is no image no/such\\x0afile\\x1b2J\.png"),
        ("no/such\x1b[2J.png", r"no/such\\x1b\[2J\.png has no image"),
        ("", "name is empty"),
    ],
)
def test_what_is_no_image_is_said_in_a_line(given: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        find_images([given])
    assert str(caught.value).isprintable()


def test_pictures_that_cannot_be_read_at_all_are_no_silence(tmp_path: Path) -> None:
    for name in ("1.heic", "2.JXL", "3.dng"):
        (tmp_path / name).write_bytes(b"a picture of a kind that is not read")
    with pytest.raises(UserError, match=r"has no image in it.*\.jxl"):
        find_images([tmp_path])


def test_a_limit_of_pixels_is_the_recipes(digits_run: Path, pictures: Path, tmp_path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    (found,) = illama.predict(digits_run, tmp_path / "huge.png", device="cpu")
    assert "data.max_image_pixels" in str(found.problem)


def test_the_messy_set(digits_run: Path, shared_data: Path) -> None:
    """What the manifest calls readable is predicted, the rest is named."""
    manifest = json.loads((shared_data / "messy" / "manifest.json").read_text())["files"]
    paths = [shared_data / "messy" / entry["file"] for entry in manifest]
    found = illama.predict(digits_run, paths, device="cpu")
    for entry, one in zip(manifest, found, strict=True):
        assert (one.problem is None) == entry["readable"], (entry["file"], one.problem)


@pytest.mark.parametrize(
    "data", ["x", None, [], {"max_image_pixels": "x"}, {"max_image_pixels": 10**30}, {"max_image_pixels": -1}]
)
def test_a_recipe_in_the_weights_that_is_none_is_refused(digits_run: Path, tmp_path: Path, data: object) -> None:
    state, meta = read_weights(locate(digits_run).file)
    assert meta is not None
    assert meta.recipe is not None
    save_weights(tmp_path / "w.safetensors", state, dataclasses.replace(meta, recipe=meta.recipe | {"data": data}))
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    with pytest.raises(UserError, match=r"w\.safetensors.*data"):
        predict(tmp_path / "w.safetensors", tmp_path / "x.png")
