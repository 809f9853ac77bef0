"""The rule of docs/architecture.md: imports between rooms point one way."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import illama

ROOT = Path(illama.__file__).parent
BASE = {"errors", "registry", "optional", "system", "console", "device", "distributed", "report", "native"}
CORE = {"models", "attention"}
MAY = {  # from which rooms beside those of the base
    "models": CORE,
    "attention": CORE,
    "recipes": CORE,
    "hub": {*CORE, "recipes", "data", "checkpoint", "weights"},
    "data": {*CORE, "recipes"},
    "checkpoint": {*CORE, "recipes", "data"},
    "weights": {*CORE, "recipes", "data", "checkpoint"},
    "export": {*CORE, "recipes", "data", "checkpoint", "weights"},
    "evaluation": {*CORE, "recipes", "data", "checkpoint", "weights"},
    "tasks": {*CORE, "recipes", "data", "checkpoint", "weights", "evaluation"},
    "training": {*CORE, "recipes", "data", "checkpoint", "weights", "evaluation", "tasks"},
    "analysis": {*CORE, "recipes", "data", "checkpoint", "weights", "evaluation"},
    "bench": {*CORE, "recipes", "data", "checkpoint", "weights", "evaluation", "tasks", "training"},
    "reproduce": {*(*CORE, "recipes", "data", "checkpoint", "weights", "evaluation", "tasks", "training", "analysis")},
}


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """(line, room) of every import of ours, wherever it stands."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "illama":
            parts = (node.module or "").split(".")
            yield from ((node.lineno, parts[1] if len(parts) > 1 else alias.name) for alias in node.names)


@pytest.mark.parametrize("room", [*sorted(BASE), *MAY])
def test_imports_point_one_way(room: str) -> None:
    allowed = BASE | {room} | MAY.get(room, set())
    files = list((ROOT / room).rglob("*.py")) or [ROOT / f"{room}.py"]
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {other}"
        for file in files
        for line, other in imports(file)
        if other not in allowed
    ]
    assert wrong == []


def test_every_room_has_its_place() -> None:
    rooms = {path.stem for path in ROOT.iterdir() if path.stem[0] != "_" and (path.is_dir() or path.suffix == ".py")}
    assert rooms == BASE | MAY.keys() | {"cli"}
