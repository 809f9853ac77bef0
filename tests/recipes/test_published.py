"""Every packaged recipe loads and comes back from its own YAML; every published one holds its table's values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from illama.models import VARIANTS
from illama.recipes import list_recipes, load_recipe, plan_batches

# The paper's Tables 12 to 16, written out here a second time so that a recipe cannot drift unnoticed.
COLUMNS = (
    "variant classes px epochs batch lr weight_decay warmup drop_path mixup cutmix shape cutoff".split()  # noqa: SIM905
)
PUBLISHED: dict[str, tuple[Any, ...]] = {
    # Table 13, left: ImageNet-1K from scratch
    "imagenet1k_tiny": ("tiny", 1000, 224, 300, 4096, 4e-3, 0.05, 5, 0.0, 0.1, 0.1, "constant", 50),
    "imagenet1k_small": ("small", 1000, 224, 300, 4096, 4e-3, 0.05, 5, 0.1, 0.5, 0.5, "linear", 50),
    "imagenet1k_base": ("base", 1000, 224, 300, 4096, 4e-3, 0.05, 50, 0.4, 0.95, 1.0, "linear", 25),
    # Table 13, right: ImageNet-21K-P
    "imagenet21k_base": ("base", 10450, 224, 90, 4096, 1e-3, 0.01, 5, 0.1, 0.8, 1.0, "constant", 30),
    "imagenet21k_large": ("large", 10450, 224, 90, 4096, 1e-3, 0.01, 5, 0.1, 0.8, 1.0, "constant", 30),
    # Table 14: fine-tuning
    "imagenet1k_base_384": ("base", 1000, 384, 30, 512, 8e-5, 1e-8, 0, 0.8, 0, 0, "constant", 0),
    "imagenet1k_base_from21k": ("base", 1000, 224, 30, 512, 8e-5, 1e-8, 0, 0.2, 0, 0, "constant", 0),
    "imagenet1k_large_from21k": ("large", 1000, 224, 30, 512, 6e-5, 1e-8, 0, 0.3, 0, 0, "constant", 0),
    "imagenet1k_base_from21k_384": ("base", 1000, 384, 30, 512, 1.1e-4, 1e-8, 0, 0.2, 0, 0, "constant", 0),
    "imagenet1k_large_from21k_384": ("large", 1000, 384, 30, 512, 3.5e-5, 1e-8, 0, 0.3, 0, 0, "constant", 0),
    # Table 12: the roadmap, without soft mask
    "roadmap_tiny": ("tiny", 1000, 224, 300, 4096, 4e-3, 0.05, 50, 0.0, 0.8, 1.0, "constant", 0),
    "roadmap_base": ("base", 1000, 224, 300, 4096, 4e-3, 0.05, 50, 0.4, 0.8, 1.0, "constant", 0),
    # Table 15: quantization-aware training
    "qat_tiny": ("tiny", 1000, 224, 300, 4096, 3e-3, 0.05, 5, 0.0, 0.1, 0.1, "constant", 50),
    "qat_small": ("small", 1000, 224, 300, 4096, 4e-3, 0.05, 5, 0.1, 0.5, 0.5, "linear", 50),
    # Table 16: CIFAR transfer (px, weight decay, mixup and cutmix are not from there; see the recipes)
    "cifar10_transfer_tiny": ("tiny", 10, 224, 300, 1024, 2e-3, 0.05, 50, 0.0, 0.8, 1.0, "linear", 25),
    "cifar100_transfer_tiny": ("tiny", 100, 224, 300, 1024, 2e-3, 0.05, 50, 0.0, 0.8, 1.0, "linear", 50),
}
FROM_LLAMA2 = ["imagenet1k_tiny", "imagenet1k_small", "imagenet1k_base"]
OWN = ["cifar10_micro", "cifar10_tiny", "cifar10_tiny_fast", "digits_micro"]
IMAGES = {"imagenet1k": 1281167, "imagenet21k": 11060223, "roadmap": 1281167, "qat": 1281167, "cifar10": 50000}


def test_nothing_is_packaged_that_no_table_knows() -> None:
    assert list_recipes() == sorted([*PUBLISHED, *(f"{name}_from_llama2" for name in FROM_LLAMA2), *OWN])


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipe_holds_its_table(name: str) -> None:
    recipe = load_recipe(name)
    want = dict(zip(COLUMNS, PUBLISHED[name], strict=True))
    size, soft = VARIANTS[want["variant"]], recipe.schedule.softness
    model, schedule, optimizer = recipe.model, recipe.schedule, recipe.optimizer
    assert (model.embed_dim, model.depth, model.num_heads) == (size.embed_dim, size.depth, size.num_heads)
    assert (model.num_classes, model.img_size, model.drop_path) == (want["classes"], want["px"], want["drop_path"])
    assert (schedule.epochs, schedule.warmup_epochs) == (want["epochs"], want["warmup"])
    assert (optimizer.lr, optimizer.weight_decay) == (want["lr"], want["weight_decay"])
    assert recipe.train.total_batch == optimizer.lr_batch == want["batch"]
    assert (recipe.augment.mixup, recipe.augment.cutmix) == (want["mixup"], want["cutmix"])
    assert (soft.mode, soft.shape, soft.cutoff_epochs) == ("soft", want["shape"], want["cutoff"])


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipe_holds_the_common_values(name: str) -> None:
    recipe = load_recipe(name)
    optimizer, augment, train = recipe.optimizer, recipe.augment, recipe.train
    assert (optimizer.name, optimizer.betas, optimizer.eps, optimizer.min_lr) == ("adamw", (0.9, 0.999), 1e-8, 1e-6)
    assert (optimizer.clip_grad, optimizer.layer_decay, train.ema_decay) == (None, None, None)
    assert (train.precision, train.loss, augment.label_smoothing) == ("float32", "auto", 0.1)
    assert (augment.crop, augment.crop_scale, augment.crop_ratio) == ("auto", (0.08, 1.0), (0.75, 4 / 3))
    assert (augment.hflip, augment.randaugment, augment.color_jitter) == (0.5, "rand-m9-mstd0.5-inc1", 0)
    assert (augment.erase_prob, augment.erase_mode, augment.erase_count) == (0.25, "pixel", 1)
    assert (augment.mix_prob, augment.mix_switch_prob) == (1.0, 0.5)
    assert (recipe.data.mean, recipe.data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (recipe.data.crop_pct, recipe.data.eval_split) == (0.875, "auto")
    family = "cifar10" if name.startswith("cifar") else name.split("_")[0]
    assert recipe.data.num_train_images == IMAGES[family]
    drop = recipe.schedule.drop_path
    assert (drop.mode, drop.shape, drop.cutoff_epochs) == ("standard", "constant", 0)
    assert recipe.schedule.softness.value == 1.0


@pytest.mark.parametrize("name", FROM_LLAMA2)
def test_start_from_llama2_changes_nothing_but_the_name(name: str) -> None:
    assert load_recipe(f"{name}_from_llama2", [f"name={name}"]) == load_recipe(name)


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.startswith("imagenet1k_")][:3])
def test_batch_is_the_authors_on_eight_devices(name: str) -> None:
    plan = plan_batches(load_recipe(name), 8)
    assert (plan.device_batch, plan.accumulation, plan.total_batch, plan.lr) == (128, 4, 4096, 4e-3)


@pytest.mark.parametrize("name", list_recipes())
def test_recipe_comes_back_from_its_own_yaml(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml())
    assert load_recipe(file) == recipe
    assert recipe.name == name


@pytest.mark.parametrize("name", list_recipes())
def test_recipe_says_where_it_comes_from(name: str) -> None:
    import illama.recipes

    text = (Path(illama.recipes.__file__).parent / f"{name}.yaml").read_text()
    comment = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    for part in ("Source:", f"Command:  illama train {name}", "Hardware:", "Expected:"):
        assert part in comment


def test_small_data_recipes_are_what_they_say() -> None:
    digits, micro, tiny = (load_recipe(name) for name in ("digits_micro", "cifar10_micro", "cifar10_tiny"))
    assert (digits.data.name, digits.model.in_chans, digits.model.num_classes) == ("digits", 1, 10)
    assert digits.augment.hflip == 0  # a mirrored digit is another sign
    assert micro.model.height_width == tiny.model.height_width == (32, 32)
    assert (tiny.model.embed_dim, tiny.model.patch_size) == (192, 4)
