"""A saved model comes back as the same function, from whatever path stands for it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from illama.checkpoint import Meta, save_checkpoint, save_weights
from illama.errors import UserError
from illama.models import ILlama, ModelConfig
from illama.weights import load_model


def save(run: Path, tag: str, model: ILlama, meta: Meta) -> Path:
    return save_checkpoint(run, tag, model_state=model.state_dict(), training_state={}, meta=meta)


def test_the_function_comes_back(tmp_path: Path, model: ILlama, meta: Meta) -> None:
    folder = save(tmp_path, "last", model, meta)
    model.set_softness(meta.softness)
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        expected = model.eval()(images)
        for path in (tmp_path, folder, folder / "model.safetensors", str(tmp_path)):
            loaded, about = load_model(path)
            assert about == meta
            assert not loaded.training
            assert torch.equal(loaded(images), expected)


def test_weights_alone_are_recognised_by_their_tensors(tmp_path: Path) -> None:
    config = ModelConfig(img_size=32, depth=1, num_classes=3)
    model = ILlama(config).eval()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    loaded, about = load_model(tmp_path / "w.pth")
    assert about.config == config
    assert (about.classes, about.source, about.softness) == ((), None, 0.0)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        ({"depth": 3}, r"blocks\.2\.\S+ is absent in the file"),
        *(({key: number}, "a network of depth") for key, number in (("depth", 4000), ("img_size", 32000))),
        ({"num_classes": 10**6}, "a network of depth"),  # something enormous is refused before it is built
    ],
)
def test_a_description_that_contradicts_the_weights(
    tmp_path: Path, model: ILlama, meta: Meta, edits: dict[str, int], said: str
) -> None:
    other = dataclasses.replace(meta, config=dataclasses.replace(meta.config, **edits))  # type: ignore[arg-type]
    save_weights(tmp_path / "w.safetensors", model.state_dict(), other)
    with pytest.raises(UserError, match=f"contradicts its own description: {said}"):
        load_model(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        ({"in_chans": 2**62}, "in_chans: 4611686018427387904 is more than the 1024"),
        ({"patch_size": 2**20, "img_size": 2**20}, "patch_size: 1048576 is more than the 32768"),
        ({"img_size": [2**40, 2**40]}, "img_size: .* has a side of more than 32768 pixels"),
        ({"depth": 10**8}, "depth: 100000000 is more than the 4096"),
        ({"num_classes": 10**15}, "num_classes: 1000000000000000 is more than the 1000000"),
        ({"embed_dim": 10**30}, "embed_dim"),
    ],
)
def test_numbers_that_no_network_has_are_refused_by_name(
    edits: dict[str, Any], said: str, tmp_path: Path, model: ILlama, meta: Meta
) -> None:
    plain = json.loads(meta.to_json())
    plain["config"] |= edits
    save_file(model.state_dict(), tmp_path / "w.safetensors", metadata={"illama": json.dumps(plain)})
    with pytest.raises(UserError, match=rf"w.safetensors.*{said}"):
        load_model(tmp_path / "w.safetensors")


@pytest.mark.parametrize("key", ["recipe", "eval_transform"])
@pytest.mark.parametrize("number", ["-1e999", "NaN", "Infinity", "[{}, [1, 1e400]]"])
def test_numbers_that_are_not_finite_are_refused_wherever_they_stand(
    key: str, number: str, tmp_path: Path, model: ILlama, meta: Meta
) -> None:
    """JSON as Python reads it has them, and as illama writes it has not."""
    text = meta.to_json().replace(f'"{key}": ', f'"{key}": {{"odd": {number}}}, "x": ', 1)
    save_file(model.state_dict(), tmp_path / "w.safetensors", metadata={"illama": text})
    with pytest.raises(UserError, match=r"w.safetensors.*not finite"):
        load_model(tmp_path / "w.safetensors")


def test_class_names_are_as_many_as_the_head_has(tmp_path: Path, model: ILlama, meta: Meta) -> None:
    save_weights(tmp_path / "w.safetensors", model.state_dict(), dataclasses.replace(meta, classes=("ant", "bee")))
    with pytest.raises(UserError, match="it names 2 classes, the head has 3"):
        load_model(tmp_path / "w.safetensors")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_types_compute_in_float32(
    tmp_path: Path, model: ILlama, meta: Meta, dtype: torch.dtype
) -> None:
    state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    save_weights(tmp_path / "w.safetensors", state, meta)
    loaded, _ = load_model(tmp_path / "w.safetensors")
    assert all(torch.equal(tensor, state[name].float()) for name, tensor in loaded.state_dict().items())
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_damage_is_noticed(tmp_path: Path, model: ILlama, meta: Meta) -> None:
    file = save(tmp_path, "last", model, meta) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UserError, match=r"damaged: .*model\.safetensors"):
        load_model(tmp_path)
