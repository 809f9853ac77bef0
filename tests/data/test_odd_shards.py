"""Tar files whose headers lie, and links that lead to themselves: refused by name, or counted."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from illama.data.layout import look, open_source
from illama.data.sources.walk import walk
from illama.errors import UserError
from illama.recipes import DataConfig
from tests.data.zoo import picture


def shard(file: Path, *first: tuple[tarfile.TarInfo, bytes]) -> Path:
    """A shard of two samples behind some members."""
    samples = [("0.png", picture(1)), ("0.cls", b"0"), ("1.png", picture(2)), ("1.cls", b"1")]
    with tarfile.open(file, "w") as tar:
        for entry, content in (*first, *((tarfile.TarInfo(name), content) for name, content in samples)):
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return file


def restated(header: bytes, *, size: bytes, kind: bytes | None = None) -> bytes:
    """A member's header with another size and kind, whose sum fits."""
    header = header[:124] + size.rjust(12, b"0")[:12] + header[136:]
    header = header if kind is None else header[:156] + kind + header[157:]
    total = sum(header[:148]) + 8 * 32 + sum(header[156:])
    return header[:148] + f"{total:06o}\0 ".encode() + header[156:]


def refused(file: Path) -> str:
    with pytest.raises(UserError, match="cannot be read as a plain tar file") as caught:
        open_source(DataConfig(path=str(file)), "train", in_chans=3)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_headers_that_state_gigabytes_of_their_own(tmp_path: Path, kind: bytes) -> None:
    """Attributes and long names are read whole, and a sparse file of any size costs nothing."""
    file = shard(tmp_path / "train.tar")
    content = file.read_bytes()
    file.write_bytes(restated(content[:512], size=f"{8 << 30:011o}\0".encode(), kind=kind) + content[512:])
    with file.open("r+b") as opened:
        opened.truncate(9 << 30)
    assert "a header of 8,589,934,592 bytes" in refused(file)


@pytest.mark.parametrize("size", [2**63 - 1, 2**63, 2**80])
def test_sizes_beyond_all_files(tmp_path: Path, size: int) -> None:
    file = shard(tmp_path / "train.tar")
    content = file.read_bytes()
    file.write_bytes(restated(content[:512], size=b"\x80" + size.to_bytes(11)) + content[512:])
    refused(file)


def test_a_tail_of_zeros_is_not_read_to_its_end(tmp_path: Path) -> None:
    for size in (2 << 20, 80 << 20, 40 << 30):
        file = shard(tmp_path / "train.tar")
        with file.open("r+b") as opened:
            opened.truncate(size)
        with pytest.raises(UserError, match="bytes are zeros: it was not fetched completely"):
            open_source(DataConfig(path=str(file)), "train", in_chans=3)


def test_links_that_lead_to_themselves(tmp_path: Path) -> None:
    """Pictures among them are pictures that cannot be read, as links to nowhere are; no other file is looked into."""
    for name in ("cat/0.png", "dog/0.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(picture(1))
    for name in ("cat/1.png", "dog/list.csv", "dog/folder"):
        (tmp_path / name).symlink_to(Path(name).name)
    (tmp_path / "dog" / "far.png").symlink_to("x" * 300)
    assert walk(tmp_path).pictures == ("cat/0.png", "cat/1.png", "dog/0.png", "dog/far.png")
    assert look(DataConfig(path=str(tmp_path))).kind == "folder"
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "train.parquet").symlink_to("train.parquet")
    with pytest.raises(UserError, match="no regular file"):
        open_source(DataConfig(path=str(tmp_path / "alone")), "train", in_chans=3)
