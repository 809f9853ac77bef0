"""`illama data`: reports, exit codes, JSON."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from illama.console.text import shown
from illama.data import write_shards as module
from illama.data.write_shards import plan_shards
from tests.cli.conftest import Run
from tests.cli.test_main import one_line


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """train/one and train/two with three images each, val/one with one."""
    root = tmp_path / "images"
    for number, name in enumerate(("train/one", "train/two", "val/one")):
        (root / name).mkdir(parents=True)
        for k in range(1 if "val" in name else 3):
            pixels = np.random.default_rng((number, k)).integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{k}.png")
    return root


def test_a_good_set_has_exit_code_0(run: Run, folder: Path) -> None:
    code, out, err = run("data", "check", folder)
    assert (code, err) == (0, "")
    assert out.startswith("7 images, 2 classes, ")
    for line in (
        "train       6        2                  3       3     3  36.6 kB",
        "two        3    0",
        "width, px       50      50      50",
        "1 of 2 classes have no image in val\n  two\n",
    ):
        assert line in out, out
    code, out, err = run("data", "check", folder, "--strict")
    assert code == 2
    assert one_line(err) == "illama: error: 1 classes missing in a split; --json FILE lists them all\n"


def test_broken_images_have_exit_code_2_and_are_listed(run: Run, folder: Path, tmp_path: Path) -> None:
    for k in range(3):
        (folder / "train" / "two" / f"{k}.png").write_bytes(b"no image")
    (folder / "val" / "one" / "empty.jpg").touch()
    code, out, err = run("data", "check", folder, "--json", tmp_path / "found.json")
    assert code == 2
    assert one_line(err).startswith(
        f"illama: error: 4 of 8 images are broken: {folder}/train/two/0.png (not an image of a known format), "
    )
    assert err.endswith(f" and 1 more; list: {tmp_path / 'found.json'}\n")
    assert "4 broken, training and evaluation would leave them out\n" in out
    broken = json.loads((tmp_path / "found.json").read_text())["broken"]
    assert [entry["where"] for entry in broken] == [
        *(f"{folder}/train/two/{k}.png" for k in range(3)),
        f"{folder}/val/one/empty.jpg",
    ]


def test_warnings_alone_have_exit_code_0(run: Run, folder: Path) -> None:
    train, val = folder / "train", folder / "val"
    (train / "two" / "copy.png").write_bytes((train / "one" / "1.png").read_bytes())
    (val / "one" / "leak.jpg").write_bytes((train / "one" / "2.png").read_bytes())
    for k in range(7):
        Image.new("RGB", (9, 9 + k)).save(train / "two" / f"small{k}.png")
    code, out, err = run("data", "check", folder)
    assert (code, err) == (0, "")
    for heading in (
        f"1 pictures in several classes, so that a label is wrong\n  {train}/one/1.png = {train}/two/copy.png\n",
        "1 pictures in several splits: what is evaluated on was trained on\n"
        f"  {train}/one/2.png = {val}/one/leak.jpg\n",
        f"1 named as another format than they are (they are read by their content)\n  {val}/one/leak.jpg: PNG\n",
        "7 tiny, the shorter side has less than 32 pixels\n",
        "  and 2 more (--json has all)\n",
    ):
        assert heading in out, out
    code, _, err = run("data", "check", folder, "--strict")
    assert code == 2
    assert "7 tiny images; 1 wrongly named images; 2 groups of duplicates; 1 classes missing" in one_line(err)


def test_names_and_shards_are_opened_too(run: Run, folder: Path, tmp_path: Path) -> None:
    assert run("data", "check", "digits")[1].startswith("1,797 images, 10 classes (")
    assert run("data", "shard", folder, tmp_path / "s")[0] == 0
    code, out, _ = run("data", "check", tmp_path / "s", "--json", "-")
    assert code == 0
    assert json.loads(out)["splits"]["train"]["class_counts"] == {"one": 3, "two": 3}
    for words, message in (
        (("nothing",), "does not exist and is no data set's name"),
        (("torch/cifar10",), "torch/cifar10 is read from a folder; give it with --data FOLDER"),
        (("torch/cifar10", "--data", tmp_path), "torch/cifar10 cannot be read from data.path"),
        ((folder, "--data", tmp_path), "is a place itself"),
        ((folder, "--json", tmp_path / "no" / "x"), "there is no folder"),
    ):
        code, out, err = run("data", "check", *words)
        assert (code, out) == (2, "")
        assert message in one_line(err)


def test_shard_reports_what_it_did(run: Run, folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "shards"
    words = ("data", "shard", folder, target, "--images-per-shard", "4", "--seed", "5")
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"{target}: 7 images, 2 classes"
    assert lines[1].startswith("  train: 6 images in 2 shards, ")
    assert lines[1].endswith(", shuffled by seed 5")
    assert lines[2].endswith(", in order")
    assert lines[3].startswith("3 shards written in 0.")
    assert lines[-1].endswith(f"illama data check {target}")
    code, out, _ = run(*words)
    assert "nothing was left to write; 3 kept from before, their checksums are right" in out
    (target / "train-000001.tar").write_bytes(b"")
    code, out, _ = run(*words, "--json", "-")
    result = json.loads(out)
    assert (result["kept"], result["written"], result["damaged"], result["left_out"]) == (2, 1, 1, {})
    assert [split["images"] for split in result["splits"]] == [6, 1]
    code, _, err = run("data", "shard", folder, target)
    assert code == 2
    assert "it was begun with --images-per-shard 4, not 1000; it was begun with --seed 5, not 0" in one_line(err)
    code, _, err = run(*words, "--workers", "0")
    assert code == 2
    assert "workers" in one_line(err)


def test_files_that_cannot_be_read_have_exit_code_2(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = folder / "train" / "two" / "1.png"

    def listed(*words: object) -> object:
        plan = plan_shards(*words)  # type: ignore[arg-type]
        lost.unlink(missing_ok=True)
        return plan

    monkeypatch.setattr(module, "plan_shards", listed)
    code, out, err = run("data", "shard", folder, tmp_path / "s")
    assert code == 2
    assert "s: 6 images, 2 classes" in out
    assert one_line(err).startswith(
        "illama: error: 1 of 7 files cannot be read and are left out: train/two/1.png (No such file or directory); "
    )


def test_no_place_is_one_line(run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    code, out, err = run("data", "shard", folder, tmp_path / "s")
    assert (code, out) == (2, "")
    assert "0 bytes are free; free some or give another folder" in one_line(err)


def test_the_documented_way_to_sort_the_validation_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a kit of three classes with the fields of the real one; its numbers are not in the order of ids."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    kit, val = tmp_path / "ILSVRC2012_devkit_t12" / "data", tmp_path / "imagenet" / "val"
    kit.mkdir(parents=True)
    val.mkdir(parents=True)
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    synsets = np.array([(1, "n03", "c", 0), (2, "n01", "a", 0), (3, "n02", "b", 0)], dtype=fields)
    savemat(kit / "meta.mat", {"synsets": synsets.reshape(-1, 1)})
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n1\n2\n3\n")
    for i in range(1, 5):
        (val / f"ILSVRC2012_val_{i:08d}.JPEG").touch()
    monkeypatch.chdir(tmp_path)
    exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], {})
    sorted_files = {file.parent.name + file.stem[-1] for file in val.rglob("*.JPEG")}
    assert sorted_files == {"n011", "n032", "n013", "n024"}


def test_names_that_are_no_utf8_are_shown(folder: Path) -> None:
    try:
        with open(bytes(folder / "train" / "one") + b"/\xff.png", "wb"):
            pass
    except OSError:
        pytest.skip("this file system wants names in UTF-8")
    words = [sys.executable, "-m", "illama", "data", "check", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "\\xff.png: the file is empty" in done.stdout
    assert "1 of 8 images are broken" in one_line(done.stderr)


@pytest.mark.parametrize("split", ["train\u202egnp", "train\x1b[31m", "train\x7f"])
def test_splits_are_shown_as_names_are(run: Run, folder: Path, split: str) -> None:
    """They come from the cells of a list."""
    pictures = sorted(path.relative_to(folder) for path in folder.rglob("*.*") if path.is_file())[:4]
    rows = [f"{name},{'ab'[i % 2]},{('train', split)[i // 2]}" for i, name in enumerate(pictures)]
    (folder / "list.csv").write_text("\n".join(["file,label,split", *rows]) + "\n")
    _, out, err = run("data", "check", folder / "list.csv")
    assert split not in out + err
    assert shown(split) in out


def test_a_quick_look_reads_no_image(run: Run, folder: Path, tmp_path: Path) -> None:
    """What was understood comes from names; broken images are found by the whole check alone."""
    (folder / "train" / "two" / "0.png").write_bytes(b"no image")
    code, out, err = run("data", "check", folder, "--quick", "--json", tmp_path / "found.json")
    assert (code, err) == (0, "")
    assert "splits train, val" in out
    assert "2 classes: one, two" in out
    assert "two" in out
    assert json.loads((tmp_path / "found.json").read_text())["splits"]["train"]["class_counts"] == {"one": 3, "two": 3}
    assert run("data", "check", folder)[0] == 2


def test_a_quick_look_finds_what_is_wrong_with_the_layout(run: Run, folder: Path) -> None:
    (folder / "train" / "two" / "3.jxl").write_bytes(b"a picture of a kind that is not read")
    code, out, err = run("data", "check", folder, "--quick")
    assert code == 2
    assert "1 .jxl pictures" in one_line(err)
    assert "passed over: 1 .jxl pictures" in out


def test_keys_of_the_data_section(run: Run, folder: Path) -> None:
    code, _, err = run("data", "check", folder, "data.train_split=val", "data.eval_split=val")
    assert code == 2
    assert "has one class only (one)" in one_line(err)
    for word in ("data.class_depth=0", "data.no_such=1", "optimizer.lr=1", "model.num_classes=3"):
        code, _, err = run("data", "check", folder, word)
        assert code == 2
        assert word.partition("." if "data" not in word else "=")[0] in one_line(err)
