"""Published weights through timm: tags, default cfgs, and loading by our own reader."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import illama
from illama.checkpoint import Meta, save_weights
from illama.errors import UserError
from illama.models.position import resize_position
from illama.optional import import_timm
from illama.weights.published import PUBLISHED, REPOSITORY
from tests.weights.foreign_files import cheap_state, save_like_the_authors

timm = import_timm()
TINY = PUBLISHED["illama_tiny.in1k"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub that has the tiny network at 224 px; the names of the files that were asked for."""
    import huggingface_hub

    asked: list[str] = []
    save_like_the_authors(tmp_path, TINY, cheap_state(TINY.config))

    def download(repo_id: str, filename: str, **_: object) -> str:
        assert repo_id == REPOSITORY
        asked.append(filename)
        if not (tmp_path / filename).is_file():
            raise ConnectionError("no network")
        return str(tmp_path / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / TINY.file, weights_only=False)["model"]  # our own file


def test_tags_are_listed() -> None:
    assert sorted(timm.list_models("illama*", pretrained=True)) == sorted(PUBLISHED)
    assert timm.list_models("visionllama*", pretrained=True) == []
    assert timm.is_model_pretrained("illama_large")


@pytest.mark.parametrize("name", PUBLISHED)
def test_default_cfgs_say_how_the_weights_are_to_be_used(name: str) -> None:
    cfg, row = timm.get_pretrained_cfg(name), PUBLISHED[name]
    side = row.img_size
    assert cfg.input_size == (3, side, side)
    assert (cfg.crop_pct, cfg.crop_mode) == ((0.875, "center") if side == 224 else (1.0, "squash"))
    assert (cfg.mean, cfg.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (cfg.interpolation, cfg.num_classes) == ("bicubic", 1000)
    assert (cfg.hf_hub_id, cfg.hf_hub_filename, cfg.license) == (REPOSITORY, row.file, "not stated")
    assert any(f"{row.top1:.1f}" in note for note in cfg.notes)


def test_the_plain_name_is_the_one_at_224_pixels() -> None:
    for size in ("tiny", "small", "base", "large"):
        assert timm.get_pretrained_cfg(f"illama_{size}").input_size == (3, 224, 224)
    with torch.device("meta"):
        assert timm.create_model("illama_base").config.img_size == 224
        assert timm.create_model("illama_base.in1k_384").config.img_size == 384
        assert timm.create_model("illama_base.in1k_384", img_size=128).config.img_size == 128


@pytest.mark.parametrize("name", ["illama_tiny.in1k", "illama_tiny"])
def test_the_weights_are_those_of_the_file(hub: list[str], tmp_path: Path, name: str) -> None:
    model = timm.create_model(name, pretrained=True)
    assert isinstance(model, illama.ILlama)
    assert hub == [TINY.file]
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in weights(tmp_path).items())
    assert model.pretrained_cfg["license"] == "not stated"
    with torch.no_grad():
        images = torch.randn(1, 3, 224, 224)
        assert torch.equal(model.eval()(images), illama.load_model(tmp_path / TINY.file)[0](images))


@pytest.mark.parametrize(("img_size", "grid"), [(384, (24, 24)), ((224, 160), (14, 10))])
@pytest.mark.usefixtures("hub")
def test_another_size_and_head(tmp_path: Path, img_size: Any, grid: tuple[int, int]) -> None:
    model = timm.create_model("illama_tiny.in1k", pretrained=True, num_classes=10, img_size=img_size)
    old = weights(tmp_path)
    assert torch.equal(model.pos_embed, resize_position(old["pos_embed"], (14, 14), grid, "last"))
    assert torch.equal(model.norm.weight, old["norm.weight"])
    assert model.head.weight.shape == (10, 192)
    assert timm.data.resolve_data_config(model=model)["crop_mode"] == ("squash" if img_size == 384 else "center")


@pytest.mark.usefixtures("hub")
def test_features_and_channels(tmp_path: Path) -> None:
    features = timm.create_model("illama_tiny.in1k", pretrained=True, features_only=True)
    assert torch.equal(features.model.cls_token, weights(tmp_path)["cls_token"])
    bare = timm.create_model("illama_tiny.in1k", pretrained=True, num_classes=0)
    assert torch.equal(bare.cls_token, weights(tmp_path)["cls_token"])
    grey = timm.create_model("illama_tiny.in1k", pretrained=True, in_chans=1)
    summed = weights(tmp_path)["patch_embed.proj.weight"].sum(1, keepdim=True)
    torch.testing.assert_close(grey.patch_embed.proj.weight, summed, rtol=1e-6, atol=1e-6)  # order of three additions


@pytest.mark.usefixtures("hub")
def test_what_cannot_be_loaded_is_said() -> None:
    with pytest.raises(UserError, match=r"cannot fetch illama-small-in1k-79\.9\.pth"):
        timm.create_model("illama_small.in1k", pretrained=True)
    with pytest.raises(RuntimeError, match="No pretrained weights exist for visionllama_small"):
        timm.create_model("visionllama_small", pretrained=True)
    with pytest.raises(UserError, match="weights of another architecture"):
        timm.create_model("illama_tiny.in1k", pretrained=True, patch_size=32)


def test_a_local_file_is_read_by_our_reader(tmp_path: Path) -> None:
    """One that wants to run code is refused."""
    file = save_like_the_authors(tmp_path, TINY, cheap_state(TINY.config))
    model = timm.create_model("illama_tiny", pretrained=True, pretrained_cfg_overlay={"file": str(file)})
    assert torch.equal(model.cls_token, weights(tmp_path)["cls_token"])
    torch.save({"model": weights(tmp_path), "evil": _Evil(tmp_path / "ran")}, file)
    with pytest.raises(UserError, match="wants to run"):
        timm.create_model("illama_tiny", pretrained=True, pretrained_cfg_overlay={"file": str(file)})
    assert not (tmp_path / "ran").exists()


def test_a_run_of_ours_computes_what_it_was_saved_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At its softness; a description that differs from the model that is asked for is a warning."""
    config = dataclasses.replace(TINY.config, img_size=32, depth=2, mask_mode="pre_softmax")
    state = {name: 10 * tensor for name, tensor in illama.ILlama(config).state_dict().items()}
    save_weights(tmp_path / "own.safetensors", state, Meta(config=config, softness=0.5))
    arguments = {"pretrained_cfg_overlay": {"file": str(tmp_path / "own.safetensors")}, "img_size": 32, "depth": 2}
    model = timm.create_model("illama_tiny", pretrained=True, mask_mode="pre_softmax", **arguments).eval()
    ours, _ = illama.load_model(tmp_path / "own.safetensors")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(images), ours(images))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    timm.create_model("illama_tiny", pretrained=True, **arguments)
    assert "mask_mode: pre_softmax -> post_softmax" in caplog.text


def test_a_folder_of_timm_goes_there_and_back(tmp_path: Path) -> None:
    from timm.models import save_for_hf

    model = timm.create_model("illama_tiny", img_size=32, patch_size=8, depth=2, num_classes=4).eval()
    save_for_hf(model, tmp_path / "hub", safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    ours, meta = illama.load_model(tmp_path / "hub")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
        assert torch.equal(ours(images), model(images))
    assert meta.config.img_size == 32


class _Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.target),)
