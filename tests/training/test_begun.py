"""A run goes on with the data and the start weights that it was begun with, wherever they lie, and with no others."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from illama.cli.main import main
from illama.data import look
from illama.errors import UserError
from illama.evaluation.origin import DataIdentity, marks, tensors_id
from illama.evaluation.subject import open_subject
from illama.recipes import DataConfig, Recipe, load_recipe
from illama.training.begun import Origin
from illama.training.loop import train
from illama.training.runs import read_run
from tests.pictures import paint, tiny, tiny_words
from tests.runs import records, same_weights, stopped_run

SPLITS = {"train/cat": 8, "train/dog": 8, "val/cat": 4, "val/dog": 4}
WHOLE = {"cat": 20, "dog": 20}


@pytest.fixture
def stopped() -> Callable[..., Path]:
    return stopped_run


def goes_on(recipe: Recipe, run: Path, **more: Any) -> None:
    """It trains to the end, to the bits and the log of a run that nothing stopped."""
    result = train(recipe, run, device="cpu", **more)
    assert result.steps == 12
    undisturbed = run.with_name("undisturbed")
    train(recipe, undisturbed, device="cpu", **more)
    assert same_weights(run, undisturbed)
    assert records(run) == records(undisturbed)


def refused(recipe: Recipe, run: Path, expected: str, **more: Any) -> None:
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file() and file.name != ".lock"}
    with pytest.raises(UserError, match=expected) as caught:
        train(recipe, run, device="cpu", **more)
    assert "\n" not in str(caught.value)
    assert "--out" in str(caught.value)
    assert all(file.read_bytes() == content for file, content in before.items())


# data that moved, and data that changed


@pytest.mark.parametrize(("counts", "more"), [(SPLITS, ()), (WHOLE, ("data.val_fraction=0.6",))])
def test_data_that_moved_continues(
    counts: dict[str, int], more: tuple[str, ...], stopped: Callable[..., Path], tmp_path: Path
) -> None:
    run = stopped(tiny(paint(tmp_path / "here", counts), *more), tmp_path / "run")
    (tmp_path / "here").rename(tmp_path / "there")
    goes_on(tiny(tmp_path / "there", *more), run)
    assert load_recipe(run / "recipe.yaml").data.path == str(tmp_path / "there")


def test_what_runs_prints_for_data_that_moved(
    stopped: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = paint(tmp_path / "here", SPLITS), tmp_path / "run"
    words = [*tiny_words(data), "--out", str(run)]
    monkeypatch.setattr(sys, "argv", ["illama", *words])
    stopped(tiny(data), run)
    command = read_run(run).command
    assert command is not None
    assert f"--data {data}" in command
    data.rename(tmp_path / "there")
    assert read_run(run).command == f"illama train {run}/recipe.yaml --out {run} --data WHERE_IT_IS_NOW"
    assert main([*tiny_words(tmp_path / "there"), "--out", str(run)]) == 0
    said = capsys.readouterr().err
    assert f"the data lies in {tmp_path / 'there'} now (it was {data})" in said.replace("\n", "")


def test_a_path_is_kept_from_the_top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paint(tmp_path / "d", SPLITS)
    monkeypatch.chdir(tmp_path)
    train(tiny("d"), tmp_path / "run", device="cpu")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["eval", str(tmp_path / "run"), "--device", "cpu"]) == 0


def renamed(data: Path) -> None:
    for split in ("train", "val"):
        (data / split / "cat").rename(data / split / "emu")


def swapped(data: Path) -> None:
    """The names of two classes change places: as many, of the same names."""
    for split in ("train", "val"):
        (data / split / "cat").rename(data / split / "x")
        (data / split / "dog").rename(data / split / "cat")
        (data / split / "x").rename(data / split / "dog")


def one_more_class(data: Path) -> None:
    paint(data, {"train/emu": 8, "val/emu": 4})


def one_picture_less(data: Path) -> None:
    (data / "train" / "cat" / "3.png").unlink()


def one_evaluated_less(data: Path) -> None:
    (data / "val" / "dog" / "3.png").unlink()


def other_content(data: Path) -> None:
    for file in data.glob("train/*/*.png"):
        Image.new("RGB", (20, 20), (1, 2, 3)).save(file)


def other_name(data: Path) -> None:
    (data / "train" / "cat" / "3.png").rename(data / "train" / "cat" / "other.png")


def another_class(data: Path) -> None:
    """One picture is sorted into another class, under the same name and place in the order."""
    (data / "train" / "cat" / "7.png").unlink()
    for i in reversed(range(8)):
        (data / "train" / "dog" / f"{i}.png").rename(data / "train" / "dog" / f"{i + 1}.png")
    shutil.copy(data / "train" / "dog" / "1.png", data / "train" / "dog" / "0.png")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (renamed, r"other classes: .*emu"),
        (swapped, r"other training images: the pictures have another content under the same names"),
        (one_more_class, r"other classes: .*emu"),
        (one_picture_less, r"other training images: 16 images were there, 15 are"),
        (one_evaluated_less, r"other evaluation images: 8 images were there, 7 are"),
        (other_content, r"other training images: the pictures have another content"),
        (other_name, r"other training images: the files have other names, or another order"),
        (another_class, r"other training images: "),
    ],
)
def test_other_data_is_refused_by_what_differs(
    change: Callable[[Path], None], expected: str, stopped: Callable[..., Path], tmp_path: Path
) -> None:
    data = paint(tmp_path / "d", SPLITS)
    run = stopped(tiny(data), tmp_path / "run")
    change(data)
    refused(tiny(data), run, expected)


def test_a_finished_run_looks_as_well(tmp_path: Path) -> None:
    data = paint(tmp_path / "d", SPLITS)
    train(tiny(data), tmp_path / "run", device="cpu")
    renamed(data)
    refused(tiny(data), tmp_path / "run", "emu")


# runs of versions that kept no origin.json


@pytest.fixture
def old(stopped: Callable[..., Path], tmp_path: Path) -> Path:
    run = stopped(tiny(paint(tmp_path / "d", SPLITS)), tmp_path / "run")
    (run / "origin.json").unlink()
    return run


def test_an_older_run_goes_on(old: Path, tmp_path: Path) -> None:
    goes_on(tiny(tmp_path / "d"), old)


@pytest.mark.parametrize(
    ("change", "expected"), [(renamed, "emu"), (one_evaluated_less, r"8 evaluation images, now there are 7")]
)
def test_an_older_run_compares_what_it_knows(
    change: Callable[[Path], None], expected: str, old: Path, tmp_path: Path
) -> None:
    (old / "metrics.jsonl").write_text(
        "".join(
            json.dumps(record) + "\n"
            for record in (
                {"kind": "train", "step": 4, "epoch": 1.0},
                {"kind": "eval", "step": 4, "epoch": 1, "count": 8, "skipped": 0},
            )
        )
    )
    change(tmp_path / "d")
    refused(tiny(tmp_path / "d"), old, expected)


def test_an_older_run_with_broken_images_goes_on(old: Path, tmp_path: Path) -> None:
    with (old / "metrics.jsonl").open("a") as log:
        log.write(json.dumps({"kind": "eval", "step": 4, "epoch": 1, "count": 6, "skipped": 2}) + "\n")
    goes_on(tiny(tmp_path / "d"), old)


def test_an_older_run_knows_its_start_by_its_command(
    stopped: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny(paint(tmp_path / "d", SPLITS))
    train(recipe, tmp_path / "start", device="cpu")
    run = stopped(recipe, tmp_path / "run", init_from=tmp_path / "start")
    (run / "origin.json").unlink()
    known = json.loads((run / "environment.json").read_text())
    known["command"] = ["illama", "train", "x", f"--init-from={tmp_path / 'start'}"]
    (run / "environment.json").write_text(json.dumps(known))
    refused(recipe, run, "does not say that it was begun with --init-from", init_from=tmp_path / "d")
    goes_on(recipe, run, init_from=tmp_path / "start")


def test_a_class_order_that_changed_is_refused(old: Path, tmp_path: Path) -> None:
    """Earlier versions numbered A and a by chance; what a run was begun with counts."""
    (old / "classes.json").write_text(json.dumps(["dog", "cat"]))
    refused(tiny(tmp_path / "d"), old, r"other classes: .*order")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"train": 1, "eval": 2, "start": null}', "\udcff"])
def test_a_damaged_origin_is_named(content: str, stopped: Callable[..., Path], tmp_path: Path) -> None:
    data = paint(tmp_path / "d", SPLITS)
    run = stopped(tiny(data), tmp_path / "run")
    (run / "origin.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"origin\.json .*is damaged"):
        train(tiny(data), run, device="cpu")


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("train", "images", "x"),
        ("eval", "images", 1e999),
        ("train", "names", None),
        ("eval", "content", []),
        ("", "start", 3),
    ],
)
def test_an_origin_of_other_types_is_damaged(
    part: str, key: str, value: object, stopped: Callable[..., Path], tmp_path: Path
) -> None:
    run = stopped(tiny(paint(tmp_path / "d", SPLITS)), tmp_path / "run")
    plain = json.loads((run / "origin.json").read_text())
    (plain[part] if part else plain)[key] = value
    (run / "origin.json").write_text(json.dumps(plain))
    with pytest.raises(UserError, match=r"origin\.json .*is damaged"):
        Origin.read(run)


@pytest.mark.parametrize(
    "text", ["name,bytes,digest\na,x,y\n", "h\n" + "a" * 200_000, 'h\n"', "h\na,1\n", "h\na,1e9,b\n"]
)
def test_damaged_marks_of_held_out_images_are_named(text: str, stopped: Callable[..., Path], tmp_path: Path) -> None:
    run = stopped(tiny(paint(tmp_path / "d", SPLITS)), tmp_path / "run")
    (run / "held_out.csv").write_text(text)
    with pytest.raises(UserError, match=r"held_out\.csv beside it is damaged"):
        Origin.read(run)


# start weights


@pytest.fixture
def fine_tuned(stopped: Callable[..., Path], tmp_path: Path) -> Path:
    """A run that was begun from another one's weights."""
    data = paint(tmp_path / "d", SPLITS)
    train(tiny(data, "seed=7"), tmp_path / "source", device="cpu")
    return stopped(tiny(data), tmp_path / "run", init_from=tmp_path / "source")


def test_the_same_command_with_init_from_continues(fine_tuned: Path, tmp_path: Path) -> None:
    goes_on(tiny(tmp_path / "d"), fine_tuned, init_from=tmp_path / "source")


def test_without_init_from_it_continues_as_well(fine_tuned: Path, tmp_path: Path) -> None:
    assert train(tiny(tmp_path / "d"), fine_tuned, device="cpu").steps == 12


def test_start_weights_count_by_their_content(fine_tuned: Path, tmp_path: Path) -> None:
    (tmp_path / "source").rename(tmp_path / "moved")
    assert train(tiny(tmp_path / "d"), fine_tuned, device="cpu", init_from=tmp_path / "moved").steps == 12


def test_start_weights_that_are_gone_count_by_their_name(fine_tuned: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "source")
    refused(tiny(tmp_path / "d"), fine_tuned, "cannot be found to compare", init_from=tmp_path / "another")
    assert train(tiny(tmp_path / "d"), fine_tuned, device="cpu", init_from=tmp_path / "source").steps == 12


def test_other_start_weights_are_refused(fine_tuned: Path, tmp_path: Path) -> None:
    train(tiny(tmp_path / "d", "seed=8"), tmp_path / "other", device="cpu")
    refused(tiny(tmp_path / "d"), fine_tuned, "was begun from other weights", init_from=tmp_path / "other")


def test_start_weights_for_a_run_that_had_none(stopped: Callable[..., Path], tmp_path: Path) -> None:
    data = paint(tmp_path / "d", SPLITS)
    train(tiny(data, "seed=7"), tmp_path / "source", device="cpu")
    run = stopped(tiny(data), tmp_path / "run")
    refused(tiny(data), run, "was begun with new weights", init_from=tmp_path / "source")


def test_the_start_is_part_of_the_record(fine_tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    origin = Origin.read(fine_tuned)
    assert origin is not None
    assert origin.start is not None
    assert (origin.start.name, origin.start.given) == ("source", str(tmp_path / "source"))
    assert read_run(fine_tuned).start == "source"
    capsys.readouterr()
    train(tiny(tmp_path / "d"), fine_tuned, device="cpu")
    assert "starting from source" in capsys.readouterr().err.replace("\n", " ")
    assert main(["runs", str(tmp_path), "--json", str(tmp_path / "runs.json")]) == 0
    listed = json.loads((tmp_path / "runs.json").read_text())["runs"]
    assert {Path(one["path"]).name: one["start"] for one in listed} == {"run": "source", "source": None}


def test_a_run_from_scratch_says_nothing_of_a_start(stopped: Callable[..., Path], tmp_path: Path) -> None:
    run = stopped(tiny(paint(tmp_path / "d", SPLITS)), tmp_path / "run")
    origin = Origin.read(run)
    assert origin is not None
    assert origin.start is None
    assert read_run(run).start is None


# what a run held out


def evaluated(run: Path, data: Path, capsys: pytest.CaptureFixture[str], folder: Path) -> tuple[int, str]:
    capsys.readouterr()
    assert main(["eval", str(run), "--data", str(data), "--device", "cpu", "--json", str(folder / "e.json")]) == 0
    said = capsys.readouterr()
    return json.loads((folder / "e.json").read_text())["count"], said.out + said.err


@pytest.fixture
def held(tmp_path: Path) -> Path:
    """A run that held out 24 of 40 images."""
    data = paint(tmp_path / "d", WHOLE)
    train(tiny(data, "data.val_fraction=0.6"), tmp_path / "run", device="cpu")
    return tmp_path / "run"


def test_the_held_out_images_go_with_the_run(held: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "d").rename(tmp_path / "moved")
    assert evaluated(held, tmp_path / "moved", capsys, tmp_path)[0] == 24


def test_they_are_found_among_others(held: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """More pictures came: the recipe's fraction would choose others, the list does not."""
    paint(tmp_path / "d", {"cat": 30, "dog": 30})
    shutil.copytree(tmp_path / "d", tmp_path / "grown")
    count, said = evaluated(held, tmp_path / "grown", capsys, tmp_path)
    assert count == 24
    assert "the 24 of them that the run held out" in said


def test_they_are_told_by_content(held: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(tmp_path / "d", tmp_path / "other")
    for file in (tmp_path / "other").glob("*/*.png"):
        Image.new("RGB", (20, 20), (9, 9, int(file.stem))).save(file)
    count, said = evaluated(held, tmp_path / "other", capsys, tmp_path)
    assert count == 40
    assert "none of the 24 images that the run held out" in said


def test_those_that_are_left_are_counted(held: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = (held / "held_out.csv").read_text().splitlines()[1:]
    assert len(listed) == 24
    shutil.copytree(tmp_path / "d", tmp_path / "part")
    for i in range(10):
        (tmp_path / "part" / "cat" / f"{i}.png").unlink()
    count, said = evaluated(held, tmp_path / "part", capsys, tmp_path)
    assert 0 < count < 24
    assert f"the {count} of them that the run held out (24 in all)" in said


def test_an_older_run_says_when_it_may_be_wrong(held: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("origin.json", "held_out.csv"):
        (held / name).unlink()
    (tmp_path / "d").rename(tmp_path / "moved")
    count, said = evaluated(held, tmp_path / "moved", capsys, tmp_path)
    assert count == 24
    assert "ATTENTION: right only if this is the data that the run was trained on" in said


@pytest.mark.parametrize(("added", "removed"), [(1, 0), (7, 0), (0, 5), (3, 3)])
def test_pictures_that_come_and_go_do_not_change_what_is_judged(
    added: int, removed: int, held: Path, tmp_path: Path
) -> None:
    """The recipe's fraction would choose others, most of them trained on; the list does not."""
    for i in range(added):
        Image.new("RGB", (20, 20), (9, 9, i)).save(tmp_path / "d" / "cat" / f"a{i}.png")
    for i in range(removed):
        (tmp_path / "d" / "cat" / f"{i}.png").unlink()
    origin = Origin.read(held)
    assert origin is not None
    for data in (None, str(tmp_path / "d")):
        source = open_subject(held, data=data, device="cpu").source
        assert 0 < len(source) <= 24
        assert set(marks(source)) <= set(origin.held_out)
        assert "found by name and content" in source.description


def test_changed_data_without_a_list_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = paint(tmp_path / "d", {f"{split}/{name}": 8 for split in ("train", "val") for name in ("cat", "dog")})
    train(tiny(data), tmp_path / "run", device="cpu")
    (data / "val" / "cat" / "0.png").unlink()
    (data / "train" / "dog" / "0.png").unlink()
    for words, said in (
        ([], "ATTENTION: not the images that the run was judged by: 16 images were there, 15 are"),
        (["--split", "train"], "ATTENTION: not the images that the run was trained on: 16 images were there, 15 are"),
    ):
        assert main(["eval", str(tmp_path / "run"), *words, "--device", "cpu"]) == 0
        assert said in capsys.readouterr().out


def test_weights_alone_are_judged_by_all_that_is_given(
    held: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(held), str(tmp_path / "w.safetensors")]) == 0
    other = paint(tmp_path / "other", {"cat": 5, "dog": 5})
    count, said = evaluated(tmp_path / "w.safetensors", other, capsys, tmp_path)
    assert count == 10
    assert "ATTENTION: if the network was trained on this data, it saw most of these images" in said


def test_a_run_whose_data_is_gone_says_how_to_go_on(
    held: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "d").rename(tmp_path / "dd")
    with pytest.raises(UserError, match=r"the data of .*run, .*/d, is not there; give its place with --data to go on"):
        train(tiny(tmp_path / "d", "data.val_fraction=0.6"), held, device="cpu")
    with pytest.raises(UserError, match=r"/d does not exist; did you mean .*/dd\?"):
        train(tiny(tmp_path / "d", "data.val_fraction=0.6"), tmp_path / "new", device="cpu")


def test_a_run_through_a_link(held: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "link.safetensors").symlink_to(held / "checkpoints" / "last" / "model.safetensors")
    (tmp_path / "d").rename(tmp_path / "moved")
    assert evaluated(tmp_path / "link.safetensors", tmp_path / "moved", capsys, tmp_path)[0] == 24


def test_only_what_was_held_out_is_listed(stopped: Callable[..., Path], tmp_path: Path) -> None:
    run = stopped(tiny(paint(tmp_path / "d", SPLITS)), tmp_path / "run")
    assert (run / "origin.json").is_file()
    assert not (run / "held_out.csv").exists()


def test_names_that_are_no_text_are_found_again(stopped: Callable[..., Path], tmp_path: Path) -> None:
    data = paint(tmp_path / "d", WHOLE)
    for file in list(data.glob("*/*.png")):
        file.rename(file.with_name(os.fsdecode(b"\xff" + file.name.encode())))
    recipe = tiny(data, "data.val_fraction=0.6")
    goes_on(recipe, stopped(recipe, tmp_path / "run"))


def test_marks_and_identities_stay_what_they_are(tmp_path: Path) -> None:
    """Runs of earlier versions are compared with them."""
    for number, kind in enumerate(("cat", "dog"), start=1):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / f"{number}.png").write_bytes(b"picture %d" % number)
    source = look(DataConfig(path=str(tmp_path))).open("all")
    assert marks(source)[0] == ("1.png", 9, "2741648cb8cc16805ebc5355eb28a8d8")
    found = DataIdentity.of(source)
    assert [found.images, found.labels[:12], found.names[:12], found.content[:12]] == [
        2,
        "9d34149fbd1f",
        "53ff547d1100",
        "bf9257112076",
    ]
    assert found.difference(replace(found, labels="")) == "some images are of another class than they were"
    (tmp_path / "cat" / "1.png").unlink()
    (tmp_path / "cat" / "1.png").symlink_to("nowhere")
    assert DataIdentity.of(source).images == 2
    assert marks(source)[0] == ("1.png", -1, "")


def test_weights_are_the_same_in_any_order() -> None:
    state = {"a": torch.ones(2), "b": torch.zeros(3)}
    assert tensors_id(state) == tensors_id(dict(reversed(state.items())))
    assert tensors_id(state) != tensors_id({"a": torch.ones(2), "b": torch.ones(3)})


def test_data_that_is_gone_is_asked_for(held: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "d").rename(tmp_path / "moved")
    assert main(["eval", str(held), "--device", "cpu"]) == 2
    assert "which is not there; give it with --data" in capsys.readouterr().err
