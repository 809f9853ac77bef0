"""Reading what others made: only regular files of a bounded size, and nothing is waited for."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from illama.cli.main import main
from illama.system.files import at_home, is_file, open_given, read_given, read_given_text, why

ENDLESS = ("pipe", "folder", "socket", "link to a pipe", "sparse")


def endless(path: Path, kind: str) -> Path:
    """Something at `path` that cannot be read to its end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as opened:
            here = os.getcwd()
            os.chdir(path.parent)  # its whole path may be longer than a socket's name can be
            try:
                opened.bind(path.name)
            finally:
                os.chdir(here)
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(40 << 30)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        os.mkfifo(path.with_name("pipe of " + path.name))
        path.symlink_to("pipe of " + path.name)
    return path


@pytest.mark.parametrize("kind", ENDLESS)
def test_what_has_no_end_is_not_read(tmp_path: Path, kind: str) -> None:
    path = endless(tmp_path / "x", kind)
    for read in (open_given, read_given, read_given_text):
        with pytest.raises((OSError, ValueError)) as caught:
            read(path)
        assert why(caught.value) in (
            "it is no regular file",
            "Is a directory",
            "No such device or address",
            "42,949,672,960 bytes are too many (allowed: up to 1,073,741,824)",
        )


@pytest.mark.parametrize("kind", ENDLESS)
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mine.yaml", ("train", "FILE", "--print")),
        ("list.csv", ("data", "check", "FILE")),
        ("list.tsv", ("data", "check", "FILE")),
        ("train.parquet", ("data", "check", "FILE")),
        ("w.safetensors", ("convert", "FILE", "out.safetensors")),
        ("logits.safetensors", ("analyze", "calibration", "FILE")),
        ("w.pth", ("train", "digits_micro", "--init-from", "FILE", "--device", "cpu")),
    ],
)
def test_commands_refuse_it_in_one_line(
    kind: str,
    name: str,
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = endless(tmp_path / "given" / name, kind)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main([str(file) if word == "FILE" else word for word in words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert str(file) in line
    assert list((tmp_path / "here").iterdir()) == []


def test_regular_files_and_links_to_them_are_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xef\xbb\xbfcontent")
    (tmp_path / "link").symlink_to("x")
    assert read_given(tmp_path / "link") == b"\xef\xbb\xbfcontent"
    assert read_given_text(tmp_path / "link") == "content"
    assert read_given(tmp_path / "x", 10) == b"\xef\xbb\xbfcontent"
    with pytest.raises(ValueError, match=r"10 bytes are too many \(allowed: up to 9\)"):
        read_given(tmp_path / "x", 9)


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    (tmp_path / "round").symlink_to("round")
    for name in ("x" * 300, "a\0b", "\udcff" * 200, "round", "x/" * 3000):
        assert not is_file(tmp_path / name)
        with pytest.raises((OSError, ValueError)):
            open_given(tmp_path / name)


def test_a_home_that_is_nobodys_is_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert at_home("~/x") == Path("/somewhere/x")
    for name in ("~nobody knows/x", "a/~/b", "~\udcff"):
        assert str(at_home(name)) == name
