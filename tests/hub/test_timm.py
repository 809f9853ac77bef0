"""What people who come from timm expect, and what they have without it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import illama
from illama.optional import import_timm

timm = import_timm()


def test_registered() -> None:
    assert timm.list_models("illama*") == ["illama_base", "illama_large", "illama_small", "illama_tiny"]
    assert timm.list_models("visionllama*") == ["visionllama_base", "visionllama_large", "visionllama_small"]


def test_create_model_takes_the_fields_of_the_configuration() -> None:
    model = timm.create_model(
        "illama_tiny",
        num_classes=10,
        img_size=32,
        patch_size=4,
        in_chans=1,
        mask_mode="pre_softmax",
        drop_path_rate=0.1,
    )
    assert isinstance(model, illama.ILlama)
    config = model.config
    assert (config.num_classes, config.img_size, config.in_chans, config.drop_path) == (10, 32, 1, 0.1)
    assert config.mask_mode == "pre_softmax"
    assert model(torch.zeros(1, 1, 32, 32)).shape == (1, 10)
    with pytest.raises(TypeError, match="no argument 'atention'"):
        timm.create_model("illama_tiny", atention="sdpa")


def test_parameters_of_the_peer() -> None:
    counts = {"small": 21_961_192, "base": 86_388_712, "large": 310_342_632}
    for size, count in counts.items():
        with torch.device("meta"):
            model = timm.create_model(f"visionllama_{size}")
        assert sum(p.numel() for p in model.parameters()) == count


def test_classifier_protocol() -> None:
    model = timm.create_model("illama_tiny", img_size=32, num_classes=10)
    assert model.get_classifier() is model.head
    tokens = model.forward_features(torch.zeros(2, 3, 32, 32))
    assert tokens.shape == (2, 5, 192)
    assert model.forward_head(tokens, pre_logits=True).shape == (2, model.num_features)
    model.reset_classifier(0)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 192)
    assert timm.create_model("illama_tiny", img_size=32, num_classes=0)(torch.zeros(1, 3, 32, 32)).shape == (1, 192)


def test_features_only() -> None:
    model = timm.create_model("illama_tiny", features_only=True, img_size=(32, 64), out_indices=(3, 7))
    maps = model(torch.zeros(1, 3, 32, 64))
    assert [m.shape for m in maps] == [(1, 192, 2, 4)] * 2
    assert model.feature_info.channels() == [192, 192]
    assert model.feature_info.reduction() == [16, 16]


@pytest.mark.parametrize(
    ("img_size", "crop_pct", "crop_mode"), [(32, 1.0, "center"), (224, 0.875, "center"), (384, 1.0, "squash")]
)
def test_data_config(img_size: int, crop_pct: float, crop_mode: str) -> None:
    import timm.data

    model = timm.create_model("illama_tiny", img_size=img_size)
    config = timm.data.resolve_data_config(model=model)
    assert config["input_size"] == (3, img_size, img_size)
    assert (config["crop_pct"], config["crop_mode"], config["interpolation"]) == (crop_pct, crop_mode, "bicubic")
    assert config["mean"] == (0.485, 0.456, 0.406)


def test_timm_optimizer_groups() -> None:
    from timm.optim import param_groups_layer_decay, param_groups_weight_decay

    model = timm.create_model("illama_tiny", img_size=32)
    plain = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    assert sum(len(group["params"]) for group in plain) == len(list(model.parameters()))
    assert len(param_groups_layer_decay(model, 0.05, layer_decay=0.5)) > 12


def in_a_fresh_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_import_is_quiet_and_loads_no_torch() -> None:
    out = in_a_fresh_process(
        "import sys, illama\n"
        "assert not {'torch', 'numpy', 'timm', 'pydantic', 'matplotlib'} & set(sys.modules)\n"
        "illama.ModelConfig\n"
        "assert 'torch' not in sys.modules"
    )
    assert out == ""


@pytest.mark.parametrize("order", ["import timm, illama", "import illama; import timm.data"])
def test_registration_does_not_depend_on_the_order(order: str) -> None:
    first = "from illama.optional import torchvision_ready; torchvision_ready(); import sys; del sys.modules['illama']"
    code = f"{first}\n{order}\nimport timm\nassert timm.is_model('illama_tiny')\nimport timm.data"
    in_a_fresh_process(code)


def test_model_and_training_loop_work_without_timm(tmp_path: Path) -> None:
    toy = ["model.embed_dim=8", "model.depth=1", "model.num_heads=1", "data.max_train_images=64", "schedule.epochs=2"]
    toy += ["schedule.warmup_epochs=1", "schedule.softness.cutoff_epochs=1", "data.max_eval_images=20"]
    in_a_fresh_process(
        "import sys\n"
        "sys.modules['timm'] = sys.modules['torchvision'] = None\n"  # importing them raises now
        "import illama, torch\n"
        "model = illama.ILlama(illama.ModelConfig(img_size=32, depth=1))\n"
        "assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)\n"
        f"result = illama.train(illama.load_recipe('digits_micro', {toy!r}), {str(tmp_path / 'run')!r}, device='cpu')\n"
        "assert result.steps == 2\n"
    )
