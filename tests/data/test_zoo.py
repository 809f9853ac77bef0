"""Every odd data set of the zoo is seen right, or refused by name: by training, by the check, and by prediction."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from illama.cli.main import main
from illama.data import BrokenImage, look
from illama.data.source import Source
from illama.errors import UserError
from illama.evaluation.predict import find_images
from illama.recipes import DataConfig, load_recipe, override
from illama.tasks.fit import fit_to_data
from tests.data.zoo import CASES, Case, number_of

EACH = pytest.mark.parametrize("case", [pytest.param(case, id=case.name.replace(" ", "-")) for case in CASES])
RECIPE = ("model.num_classes=auto", "train.total_batch=1", "optimizer.lr_scaling=none")


@pytest.fixture
def given(case: Case, tmp_path: Path) -> Path:
    """The case's data set, and what a person would type for it."""
    (tmp_path / "zoo").mkdir()
    case.build(tmp_path / "zoo")
    return tmp_path / "zoo" / case.path


def config(case: Case, given: Path) -> DataConfig:
    return DataConfig(path=str(given), **case.data)


def keys(case: Case) -> list[str]:
    return [override(f"data.{key}", value) for key, value in case.data.items()]


def numbered(source: Source) -> set[tuple[int, str]]:
    """(number of the picture, class) of all images; 0 for those that cannot be read."""
    images = set()
    for i in range(len(source)):
        try:
            number = number_of(source.read(i))
        except BrokenImage:
            number = 0
        images.add((number, source.classes[source.labels[i]]))
    return images


def test_names_are_told_apart() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 150


@EACH
def test_training_sees_it_right_or_refuses_it(case: Case, given: Path) -> None:
    if case.seen is None:
        with pytest.raises(UserError, match=re.compile(case.says, re.DOTALL)) as refused:
            fit_to_data(load_recipe("cifar10_micro", [*RECIPE, override("data.path", str(given)), *keys(case)]))
        assert "\n" not in str(refused.value)
        return
    layout = look(config(case, given))
    classes: tuple[str, ...] | None = None
    for name in sorted(case.seen, key=lambda name: layout.splits.index(name) if name else 0):
        source = layout.read(name or None, 3, classes)
        source.max_pixels = layout.data.max_image_pixels
        classes = classes or source.classes
        assert source.classes == classes
        assert numbered(source) == {(max(number, 0), kind) for number, kind in case.seen[name].items()}, name
    if case.order:
        assert classes == tuple(case.order)
    assert layout.passed_over.total == case.passed_over
    assert all(line.isprintable() for line in layout.explain(classes or ()))
    if layout.kind == "folder" and not case.path:
        assert_prediction_finds(given, [layout.read(name or None, 3, None) for name in case.seen], case.passed_over)


def assert_prediction_finds(given: Path, sources: list[Source], passed_over: int) -> None:
    """All splits together; what training passes over beside the splits is asked as well."""
    files, _ = find_images([given])
    seen = {source.location(i) for source in sources for i in range(len(source))}
    assert seen <= set(files)
    assert len(set(files) - seen) <= passed_over + 3


@EACH
def test_the_check_ends_as_training_deserves(case: Case, given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["data", "check", str(given), *keys(case), "--workers", "1"])
    out, err = capsys.readouterr()
    assert code == case.code, out + err
    assert err.count("illama: error: ") == len(err.splitlines()) == (1 if code else 0)
    assert "\x1b" not in out + err
    assert re.search(case.says, out + err, re.DOTALL), out + err
    if case.seen is not None:
        pictures = sum(map(len, case.seen.values()))
        assert int(out.partition(" ")[0]) in (pictures, pictures + 1)  # one is linked, and so there twice
