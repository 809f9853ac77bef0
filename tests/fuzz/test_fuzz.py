"""A slice of the fuzzing (`make test-fuzz` is the whole), and the proof that it can fail."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
CASES = 130  # of all kinds; about a minute
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
    code, ends, said = fuzz(tmp_path, "--cases", str(CASES), "--seed", "")
    assert len(ends) > 20
    everything = [one for own in ends.values() for one in own]
    assert len(everything) > 0.9 * CASES
    assert {0, 2} <= {one["code"] for one in everything}
    assert code == 0, said


@needs_proc
def test_what_must_not_happen_is_noticed(tmp_path: Path) -> None:
    code, ends, said = fuzz(tmp_path, "--self-test")
    assert {name: one["failure"] for name, (one,) in ends.items()} == EXPECTED
    assert code == 1
    assert "again: " in said
    assert {path.name for path in (tmp_path / "failures").iterdir()} == {
        f"{name.replace(' ', '-')}-0" for name, verdict in EXPECTED.items() if verdict
    }


@needs_proc
def test_a_case_is_repeated_by_its_name(tmp_path: Path) -> None:
    """The same damage, and so the same end; another seed does another damage."""
    names = ["override:1", "names:2", "recipe:3"]

    def commands(*words: str) -> list[str]:
        said = fuzz(tmp_path, *words)[2].splitlines()
        return [re.sub(r"\S*/(seeds|case)", "", line) for line in said if line.startswith(("  illama", "  exit"))]

    one, other = commands(*names, *names, "--seed", "a"), commands(*names, "--seed", "b")
    assert one[:6] == one[6:]
    assert len(one) == 2 * len(other) == 12
    assert one[:6] != other
