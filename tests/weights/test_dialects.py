"""Networks of timm, transformers and VisionLLaMA become ours: the same logits in double precision."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from illama.data import EvalTransform
from illama.data.imagenet import names, wnids
from illama.errors import UserError
from illama.models import ILlama, roadmap_config
from illama.optional import import_timm
from illama.weights import initialize_from, load_model
from illama.weights.dialects import HUGGINGFACE, OURS, VISIONLLAMA, translate
from tests.golden.common import load as load_golden
from tests.golden.common import metadata, relative_l2
from tests.weights.foreign_files import huggingface_state, random_state, save_folder

TOLERANCE = 1e-10  # relative L2 in double precision, as for the golden files
VIT = roadmap_config("vit", "tiny", img_size=32, patch_size=8, depth=2, num_classes=7)
HF_CONFIG: dict[str, Any] = {
    "model_type": "vit",
    "image_size": 32,
    "num_attention_heads": 3,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "id2label": {str(i): f"label {i}" for i in range(7)},
}
HF_PROCESSOR: dict[str, Any] = {
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 2,
    "size": {"height": 32, "width": 32},
}


def timm_network(name: str, **arguments: Any) -> torch.nn.Module:
    """A network of timm with weights that are far from their initial values, as float32 numbers."""
    network = import_timm().create_model(name, depth=3, **arguments)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return network.eval()


def assert_same_logits(ours: ILlama, theirs: Any, size: tuple[int, int]) -> None:
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        assert relative_l2(ours.double()(images), theirs(images)) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "img_size"),
    [
        ("vit_tiny_patch16_224", 64),
        ("deit_tiny_patch16_224", 64),
        ("deit3_small_patch16_224", 64),  # no row for the class token, LayerScale
        ("vit_small_patch14_dinov2", 56),  # LayerScale, no head
    ],
)
def test_a_plain_file_of_timm(tmp_path: Path, name: str, img_size: int, caplog: pytest.LogCaptureFixture) -> None:
    theirs = timm_network(name, img_size=img_size)
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    ours, meta = load_model(tmp_path / "w.pth")
    assert_same_logits(ours, theirs.double(), (img_size, img_size))
    assert (meta.config.ffn, meta.config.mask, meta.config.img_size) == ("mlp", "none", img_size)
    assert meta.config.num_classes == theirs.num_classes  # type: ignore[comparison-overlap]
    assert meta.classes == (wnids() if meta.config.num_classes == 1000 else ())
    assert "taken for a ViT with" in caplog.text  # what the file does not tell is said


@pytest.mark.parametrize("img_size", [64, (32, 64)])
@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_a_hub_folder_of_timm(tmp_path: Path, img_size: Any, ending: str, caplog: pytest.LogCaptureFixture) -> None:
    """As timm writes it: the grid, the crop and the normalisation come from config.json."""
    theirs = timm_network("deit3_small_patch16_224", img_size=img_size, num_classes=5)
    size = theirs.patch_embed.img_size  # type: ignore[union-attr]
    cfg = {"input_size": [3, *size], "crop_pct": 0.95, "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5]}
    config = {"architecture": "deit3_small_patch16_224", "num_classes": 5, "pretrained_cfg": cfg}
    folder = save_folder(tmp_path / "hub", theirs.state_dict(), config)
    if ending == "bin":
        (folder / "model.safetensors").unlink()
        torch.save(theirs.state_dict(), folder / "pytorch_model.bin")
    ours, meta = load_model(folder)
    assert_same_logits(ours, theirs.double(), size)  # type: ignore[arg-type]
    assert meta.config.height_width == size
    expected = EvalTransform(size, 0.95, (0.1, 0.2, 0.3), (0.5, 0.5, 0.5), "crop")  # type: ignore[arg-type]
    assert EvalTransform.from_dict(meta.eval_transform or {}) == expected
    assert caplog.text == ""  # nothing had to be assumed


def test_a_folder_that_timm_itself_writes(tmp_path: Path) -> None:
    from timm.models import save_for_hf

    theirs = timm_network("vit_tiny_patch16_384", img_size=48, num_classes=4)
    save_for_hf(theirs, tmp_path / "hub", safe_serialization=True)
    ours, meta = load_model(tmp_path / "hub")
    assert_same_logits(ours, theirs.double(), (48, 48))
    assert meta.eval_transform is not None
    assert meta.eval_transform["mean"] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("pool", ["avg", "token"])
def test_what_timms_arguments_say_of_the_function_is_heard(tmp_path: Path, pool: str) -> None:
    theirs = timm_network("vit_tiny_patch16_224", img_size=64, num_classes=7, global_pool=pool, fc_norm=False)
    arguments = {"img_size": 64, "global_pool": pool, "fc_norm": False}
    config = {"architecture": "vit_tiny_patch16_224", "model_args": arguments}
    folder = save_folder(tmp_path / "timm", theirs.state_dict(), config)
    assert_same_logits(load_model(folder)[0], theirs.double(), (64, 64))
    (folder / "config.json").write_text(json.dumps(config | {"model_args": arguments | {"act_layer": "quick_gelu"}}))
    with pytest.raises(UserError, match="act_layer 'quick_gelu' is not supported"):
        load_model(folder)


@pytest.mark.parametrize("version", [4, 5])
def test_transformers_vit(tmp_path: Path, version: int) -> None:
    """q, k and v are joined; the epsilon of its norms is 1e-12."""
    config = dataclasses.replace(VIT, norm_eps=1e-12)
    state = random_state(config)
    direct = ILlama(config).eval()
    direct.load_state_dict(state)
    theirs = huggingface_state(state, config.depth, version)
    folder = save_folder(tmp_path / "hf", theirs, HF_CONFIG, preprocessor_config=HF_PROCESSOR)
    ours, meta = load_model(folder)
    assert meta.config == config
    assert_same_logits(ours, direct.double(), (32, 32))
    assert meta.classes == tuple(f"label {i}" for i in range(7))
    half = (0.5, 0.5, 0.5)
    expected = EvalTransform((32, 32), 1.0, half, half, "warp", interpolation="bilinear")
    assert EvalTransform.from_dict(meta.eval_transform or {}) == expected


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
def test_transformers_own_network(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    theirs = ViTForImageClassification(
        ViTConfig(hidden_size=192, num_hidden_layers=2, num_attention_heads=3, intermediate_size=768, image_size=32)
    )
    theirs.save_pretrained(tmp_path / "hf")
    ours, _ = load_model(tmp_path / "hf")
    exact = theirs.double().eval()
    assert_same_logits(ours, lambda images: exact(images).logits, (32, 32))


def test_weights_of_transformers_need_their_config(tmp_path: Path) -> None:
    torch.save(huggingface_state(random_state(VIT), 2), tmp_path / "w.bin")
    with pytest.raises(UserError, match=r"need the config\.json that belongs to them"):
        load_model(tmp_path / "w.bin")


def test_an_encoder_without_head_gives_features(tmp_path: Path) -> None:
    state = huggingface_state(random_state(VIT), 2)
    bare = {name.removeprefix("vit."): tensor for name, tensor in state.items() if "classifier" not in name}
    found = translate(bare | {"pooler.dense.weight": torch.zeros(192, 192)})
    assert found.dialect == HUGGINGFACE
    assert found.unused == ("pooler.dense.weight",)
    folder = save_folder(tmp_path / "hf", bare, {**HF_CONFIG, "id2label": {}})
    ours, meta = load_model(folder)
    assert (meta.config.num_classes, meta.classes, meta.eval_transform) == (0, (), None)
    assert ours(torch.zeros(1, 3, 32, 32)).shape == (1, 192)


def test_other_networks_of_transformers_are_refused() -> None:
    state = {"deit.embeddings.patch_embeddings.projection.weight": torch.ones(192, 3, 16, 16)}
    with pytest.raises(UserError, match=r"^deit\.embeddings.* of neither ViTForImageClassification nor ViTModel"):
        translate(state)


def test_a_torn_attention_is_named() -> None:
    state = huggingface_state(random_state(VIT), 2)
    del state["vit.encoder.layer.1.attention.attention.key.weight"]
    with pytest.raises(UserError, match=r"key is missing.*blocks\.1\.attn\.qkv\.weight"):
        translate(state)


def test_visionllama_as_published(tmp_path: Path) -> None:
    """The golden network under its public names, and its golden logits."""
    golden = load_golden("visionllama_micro.safetensors")
    public = {name.removeprefix("param."): tensor for name, tensor in golden.items() if name.startswith("param.")}
    assert translate(public).dialect == VISIONLLAMA
    ours = json.loads(metadata("visionllama_micro.safetensors")["names"])
    assert set(translate(public).state) == set(ours.values())
    folder = save_folder(tmp_path / "vl", public, {"architecture": "x", "model_args": {"img_size": 32, "num_heads": 3}})
    model, meta = load_model(folder)
    assert (meta.config.position, meta.config.norm) == ("rope2d", "layer")
    with torch.no_grad():
        # the stored float32 weights against logits of the double ones
        assert relative_l2(model.double()(golden["input"].double()), golden["f64/logits"]) <= 1e-6


def test_only_vits_get_a_row_for_the_class_token() -> None:
    """15 patches and a class token make 16 rows, which is a square too: the image size decides where it is known."""
    swiglu = {
        "cls_token": torch.zeros(1, 1, 4),
        "pos_embed": torch.zeros(1, 16, 4),
        "blocks.0.mlp.fc3.weight": Tensor(),
    }
    patches = {"patch_embed.proj.weight": torch.zeros(4, 3, 8, 8)}
    assert translate(swiglu | patches).state["pos_embed"].shape[1] == 16
    vit = {name: tensor for name, tensor in (swiglu | patches).items() if "fc3" not in name}
    assert translate(vit).dialect == OURS
    assert translate(vit).state["pos_embed"].shape[1] == 17
    assert translate(vit, (32, 32)).state["pos_embed"].shape[1] == 17
    assert translate(vit, (24, 40)).state["pos_embed"].shape[1] == 16


def test_as_many_rows_as_the_models_need_no_other(tmp_path: Path) -> None:
    """3 x 5 patches and the class token make 16 rows, which without the model would be 4 x 4 patches alone."""
    config = dataclasses.replace(VIT, img_size=(24, 40))
    state = random_state(config)
    torch.save(state, tmp_path / "w.pth")
    model = ILlama(config)
    assert initialize_from(tmp_path / "w.pth", model).resized == ()
    assert torch.equal(model.pos_embed, state["pos_embed"])


def test_training_starts_from_weights_of_others(tmp_path: Path) -> None:
    state = random_state(VIT)
    torch.save(huggingface_state(state, 2), tmp_path / "w.bin")
    other = ILlama(dataclasses.replace(VIT, num_classes=3, img_size=64))
    report = initialize_from(tmp_path / "w.bin", other)
    assert report.resized == ("pos_embed",)
    assert report.new == ("head.weight", "head.bias")
    assert torch.equal(other.blocks[1].attn.qkv.weight, state["blocks.1.attn.qkv.weight"])  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("processor", "mode", "crop_pct"),
    [
        ({"size": {"shortest_edge": 36}, "do_center_crop": True, "crop_size": 32}, "crop", 32 / 36),
        ({"size": {"height": 36, "width": 36}, "do_center_crop": True, "crop_size": 32}, "warp_crop", 32 / 36),
        ({"size": 32, "do_normalize": False}, "warp", 1.0),
    ],
)
def test_ways_of_transformers_to_prepare_images(
    tmp_path: Path, processor: dict[str, Any], mode: str, crop_pct: float
) -> None:
    state = huggingface_state(random_state(VIT), 2)
    folder = save_folder(tmp_path / "hf", state, HF_CONFIG, preprocessor_config={"resample": 3, **processor})
    transform = EvalTransform.from_dict(load_model(folder)[1].eval_transform or {})
    assert (transform.mode, transform.interpolation) == (mode, "bicubic")
    assert transform.crop_pct == pytest.approx(crop_pct)
    assert transform.std == ((1.0,) * 3 if "do_normalize" in processor else (0.5,) * 3)
    image = Image.linear_gradient("L").resize((90, 40)).convert("RGB")
    width, height = {"crop": (81, 36), "warp_crop": (36, 36), "warp": (32, 32)}[mode]
    whole = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - 32) / 2), (height - 32) // 2
    assert transform.geometry(image).tobytes() == whole.crop((left, top, left + 32, top + 32)).tobytes()


def test_what_the_files_of_transformers_leave_out_means_its_defaults(tmp_path: Path) -> None:
    given = {key: HF_CONFIG[key] for key in ("model_type", "image_size", "num_attention_heads")}
    shuffled = {str(i): f"label {i}" for i in (3, 0, 6, 1, 5, 2, 4)}
    folder = save_folder(
        tmp_path / "hf",
        huggingface_state(random_state(VIT), 2),
        {**given, "id2label": shuffled},
        preprocessor_config={"size": 32},
    )
    meta = load_model(folder)[1]
    assert meta.config.norm_eps == 1e-12
    assert meta.classes == tuple(f"label {i}" for i in range(7))
    half = (0.5, 0.5, 0.5)
    expected = EvalTransform((32, 32), 1.0, half, half, "warp", interpolation="bilinear")
    assert EvalTransform.from_dict(meta.eval_transform or {}) == expected


@pytest.mark.parametrize("inside", [True, False])
def test_what_the_files_of_timm_leave_out_means_its_defaults(tmp_path: Path, inside: bool) -> None:
    names_of_classes = {"label_names": list("abcdefg")}
    config = {"architecture": "x", "model_args": {"img_size": 32, "num_heads": 3}}
    config |= {"pretrained_cfg": names_of_classes} if inside else {"pretrained_cfg": {}} | names_of_classes
    meta = load_model(save_folder(tmp_path / "timm", random_state(VIT), config))[1]
    assert meta.classes == tuple("abcdefg")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = EvalTransform((32, 32), 0.875, mean, std, "crop", interpolation="bicubic")
    assert EvalTransform.from_dict(meta.eval_transform or {}) == expected


def test_imagenet_labels_of_transformers_become_wordnet_ids(tmp_path: Path) -> None:
    """So that ImageNet's own folders can be read."""
    config = dataclasses.replace(VIT, num_classes=1000)
    labels = {str(i): name for i, name in enumerate(names())}
    folder = save_folder(tmp_path / "hf", huggingface_state(random_state(config), 2), {**HF_CONFIG, "id2label": labels})
    assert load_model(folder)[1].classes == wnids()


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ({"model_type": "swin"}, "model_type 'swin' is not supported"),
        ({"hidden_act": "quick_gelu"}, "hidden_act 'quick_gelu' is not supported; allowed: gelu"),
        ({"image_size": "large"}, "image size 'large' is not supported; allowed: pixels"),
        ({"id2label": {"a": "b"}}, "does not read like a description"),
        ({"id2label": {"0": "a"}}, "names 1 classes, the head has 7"),
        ({"num_attention_heads": 5}, "num_heads: 5 does not divide"),
        ({"model_type": None}, "model_type None"),
    ],
)
def test_a_config_that_does_not_fit(tmp_path: Path, edits: dict[str, Any], expected: str) -> None:
    folder = save_folder(tmp_path / "hf", huggingface_state(random_state(VIT), 2), HF_CONFIG | edits)
    with pytest.raises(UserError, match=expected) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ({"resample": 1}, "resample 1 is not supported; allowed: 2"),
        ({"size": {"height": 48, "width": 48}}, r"size \(48, 48\) is not supported; allowed: the network's \(32, 32\)"),
        ({"image_mean": [0.5], "image_std": [0.5]}, "normalised in 1 channels, it takes 3"),
        ({"size": {"shortest_edge": 20}, "do_center_crop": True, "crop_size": 32}, r"crop_pct 1\.6 is not supported"),
        ({"image_mean": [0.5]}, "data.mean and data.std have 1 and 3 values"),
        ({"image_std": [0.5, 0.5, 0.0]}, "at least 1e-06"),
        ({"image_mean": ["a", "b", "c"]}, "are to be finite numbers"),
        ({"do_resize": False}, "do_resize False is not supported"),
        ({"do_rescale": False}, "do_rescale False is not supported"),
        ({"rescale_factor": 1 / 127.5}, r"rescale_factor 0\.0078.* is not supported; allowed: 1/255"),
        ({"size": {"height": 36, "width": 40}, "do_center_crop": True, "crop_size": 32}, "square before the crop"),
    ],
)
def test_images_that_cannot_be_prepared(tmp_path: Path, edits: dict[str, Any], expected: str) -> None:
    state = huggingface_state(random_state(VIT), 2)
    folder = save_folder(tmp_path / "hf", state, HF_CONFIG, preprocessor_config=HF_PROCESSOR | edits)
    with pytest.raises(UserError, match=expected):
        load_model(folder)


def test_a_folder_without_weights_and_one_without_json(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "hf", huggingface_state(random_state(VIT), 2), HF_CONFIG)
    for text in ("{not json", "[" * 100_000):
        (folder / "config.json").write_text(text)
        with pytest.raises(UserError, match="not readable JSON"):
            load_model(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds config\.json, but none of model\.safetensors"):
        load_model(folder)
    shutil.rmtree(folder)
