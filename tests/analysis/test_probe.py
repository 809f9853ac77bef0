"""Linear probe and nearest neighbours: against other implementations, on known features, from a mere folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from illama.analysis.probe import measures, principal_plane, probe, scatter_figure, why_not
from illama.analysis.probe.measures import in_numbers_of, knn_votes, linear_probe, split_for_probe
from illama.analysis.registry import ProbeOptions
from illama.data.source import SubsetSource
from illama.errors import UserError
from illama.evaluation.subject import Subject, open_subject
from illama.models import ILlama


@pytest.fixture
def subject(digits_run: Path) -> Subject:
    return open_subject(digits_run, device="cpu", numbering="data")


def some_features(n: int = 60, others: int = 25, classes: int = 4) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    train_nD, values_ND = (torch.randn(count, 8, generator=generator, dtype=torch.float64) for count in (n, others))
    return train_nD, torch.randint(0, classes, (n,), generator=generator), values_ND


def folder_of_classes(root: Path, names: list[str], each: int) -> Path:
    """Grey pictures of 8 x 8: noise around a level of the class's own."""
    draw = np.random.default_rng(0)
    for level, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(each):
            values = np.clip(draw.normal(40 + 170 * level / len(names), 10, (8, 8)), 0, 255).astype(np.uint8)
            Image.fromarray(values).save(root / name / f"{i}.png")
    return root


def test_votes_are_those_of_a_plain_loop() -> None:
    train_nD, labels, values_ND = some_features()
    votes = knn_votes(train_nD, labels, values_ND, num_classes=5, neighbors=7, temperature=0.07)
    for value_D, row in zip(values_ND.numpy(), votes.numpy(), strict=True):
        cosines = [t @ value_D / np.linalg.norm(t) / np.linalg.norm(value_D) for t in train_nD.numpy()]
        nearest = np.argsort(cosines)[::-1][:7]
        expected = np.zeros(5)
        for place in nearest:
            expected[labels[place]] += np.exp(cosines[place] / 0.07)
        # the votes are divided by the nearest neighbour's
        np.testing.assert_allclose(row, expected / np.exp(cosines[nearest[0]] / 0.07), rtol=1e-10)
    assert votes.shape == (25, 5)
    assert not votes[:, 4].any()


@pytest.mark.parametrize("chunk", [1, 180, 1 << 25])
def test_answers_are_scikit_learns_for_any_size_of_chunk(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    monkeypatch.setattr(measures, "CHUNK_VALUES", chunk)
    train_nD, labels, values_ND = some_features(200, 100)
    oracle = KNeighborsClassifier(9, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.1))
    expected = oracle.fit(train_nD.numpy(), labels.numpy()).predict(values_ND.numpy())
    votes = knn_votes(train_nD, labels, values_ND, num_classes=4, neighbors=9, temperature=0.1)
    assert votes.argmax(dim=1).tolist() == expected.tolist()


def test_votes_stay_finite_at_small_temperatures_and_for_zeros() -> None:
    train_nD, labels, values_ND = some_features()
    values_ND[0] = 0
    votes = knn_votes(train_nD, labels, values_ND, num_classes=4, neighbors=20, temperature=1e-4)
    assert votes.isfinite().all()
    nearest = knn_votes(train_nD, labels, values_ND, num_classes=4, neighbors=1, temperature=0.07)
    assert torch.equal(votes[1:].argmax(1), nearest[1:].argmax(1)), "at temperature 0 the nearest alone decides"
    assert not len(knn_votes(train_nD, labels, values_ND[:0], num_classes=4, neighbors=1, temperature=1.0))


def test_more_neighbors_than_images_are_refused() -> None:
    train_nD, labels, values_ND = some_features(n=5)
    with pytest.raises(UserError, match="6 neighbors are to vote, but there are 5 training images"):
        knn_votes(train_nD, labels, values_ND, num_classes=4, neighbors=6, temperature=0.07)


def test_a_linear_probe_separates_what_a_plane_separates() -> None:
    train_nD, _, values_ND = some_features(300, 100)
    normal_D = torch.arange(1.0, 9.0, dtype=torch.float64)
    keep = [(x_D @ normal_D).abs() > 5 for x_D in (train_nD, values_ND)]
    train_nD, values_ND = train_nD[keep[0]], values_ND[keep[1]]
    # scales that differ by thousands, one feature that never varies, and labels that do not start at 0
    scale_D = torch.logspace(-3, 3, 8, dtype=torch.float64)
    lay_out = [torch.cat((x * scale_D, torch.full((len(x), 1), 7.0)), dim=1).float() for x in (train_nD, values_ND)]
    labels, expected = ((x @ normal_D > 0).long() * 3 + 2 for x in (train_nD, values_ND))
    found = linear_probe(lay_out[0], labels, lay_out[1], seed=0)
    assert torch.equal(found.predictions, expected)
    assert found.converged
    assert found.chosen_on == round(0.2 * len(labels))
    assert max(found.tried.values()) == 100.0


def test_the_strength_is_the_first_of_the_best_and_the_last_fit_takes_all_images() -> None:
    from sklearn.linear_model import LogisticRegression

    train_nD, labels, values_ND = some_features(80, 40)
    found = linear_probe(train_nD, labels, values_ND, seed=3)
    best = max(found.tried.values())
    assert found.strength == next(strength for strength, accuracy in found.tried.items() if accuracy == best)
    mean_D, deviation_D = train_nD.numpy().mean(0), train_nD.numpy().std(0)
    oracle = LogisticRegression(C=found.strength, max_iter=1000)
    oracle.fit((train_nD.numpy() - mean_D) / deviation_D, labels.numpy())
    assert found.predictions.tolist() == oracle.predict((values_ND.numpy() - mean_D) / deviation_D).tolist()


def test_a_fit_that_does_not_converge_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    train_nD, labels, values_ND = some_features()
    monkeypatch.setattr(measures, "MOST_ITERATIONS", 1)
    assert not linear_probe(train_nD, labels, values_ND, seed=0).converged


@pytest.mark.parametrize("labels", [[1, 1, 1, 1, 1, 1], [0, 1]])
def test_too_little_to_learn_from_is_refused(labels: list[int]) -> None:
    with pytest.raises(UserError, match=f"a linear probe needs .* got {len(labels)} of {len(set(labels))} classes"):
        linear_probe(torch.randn(len(labels), 3), torch.tensor(labels), torch.randn(2, 3), seed=0)


def test_the_plane_is_the_one_of_largest_variance() -> None:
    from sklearn.decomposition import PCA

    values_ND = some_features()[0]
    places, shares = principal_plane(values_ND)
    oracle = PCA(2).fit(values_ND.numpy())
    np.testing.assert_allclose(shares, oracle.explained_variance_ratio_, rtol=1e-10)
    np.testing.assert_allclose(places.abs().numpy(), np.abs(oracle.transform(values_ND.numpy())), rtol=1e-8, atol=1e-10)
    assert principal_plane(torch.ones(4, 3))[1] == (0.0, 0.0)


def test_many_classes_are_drawn_with_the_frequent_ones_named() -> None:
    labels = torch.cat((torch.arange(30), torch.arange(5).repeat(20)))
    figure = scatter_figure(torch.randn(len(labels), 4), labels, tuple(f"class {i}" for i in range(30)), seed=0)
    assert "the 10 most frequent of 30 classes are coloured" in figure.caption


def test_a_probe_of_digits_end_to_end(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ProbeOptions(every_block=True, train_images=300, tokens="mean", block=0)
    found = probe(subject, options, tmp_path / "kept")
    values = json.loads(found.json())
    assert (values["train_images"], values["images"], values["block"]) == (300, 360, 0)
    assert len(values["knn_top1_by_block"]) == len(subject.model.blocks)
    assert values["knn_top1_by_block"]["0"] == values["knn_top1"]
    # untrained features of digits still tell most of them apart; chance is 10 %
    assert values["linear_top1"] > 50
    assert values["linear_interval"][0] < values["linear_top1"] < values["linear_interval"][1]
    rows = [line.split(",") for line in found.tables["probe_predictions.csv"].splitlines()]
    assert len(rows) == 361
    right = sum(row[1] == row[2] for row in rows[1:])
    assert 100 * right / 360 == pytest.approx(values["linear_top1"])
    assert len(found.tables["probe_layers.csv"].splitlines()) == 1 + len(subject.model.blocks)
    assert found.summary[1].value.startswith(f"{values['knn_top1']:.2f} % (")
    assert found.summary[1].value.endswith("; 360 test images)")
    monkeypatch.setattr(ILlama, "embed", None)
    assert probe(subject, options, tmp_path / "kept").json() == found.json(), "no second pass"


def test_a_folder_of_class_folders_is_enough(digits_run: Path, tmp_path: Path) -> None:
    data = folder_of_classes(tmp_path / "data", ["dark", "grey", "light"], 10)
    subject = open_subject(digits_run, data=str(data), device="cpu", numbering="data")
    split = split_for_probe(subject, 0, seed=0)
    assert (len(split.train.source), len(split.test.source)) == (24, 6)
    assert np.bincount(split.test.source.labels).tolist() == [2, 2, 2]
    found = probe(subject, ProbeOptions(neighbors=3))
    assert "The data has no training split, so 6 of them" in found.section.blocks[0].text
    assert found.values["images"] == 6


def test_classes_of_a_single_image_are_counted_or_refused(
    digits_run: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    alone = folder_of_classes(tmp_path / "alone", [f"class {i:02}" for i in range(20)], 1)
    subject = open_subject(digits_run, data=str(alone), device="cpu", numbering="data")
    with pytest.raises(
        UserError, match="4 of 4 test images are of classes without a training image; every class needs"
    ):
        probe(subject, ProbeOptions(neighbors=3))
    some = folder_of_classes(tmp_path / "some", [f"class {i:02}" for i in range(20)], 1)
    for name in ("class 00", "class 01"):
        for copy in range(1, 5):
            (some / name / f"{copy}.png").write_bytes((some / name / "0.png").read_bytes())
    found = probe(open_subject(digits_run, data=str(some), device="cpu", numbering="data"), ProbeOptions(neighbors=3))
    unseen = found.values["test_images_of_unseen_classes"]
    assert 0 < unseen < found.values["images"]
    assert f"{unseen} test images are of classes without a training image: they count as wrong" in (
        found.section.blocks[0].text
    )
    assert not recwarn.list


def test_a_training_split_teaches_and_nothing_is_on_both_sides(digits_run: Path, tmp_path: Path) -> None:
    folder_of_classes(tmp_path / "data" / "train", ["a", "b", "c"], 6)
    folder_of_classes(tmp_path / "data" / "val", ["a", "c"], 4)
    subject = open_subject(digits_run, data=str(tmp_path / "data"), device="cpu", numbering="data")
    split = split_for_probe(subject, 0, seed=0)
    assert (len(split.train.source), len(split.test.source)) == (18, 8)
    labels = in_numbers_of(("a", "b", "c"), torch.from_numpy(subject.source.labels), subject.source.classes)
    assert labels.tolist() == [0] * 4 + [2] * 4
    itself = subject.other_split("train")
    split = split_for_probe(itself, 0, seed=0)
    assert "of the training split" in split.how
    places = [{part.source.location(i) for i in range(len(part.source))} for part in (split.train, split.test)]
    assert not places[0] & places[1]
    assert len(places[0] | places[1]) == 18


def test_what_training_has_not_seen_is_tested_where_a_recipe_holds_images_out(digits_run: Path, tmp_path: Path) -> None:
    data = folder_of_classes(tmp_path / "data", ["dark", "grey", "light"], 8)
    subject = open_subject(digits_run, data=str(data), device="cpu", numbering="data")
    assert subject.data is not None
    held = dataclasses.replace(subject, data=subject.data.model_copy(update={"val_fraction": 0.25}))
    split = split_for_probe(held, 0, seed=0)
    assert split.how == "Fitted on the training split."
    assert (len(split.train.source), len(split.test.source)) == (18, 6)


def test_the_seed_chooses_what_is_fitted_on_and_what_is_held_out(subject: Subject, digits_run: Path) -> None:
    def places(of: Subject, train_images: int, seed: int) -> list[set[str]]:
        split = split_for_probe(of, train_images, seed)
        return [{part.source.location(i) for i in range(len(part.source))} for part in (split.train, split.test)]

    first, again, other = (places(subject, 100, seed) for seed in (0, 0, 1))
    assert first == again
    assert first[0] != other[0]
    assert first[1] == other[1], "the test images are the subject's"
    itself = subject.other_split("train")
    assert places(itself, 0, 0) == places(itself, 0, 0)
    assert places(itself, 0, 0)[1] != places(itself, 0, 1)[1]
    train_nD, labels, values_ND = some_features(100)
    tried = [linear_probe(train_nD, labels, values_ND, seed=seed).tried for seed in (0, 0, 1)]
    assert tried[0] == tried[1] != tried[2], "the strength is chosen on other images"


def test_a_class_that_nothing_teaches_is_named() -> None:
    with pytest.raises(UserError, match="test images of class 'bird', but that class is not in the training split"):
        in_numbers_of(("cat", "dog"), torch.tensor([0, 1]), ("bird", "cat"))
    assert in_numbers_of(("cat",), torch.tensor([1, 1]), ("bird", "cat")).tolist() == [0, 0]


def test_images_of_one_class_are_refused(subject: Subject, digits_run: Path, tmp_path: Path) -> None:
    ones = np.flatnonzero(subject.source.labels == 1)
    assert why_not(subject.on(SubsetSource(subject.source, ones, "ones")), ProbeOptions()) == (
        "all images are of one class, so there is nothing to classify"
    )
    assert why_not(subject, ProbeOptions()) is None
    folder_of_classes(tmp_path / "data" / "train", ["a"], 3)
    folder_of_classes(tmp_path / "data" / "val", ["a", "b"], 3)
    uneven = open_subject(digits_run, data=str(tmp_path / "data"), device="cpu", numbering="data")
    with pytest.raises(UserError, match=r"all are of one class \(a\), so there is nothing to classify"):
        probe(uneven, ProbeOptions())


def test_what_is_asked_wrongly_is_said_in_one_line(subject: Subject) -> None:
    few = subject.on(SubsetSource(subject.source, np.arange(20), "few"))
    with pytest.raises(UserError, match="30 neighbors are to vote, but there are 20 training images"):
        probe(few, ProbeOptions(train_images=20, neighbors=30))
    with pytest.raises(UserError, match="block 9 does not exist"):
        probe(few, ProbeOptions(block=9))


def test_the_search_for_a_penalty_ends_where_weaker_ones_bring_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    right = {1e-4: 3, 1e-3: 5, 1e-2: 5, 1e-1: 4}  # of 12; a weaker one would fail

    def fitted(x: np.ndarray, y: np.ndarray, others: np.ndarray, strength: float) -> tuple[np.ndarray, bool]:
        answers = np.full(len(others), -1)
        answers[: right[strength]] = 0
        return answers, True

    monkeypatch.setattr(measures, "_fitted", fitted)
    monkeypatch.setattr(measures, "stratified_choice", lambda labels, count, seed: np.arange(count))
    labels = torch.cat((torch.zeros(40), torch.ones(20))).long()
    found = linear_probe(torch.randn(60, 3), labels, torch.randn(8, 3), seed=0)
    assert list(found.tried) == list(right)
    assert found.strength == 1e-3
