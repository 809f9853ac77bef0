"""What a folder of shards holds, and how a file gets there; tar files of the same bytes whenever they are written.

```
DST/train-000000.tar ...   the shards
DST/_info.json             splits, file names, images in each shard: the layout of timm's reader
DST/classes.txt            class names in the order of their numbers
DST/_plan.jsonl.gz         every source file in the order of the shards
DST/_shards.jsonl          every finished shard with SHA-256, size, images, and the files that could not be read
DST/SHA256SUMS             for `sha256sum -c`; there when all is done
```
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from illama.console.json_text import parse_json
from illama.data.tools.shard_plan import ShardPlan
from illama.errors import UserError
from illama.system.files import replacing, to_disk


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


PLAN_FILE, JOURNAL_FILE = "_plan.jsonl.gz", "_shards.jsonl"
INFO_FILE, CLASSES_FILE, SUMS_FILE = "_info.json", "classes.txt", "SHA256SUMS"
LOCK_PATIENCE_S = 5.0  # a killed writer may outlive its death by an instant; two living ones are a mistake


@dataclass(frozen=True)
class FinishedShard:
    """A line of the journal.

    Attributes:
        file: Name of the shard.
        sha256: Of the whole file, hexadecimal.
        bytes: Its size.
        images: How many it holds.
        left_out: Files that could not be read, by their path in the source, and why.
    """

    file: str
    sha256: str
    bytes: int
    images: int
    left_out: dict[str, str] = field(default_factory=dict)

    def line(self) -> str:
        """As it stands in the journal."""
        return json.dumps(asdict(self)) + "\n"


Finished = Mapping[str, FinishedShard]


def read_journal(folder: Path) -> list[FinishedShard]:
    """The shards that are noted as finished; a line that a crash cut off counts as none."""
    file = folder / JOURNAL_FILE
    noted = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            noted.append(FinishedShard(**parse_json(line)))
        except (ValueError, TypeError):
            continue
    return noted


def write_before(folder: Path, plan: ShardPlan, finished: Finished) -> None:
    """What has to stand there before the first shard.

    `_info.json` names all shards from the start, so that a reader of an unfinished folder is told which are missing
    instead of taking them for the whole.
    """
    (folder / SUMS_FILE).unlink(missing_ok=True)
    write_text(folder / CLASSES_FILE, "".join(f"{name}\n" for name in plan.classes))
    _write_info(folder, plan, finished)
    _write_journal(folder, plan, finished)


def write_after(folder: Path, plan: ShardPlan, finished: Finished) -> None:
    """The lists of a complete folder, in the order of the plan and not in that in which threads were done."""
    _write_info(folder, plan, finished)
    _write_journal(folder, plan, finished)
    sums = (f"{finished[shard.name].sha256}  {shard.name}\n" for shard in plan.shards())
    write_text(folder / SUMS_FILE, "".join(sums))


def _write_journal(folder: Path, plan: ShardPlan, finished: Finished) -> None:
    lines = [finished[shard.name].line() for shard in plan.shards() if shard.name in finished]
    write_text(folder / JOURNAL_FILE, "".join(lines))


def _write_info(folder: Path, plan: ShardPlan, finished: Finished) -> None:
    """Splits as timm's reader wants them described; an unfinished shard counts with the images that are planned."""
    splits: dict[str, Any] = {}
    for shard in plan.shards():
        name = shard.split.name
        entry = splits.setdefault(name, {"name": name, "num_samples": 0, "filenames": [], "shard_lengths": []})
        images = finished[shard.name].images if shard.name in finished else shard.stop - shard.start
        entry["num_samples"] += images
        entry["filenames"].append(shard.name)
        entry["shard_lengths"].append(images)
    write_text(folder / INFO_FILE, json.dumps({"splits": splits}, indent=1) + "\n")


@contextmanager
def appearing(file: Path) -> Iterator[Path]:
    """As `replacing`, and the name is on the disk too: the journal notes what lasts."""
    with replacing(file) as partial:
        yield partial
    to_disk(file.parent)


def write_text(file: Path, text: str) -> None:
    """Write a file that is there as a whole or not at all."""
    with appearing(file) as partial:
        partial.write_bytes(text.encode())


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep a second process out, where the system can lock folders; the lock ends with the process, however it ends.

    Raises:
        UserError: Another process is writing there.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        until = time.monotonic() + LOCK_PATIENCE_S
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise UserError(f"another process is writing shards to {folder}; wait for it, or end it") from None
                time.sleep(0.05)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        os.close(handle)
