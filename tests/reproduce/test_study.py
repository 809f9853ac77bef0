"""From studies to runs: every row is a recipe that can be, equal runs are one, what rows decide stays theirs."""

from __future__ import annotations

from pathlib import Path

import pytest

from illama.errors import UserError
from illama.recipes import load_recipe
from illama.recipes.rules import flatten
from illama.reproduce.studies import STUDIES
from illama.reproduce.study import Collapse, Comparison, Cure, Epochs, all_runs, choose_base, plan_studies, run_identity
from tests.reproduce.conftest import TOY


@pytest.mark.parametrize("recipe", ["digits_micro", "cifar10_tiny", "roadmap_tiny", "roadmap_base"])
@pytest.mark.parametrize("name", sorted(STUDIES))
def test_every_row_of_every_study_is_a_recipe(name: str, recipe: str, tmp_path: Path) -> None:
    study = STUDIES[name]
    base = choose_base([study], recipe, (), None)
    weights = {word: tmp_path / f"{word} weights" for word in ("illama", "vit")}
    for path in weights.values():
        path.write_bytes(path.name.encode())
    (planned,) = plan_studies([study], base, 2, tmp_path, weights)
    assert {row.name for row in planned.rows if row.edits is not None} == planned.runs.keys()
    for row in planned.rows:
        for seed, run in enumerate(planned.runs.get(row.name, ())):
            made = flatten(run.recipe.to_dict())
            assert (run.recipe.name, run.recipe.seed) == (recipe, seed)
            _, named, *overrides = run.words[: len(run.words) - 2 * (row.weights is not None)]
            assert flatten(load_recipe(named, overrides).to_dict()) == made, "the words make another run"


SETTINGS = {name: ("cifar10", "cifar100") if name == "cifar" else ("tiny", "base") for name in STUDIES}


@pytest.mark.parametrize(("name", "setting"), [(name, each) for name, found in SETTINGS.items() for each in found])
def test_rows_and_claims_name_rows_that_are_there(name: str, setting: str) -> None:
    study = STUDIES[name]
    rows = {row.name for row in study.rows_of(setting)}
    assert len(rows) == len(study.rows_of(setting)), "two rows of one name"
    assert {row.against for row in study.rows_of(setting)} - {None} <= rows
    named = {part.row for claim in study.claims for part in claim.parts}
    for claim in study.claims:
        for part in claim.parts:
            others = {Comparison: "against", Collapse: "healthy", Cure: "collapsed"}
            named.add(getattr(part, others[type(part)]))
    assert named <= rows


def test_the_roadmap_has_the_rows_of_table_17() -> None:
    printed = [(row.label, row.paper["tiny"].top1, row.paper["base"].top1) for row in STUDIES["roadmap"].rows[:10]]
    assert [numbers for _, *numbers in printed] == [
        [72.2, 81.8], [73.8, 81.5], [74.3, 82.0], [74.5, 81.7], [0.1, 0.1],
        [71.9, 80.6], [72.6, 81.2], [73.2, 81.2], [74.3, 81.3], [75.0, 81.6],
    ]  # fmt: skip


def test_equal_runs_are_one_whichever_rows_they_stand_for(tmp_path: Path) -> None:
    studies = [STUDIES["roadmap"], STUDIES["soft-mask"], STUDIES["mixing"]]
    base = choose_base(studies, None, TOY, "digits")
    roadmap, soft_mask, mixing = plan_studies(studies, base, 1, tmp_path, {})
    off = soft_mask.runs["off"][0].folder
    assert off == roadmap.runs["data_augmentation"][0].folder == mixing.runs["mixing_0.1_0.1"][0].folder
    assert off.name.startswith("data_augmentation-"), "called by the row that came first"
    # 3 epochs: cutoffs 25, 50 and 100 of 300 all fall on the first one
    assert len({soft_mask.runs[f"linear_{cutoff}"][0].folder for cutoff in (25, 50, 100)}) == 1
    assert len(all_runs([roadmap, soft_mask, mixing])) == 11 + 1 + 3


def test_a_run_keeps_the_name_that_another_study_gave_it(tmp_path: Path) -> None:
    base = choose_base([STUDIES["roadmap"]], None, TOY, "digits")
    (roadmap,) = plan_studies([STUDIES["roadmap"]], base, 1, tmp_path, {})
    first = roadmap.runs["data_augmentation"][0].folder
    first.mkdir(parents=True)
    (soft_mask,) = plan_studies([STUDIES["soft-mask"]], base, 1, tmp_path, {})
    assert soft_mask.runs["off"][0].folder == first


@pytest.mark.parametrize(
    ("published", "epochs", "expected"), [(50, 300, 50), (50, 100, 17), (25, 100, 8), (25, 6, 1), (100, 3, 1)]
)
def test_cutoffs_keep_their_share_of_the_run(published: int, epochs: int, expected: int) -> None:
    assert Epochs(published).of(epochs) == expected


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.ffn=mlp"], "model.ffn: this is what the rows of roadmap decide; leave it out"),
        (["augment.mixup=0", "model.norm=layer"], "augment.mixup, model.norm: this is what"),
        (["model={ffn: mlp}"], "model.ffn: this is what"),
        (["seed=3"], "seed is what --seeds decides"),
        (["schedule.epoch=3"], "did you mean schedule.epochs"),
    ],
)
def test_overrides_that_the_study_decides_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose_base([STUDIES["roadmap"]], None, overrides, "digits")


@pytest.mark.parametrize(
    ("data", "recipe"),
    [
        ("digits", "digits_micro"),
        ("sets/cifar10/", "cifar10_tiny"),
        ("CIFAR-10", "cifar10_tiny"),
        ("imagenet-1k", "roadmap_tiny"),
        ("sets/ILSVRC2012", "roadmap_tiny"),
    ],
)
def test_the_data_set_chooses_the_recipe(data: str, recipe: str, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    if data != "digits":
        Path(data).mkdir(parents=True)
    assert choose_base([STUDIES["peers"]], None, (), data).recipe == recipe


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="which images"):
        choose_base([STUDIES["roadmap"]], None, (), None)
    with pytest.raises(UserError, match=r"no recipe is known for the data set .*flowers; give --recipe NAME"):
        choose_base([STUDIES["roadmap"]], None, (), str(tmp_path / "flowers"))
    for other in ("cifar100", "imagenette", "imagenet-100"):  # other classes than those of the recipe
        with pytest.raises(UserError, match="no recipe is known"):
            choose_base([STUDIES["roadmap"]], None, (), str(tmp_path / other))
    with pytest.raises(UserError, match="cifar starts from trained weights with a recipe of its own"):
        choose_base([STUDIES["roadmap"], STUDIES["cifar"]], None, (), "digits")
    base = choose_base([STUDIES["cifar"]], "cifar10_transfer_tiny", (), None)
    with pytest.raises(UserError, match="ViT-T starts from trained weights; give --init-from vit=RUN"):
        plan_studies([STUDIES["cifar"]], base, 1, tmp_path, {})
    with pytest.raises(UserError, match="there is no run, checkpoint or weights file"):
        plan_studies([STUDIES["cifar"]], base, 1, tmp_path, {"vit": tmp_path / "no", "illama": tmp_path / "no"})


def test_a_run_is_the_same_however_its_data_and_weights_are_spelt(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    Path("cifar10").mkdir()
    Path("one.pth").write_bytes(b"1")
    Path("copy.pth").write_bytes(b"1")
    Path("other.pth").write_bytes(b"2")

    def folder(data: str, weights: str) -> Path:
        base = choose_base([STUDIES["cifar"]], None, (), data)
        (planned,) = plan_studies(
            [STUDIES["cifar"]], base, 1, tmp_path, dict.fromkeys(("vit", "illama"), Path(weights))
        )
        return planned.runs["transfer_vit"][0].folder

    first = folder("cifar10", "one.pth")
    for data, weights in (
        ("./cifar10", "one.pth"),
        (f"{tmp_path}/cifar10/", str(tmp_path / "one.pth")),
        ("cifar10", "copy.pth"),
    ):
        assert folder(data, weights) == first
    assert folder("cifar10", "other.pth") != first


def test_runs_of_earlier_versions_are_known_by_their_folders() -> None:
    """Names that versions gave whose recipes had fewer keys; a new run beside a finished one would train it again."""
    assert run_identity(load_recipe("digits_micro"), None) == "19be79eb-seed0"
    moved = load_recipe("cifar10_micro", ["data.path=/x", "seed=2"])
    assert run_identity(moved, "abc") == "aed7e04f-seed2"
    other = load_recipe("digits_micro", ["data.class_depth=2"])
    assert run_identity(other, None) != "19be79eb-seed0"
