"""Position resize, stochastic depth, weight-decay groups, and the optimizer trajectory."""

from __future__ import annotations

import pytest
import torch.nn.functional as F

from illama.models import ILlama, ModelConfig
from illama.models.position import resize_position
from illama.training.optim import build_adamw, param_groups, set_lr
from tests.golden.common import STORED_FLOAT32, load, micro_config, read_json, relative_l2


@pytest.mark.parametrize(("old", "new"), [(14, 24), (24, 14), (4, 6), (7, 7)])
def test_position_resize(old: int, new: int) -> None:
    stored = load("resize.safetensors")
    before, after = stored[f"{old}to{new}.in"], stored[f"{old}to{new}.out"]
    assert relative_l2(resize_position(before, (old, old), (new, new), "last"), after) < 5e-6
    first = resize_position(before.roll(1, dims=1), (old, old), (new, new), "first")
    assert relative_l2(first.roll(-1, dims=1), after) < 5e-6


@pytest.mark.parametrize("row", read_json("drop_path.json")["constructed"], ids=lambda r: f"{r['depth']}-{r['rate']}")
def test_drop_path_of_each_block(row: dict) -> None:
    config = ModelConfig(img_size=32, patch_size=16, embed_dim=4, num_heads=1, num_classes=2, depth=row["depth"])
    built_without = ILlama(config)
    built_without.set_drop_path(row["rate"])
    rates = [(block.drop_path1.rate, block.drop_path2.rate) for block in built_without.blocks]
    assert rates == [pytest.approx((expected, expected), abs=1e-7) for expected in row["per_block"]]


def test_weight_decay_groups() -> None:
    stored = {group["decay"]: set(group["names"]) for group in read_json("param_groups.json")["groups"]}
    groups = param_groups(ILlama(ModelConfig()), weight_decay=0.05)
    assert {group["weight_decay"] > 0: set(group["names"]) for group in groups} == stored


@pytest.mark.parametrize("accumulation", [1, 2])
def test_trajectory(accumulation: int) -> None:
    """24 micro-steps of AdamW in double: loss, and every parameter at the end."""
    row, stored = read_json("trajectory.json"), load("trajectory.safetensors")
    recipe, expected = row["recipe"], row["runs"][f"accum{accumulation}"]
    model = ILlama(micro_config("micro_square.safetensors")).double()
    start = load("micro_square.safetensors")
    model.load_state_dict({key[6:]: value for key, value in start.items() if key.startswith("param.")})
    groups = param_groups(model, recipe["weight_decay"])
    optimizer = build_adamw(groups, betas=tuple(recipe["betas"]), eps=recipe["eps"])

    losses = []
    for step, batch in enumerate(expected["batch_index"]):
        model.set_softness(expected["softness"][step])
        set_lr(optimizer, expected["lr"][step])
        loss = F.cross_entropy(model(stored["images"][batch].double()), stored["targets"][batch])
        losses.append(loss.item())
        (loss / accumulation).backward()
        if (step + 1) % accumulation == 0:
            optimizer.step()
            optimizer.zero_grad()
    assert losses == pytest.approx(expected["loss"], rel=1e-9)
    for name, parameter in model.named_parameters():
        tolerance = STORED_FLOAT32 if ".mlp.fc" in name else 1e-9
        assert relative_l2(parameter, stored[f"final.accum{accumulation}.{name}"]) < tolerance, name
