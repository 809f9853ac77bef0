"""The report of all findings, and the words that its options are given in."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from illama.analysis.registry import ANALYSES
from illama.analysis.report import AnalysisResult, Measure, summary_table
from illama.cli.analyze import LookOptions
from illama.cli.main import main
from illama.report import Section
from tests.evaluation.conftest import untrained_digits_run

QUICK = (
    "calibration.resamples=20",
    "classes.resamples=20",
    "attention.images=2",
    "attention.shown=1",
    "causality.images=2",
    "causality.cuts=2",
    "landscape.points=3",
    "landscape.images=4",
    "probe.train_images=60",
)


@pytest.fixture(scope="module")
def written(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of a digits run."""
    folder = tmp_path_factory.mktemp("report") / "of" / "digits"
    assert main(["analyze", "report", str(digits_run), "--out", str(folder), "--device", "cpu", *QUICK]) == 0
    return folder


def test_the_page_holds_everything_and_loads_nothing(written: Path) -> None:
    page = (written / "report.html").read_text(encoding="utf-8")
    plain = json.loads((written / "report.json").read_text(encoding="utf-8"))
    assert set(plain["findings"]) == set(ANALYSES) - {"shape", "robustness"}
    assert set(plain["left_out"]) == {"shape", "robustness"}
    assert "shape.cue_conflict=FOLDER" in page
    pictures = re.findall(r'<img[^>]* src="([^"]{30})', page)
    assert len(pictures) == len(list(written.glob("*.svg"))) >= 9
    assert all(address.startswith("data:image/svg+xml;base64,") for address in pictures)
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    for table in written.glob("*.csv"):
        header, *rows = table.read_text(encoding="utf-8").splitlines()
        assert rows
        assert header.count(",") == rows[0].count(",")


def test_every_picture_says_how_to_read_it(written: Path) -> None:
    markdown = (written / "report.md").read_text(encoding="utf-8")
    for picture in written.glob("*.svg"):
        after = markdown.partition(f"]({picture.name})")[2].strip()
        assert len(after.split("\n")[0]) > 60, picture.name


def test_the_summary_is_what_the_analyses_found(written: Path) -> None:
    plain = json.loads((written / "report.json").read_text(encoding="utf-8"))
    summary = (written / "report.md").read_text(encoding="utf-8").partition("## Summary")[2]
    top1 = plain["findings"]["calibration"]["measures"]["top1"]
    assert f"top-1 | {top1:.2f} %" in summary


def test_the_same_command_again_computes_nothing_anew(
    written: Path, digits_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from illama.analysis import landscape
    from illama.evaluation import classify, features

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("this is in the cache")

    before = {path: path.read_bytes() for path in written.iterdir() if path.suffix in (".svg", ".csv")}
    monkeypatch.setattr(classify, "classify_each", forbidden)
    monkeypatch.setattr(features, "collect_blocks", forbidden)
    monkeypatch.setattr(landscape, "image_losses", forbidden)
    assert main(["analyze", "report", str(digits_run), "--out", str(written), "--device", "cpu", *QUICK]) == 0
    assert {path: path.read_bytes() for path in before} == before


def test_images_of_other_classes_leave_out_what_needs_labels(
    digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    for name in ("cats", "dogs"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("L", (8, 8), 40 * number).save(tmp_path / "pets" / name / f"{number}.png")
    others = ("--data", str(tmp_path / "pets"), "--without", "probe", "causality")
    out = ("--out", str(tmp_path / "out"), "--json", "-", "--device", "cpu")
    assert main(["analyze", "report", str(digits_run), *QUICK, *others, *out]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert set(plain["findings"]) == {"attention"}
    assert plain["left_out"]["calibration"] == "the images' classes are not the network's"
    assert plain["left_out"]["probe"] == "not wanted (--without)"


@pytest.mark.parametrize("name", [*ANALYSES, "compare", "report"])
def test_every_analysis_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", name, "--help"]) == 0
    assert "--out" in capsys.readouterr().out


def test_logits_stand_in_for_a_checkpoint(digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logits = tmp_path / "digits.safetensors"
    assert main(["eval", str(digits_run), "--save-logits", str(logits), "--device", "cpu"]) == 0
    found = []
    for checkpoint in (logits, digits_run):
        capsys.readouterr()
        assert main(["analyze", "calibration", str(checkpoint), "--resamples", "20", "--json", "-"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1]
    assert main(["analyze", "compare", str(logits), str(digits_run), "--resamples", "20", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 360
    assert main(["analyze", "attention", str(logits)]) == 2
    capsys.readouterr()
    assert main(["analyze", "calibration", str(logits), "--data", "digits", "--softness", "0.5"]) == 2
    assert "saved logits, which --data, --softness cannot change" in capsys.readouterr().err
    assert main(["analyze", "compare", str(logits), str(logits), "--split", "train"]) == 2
    assert "--split cannot change" in capsys.readouterr().err


def test_pictures_that_are_not_given_are_asked_for_first(digits_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", "shape", str(digits_run)]) == 2
    assert "no cue-conflict pictures are given; add --cue-conflict FOLDER" in capsys.readouterr().err


def test_what_is_refused_leaves_no_folder_behind(digits_run: Path, tmp_path: Path) -> None:
    out, kept = tmp_path / "a" / "b" / "c", tmp_path / "kept"
    kept.mkdir()
    for folder in (out, kept):
        for name in ("shape", "report", "classes"):
            words = ["analyze", name, str(digits_run), "--data", str(tmp_path / "absent"), "--out", str(folder)]
            assert main([*words, "--device", "cpu"]) == 2
    assert not (tmp_path / "a").exists()
    assert list(kept.iterdir()) == []


def test_names_that_are_no_text_can_be_reported(digits_run: Path, tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / os.fsdecode(b"gr\xfc")
    for name in ("3", "7"):
        (folder / name).mkdir(parents=True)
        Image.new("L", (8, 8), 99).save(folder / name / "a.png")
    out = ("--out", str(tmp_path / "out"), "--json", str(tmp_path / "found.json"), "--device", "cpu")
    assert main(["analyze", "calibration", str(digits_run), "--data", str(folder), "--resamples", "5", *out]) == 0
    for file in (tmp_path / "found.json", tmp_path / "out" / "report.json"):
        json.loads(file.read_text(encoding="utf-8"))
        assert "gr\\\\xfc" in file.read_text(encoding="utf-8")


def test_another_report_in_the_folder_takes_its_files_along(digits_run: Path, tmp_path: Path) -> None:
    quick = ("--out", str(tmp_path), "--resamples", "20", "--device", "cpu")
    (tmp_path / "mine.csv").write_text("stays")
    assert main(["analyze", "classes", str(digits_run), *quick]) == 0
    assert (tmp_path / "classes.csv").is_file()
    assert main(["analyze", "calibration", str(digits_run), *quick]) == 0
    left = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert left == {"mine.csv", "report.html", "report.md", "report.json", "reliability.csv", "reliability.svg"}


def test_words_may_follow_an_option_of_several(
    digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = [name for name in ANALYSES if name != "causality"]
    words = ["causality.images=3", "causality.cuts=2"]
    command = ["analyze", "report", str(digits_run), "--out", str(tmp_path), "--json", "-", "--device", "cpu"]
    assert main([*command, "--without", *others, *words]) == 0
    assert json.loads(capsys.readouterr().out)["findings"]["causality"]["images"] == 3


def test_what_is_looked_at_stands_above_the_numbers(
    digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyze", "classes", str(digits_run), "--resamples", "20", "--device", "cpu"]) == 0
    first, *_, last = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert "model.safetensors" in first
    assert "360 images" in first
    assert last == "--out FOLDER writes a page with pictures, CSV and JSON"


def test_what_all_analyses_share_is_heard(digits_run: Path) -> None:
    shared = LookOptions(data="digits", split="train", batch_size=7, softness=0.25, device="cpu")
    subject = shared.open(str(digits_run), "data")
    assert (subject.split, subject.batch_size, subject.numbering) == ("train", 7, "data")
    assert float(subject.model.softness) == 0.25
    assert len(subject.source) == 1437, "the training split"


def test_a_title_is_the_pages_and_no_analysis_is_no_report(
    digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["analyze", "report", str(digits_run), "--out", str(tmp_path), "--device", "cpu", "classes.resamples=5"]
    others = [name for name in ANALYSES if name != "classes"]
    assert main([*command, "--title", "Mine", "--without", *others]) == 0
    assert (tmp_path / "report.md").read_text(encoding="utf-8").startswith("# Mine\n")
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["subject"]["softness"] == 0.5
    capsys.readouterr()
    assert main([*command, "--without", *ANALYSES]) == 2
    assert "no analysis applies: calibration: not wanted (--without)" in capsys.readouterr().err


def test_an_analysis_that_fails_stops_no_other(
    digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["analyze", "report", str(digits_run), "--out", str(tmp_path), "--json", "-", "--device", "cpu"]
    others = [name for name in ANALYSES if name not in ("classes", "probe")]
    words = ["classes.resamples=5", "probe.train_images=20", "probe.neighbors=30"]
    assert main([*command, *words, "--without", *others]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert set(plain["findings"]) == {"classes"}
    assert plain["left_out"]["probe"].startswith("30 neighbors are to vote, but there are 20 training images")


def test_the_second_of_a_comparison_is_the_second(digits_run: Path, tmp_path: Path) -> None:
    other = untrained_digits_run(tmp_path / "other")
    found = tmp_path / "found.json"
    assert main(["analyze", "compare", str(digits_run), str(other), "--resamples", "5", "--json", str(found)]) == 0
    plain = json.loads(found.read_text(encoding="utf-8"))
    assert plain["first"].startswith(str(digits_run))
    assert plain["second"].startswith(str(other))


def test_published_numbers_have_a_column_where_there_are_any() -> None:
    def result(*measures: Measure) -> tuple[AnalysisResult, ...]:
        return (AnalysisResult("any", measures, Section("Any", ()), {}),)

    own, published = Measure("own", "1 nat"), Measure("other", "2 nats", "3 nats")
    assert summary_table(result(own)).header == ("measure", "found")
    both = summary_table(result(own, published))
    assert both.header == ("measure", "found", "published")
    assert both.rows == (("own", "1 nat", ""), ("other", "2 nats", "3 nats"))


def test_without_a_folder_the_report_is_called_after_the_run(
    digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    others = [name for name in ANALYSES if name != "classes"]
    words = ["classes.resamples=5", "--without", *others]
    assert main(["analyze", "report", str(digits_run), "--device", "cpu", *words]) == 0
    assert (tmp_path / "runs" / "analyze" / digits_run.name / "report.html").is_file()
