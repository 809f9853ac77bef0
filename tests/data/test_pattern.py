"""Patterns of files: as glob understands them, and in bounded work whatever folders, links and patterns say."""

from __future__ import annotations

import glob
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from illama.data.sources.walk import files_matching
from illama.errors import UserError

FILES = (
    "a.png",
    "b.jpg",
    "c/a.png",
    "c/d/a.png",
    "c/d/b.txt",
    "e f/a.png",
    ".h/a.png",
    "c/.h.png",
    "c/[x].png",
    "é.png",
)
PARTS = st.sampled_from(
    ("*", "**", "?", "*.png", "c", "[a-d]*", "[!a]*", ".*", "a.png", "d", ".", "[[]x].png", "e f", "")
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    for name in FILES:
        (root / name).parent.mkdir(exist_ok=True, parents=True)
        (root / name).touch()
    return root


@settings(max_examples=300, deadline=None)
@given(st.lists(PARTS, min_size=1, max_size=5).map("/".join))
def test_as_glob(tree: Path, pattern: str) -> None:
    whole = f"{tree}/{pattern}"
    expected = {os.path.realpath(name) for name in glob.glob(whole, recursive=True) if os.path.isfile(name)}
    found = files_matching(whole)
    assert {os.path.realpath(name) for name in found} == expected
    assert found == sorted(set(found))


def test_relative_ones(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree / "c")
    assert files_matching("*.png") == ["[x].png", "a.png"]
    assert files_matching("../*.png") == ["../a.png", "../é.png"]
    assert files_matching("**/*.png") == ["[x].png", "a.png", "d/a.png"]
    assert files_matching("*/") == []


@pytest.mark.parametrize(
    "pattern",
    ["**/../**", "**/../**/../**/*.png", "*/../*/../*/../*/../*.png", "**/**/**/**/**/**/*", "**/*/../**/*/../**"],
)
def test_folders_are_looked_into_a_few_times_only(
    pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """glob would look into them hundreds to billions of times."""
    root = tmp_path / "a" / "b" / "c" / "d"  # .. leads above it
    folders = [root / f"{i}" / f"{k}" for i in range(5) for k in range(5)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "x.png").touch()
    looks, scandir = [], os.scandir

    def counted(path: str) -> object:
        looks.append(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counted)
    assert files_matching(f"{root}/{pattern}") or "*.png" in pattern
    assert len(looks) <= 40 * len(pattern.split("/"))


def test_links_to_their_own_folder_are_not_followed_for_ever(tmp_path: Path) -> None:
    (tmp_path / "x.png").touch()
    for name in ("again", "and again"):
        (tmp_path / name).symlink_to(".")
    assert files_matching(f"{tmp_path}/**/*.png") == [f"{tmp_path}/x.png"]
    assert files_matching(f"{tmp_path}/*/x.png") == [f"{tmp_path}/again/x.png", f"{tmp_path}/and again/x.png"]


def test_patterns_without_end_are_refused() -> None:
    for pattern in ("*/" * 100, "../" * 3000 + "*", "x/" * 64 + "*"):
        with pytest.raises(UserError, match="parts; allowed: up to 64"):
            files_matching(pattern)
