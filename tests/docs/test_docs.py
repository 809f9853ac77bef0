"""The documentation tells what is there: recipes, links, commands, test names, and code that runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from illama.analysis.registry import ANALYSES, read_options
from illama.cli.main import COMMANDS, main
from illama.recipes import list_recipes
from illama.recipes.problems import all_keys
from tests.evaluation.conftest import untrained_digits_run

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAPER_MAP = (ROOT / "docs" / "paper-map.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def table_rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("| `")]


def commands(text: str) -> set[str]:
    """Words after `illama` where it is typed: in backticks, or at the start of a line (after .venv/bin/)."""
    return set(re.findall(r"(?m)(?:`|^(?:\.venv/bin/)?)illama ([a-z]+)\b", text))


def test_every_recipe_stands_in_the_table_once() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert sorted(row.split("`")[1] for row in table_rows(page)) == list_recipes()


def test_the_page_of_recipe_keys_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--keys"]) == 0
    page = (ROOT / "docs" / "recipe-keys.md").read_text(encoding="utf-8")
    assert page.endswith("\n\n" + capsys.readouterr().out), "put what it prints below the page's head"
    for key in all_keys():
        assert f"| `{key.rpartition('.')[2]}` |" in page
    assert "|  |\n" not in page, "a key says nothing"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_and_cells_can_be_read(page: Path) -> None:
    """At most 120 characters, and 200 in a cell; code, links and the words of a picture are as long as they are."""
    text = re.sub(r"(?ms)^( *)```.*?^ *```$", "", page.read_text(encoding="utf-8"))
    text = re.sub(r"`[^`\n]{60,}`|\]\([^)\n]*\)", "", text)
    lines = [line for line in text.splitlines() if not line.startswith("![")]
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []
    cells = [cell.strip() for line in lines if line.startswith("|") for cell in line.split("|")]
    assert [cell for cell in cells if len(cell) > 200] == [] or page.name == "recipe-keys.md"  # the schema's words


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert pages - set(re.findall(r"\]\(([\w-]+\.md)", index)) == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist_or_are_planned(page: Path) -> None:
    planned = set(re.findall(r"planned: `illama ([a-z]+)", PAPER_MAP))
    assert commands(page.read_text(encoding="utf-8")) <= COMMANDS.keys() | planned
    assert not planned & COMMANDS.keys(), "the paper map calls a command planned that exists"
    assert commands(README) <= COMMANDS.keys(), "the README shows what can be typed today"


def test_commands_are_found_in_text() -> None:
    assert commands("`illama train X`\n.venv/bin/illama eval R\nillama predict") == {"train", "eval", "predict"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_are_named_exist(page: Path) -> None:
    existing = set()
    for file in (ROOT / "tests").rglob("test_*.py"):
        existing |= {file.name, *re.findall(r"(?m)^def (test_\w+)", file.read_text(encoding="utf-8"))}
    named = set(re.findall(r"`(test_\w+(?:\.py)?)`", page.read_text(encoding="utf-8")))
    assert named - existing == set()


def test_every_analysis_is_told_of_and_its_options_exist() -> None:
    page = (ROOT / "docs" / "analysis.md").read_text(encoding="utf-8")
    assert {row.split("`")[1] for row in table_rows(page)} == {*ANALYSES, "compare", "report"}
    words = re.findall(rf"\b(?:{'|'.join(ANALYSES)})\.\w+=\w+", page)
    assert len(set(words)) >= 3
    assert read_options(words)
    typed = "".join(other.read_text(encoding="utf-8") for other in PAGES)
    assert set(re.findall(r"illama analyze ([a-z]+)", typed)) <= {*ANALYSES, "compare", "report"}


def test_the_python_examples_of_the_analyses_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "analysis.md").read_text(encoding="utf-8")
    untrained_digits_run(tmp_path / "runs" / "digits")
    monkeypatch.chdir(tmp_path)
    values: dict[str, Any] = {}
    for example in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(example, values)
    assert 0 <= values["ece"] <= 1
    config = values["subject"].meta.config
    assert [tuple(rank.shape) for rank in values["ranks"].values()] == [(config.num_heads,)] * config.depth
    assert main(["analyze", "compare", "other.safetensors", "runs/digits", "--resamples", "20"]) == 0


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:  # type: ignore[no-untyped-def]
    """With 160 images for training instead of 1437, so that it takes seconds."""
    pytest.importorskip("timm")
    example = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    limits = '"data.max_train_images=160", "data.max_eval_images=40"'
    smaller = example.replace('"schedule.epochs=10"', f'"schedule.epochs=10", {limits}')
    assert smaller != example
    (tmp_path / "photos").mkdir()
    Image.new("L", (8, 8), 200).save(tmp_path / "photos" / "one.png")
    monkeypatch.chdir(tmp_path)
    values: dict[str, object] = {}
    exec(smaller, values)
    assert tuple(values["maps"].shape) == (1, 192, 8, 8)  # type: ignore[attr-defined]
    assert (tmp_path / "runs" / "digits" / "curves.png").is_file()
    top1, classes = capsys.readouterr().out.splitlines()[-1].split(" ", 1)
    assert 0 <= float(top1) <= 100
    assert classes.startswith("('")
