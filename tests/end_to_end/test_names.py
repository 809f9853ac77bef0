"""Whatever folders and files are called: every command works, in every locale, and moves no terminal and no page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from illama.cli.main import main
from tests.pictures import paint, tiny_words

CLASSES = (
    *(
        "日本",
        "a\nb",
        "\x1b[31mred",
        "²",
        "<b>x",
        "a|b`c",
        r"$\frac$",
        "_under",
        "e\u0301te\u0301",
        "[bold]x",
        "%s {0}",
    ),
    *("\u202eevil", "-", "nul\x7f", " blank ", "UPPER", "upper", "7", "07", "x" * 200),
)
FILES = ("x\ny\x1b[2J.png", os.fsdecode(b"\xff\xfe.png"), "<img src=x>.png", "²³.png")
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "COLUMNS": "300"}
RUN_ALL = """
import json, sys
from illama.cli.main import main
for words in json.load(open(sys.argv[1], encoding="ascii")):
    print("$", *map(ascii, words[:2]), flush=True)
    code = main(words)
    if code:
        sys.exit(f"{words[:2]} ended with {code}")
"""


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """Three pictures in each of many classes, both splits; some files have odd names as well."""
    data = paint(tmp_path / "d", {f"{split}/{name}": 3 for split in ("train", "val") for name in CLASSES})
    for i, name in enumerate(FILES):
        for split in ("train", "val"):
            first = data / split / CLASSES[i] / "0.png"
            first.rename(first.with_name(name))
    return data


def said(words: list[list[str]], folder: Path) -> str:
    """What one process prints for command after command; it has to be ASCII."""
    (folder / "words.json").write_text(json.dumps(words))
    command = [sys.executable, "-c", RUN_ALL, str(folder / "words.json")]
    done = subprocess.run(command, capture_output=True, env=os.environ | C_LOCALE, cwd=folder, check=False)
    text = (done.stdout + done.stderr).decode("ascii")
    assert done.returncode == 0, text[-3000:]
    assert "Traceback" not in text
    return text


def raw(text: str) -> set[str]:
    """Characters in it that a terminal or a page acts upon."""
    return {letter for letter in text if unicodedata.category(letter) in ("Cc", "Cf", "Cs") and letter != "\n"}


def test_every_command(odd: Path, tmp_path: Path) -> None:
    """In the locale that knows ASCII alone; the others know more."""
    run, train = str(tmp_path / "run"), [*tiny_words(odd, "schedule.epochs=2"), "--out", str(tmp_path / "run")]
    text = said(
        [
            ["data", "check", str(odd), "--workers", "1", "--json", str(tmp_path / "check.json")],
            train,
            train,
            ["eval", run, "--json", str(tmp_path / "eval.json"), "--device", "cpu"],
            ["predict", run, str(odd / "val"), "--json", str(tmp_path / "predict.json"), "--device", "cpu"],
            ["analyze", "classes", run, "--out", str(tmp_path / "classes"), "--device", "cpu"],
            ["analyze", "probe", run, "--out", str(tmp_path / "probe"), "--device", "cpu"],
            ["features", run, "--out", str(tmp_path / "f.safetensors"), "--device", "cpu"],
            ["convert", run, str(tmp_path / "c.safetensors")],
            ["runs", str(tmp_path), "--json", str(tmp_path / "runs.json")],
        ],
        tmp_path,
    )
    assert not raw(text)
    kept = json.loads((tmp_path / "run" / "classes.json").read_text(encoding="utf-8"))
    assert sorted(kept) == sorted(unicodedata.normalize("NFC", name) for name in CLASSES)
    checked = json.loads((tmp_path / "check.json").read_text(encoding="utf-8"))
    assert list(checked["splits"]["train"]["class_counts"]) == checked["classes"] == kept
    for page in (*tmp_path.glob("*/*.html"), *tmp_path.glob("*/*.md"), tmp_path / "c.md", *tmp_path.glob("*/*.svg")):
        content = page.read_text(encoding="utf-8")
        assert not raw(content), page
        assert "<img src=x>" not in content
        assert "<b>x" not in content
    predicted = json.loads((tmp_path / "predict.json").read_text(encoding="utf-8"))
    assert len(predicted) == 3 * len(CLASSES) == text.count(" %\n")


def test_a_folder_that_the_locale_does_not_know(tmp_path: Path) -> None:
    """Python is told that names are ASCII: the command goes on in UTF-8 all the same."""
    data = paint(tmp_path / "d\u00fc", dict.fromkeys(("Bär", "Ähre"), 5))
    words = ["data", "check", str(data), "--json", "-"]
    command = [sys.executable, "-m", "illama", *words]
    done = subprocess.run(command, capture_output=True, env=os.environ | C_LOCALE, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["classes"] == ["B\u00e4r", "\u00c4hre"]


@pytest.mark.parametrize(
    "words",
    [["data", "check", "PATH", "data.class_depth=2"], ["train", "cifar10_micro", "--data", "PATH"]],
    ids=["check", "train"],
)
def test_a_folder_that_is_not_utf8(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = os.fsdecode(b"caf\xe9")
    paint(tmp_path / folder, {"cat": 5, "dog": 5})
    assert main([folder if word == "PATH" else word for word in words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("illama: error: ")
    assert "caf\\xe9" in err
    assert "is not UTF-8; rename" in err
