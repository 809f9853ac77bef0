"""The authors' files: whatever they hold beside the weights, they load as the network they belong to."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from illama.data.imagenet import wnids
from illama.errors import UserError
from illama.models import ILlama
from illama.models.variants import VARIANTS
from illama.weights import load_model
from illama.weights.load import load_weights
from illama.weights.published import PUBLISHED, REPOSITORY, fetch, find_published
from tests.weights.foreign_files import cheap_state, random_state, save_like_the_authors

TINY_384 = dataclasses.replace(PUBLISHED["illama_base.in1k_384"], variant="tiny", file="tiny-384.pth")


@pytest.fixture
def no_init(monkeypatch: pytest.MonkeyPatch) -> None:
    """Initial values that the file replaces anyway are not drawn: 310 million of them take seconds."""
    monkeypatch.setattr(ILlama, "init_weights", lambda self: None)
    monkeypatch.setattr(torch.nn.Linear, "reset_parameters", lambda self: None)


def test_rows_are_those_of_the_specification() -> None:
    assert len(PUBLISHED) == 8
    assert {row.variant for row in PUBLISHED.values()} == set(VARIANTS)
    assert PUBLISHED["illama_tiny.in1k"].file == "illama-tiny-in1k-75.0.pth"
    assert PUBLISHED["illama_base.in21k_ft_in1k_384"].file == "illama-base-in21kin1k-384-85.0.pth"
    assert PUBLISHED["illama_large.in21k_ft_in1k"].file == "illama-large-in21kin1k-224-84.8.pth"
    for name, row in PUBLISHED.items():
        assert row.name == name
        assert f"-{row.top1:.1f}.pth" in row.file
        assert ("384" in row.file) == (row.img_size == 384)
        assert max(row.best_log, row.top1) - row.top1_log < 0.15
        assert find_published(row.file) is row
    assert find_published("model.pth") is None


@pytest.mark.parametrize(
    ("name", "layout"), [*((name, "training") for name in PUBLISHED), ("illama_tiny.in1k", "plain")]
)
def test_every_published_file_is_known_for_what_it_is(tmp_path: Path, name: str, layout: str) -> None:
    """In full size; `load_model` does no more than to give these tensors to an `ILlama` of this configuration."""
    row = PUBLISHED[name]
    state = cheap_state(row.config)
    found, meta, file, unused = load_weights(save_like_the_authors(tmp_path, row, state, layout))
    assert file.name == row.file
    assert meta.config == row.config == dataclasses.replace(VARIANTS[row.variant], img_size=row.img_size)
    assert meta.source == name
    assert (meta.classes, meta.softness, meta.recipe) == (wnids(), 0.0, None)
    assert meta.eval_transform is not None
    assert meta.eval_transform["mode"] == ("warp" if row.img_size == 384 else "crop")
    assert (meta.eval_transform["crop_pct"], meta.eval_transform["mean"][0]) == (0.875, 0.485)
    assert found.keys() == state.keys()
    assert unused == ()
    assert all(found[key].shape == tensor.shape for key, tensor in state.items())
    assert torch.equal(found["blocks.11.attn.qkv.bias"], state["blocks.11.attn.qkv.bias"])


@pytest.mark.usefixtures("no_init")
def test_the_largest_loads_whole(tmp_path: Path) -> None:
    row = PUBLISHED["illama_large.in21k_ft_in1k"]
    state = cheap_state(row.config)
    model, _ = load_model(save_like_the_authors(tmp_path, row, state))
    found = model.state_dict()
    assert found.keys() == state.keys()
    assert sum(tensor.numel() for tensor in found.values()) == 310_445_032
    assert all(torch.equal(found[key][:1], tensor[:1]) for key, tensor in state.items())


@pytest.mark.parametrize(
    ("row", "layout"), [(PUBLISHED["illama_tiny.in1k"], "training"), (TINY_384, "plain")], ids=["224", "384"]
)
def test_logits_are_those_of_the_weights(tmp_path: Path, row: Any, layout: str) -> None:
    state = random_state(row.config)
    direct = ILlama(row.config).eval()
    direct.load_state_dict(state)
    model, meta = load_model(save_like_the_authors(tmp_path, row, state, layout))
    images = torch.randn(1, 3, row.img_size, row.img_size)
    with torch.no_grad():
        assert torch.equal(model(images), direct(images))
    assert meta.source == (None if row is TINY_384 else row.name)  # another file is no published one


def test_loading_says_where_it_is_from_and_that_nothing_is_licensed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row = PUBLISHED["illama_tiny.in1k"]
    with caplog.at_level("INFO", logger="illama"):
        load_model(save_like_the_authors(tmp_path, row, cheap_state(row.config)))
    said = [line for line in caplog.messages if "licence" in line]
    assert len(said) == 1
    assert row.file in said[0]
    assert REPOSITORY in said[0]


def test_the_head_of_imagenet_21k_has_no_names(tmp_path: Path) -> None:
    config = dataclasses.replace(VARIANTS["base"], num_classes=10450)
    torch.save(cheap_state(config), tmp_path / "base21k.pth")
    meta = load_weights(tmp_path / "base21k.pth").meta
    assert meta.config == config
    assert meta.classes == ()


def test_a_name_is_fetched_and_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    row = PUBLISHED["illama_tiny.in1k"]
    file = save_like_the_authors(tmp_path, row, cheap_state(row.config))
    asked = []

    def download(repo_id: str, filename: str, **_: object) -> str:
        asked.append((repo_id, filename))
        return str(file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.chdir(tmp_path)
    assert load_model("illama_tiny.in1k")[1].source == "illama_tiny.in1k"
    assert asked == [(REPOSITORY, row.file)]
    Path("illama_tiny.in1k").mkdir()
    with pytest.raises(UserError, match="neither a run"):  # what is on the disk comes first
        load_model("illama_tiny.in1k")


def test_a_file_that_is_there_is_not_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = []

    def download(*_: object, cache_dir: object, local_files_only: bool) -> str:
        asked.append((cache_dir, local_files_only))
        if local_files_only and len(asked) == 1:
            raise FileNotFoundError
        return "w.pth"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert fetch("illama_tiny.in1k", tmp_path) == fetch("illama_tiny.in1k", tmp_path) == Path("w.pth")
    assert asked == [(tmp_path, True), (tmp_path, False), (tmp_path, True)]


def test_no_network_is_one_line_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def download(*_: object, **__: object) -> str:
        raise ConnectionError("Cannot reach https://huggingface.co\nTraceback: and so on")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(UserError) as caught:
        fetch("illama_small.in1k")
    message = str(caught.value)
    assert "\n" not in message
    assert "Cannot reach" in message
    assert f"{REPOSITORY}/resolve/main/illama-small-in1k-79.9.pth" in message
    assert "give the path" in message


def test_a_file_with_a_published_name_and_other_weights_is_refused(tmp_path: Path) -> None:
    small = PUBLISHED["illama_small.in1k"]
    file = save_like_the_authors(tmp_path, small, cheap_state(VARIANTS["tiny"]))
    with pytest.raises(UserError, match=r"named like illama_small\.in1k, but it holds a network of width 192"):
        load_model(file)
