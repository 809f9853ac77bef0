"""A slice of the fuzzing (`make test-fuzz` is the whole), and the proof that it can fail."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.__main__ import spread
from tests.fuzz.kinds import kinds
from tests.fuzz.seeds import Seeds

REPOSITORY = Path(__file__).parents[2]
EACH = 1  # cases of each kind
EXPECTED = {
    "raises": "shows a traceback",
    "shows a traceback": "shows a traceback",
    "raises in a thread": "shows a traceback",
    "ends itself": "ends with signal 11 (SIGSEGV)",
    "waits": "hangs",
    "works without end": "hangs",
    "eats memory": "takes more than 2 GB",
    "writes outside": "changes something outside",
    "writes beside": "changes something outside",
    "makes a file outside": "changes something outside",
    "removes an input": "changes something outside",
    "ends with 1": "ends with exit code 1",
    "refuses without a word": "tells 0 errors with exit code 2",
    "refuses twice": "tells 2 errors with exit code 2",
    "complains and goes on": "tells 1 errors with exit code 0",
    "prints a name as it is": "prints control characters",
    "answers": None,
    "refuses": None,
}
needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="watches processes in /proc (Linux)")


def fuzz(folder: Path, *words: str) -> tuple[int, dict[str, list[dict[str, Any]]], str]:
    """Exit code, how the cases of each kind ended, and what was said."""
    file = folder / "ends.json"
    command = [sys.executable, "-m", "tests.fuzz", "--root", str(folder), "--json", str(file), *words]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert file.exists(), ended.stdout + ended.stderr
    return ended.returncode, json.loads(file.read_text()), ended.stdout


@needs_proc
def test_damaged_inputs_of_all_kinds_are_answered_or_refused_in_one_line(tmp_path: Path) -> None:
    """And a case is repeated by its name: the same damage, and so the same end; another seed does another damage."""
    names = [f"{kind}:{number}" for kind in kinds(Seeds(tmp_path)) for number in range(EACH)]
    again = ["override:0", "names:0", "recipe:0"]
    code, ends, said = fuzz(tmp_path, *names, *again, "--seed", "")
    assert {kind: len(cases) for kind, cases in ends.items()} == {
        kind: EACH + sum(name.startswith(f"{kind}:") for name in again) for kind in kinds(Seeds(tmp_path))
    }
    assert {0, 2} <= {case["code"] for cases in ends.values() for case in cases}
    assert code == 0, said
    first, repeated = commands(said)[: len(names)], commands(said)[len(names) :]
    assert repeated == [first[names.index(name)] for name in again]
    other = commands(fuzz(tmp_path, *again, "--seed", "b")[2])
    assert len(other) == 3
    assert other != repeated


def commands(said: str) -> list[tuple[str, ...]]:
    """The command of each case and how it ended."""
    lines = [re.sub(r"\S*/(seeds|case)", "", line) for line in said.splitlines()]
    lines = [line for line in lines if line.startswith(("  illama", "  exit"))]
    return list(zip(lines[::2], lines[1::2], strict=True))


def test_every_kind_gets_a_case(tmp_path: Path) -> None:
    everything = kinds(Seeds(tmp_path))
    for count in (1, 130):
        assert {kind for kind, _ in spread(everything, count, None)} == set(everything)


@needs_proc
def test_what_must_not_happen_is_noticed(tmp_path: Path) -> None:
    code, ends, said = fuzz(tmp_path, "--self-test")
    assert {name: one["failure"] for name, (one,) in ends.items()} == EXPECTED
    assert code == 1
    assert "again: " in said
    assert {path.name for path in (tmp_path / "failures").iterdir()} == {
        f"{name.replace(' ', '-')}-0" for name, verdict in EXPECTED.items() if verdict
    }
