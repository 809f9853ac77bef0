"""Weights for another image size or class count are adapted; another architecture is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from illama.checkpoint import Meta, save_checkpoint, save_weights
from illama.errors import UserError
from illama.models import ILlama, ModelConfig
from illama.models.position import resize_position
from illama.weights import LoadReport, adapt_state_dict, initialize_from


def other(config: ModelConfig, seed: int = 1, **edits: object) -> ILlama:
    torch.manual_seed(seed)
    return ILlama(dataclasses.replace(config, **edits))


def test_the_same_model_takes_everything(model: ILlama) -> None:
    target = other(model.config)
    report = adapt_state_dict(model.state_dict(), target)
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(target(images), model(images))
    assert set(report.matched) == set(model.state_dict())
    assert report.resized == report.new == report.unexpected == report.differences == ()


def test_another_type_of_numbers_is_said_and_nothing_but_numbers_is_taken(model: ILlama) -> None:
    state = {name: tensor.double() for name, tensor in model.state_dict().items()}
    assert "taken as they are (from float64 to float32)" in adapt_state_dict(state, other(model.config)).description
    for spoilt in (state["norm.weight"].long(), state["norm.weight"] * torch.nan):
        with pytest.raises(UserError, match=r"norm\.weight (is int64|has values that are NaN)"):
            adapt_state_dict(state | {"norm.weight": spoilt}, other(model.config))


def test_another_class_count_leaves_the_head_as_initialised(model: ILlama) -> None:
    target = other(model.config, num_classes=5)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    report = adapt_state_dict(model.state_dict(), target)
    after = target.state_dict()
    assert report.new == ("head.weight", "head.bias")
    assert "newly initialised ((3, 8) in the file, (5, 8) in the model)" in report.description
    for name, tensor in after.items():
        expected = before if name in report.new else model.state_dict()
        assert torch.equal(tensor, expected[name]), name


def test_rows_of_the_head_follow_the_names(tmp_path: Path, model: ILlama, meta: Meta) -> None:
    """A head of as many classes is no head of the same ones."""
    torch.nn.init.normal_(model.head.bias)
    save_weights(tmp_path / "w.safetensors", model.state_dict(), meta)
    old = model.state_dict()["head.weight"]
    same, permuted, others = other(model.config), other(model.config), other(model.config)
    new = others.state_dict()["head.weight"].clone()
    assert "order" not in str(initialize_from(tmp_path / "w.safetensors", same, ("ant", "bee", "cat")))
    report = initialize_from(tmp_path / "w.safetensors", permuted, ("cat", "ant", "bee"))
    assert "put into the order of the data's classes" in str(report)
    assert torch.equal(same.state_dict()["head.weight"], old)
    assert torch.equal(permuted.state_dict()["head.weight"], old[[2, 0, 1]])
    assert torch.equal(permuted.state_dict()["head.bias"], model.state_dict()["head.bias"][[2, 0, 1]])
    report = initialize_from(tmp_path / "w.safetensors", others, ("ant", "bee", "emu"))
    assert "its classes are others (1 no more there (cat), 1 new (emu))" in str(report)
    assert report.new == ("head.weight", "head.bias")
    assert torch.equal(others.state_dict()["head.weight"], new)
    assert torch.equal(others.state_dict()["norm.weight"], model.state_dict()["norm.weight"])


def test_names_that_look_equal_are_equal(tmp_path: Path, model: ILlama, meta: Meta) -> None:
    meta = dataclasses.replace(meta, classes=("e\u0301t\u00e9", "bee", "cat"))
    save_weights(tmp_path / "w.safetensors", model.state_dict(), meta)
    for names in (("\u00e9te\u0301", "bee", "cat"), ("bee", "\u00e9te\u0301", "cat")):
        assert not initialize_from(tmp_path / "w.safetensors", other(model.config), names).new


def test_without_names_the_head_is_taken_as_it_is(tmp_path: Path, model: ILlama, meta: Meta) -> None:
    save_weights(tmp_path / "w.safetensors", model.state_dict(), dataclasses.replace(meta, classes=()))
    target = other(model.config)
    assert not initialize_from(tmp_path / "w.safetensors", target, ("x", "y", "z")).new


def test_weights_without_a_head_and_a_model_without_one(model: ILlama) -> None:
    headless = other(model.config, num_classes=0)
    report = adapt_state_dict(model.state_dict(), headless)
    assert report.unexpected == ("head.weight", "head.bias")
    assert "not used: head.weight, head.bias" in report.description
    target = other(model.config)
    report = adapt_state_dict(headless.state_dict(), target)
    assert report.new == ("head.weight", "head.bias")
    assert "absent in the file" in report.description
    assert torch.equal(target.cls_token, model.cls_token)


@pytest.mark.parametrize("size", [16, (8, 12), (4, 20)])
def test_the_position_embedding_follows_the_image_size(model: ILlama, size: int | tuple[int, int]) -> None:
    target = other(model.config, img_size=size)
    report = adapt_state_dict(model.state_dict(), target)
    assert report.resized == ("pos_embed",)
    expected = resize_position(model.pos_embed, (4, 4), target.config.grid, "last")
    assert torch.equal(target.pos_embed, expected)


def test_the_grid_of_the_files_own_description_is_used(tmp_path: Path, model: ILlama) -> None:
    wide = other(model.config, img_size=(4, 16))  # 2 x 8 patches: as many as the 4 x 4 of the target
    save_weights(tmp_path / "w.safetensors", wide.state_dict(), Meta(config=wide.config))
    target = other(model.config, seed=2)
    report = initialize_from(tmp_path / "w.safetensors", target)
    assert report.resized == ("pos_embed",)
    assert torch.equal(target.pos_embed, resize_position(wide.pos_embed, (2, 8), (4, 4), "last"))
    assert not torch.equal(target.pos_embed, wide.pos_embed)


def test_the_class_tokens_row_is_where_the_files_own_description_says(model: ILlama) -> None:
    first, target = other(model.config, cls_position="first"), other(model.config, img_size=16)
    adapt_state_dict(first.state_dict(), target, first.config)
    assert torch.equal(target.pos_embed, resize_position(first.pos_embed, (4, 4), (8, 8), "first"))


def test_an_unknown_grid_that_is_no_square_is_refused(model: ILlama) -> None:
    wide = other(model.config, img_size=(4, 6))
    with pytest.raises(UserError, match="6 patch rows, which is no square grid"):
        adapt_state_dict(wide.state_dict(), other(model.config))


@pytest.mark.parametrize(("old", "new"), [(14, 24), (24, 14), (4, 6)])
def test_the_published_resize_is_reproduced(golden: Path, model: ILlama, old: int, new: int) -> None:
    """A file without description: its grid is taken to be square, the class row to be the last."""
    vectors = load_file(golden / "resize.safetensors")
    wide = dataclasses.replace(model.config, embed_dim=32)
    state = other(wide, img_size=2 * old).state_dict() | {"pos_embed": vectors[f"{old}to{new}.in"]}
    target = other(wide, img_size=2 * new)
    adapt_state_dict(state, target)
    expected = vectors[f"{old}to{new}.out"]
    assert (target.pos_embed - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize(
    ("edits", "first"),
    [
        ({"embed_dim": 16}, r"cls_token is \(1, 1, 16\) in the file and \(1, 1, 8\) in the model"),
        ({"depth": 3}, r"blocks\.2\.\S+ is \(8,\) in the file and absent in the model"),
        ({"depth": 1}, r"blocks\.1\.\S+ is absent in the file and \(8,\) in the model"),
        ({"patch_size": 4}, r"patch_embed\.proj\.weight is \(8, 1, 4, 4\) in the file and \(8, 1, 2, 2\)"),
        ({"ffn": "mlp"}, r"blocks\.0\.mlp\.fc1\.weight is \(32, 8\)"),
    ],
)
def test_another_architecture_is_refused_and_nothing_is_loaded(
    model: ILlama, edits: dict[str, object], first: str
) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=rf"another architecture: {first}") as caught:
        adapt_state_dict(other(model.config, **edits).state_dict(), model)
    assert "\n" not in str(caught.value)
    assert ("other tensors differ" in str(caught.value)) == ("patch_size" not in edits)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_resnet_is_no_llama(model: ILlama) -> None:
    with pytest.raises(UserError, match="absent in the file"):
        adapt_state_dict({"conv1.weight": torch.zeros(64, 3, 7, 7)}, model)


def test_another_function_of_the_same_shapes_is_said(model: ILlama) -> None:
    source = dataclasses.replace(model.config, mask="none", drop_path=0.3)
    report: LoadReport = adapt_state_dict(model.state_dict(), other(model.config), source)
    assert report.differences == ("mask: none -> causal",)
    assert "mask: none -> causal" in report.description


def test_init_from_names_the_file(tmp_path: Path, model: ILlama) -> None:
    torch.save({"model": other(model.config, depth=4).state_dict()}, tmp_path / "deep.pth")
    with pytest.raises(UserError, match=r"deep\.pth does not fit: weights of another architecture"):
        initialize_from(tmp_path / "deep.pth", model)


def test_a_run_is_a_source_too(tmp_path: Path, model: ILlama) -> None:
    meta = Meta(config=model.config)
    save_checkpoint(tmp_path, "last", model_state=model.state_dict(), training_state={}, meta=meta)
    target = other(model.config)
    assert len(initialize_from(tmp_path, target).matched) == len(model.state_dict())
    assert torch.equal(target.cls_token, model.cls_token)
