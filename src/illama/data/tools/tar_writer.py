"""Writes tar files that are the same bytes whoever writes them, whenever."""

from __future__ import annotations

import hashlib
import tarfile
from typing import BinaryIO


class TarWriter:
    """A plain tar file and its checksum; the bytes depend on names and contents alone.

    Args:
        file: Open for writing; its beginning.

    Attributes:
        sha256: Of what is written so far.
        bytes: Size of it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.bytes = 0

    def add(self, name: str, content: bytes) -> None:
        """One file, without time and owner; a name that is no UTF-8 keeps its bytes."""
        member = tarfile.TarInfo(name)
        member.size = len(content)
        self._write(member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
        self._write(content)
        self._write(bytes(-len(content) % tarfile.BLOCKSIZE))

    def end(self) -> None:
        """Close the list of files: two empty blocks, and whole records as tar writes them."""
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._write(bytes(-self.bytes % tarfile.RECORDSIZE))

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self.sha256.update(content)
        self.bytes += len(content)
