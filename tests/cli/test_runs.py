"""`illama runs` for people and for programs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from illama.cli.runs import report
from illama.recipes import Change
from illama.system.lock import RunLock
from illama.training.runs import RunStatus, read_run
from tests.cli.conftest import Run
from tests.training.test_runs import MakeRun, make_run

__all__ = ["make_run"]

ROOT = Path("runs")
CHANGES = tuple(Change(f"section.a_rather_long_key_{i}", 0, i) for i in range(9))
STATUSES = [
    RunStatus(
        path=ROOT / "imagenet" / ("a" * 80),
        state="stopped",
        recipe="imagenet1k_base_from21k_384",
        changes=CHANGES,
        step=123_456,
        total_steps=375_300,
        epoch=98.76,
        epochs=300,
        best=81.234,
        last=81.0,
        age_s=7300.0,
        command="illama train x",
    ),
    RunStatus(path=ROOT / "b", state="broken", about="why it is"),
    RunStatus(path=ROOT / "c", state="finished", recipe="mine", epoch=10.0, epochs=10, age_s=3.0, last=100.0),
    RunStatus(path=ROOT / "d", recipe="digits_micro", changes=(), epochs=10, command="illama train digits_micro"),
]


@pytest.mark.parametrize("width", [60, 80, 140, 250])
def test_the_table_fits_the_terminal(width: int) -> None:
    lines = report(STATUSES, ROOT, width).splitlines()
    table = [line for line in lines if "with: " not in line]  # commands stay whole, to be copied
    assert max(map(len, table)) <= width
    text = "\n".join(lines)
    for expected in ("98.7/300", "81.23", "2 h ago", "(+", "why it is", "mine (own recipe)", "as packaged", "100.00"):
        assert expected in text
    assert "stopped at step 123456 of 375300; continue with: illama train x" in text
    assert "stopped before anything was saved; begin with: illama train digits_micro" in text
    assert ("a" * 80 in text) == (width == 250)


def test_the_number_of_changes_that_are_not_shown() -> None:
    (line,) = [line for line in report(STATUSES[:1], ROOT, 80).splitlines() if "(+" in line]
    shown = line.count("section.")
    assert f"(+{9 - shown})" in line


def test_all_states_in_the_terminal(run: Run, make_run: MakeRun, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("COLUMNS", "80")
    for name, epochs in (("done", 3), ("half", 2), ("on", 1), ("bad", 1)):
        make_run(name, epochs)
    (tmp_path / "bad" / "recipe.yaml").write_text("name: x\n")
    with RunLock(tmp_path / "on"):
        code, out, err = run("runs", tmp_path)
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line.split()[1] for line in out.splitlines() if line and not line.startswith(" ")}
    assert rows == {"RUN": "STATE", "done": "finished", "half": "stopped", "on": "running", "bad": "broken"}
    assert "stopped at step 10 of 15; continue with: illama train digits_micro" in out


def test_json_has_everything(run: Run, make_run: MakeRun, tmp_path: Path) -> None:
    make_run("x", 2)
    code, out, _ = run("runs", tmp_path, "--json", "-")
    assert code == 0
    (found,) = json.loads(out)["runs"]
    assert found["changes"][0].keys() == {"key", "old", "new"}
    expected = read_run(tmp_path / "x").to_dict()
    assert {key: value for key, value in found.items() if key != "age_s"} == {
        key: value for key, value in json.loads(json.dumps(expected)).items() if key != "age_s"
    }
    code, out, _ = run("runs", tmp_path, "--json", tmp_path / "runs.json")
    assert out.startswith("RUN")
    assert json.loads((tmp_path / "runs.json").read_text())["runs"][0]["step"] == 10


def test_nothing_there_is_one_line_and_exit_code_2(run: Run, tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "absent"):
        code, out, err = run("runs", directory)
        assert (code, out) == (2, "")
        assert err.startswith("illama: error: there ")
        assert err.count("\n") == 1


def test_torch_is_not_loaded(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("x", 1)
    script = """
import sys
from illama.cli.main import main
code = main(["runs", sys.argv[1]])
heavy = {"torch", "numpy", "timm", "PIL", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "stopped at step 5 of 15" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "x.png"], "--out x.png is the picture of --plot"),
        (["--plot", "a", "--json", "-"], "give one of them"),
        (["--plot", "a", "--out", "x.png"], "a is not a run folder"),
    ],
)
def test_a_picture_that_cannot_be_is_refused(
    run: Run, words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run("runs", *words)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
