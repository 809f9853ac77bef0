"""What a recipe is: frozen, strictly typed sections, every range at its field; and its YAML.

In YAML as recipes use it `1e-3` is a number, a key may stand only once, lists stay on one line.

A recipe holds everything that decides a training run except where its results go. Pairs of values that
cannot stand together are listed in `illama.recipes.rules`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from illama.models.config import LEAST_CROP, LEAST_STD, MOST_PIXELS, ModelConfig
from illama.recipes.rules import broken_rules, flatten

# YAML 1.1, which PyYAML follows, takes a number with an exponent but without dot and sign for text.
_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
_FLOAT_TAG = "tag:yaml.org,2002:float"
_DEEPEST = 20  # sections in sections; a recipe has three
LONGEST_YAML = 1 << 20  # characters
_MOST_DIGITS = 1000  # of a number: Python refuses to convert more than 4,300
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Epochs = Annotated[int, Field(ge=0, le=1_000_000)]
Rate = Annotated[float, Field(ge=0, le=1)]
AtLeastZero = Annotated[float, Field(ge=0)]
AboveZero = Annotated[float, Field(gt=0)]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# What timm understands of RandAugment strings: m(agnitude), n(umber), p(robability), mstd, mmax, inc(reasing).
_RANDAUGMENT = r"^rand(-((m|n|mmax|inc)[0-9]+|(p|mstd)[0-9]+(\.[0-9]+)?))+$"
# The name of a folder below runs/: no way out of it, and nothing that a terminal acts upon.
_RUN_NAME = r"^\.*[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]*$"
_DATA_NAME = r"^(auto|digits|parquet|folder|manifest|(torch|hfds|hfids|tfds|wds)/.+)$"
_DATA_EXAMPLES = ["auto", "digits", "parquet", "folder", "manifest", "torch/cifar10", "hfds/...", "wds/..."]
AUTO = "auto"  # model.num_classes: as many as the data has
ClassDepth = Annotated[int, Field(ge=1, le=1000)] | Literal["leaf"]


class _Loader(yaml.SafeLoader):
    """YAML without what only attacks use: aliases, which may stand for any amount of text, and endless brackets."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()
            raise yaml.composer.ComposerError(None, None, f"*{event.anchor}: aliases are not read", event.start_mark)
        if self.depth >= _DEEPEST:
            raise yaml.composer.ComposerError(None, None, "brackets too deep", self.peek_event().start_mark)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen:
                    problem = f"the key {key_node.value!r} stands twice in one section"
                    raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
                seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(
    list, lambda dumper, values: dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)
)
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(_FLOAT_TAG, _EXPONENT, list("-+0123456789"))


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, in JSON's types only (dates become text, keys become text).

    Raises:
        yaml.YAMLError: The text is not YAML, or a key stands twice.
    """
    if len(text) > LONGEST_YAML:
        raise yaml.YAMLError(f"longer than {LONGEST_YAML} characters")
    if re.search(rf"[0-9_]{{{_MOST_DIGITS}}}", text):
        raise yaml.YAMLError(f"a number of more than {_MOST_DIGITS} digits")
    try:
        plain = json.dumps(yaml.load(text, _Loader), default=str, ensure_ascii=False)
        plain.encode()  # half of a surrogate pair is no text
        if r"\u0000" in plain:  # as an escape: the sign itself is no YAML
            raise ValueError("a NUL (\\0) in a text, which no name may have")
        return json.loads(plain)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:  # 2026-13-45, {[1]: 2}, ...
        raise yaml.YAMLError(str(error) or "cannot be read") from None


def dump_yaml(tree: dict[str, Any]) -> str:
    """YAML text of a nested dictionary; `parse_yaml` gives it back exactly."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True, width=110)


def yaml_complaint(error: yaml.YAMLError) -> str:
    """One line for a YAML error: what is wrong and where."""
    what = getattr(error, "problem", None) or str(error).splitlines()[0]
    mark = getattr(error, "problem_mark", None)
    where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
    return f"{what}{where}"


class RecipeSection(BaseModel):
    """Common behaviour: nothing unknown, nothing converted, nothing changed afterwards."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


class DataConfig(RecipeSection):
    """Where the images come from and how evaluation looks at them."""

    name: str = Field(default="auto", pattern=_DATA_NAME, examples=_DATA_EXAMPLES)
    """`digits` (embedded), `parquet` (Hugging Face image layout), `folder` (a folder per class), `manifest` (a table of
    files and labels), a timm string (`torch/...`, `hfds/...`, `wds/...`), or `auto`: whichever `path` holds."""
    path: str | None = None
    """Folder or file of the data set; the command line's `--data` sets it. A run keeps it from the top (/...)."""
    train_split: str = Field(default="train", min_length=1)
    """Name of the split to train on, in any usual spelling; its classes number the outputs."""
    eval_split: str = Field(default="auto", min_length=1)
    """Name of the split to evaluate on; `auto` takes the first that exists of validation, val, valid, dev, test."""
    class_depth: ClassDepth = 1
    """In folders: the class is the folder so many levels below the split, its name the path there; `leaf` takes the
    folder that a picture lies in."""
    image_column: str | None = None
    """In tables: the column of the pictures or files, where its name does not tell."""
    label_column: str | None = None
    """In tables: the column of the classes, where there are several."""
    max_image_pixels: Count = 178_956_970
    """An image of more pixels is not decoded; a few bytes can claim any size."""
    val_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training split that the seed sets aside and that is evaluated instead of `eval_split`."""
    storage: Literal["auto", "memory", "stream"] = "auto"
    """Decoded images in memory, or read from disk each time; `auto` decides by size."""
    num_train_images: Count | None = None
    """Published number of training images, for `--print` without the data; the run counts its own."""
    max_train_images: Count | None = None
    """Train on the first so many images of the seed's order only."""
    max_eval_images: Count | None = None
    """Evaluate on so many images only."""
    workers: Annotated[int, Field(ge=0, le=1024)] | Literal["auto"] = "auto"
    """Processes that decode images, for each device; `auto` fits the machine."""
    worker_timeout_s: Annotated[int, Field(ge=0, le=2**31 - 1)] = 300
    """Seconds without an image after which the decoding processes are started anew; 0 waits for ever."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Mean of each channel, of values from 0 to 1, subtracted before the model."""
    std: tuple[Annotated[float, Field(ge=LEAST_STD)], ...] = IMAGENET_STD
    """Deviation of each channel, divided by after subtraction."""
    crop_pct: float = Field(default=0.875, ge=LEAST_CROP, le=1)
    """Evaluation at 33 to 383 px resizes the shorter side to size / crop_pct and crops the centre; other sizes
    do without: warped to the size from 384 px on, taken as they are up to 32 px."""


class AugmentConfig(RecipeSection):
    """What training does to images and targets."""

    crop: Literal["auto", "resized", "pad", "none"] = "auto"
    """Random resized crop, random crop after padding, or neither; `auto` pads up to 32 px and resizes above."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Area of a resized crop as a share of the image's, least and most."""
    crop_ratio: tuple[AboveZero, AboveZero] = (0.75, 4 / 3)
    """Width / height of a resized crop, least and most."""
    crop_padding: int = Field(default=4, ge=0, le=MOST_PIXELS)
    """Pixels added on each side before a padded crop."""
    hflip: Rate = 0.5
    """Probability of a horizontal flip."""
    rotate: float = Field(default=0.0, ge=0, le=180)
    """Degrees; each image turns by a random angle of at most this."""
    randaugment: str | None = Field(default=None, pattern=_RANDAUGMENT, examples=["rand-m9-mstd0.5-inc1"])
    """RandAugment as timm spells it; needs timm."""
    color_jitter: AtLeastZero = 0.0
    """Strength of brightness, contrast and saturation changes; not together with RandAugment."""
    erase_prob: Rate = 0.0
    """Probability of random erasing."""
    erase_mode: Literal["pixel", "const", "rand"] = "pixel"
    """Erased areas become noise per pixel, zero, or one random colour."""
    erase_count: Count = 1
    """Erased areas per image at most."""
    mixup: AtLeastZero = 0.0
    """Alpha of mixup's Beta distribution; 0 is off."""
    cutmix: AtLeastZero = 0.0
    """Alpha of cutmix's Beta distribution; 0 is off."""
    mix_prob: Rate = 1.0
    """Probability that a batch is mixed at all."""
    mix_switch_prob: Rate = 0.5
    """Probability of cutmix rather than mixup where both are on."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target that is spread over all classes."""

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed, by mixup or cutmix."""
        return self.mixup > 0 or self.cutmix > 0


class OptimizerConfig(RecipeSection):
    """The optimizer and its learning rate, which belongs to a total batch."""

    name: Literal["adamw", "muon"] = "adamw"
    """`adamw`, that of the published runs, or `muon` for the matrices of the blocks and AdamW for everything else; one
    `lr` serves both. Muon needs whole matrices: not with `train.parallel=fsdp`."""
    lr: AboveZero
    """Highest learning rate, for a total batch of `lr_batch`."""
    lr_batch: Count
    """The total batch that `lr` belongs to."""
    lr_scaling: Literal["linear", "none"] | None = None
    """At another total batch `linear` multiplies lr by total / lr_batch, `none` keeps lr, null refuses to run."""
    min_lr: AtLeastZero = 1e-6
    """Where the cosine ends (it stops one step short of it)."""
    weight_decay: AtLeastZero = 0.05
    """Decoupled weight decay of all matrices; vectors, biases, position and class token have none."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """AdamW's decay of the running mean and of the running square of gradients."""
    eps: AboveZero = 1e-8
    """AdamW's addition to the root of the running square."""
    clip_grad: AboveZero | None = None
    """Largest norm of the whole gradient; null does not clip."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Factor on lr from each layer to the one before it; null gives all layers the same."""


class SoftnessConfig(RecipeSection):
    """How much of later tokens attention sees during training: 1 bidirectional, 0 causal."""

    mode: Literal["soft", "standard"] = "soft"
    """`soft`: falls to 0 at `cutoff_epochs`; `standard`: `value` for the whole run."""
    shape: Literal["constant", "linear"] = "constant"
    """`soft` only: stays at `value` until the cutoff, or falls linearly to 0 there."""
    cutoff_epochs: Epochs = 0
    """`soft` only: epochs until the mask is causal; 0 is causal from the start."""
    value: Rate = 1.0
    """Softness at the start."""

    def ends_soft(self, epochs: int) -> bool:
        """Whether the mask is still soft in the last step of a run of so many epochs."""
        kept = self.mode == "standard" or (self.shape == "constant" and self.cutoff_epochs >= epochs)
        return self.value > 0 and kept

    @property
    def causal_from(self) -> int | None:
        """Epochs after which a soft mask becomes causal; None where it never was soft or stays so."""
        was_soft = self.mode == "soft" and self.value > 0 and self.cutoff_epochs > 0
        return self.cutoff_epochs if was_soft else None


class DropPathConfig(RecipeSection):
    """When stochastic depth acts; its rate is `model.drop_path`."""

    mode: Literal["standard", "early", "late"] = "standard"
    """The whole run, only before `cutoff_epochs`, or only from there on."""
    shape: Literal["constant", "linear"] = "constant"
    """`early` only: constant until the cutoff, or falling linearly to 0 there."""
    cutoff_epochs: Epochs = 0
    """`early` and `late` only: the epoch of the change."""


class PatchDropConfig(RecipeSection):
    """Patches that training steps leave out, one random choice for each device batch; the others keep order and
    position. The class token and evaluation are not affected."""

    rate: float = Field(default=0.0, ge=0, lt=1)
    """Share of the patches that is left out, to whole patches; 0 is off."""
    cutoff_epochs: Epochs = 0
    """The epoch from which all patches are there."""


class MixingConfig(RecipeSection):
    """When batches are mixed; how is `augment.mixup`, `cutmix` and `mix_prob`."""

    mode: Literal["standard", "early", "late"] = "standard"
    """The whole run, only before `cutoff_epochs`, or only from there on."""
    cutoff_epochs: Epochs = 0
    """`early` and `late` only: the epoch of the change."""


class ScheduleConfig(RecipeSection):
    """Everything that changes with the optimizer step."""

    epochs: Annotated[int, Field(ge=1, le=1_000_000)]
    """Passes over the training images."""
    warmup_epochs: Epochs = 0
    """Epochs in which lr rises linearly from 0."""
    softness: SoftnessConfig = SoftnessConfig()
    """The soft mask."""
    drop_path: DropPathConfig = DropPathConfig()
    """Stochastic depth over time."""
    patch_drop: PatchDropConfig = PatchDropConfig()
    """Patches left out, over time."""
    mixing: MixingConfig = MixingConfig()
    """Mixup and cutmix over time."""


class TrainConfig(RecipeSection):
    """How the loop runs."""

    total_batch: Count
    """Images per optimizer step = devices x device_batch x accumulation."""
    device_batch: Count | None = None
    """Images that one device holds at a time; null: whatever accumulation leaves."""
    accumulation: Count | None = None
    """Micro-batches per optimizer step; null: whatever `device_batch` needs."""
    precision: Literal["float32", "bf16", "auto"] = "float32"
    """Type of the forward pass; `auto` takes bf16 where the device is faster with it."""
    compile: bool = False
    """Whether `torch.compile` makes one graph of forward pass and loss."""
    cuda_graphs: bool = False
    """Whether the compiled kernels are replayed as CUDA graphs; CUDA only, needs `compile`."""
    deterministic: bool = False
    """Whether only kernels that always give the same bits may run; on a CPU they do anyway, on a GPU it costs speed."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """With several processes: a whole model on each (`ddp`), or weights, gradients and optimizer state cut into shards
    (`fsdp`, for models that do not fit)."""
    grad_reduce: Literal["float32", "bf16"] = "float32"
    """Type in which processes add up their gradients."""
    grad_checkpointing: bool = False
    """Whether blocks are computed again in the backward pass to save memory."""
    loss: Literal["auto", "cross_entropy", "soft_target"] = "auto"
    """`auto`: soft targets with mixup or cutmix, otherwise cross-entropy; both with label smoothing."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay per step of a running mean of the weights; null keeps none."""
    log_every_steps: Count = 50
    """Optimizer steps between two log lines; the loss is read from the device only there."""
    eval_every_epochs: Count = 1
    """Epochs between two evaluations; the last epoch is always evaluated."""
    eval_batch: Count = 256
    """Images per evaluation batch and device."""
    save_every_steps: Count | None = None
    """Optimizer steps between two checkpoints, besides those at the ends of epochs."""
    save_every_epochs: Count = 1
    """Epochs between two checkpoints; the last epoch, and an evaluation that is the best so far, are always saved."""
    keep_every_epochs: Count | None = None
    """Epochs between two checkpoints that are kept for good, beside `last`, `previous` and `best`; null keeps none."""


def without_auto(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree of a recipe as `Recipe` holds it: `model.num_classes=auto` is 0 there, which no recipe can ask for."""
    model = tree.get("model")
    if isinstance(model, dict) and model.get("num_classes") == AUTO:
        return {**tree, "model": {**model, "num_classes": 0}}
    return tree


class Recipe(RecipeSection):
    """A training run, complete; `illama.recipes.load_recipe` reads one."""

    name: str = Field(pattern=_RUN_NAME, max_length=200, examples=["imagenet1k_tiny"])
    """What the run is called; a recipe file's own name unless it says otherwise."""
    task: str = Field(default="classification", max_length=200)
    """What is learned; `classification` is what illama brings."""
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    """Decides initial weights, data order, augmentation and drop path."""
    model: ModelConfig
    """The network; in a file `variant` stands for the width, depth and heads of tiny, small, base or large."""
    data: DataConfig = DataConfig()
    """The images."""
    augment: AugmentConfig = AugmentConfig()
    """Their augmentation."""
    optimizer: OptimizerConfig
    """The optimizer."""
    schedule: ScheduleConfig
    """What changes over time."""
    train: TrainConfig
    """The loop."""

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        broken = broken_rules(flatten(self.to_dict()))
        if broken:
            raise ValueError("; ".join(f"{key}: {text}" for key, text in broken))
        return self

    def to_dict(self) -> dict[str, Any]:
        """The whole recipe in JSON's types, defaults included."""
        tree = self.model_dump(mode="json")
        if self.classes_from_data:
            tree["model"]["num_classes"] = AUTO
        return tree

    @property
    def classes_from_data(self) -> bool:
        """Whether the number of classes is the data's (`model.num_classes=auto`): a head of 0 until it is known."""
        return self.model.num_classes == 0

    def with_classes(self, count: int) -> Recipe:
        """The recipe for data with so many classes; itself where it states a number."""
        if not self.classes_from_data:
            return self
        return self.model_copy(update={"model": dataclasses.replace(self.model, num_classes=count)})

    def with_data_path(self, path: str | None) -> Recipe:
        """The same with its data at another place."""
        return self.model_copy(update={"data": self.data.model_copy(update={"path": path})})

    def to_yaml(self) -> str:
        """The whole recipe as YAML; loading that text gives an equal recipe."""
        return dump_yaml(self.to_dict())
