"""Conversion: identical tensors, the golden resize, a card, and nothing half-written."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import illama
from illama.checkpoint import Meta, save_weights
from illama.cli.main import main
from illama.data import EvalTransform
from illama.errors import UserError
from illama.export.convert import convert, parse_edits, parse_size
from illama.models import ILlama, ModelConfig, roadmap_config
from illama.models.position import resize_position
from illama.weights import load_model, read_weights
from illama.weights.published import PUBLISHED
from tests.golden.common import load as load_golden
from tests.golden.common import relative_l2
from tests.pictures import paint
from tests.weights.foreign_files import cheap_state, huggingface_state, random_state, save_like_the_authors

TINY = PUBLISHED["illama_tiny.in1k"]
CONFIG = ModelConfig(img_size=64, depth=2, num_classes=5)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Weights alone, of a small iLLaMA."""
    torch.save(random_state(CONFIG), tmp_path / "plain.pth")
    return tmp_path / "plain.pth"


def test_a_published_file_becomes_the_same_network_with_a_description(tmp_path: Path) -> None:
    state = cheap_state(TINY.config)
    done = convert(save_like_the_authors(tmp_path, TINY, state), tmp_path / "tiny.safetensors")
    kept, meta = read_weights(done.target)
    assert kept.keys() == state.keys()
    assert all(torch.equal(kept[name], tensor) for name, tensor in state.items())
    assert meta == done.meta
    assert meta is not None
    assert (meta.source, meta.config) == (TINY.name, TINY.config)
    assert load_model(done.target)[1] == meta
    assert len(done.report.matched) == len(state)
    card = done.card.read_text()
    for part in (TINY.file, "licence not stated", "5,701,096", "75.0 %", "75.000 %", "illama.load_model(", "n01440764"):
        assert part in card


def test_another_size_resizes_the_position_alone(tmp_path: Path) -> None:
    state = random_state(dataclasses.replace(TINY.config, depth=1))
    torch.save(state, tmp_path / "w.pth")
    for size, grid in ((384, (24, 24)), ((224, 384), (14, 24))):
        target = tmp_path / f"{grid[1]}_{grid[0]}.safetensors"
        done = convert(tmp_path / "w.pth", target, img_size=size)  # type: ignore[arg-type]
        kept, meta = read_weights(target)
        expected = resize_position(state["pos_embed"], (14, 14), grid, "last")
        assert torch.equal(kept["pos_embed"], expected)
        assert torch.equal(kept["pos_embed"][:, -1], state["pos_embed"][:, -1])  # the class token's row
        assert all(torch.equal(kept[name], tensor) for name, tensor in state.items() if name != "pos_embed")
        assert done.report.resized == ("pos_embed",)
        assert meta is not None
        assert meta.config.grid == grid
        transform = EvalTransform.from_dict(meta.eval_transform or {})
        assert (transform.img_size, transform.mode) == (meta.config.height_width, "warp")


def test_224_to_384_gives_the_golden_position(tmp_path: Path) -> None:
    golden = load_golden("resize.safetensors")
    config = ModelConfig(embed_dim=32, depth=1, num_heads=2, num_classes=2)
    torch.save(cheap_state(config) | {"pos_embed": golden["14to24.in"]}, tmp_path / "w.pth")
    convert(tmp_path / "w.pth", tmp_path / "out.safetensors", img_size=384, edits={"num_heads": 2})
    kept, _ = read_weights(tmp_path / "out.safetensors")
    assert relative_l2(kept["pos_embed"], golden["14to24.out"]) < 5e-6  # as tests/golden


def test_another_class_count_has_a_new_head_and_forgets_what_no_longer_holds(tmp_path: Path) -> None:
    state = cheap_state(TINY.config)
    source = save_like_the_authors(tmp_path, TINY, state)
    done = convert(source, tmp_path / "ten.safetensors", num_classes=10)
    assert done.report.new == ("head.weight", "head.bias")
    assert (done.meta.source, done.meta.classes) == (None, ())
    assert "not of this file" in done.card.read_text()
    model, _ = load_model(done.target)
    assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 10)
    again = convert(source, tmp_path / "again.safetensors", num_classes=10)
    assert again.target.read_bytes() == done.target.read_bytes()
    none = convert(source, tmp_path / "none.safetensors", num_classes=0)
    assert none.report.unexpected == ("head.weight", "head.bias")


def test_weights_of_transformers(tmp_path: Path) -> None:
    vit = roadmap_config("vit", "tiny", img_size=32, depth=2, num_classes=7, norm_eps=1e-12)
    state = random_state(vit)
    (tmp_path / "hf").mkdir()
    torch.save(huggingface_state(state, 2), tmp_path / "hf" / "pytorch_model.bin")
    (tmp_path / "hf" / "config.json").write_text(
        '{"model_type": "vit", "image_size": 32, "num_attention_heads": 3, "layer_norm_eps": 1e-12}'
    )
    done = convert(tmp_path / "hf", tmp_path / "vit.safetensors")
    kept, meta = read_weights(done.target)
    assert meta is not None
    assert meta.config == vit
    assert all(torch.equal(kept[name], tensor) for name, tensor in state.items())
    assert "epsilon 1e-12" in done.card.read_text()


@pytest.mark.parametrize(("transform", "mean"), [("half", 0.5), ("imagenet", 0.485)])
def test_the_way_to_look_at_images_can_be_said(transform: Any, mean: float, tmp_path: Path) -> None:
    """A folder of transformers without a preprocessor_config.json does not say it."""
    vit = roadmap_config("vit", "tiny", img_size=32, depth=2, num_classes=7, norm_eps=1e-12)
    torch.save(huggingface_state(random_state(vit), 2), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text('{"model_type": "vit", "image_size": 32, "num_attention_heads": 3}')
    images = paint(tmp_path / "d", {f"val/{n}": 1 for n in range(7)})
    silent = convert(tmp_path, tmp_path / "silent.safetensors")
    assert silent.meta.eval_transform is None
    with pytest.raises(UserError, match=r"--transform imagenet \(or half\)"):
        illama.predict(silent.target, images, device="cpu")
    done = convert(tmp_path, tmp_path / "vit.safetensors", transform=transform)
    assert done.meta.eval_transform is not None
    assert done.meta.eval_transform["mean"][0] == pytest.approx(mean)
    assert done.meta.eval_transform["img_size"] == [32, 32]
    assert all(one.problem is None for one in illama.predict(done.target, images, device="cpu"))


def test_the_card_holds_code_that_runs_and_no_markup_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meta = Meta(config=CONFIG, classes=("<b>x</b>", "a\nb", "\x1b[31m", "**bold**", "ok"))
    save_weights(tmp_path / "w.safetensors", random_state(CONFIG), meta)
    done = convert(tmp_path / "w.safetensors", tmp_path / "it's <mine>.safetensors", transform="half")
    card = done.card.read_text()
    assert "<b>" not in card
    assert "\x1b" not in card
    paint(tmp_path / "photos", {"a": 2})
    (tmp_path / "photos" / "a" / "0.png").rename(tmp_path / "photos" / "0.jpg")
    monkeypatch.chdir(tmp_path)
    code = card.partition("```python\n")[2].partition("```")[0]
    found: dict[str, Any] = {}
    exec(code, found)
    assert len(found["answers"]) == 1
    assert found["outputs"].shape == (1, 5)


def test_a_run_of_ours_keeps_what_travels_with_it(tmp_path: Path) -> None:
    meta = Meta(
        config=CONFIG, classes=tuple("abcde"), eval_transform={"mode": "crop"}, softness=0.5, recipe={"name": "x"}
    )
    save_weights(tmp_path / "own.safetensors", ILlama(CONFIG).state_dict(), meta)
    assert convert(tmp_path / "own.safetensors", tmp_path / "same.safetensors").meta == meta
    assert (tmp_path / "same.safetensors").stat().st_mode == (tmp_path / "same.md").stat().st_mode
    changed = convert(tmp_path / "own.safetensors", tmp_path / "pre.safetensors", edits={"mask_mode": "pre_softmax"})
    assert changed.meta.config.mask_mode == "pre_softmax"
    assert (changed.meta.recipe, changed.meta.softness, changed.meta.classes) == (None, 0.5, meta.classes)


def test_words_say_what_tensors_do_not_tell(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out.safetensors"
    words = ["convert", str(plain), str(target), "model.num_heads=6", "model.norm_eps=1e-5", "--img-size", "32x64"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "pos_embed resized from (1, 17, 192) to (1, 9, 192)" in said
    assert f"{target}: 32 x 64 px, 5 classes, width 192, depth 2, 6 heads" in said
    with safe_open(target, framework="pt") as file:
        assert "illama" in file.metadata()
    model, meta = illama.load_model(target)
    assert (meta.config.num_heads, meta.config.norm_eps) == (6, 1e-5)
    assert model(torch.zeros(1, 3, 32, 64)).shape == (1, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.md", "out.safetensors", "plain.pth"]


def test_a_full_disk_leaves_nothing(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from illama.export import convert as module

    def save(path: Path, *_: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_weights", save)
    with pytest.raises(UserError, match="No space left on device"):
        convert(plain, tmp_path / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["plain.pth"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["absent.pth", "OUT"], "there is no run, checkpoint or weights file absent.pth"),
        (["illama_tiny.in1", "OUT"], "did you mean illama_tiny.in1k?"),
        (["text.pth", "OUT"], "text.pth is not a checkpoint"),
        (["empty.pth", "OUT"], "the file is empty"),
        (["plain.pth", "out.pth"], "does not end in .safetensors"),
        (["plain.pth", "nowhere/out.safetensors"], "there is no folder nowhere"),
        (["plain.pth", ""], "is no name of a file"),
        (["plain.pth", "/"], "is no name of a file"),
        (["plain.pth", "."], "is no name of a file"),
        (["plain.pth", "there.safetensors"], "there.safetensors exists"),
        (["plain.pth", "noted.safetensors"], "noted.md exists"),
        (["plain.pth", "OUT", "model.heads=3"], "model.heads: unknown key; did you mean num_heads?"),
        (["plain.pth", "OUT", "optimizer.lr=3"], "optimizer: what can be said of weights is model.key=value"),
        (["plain.pth", "OUT", "num_heads"], "num_heads"),
        (["plain.pth", "OUT", "model.num_heads=5"], "num_heads: 5 does not divide embed_dim (192)"),
        (["plain.pth", "OUT", "model.mask=some"], "model.mask: Input should be 'causal', 'none' or 'modified_causal'"),
        (["plain.pth", "OUT", "model.img_size=big"], 'model.img_size: Input should be a valid integer; given "big"'),
        (["plain.pth", "OUT", "model.layer_scale=big"], "model.layer_scale: Input should be a valid number"),
        (["plain.pth", "OUT", "model.depth=3"], "blocks.2.norm1.weight is absent in the file"),
        (["plain.pth", "OUT", "--img-size", "100"], "img_size: 100 is not a positive multiple of patch_size (16)"),
        (["plain.pth", "OUT", "--img-size", "big"], "image size 'big' is neither pixels"),
        (["plain.pth", "OUT", "--num-classes", "-1"], "--num-classes -1 is no number of classes"),
    ],
)
def test_bad_input_is_one_line(
    plain: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pth").write_text("Once upon a time there was a llama.\n")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "there.safetensors").touch()
    (tmp_path / "noted.md").touch()
    before = sorted(tmp_path.iterdir())
    assert main(["convert", *[word.replace("OUT", "out.safetensors") for word in words]]) == 2
    problems = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(problems) == 1
    assert expected in problems[0]
    assert sorted(tmp_path.iterdir()) == before


def test_words_and_sizes() -> None:
    assert parse_edits(["model.mask=none", "model.img_size=[32,64]"]) == {"mask": "none", "img_size": [32, 64]}
    assert parse_size("384") == 384
    assert parse_size("224x384") == (224, 384)
    for text in ("0", "1x2x3", "-3", "3.5", "x"):
        with pytest.raises(UserError, match="neither pixels"):
            parse_size(text)
