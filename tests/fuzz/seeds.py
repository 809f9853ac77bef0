"""Valid inputs of every kind, tiny, made once; what is damaged afterwards."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from illama.models import roadmap_config
from illama.recipes import list_recipes, load_recipe
from tests.pictures import paint, tiny, tiny_words
from tests.weights.foreign_files import huggingface_state, random_state, save_folder

CHANGES = ("train.ema_decay=0.9", "schedule.epochs=2", "data.val_fraction=0.3")
COUNTS = {"ant": 4, "bee": 4}
PICTURES: dict[str, dict[str, Any]] = {  # by ending: how Pillow writes it
    "jpg": {"quality": 90},
    "progressive.jpg": {"progressive": True},
    "grey.jpg": {"mode": "L"},
    "cmyk.jpg": {"mode": "CMYK"},
    "png": {},
    "palette.png": {"mode": "P"},
    "alpha.png": {"mode": "RGBA"},
    "deep.png": {"mode": "I;16"},
    "tif": {},
    "lzw.tif": {"compression": "tiff_lzw"},
    "jpeg.tif": {"compression": "jpeg"},
    "float.tif": {"mode": "F"},
    "gif": {"mode": "P"},
    "bmp": {},
    "webp": {},
    "lossless.webp": {"lossless": True},
    "avif": {},
    "jp2": {},
    "qoi": {},
    "pgm": {"mode": "L"},
}


@dataclass(frozen=True)
class Seeds:
    """Where they lie; `make` fills the folder."""

    root: Path

    @property
    def pictures(self) -> Path:
        return self.root / "pictures"

    @property
    def run(self) -> Path:
        """A run that was stopped before its last step."""
        return self.root / "run"

    @property
    def model(self) -> Path:
        """Its weights, with their description."""
        return self.root / "model.safetensors"

    @property
    def train_words(self) -> list[str]:
        """What continues the run, without `--out`."""
        return tiny_words(self.pictures, *CHANGES)

    @cache  # noqa: B019 - there is one object
    def content(self, name: str) -> bytes:
        """A file's bytes."""
        return (self.root / name).read_bytes()

    @cached_property
    def state(self) -> dict[str, Any]:
        """The run's training state."""
        found: dict[str, Any] = torch.load(self.run / "checkpoints/last/training_state.pt", weights_only=True)
        return found

    @cached_property
    def recipes(self) -> list[str]:
        """Complete recipes, and short ones with a base."""
        whole = [load_recipe(name).to_yaml() for name in list_recipes()[:6]]
        return [*whole, (self.run / "recipe.yaml").read_text(), "base: digits_micro\nschedule: {epochs: 3}\n"]

    @cached_property
    def shard(self) -> list[tuple[str, bytes]]:
        """Members of a tar file of samples."""
        members = []
        for number in range(4):
            name = ("ant", "bee")[number % 2]
            members.append((f"s/{number:03}.png", self.content(f"pictures/{name}/{number // 2}.png")))
            label = str(number % 2).encode()
            members.append((f"s/{number:03}.cls", label) if number < 2 else _as_json_label(number))
        return members


def _as_json_label(number: int) -> tuple[str, bytes]:
    return f"s/{number:03}.json", json.dumps({"label": number % 2, "width": 20}).encode()


def make(root: Path) -> None:
    """Make them all; to be called in a process of its own, for training starts threads."""
    from tests.runs import stopped_run

    torch.manual_seed(0)
    seeds = Seeds(root)
    paint(seeds.pictures, COUNTS, size=16)
    stopped_run(tiny(seeds.pictures, *CHANGES), seeds.run, step=2)
    shutil.copy(seeds.run / "checkpoints/last/model.safetensors", seeds.model)
    _timeless(seeds.run)
    _pictures(root / "formats")
    _weights(root)
    _logits(root / "logits.safetensors")
    _parquet(seeds, root / "parquet")


def _timeless(run: Path) -> None:
    """Clocks and machines leave the run, so that the same damage hits the same place tomorrow."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line |= {key: 1.0 for key in line if key in ("images_per_s", "data_wait", "mfu", "memory_gb", "wall_s")}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.rmtree(run / "tensorboard", ignore_errors=True)


def picture(number: int, form: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
    """A small picture's file."""
    levels = np.random.default_rng(number).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    image = Image.fromarray(levels)
    if mode == "I;16":
        image = Image.fromarray(levels[..., 0].astype(np.uint16) * 200)
    elif mode == "F":
        image = Image.fromarray(levels[..., 0].astype(np.float32) / 255)
    elif mode != "RGB":
        image = image.convert(mode)
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def _pictures(folder: Path) -> None:
    folder.mkdir()
    forms = {"jpg": "JPEG", "tif": "TIFF", "jp2": "JPEG2000", "pgm": "PPM"}
    for number, (ending, how) in enumerate(PICTURES.items()):
        last = ending.rpartition(".")[2]
        form = forms.get(last, last.upper())
        if form in Image.SAVE or form in Image.registered_extensions().values():
            (folder / f"photo.{ending}").write_bytes(picture(number, form, **how))


def _weights(root: Path) -> None:
    config = roadmap_config("vit", "tiny", img_size=16, patch_size=8, depth=1, num_classes=3)
    state = random_state(config)
    state = {name: tensor.half() if tensor.numel() > 1000 else tensor for name, tensor in state.items()}
    save_file(state, root / "timm.safetensors")
    torch.save(state, root / "plain.pth")
    torch.save({"model": state, "epoch": 3, "optimizer": {"lr": 1e-3}}, root / "nested.pth")
    torch.save(state, root / "legacy.pth", _use_new_zipfile_serialization=False)
    timm = {
        "architecture": "vit_tiny_patch8",
        "num_classes": 3,
        "model_args": {"img_size": 16, "patch_size": 8, "num_heads": 3, "global_pool": "token"},
        "pretrained_cfg": {
            "input_size": [3, 16, 16],
            "crop_pct": 0.9,
            "crop_mode": "center",
            "interpolation": "bicubic",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "label_names": ["ant", "bee", "cat"],
        },
    }
    save_folder(root / "timm", load_file(root / "timm.safetensors"), timm)
    hf = {
        "model_type": "vit",
        "image_size": 16,
        "patch_size": 8,
        "num_attention_heads": 3,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "id2label": {"0": "ant", "1": "bee", "2": "cat"},
    }
    processor = {
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
        "size": {"height": 16, "width": 16},
        "do_resize": True,
        "rescale_factor": 1 / 255,
    }
    save_folder(root / "hf", huggingface_state(state, 1), hf, preprocessor_config=processor)


def _logits(file: Path) -> None:
    from illama.evaluation.saved_logits import SavedLogits

    numbers = np.random.default_rng(0)
    targets = numbers.integers(0, 3, 24)
    logits = numbers.normal(size=(24, 3)).astype(np.float32) + 2 * np.eye(3, dtype=np.float32)[targets]
    SavedLogits(logits, targets, np.arange(24), ("ant", "bee", "cat"), "pictures", "d", "weights", "n", 0.0, {}).save(
        file
    )


def _parquet(seeds: Seeds, folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    features = {
        "image": {"_type": "Image"},
        "label": {"names": ["ant", "bee"], "_type": "ClassLabel"},
    }
    for split in ("train", "test"):
        images = [{"bytes": seeds.content(f"pictures/{name}/{i}.png"), "path": None} for i in (0, 1) for name in COUNTS]
        table = pa.table({"image": images, "label": pa.array([0, 1, 0, 1], pa.int64())})
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet", row_group_size=2)
