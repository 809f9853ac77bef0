"""JSON of unknown origin is a value or a ValueError, and one run's damage does not hide the others."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from illama.cli.main import main
from illama.console.text import as_json, parse_json, read_json
from illama.training.figures import read_metrics
from illama.training.loop import train
from tests.pictures import paint, tiny

DEEP = "[" * 100_000


@pytest.mark.parametrize("text", [DEEP, '{"a":' * 100_000, "9" * 5_000, "", "{", "nul", b"\x00\xd8", b"\xff"])
def test_what_is_no_json(text: str | bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
        parse_json(text)
    (tmp_path / "x.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError):  # noqa: PT011
        read_json(tmp_path / "x.json")


def test_files_that_never_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(40 << 30)
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path / "sparse"):
        with pytest.raises(ValueError, match=r"no regular file|too many"):
            read_json(path)


@pytest.mark.parametrize("name", ["checkpoints/last/meta.json", "environment.json", "origin.json", "metrics.jsonl"])
def test_a_hostile_file_in_one_run_leaves_the_others_to_be_seen(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = paint(tmp_path / "d", {"cat": 8, "dog": 8})
    train(tiny(data, "data.val_fraction=0.5", "schedule.epochs=2"), tmp_path / "a", device="cpu")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "a" / name).write_text(DEEP + "\n")
    assert main(["runs", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert any(line.startswith("b ") and "finished" in line for line in said.splitlines())
    assert any(line.startswith("a ") for line in said.splitlines())


def test_a_damaged_line_of_the_log_is_left_out(tmp_path: Path) -> None:
    lines = [
        '{"kind": "train", "step": 1, "epoch": 0.5, "loss": 2.0}',
        "\ufffd{{",
        "[1]",
        DEEP,
        '{"kind": "train", "step": 2, "epoch": 1.0, "loss": 1.0}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"kind": "tra')
    assert read_metrics(tmp_path / "metrics.jsonl")[0] == {"step": [1, 2], "epoch": [0.5, 1.0], "loss": [2.0, 1.0]}


@pytest.mark.parametrize(
    "name", ["\u202egnp", "\x7f", "\x1b[31m", "a\nb", "\u2028", "\udcff", "\U000e0001", "日本 é", "😀", "\u00ad"]
)
def test_json_holds_names_as_they_are_and_a_terminal_shows_them(name: str) -> None:
    text = as_json({name: [name, 1.5, None]})
    assert json.loads(text) == {name: [name, 1.5, None]}
    assert all(line.isprintable() for line in text.split("\n"))
    assert not name.isprintable() or name in text
