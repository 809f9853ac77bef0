"""What is judged: a network with its weights, and the images to judge it by."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from illama.checkpoint import Meta
from illama.console.text import read_json, shown
from illama.distributed import ALONE, World
from illama.errors import UserError
from illama.evaluation.origin import DataIdentity, Origin, held_out_again, run_of
from illama.recipes import DataConfig, Recipe, parse_recipe
from illama.system.files import at_home
from illama.weights import load_model
from illama.weights.load import locate

if TYPE_CHECKING:
    from illama.data import EvalTransform, Layout
    from illama.data.loading.loader import EvalLoader
    from illama.data.source import Source
    from illama.models import ILlama

Numbering = Literal["model", "data"]
_WHOLE = {"val_fraction": 0.0, "max_train_images": None, "max_eval_images": None}  # of a data set that is another
NO_DATA = "these weights do not say which data they were trained on; give it with --data"


class Sample(NamedTuple):
    """Some images of a source.

    Attributes:
        images: As the model sees them, (n, in_chans, H, W) on its device.
        labels: Their classes, (n,) int64.
        positions: Their positions in the source, (n,) int64.
    """

    images: Tensor
    labels: Tensor
    positions: Tensor


@dataclass(frozen=True)
class Subject:
    """A network and the images that it is judged by.

    Attributes:
        model: In evaluation mode at the softness that it was saved with, on `device`.
        meta: What their file says of the weights: classes, transform, softness, recipe.
        name: What the network is called: its recipe, its published name, or its file.
        weights: Which weights, for people: the file and its optimizer step.
        transform: How evaluation looks at an image.
        device: Where the model is.
        batch_size: Images at a time.
        data: The section of a recipe that describes the data set; None where no data set is known.
        split: Which split of it.
        seed: Decides which images `data` carves out and keeps.
        numbering: Whose classes number the labels: the model's, or the data set's own where images alone count.
        given: Images from elsewhere than `data`.
        trained_on: The run's own data section with the place of `data`; None where the weights belong to no run.
        origin: What the run was begun with, where it says so.
    """

    model: ILlama
    meta: Meta
    name: str
    weights: str
    transform: EvalTransform
    device: torch.device
    batch_size: int
    data: DataConfig | None = None
    split: str = "eval"
    seed: int = 0
    numbering: Numbering = "model"
    given: Source | None = None
    trained_on: DataConfig | None = None
    origin: Origin | None = None

    @property
    def has_images(self) -> bool:
        """Whether it is known which images; else `source` raises."""
        return self.given is not None or self.data is not None

    @cached_property
    def source(self) -> Source:
        """The images, opened when they are first asked for: some analyses bring their own.

        Raises:
            UserError: No data set is known, or it cannot be used.
            UnknownClassError: Images belong to a class that the model, which numbers them, does not have.
        """
        if self.given is not None:
            return self.given
        source = None
        if self.trained_on is not None and self.split == "eval":
            source = self._own_images(self.trained_on)
        if source is None:
            source = self._open(self.layout, self.split)
        held_out_share = (self.meta.recipe or {}).get("data", {}).get("val_fraction")
        if self.trained_on is None and self.data is not None and self.data.val_fraction == 0 and held_out_share:
            source.description += "; ATTENTION: if the network was trained on this data, it saw most of these images"
        if self.split == "train" and self.origin is not None and self.data == self.trained_on:
            changed = self.origin.train.difference(DataIdentity.of(source))
            if changed is not None:
                source.description += f"; ATTENTION: not the images that the run was trained on: {changed}"
        return source

    def _open(self, layout: Layout, split: str) -> Source:
        classes: Sequence[str] | None = (self.meta.classes or None) if self.numbering == "model" else None
        return layout.open(split, in_chans=self.meta.config.in_chans, classes=classes, seed=self.seed)

    def _own_images(self, trained_on: DataConfig) -> Source | None:
        """The images that the run was judged by, in a data set that moved or changed; None where it is another one.

        They are the run's own where its recipe chooses the same ones there, or where those that it held out are found.
        What the run trained on must not be counted among them without a word.
        """
        layout, moved = self.layout.asked_for(trained_on), self.data != trained_on
        origin, source = self.origin, None
        if origin is None and (not moved or trained_on.val_fraction == 0 or layout.splits):
            return None
        with contextlib.suppress(UserError):
            source = self._open(layout, "eval")
        if origin is None:  # a run of an earlier version
            if source is not None:
                source.description += "; ATTENTION: right only if this is the data that the run was trained on"
            return source
        if source is not None:
            changed = origin.eval.difference(DataIdentity.of(source))
            if changed is None:
                source.description += "; the images that the run was judged by" if moved else ""
                return source
            if not origin.held_out and not moved:
                source.description += f"; ATTENTION: not the images that the run was judged by: {changed}"
                return source
        if not origin.held_out:
            return None
        with contextlib.suppress(UserError):
            whole = self.layout.asked_for(self.layout.data.model_copy(update=_WHOLE))
            again = held_out_again(self._open(whole, "train" if layout.splits else "auto"), origin.held_out)
            if again is not None:
                return again
        source = self._open(self.layout, "eval")
        source.description += (
            f"; ATTENTION: none of the {len(origin.held_out)} images that the run held out is among them, so they "
            "may include what it was trained on"
        )
        return source

    @cached_property
    def layout(self) -> Layout:
        """What the data set is made of, looked at when it is first asked for.

        Raises:
            UserError: No data set is known, or it is not understood.
        """
        from illama.data import look

        if self.data is None:
            raise UserError(NO_DATA)
        return look(self.data)

    def loader(self, world: World = ALONE) -> EvalLoader:
        """All readable images in batches, each once; of several processes this one's share."""
        from illama.data import EvalLoader

        config = self.data or DataConfig()
        workers, timeout_s = config.workers, config.worker_timeout_s
        return EvalLoader(self.source, self.transform, self.batch_size, self.device, workers, timeout_s, world)

    def sample(self, count: int, seed: int = 0) -> Sample:
        """Images chosen at random without repetition, in the order of the source; all where there are no more.

        Unreadable images are passed over for the next of the random order.

        Raises:
            UserError: There is no readable image, or `count` is none.
        """
        from illama.data.decode.images import BrokenImage

        if count < 1:
            raise UserError(f"the number of images must be at least 1; got {count}")
        order = torch.randperm(len(self.source), generator=torch.Generator().manual_seed(seed)).tolist()
        views: dict[int, Tensor] = {}
        for position in order:
            if len(views) == count:
                break
            with contextlib.suppress(BrokenImage):
                views[position] = self.transform(self.source.read(position))
        if not views:
            raise UserError(f"{self.source.description}: none of the images can be read")
        positions = sorted(views)
        images = self.transform.normalize(torch.stack([views[position] for position in positions]), self.device)
        labels = torch.from_numpy(self.source.labels)[positions]
        return Sample(images, labels, torch.tensor(positions))

    def other_split(self, split: str) -> Subject:
        """The same network on another split of the same data, such as "train"."""
        other = dataclasses.replace(self, split=split, given=None)
        other.__dict__["layout"] = self.layout  # looked at once
        return other

    def on(self, source: Source) -> Subject:
        """The same network on other images, numbered as `source` says."""
        return dataclasses.replace(self, given=source)


def open_subject(
    checkpoint: Path | str,
    *,
    data: str | None = None,
    split: str | None = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    softness: float | None = None,
    numbering: Numbering = "model",
) -> Subject:
    """Load a network and open the images to judge it by.

    Args:
        checkpoint: Whatever `illama.load_model` takes.
        data: Another data set than the one trained on: a folder or file, or a name ("digits", "torch/cifar10").
        split: Which split; the recipe's evaluation split when None.
        batch_size: Images at a time; the recipe's when None.
        device: "cpu", "cuda", "cuda:1", "mps"; the best there is when None.
        softness: Softness of the mask; the one saved with the weights when None.
        numbering: "model" numbers the classes as in training and refuses unknown ones; "data" takes the data set's own.

    Raises:
        UserError: Checkpoint, data, device or batch size cannot be used.
    """
    from illama.data.layout import is_gone
    from illama.device import resolve_device

    if batch_size is not None and batch_size < 1:
        raise UserError(f"the batch size must be at least 1; got {batch_size}")
    target = device if isinstance(device, torch.device) else resolve_device(device)
    file = locate(checkpoint).file
    model, meta = load_model(file, target)
    if softness is not None:
        model.set_softness(softness)
    run = run_of(file)
    recipe = None if meta.recipe is None else parse_recipe(meta.recipe, f"the recipe in {checkpoint}")
    own = recipe  # what it says of the data
    if recipe is not None and run is not None:
        own = _where_it_was(recipe, run)
    elif recipe is not None:
        own = _without_places(recipe)
        if own is not recipe and data is None:
            raise UserError(
                f"{checkpoint} belongs to no run here, and what its recipe names ({shown(recipe.data.path, 80)}) is "
                "not opened; give the data with --data"
            )
    chosen = None if recipe is None and data is None else choose_data(own, data)
    if data is None and chosen is not None and is_gone(chosen):
        raise UserError(
            f"the data of {checkpoint} lay in {shown(chosen.path)}, which is not there; give it with --data"
        )
    of_a_run = run is not None and own is not None and chosen is not None
    step = f", step {meta.step}" if meta.recipe is not None or meta.step else ""  # those of others have none
    return Subject(
        model=model,
        meta=meta,
        name=meta.source or Path(checkpoint).stem if recipe is None else recipe.name,
        weights=f"{file}{step}" + (", averaged" if meta.ema else ""),
        transform=needed_transform(meta, checkpoint),
        device=target,
        batch_size=batch_size or (256 if recipe is None else recipe.train.eval_batch),
        data=chosen,
        split=split or "eval",
        seed=0 if recipe is None else recipe.seed,
        numbering=numbering,
        trained_on=own.data.model_copy(update={"path": chosen.path}) if of_a_run and own and chosen else None,
        origin=None if run is None else Origin.read(run),
    )


def _without_places(recipe: Recipe) -> Recipe:
    """The recipe of weights that somebody may have sent: it must not decide which files are opened.

    The digits, which are in the package, are the one data set that it may name; itself for those.
    """
    if recipe.data.name == "digits":
        return recipe
    kept = {name: getattr(recipe.data, name) for name in ("class_depth", "image_column", "label_column")}
    return recipe.model_copy(update={"data": DataConfig(**kept)})


def _where_it_was(recipe: Recipe, run: Path) -> Recipe:
    """The recipe with its data's path from the top: runs of earlier versions have it as it was typed somewhere."""
    path = recipe.data.path
    if path is None or at_home(path).is_absolute() or Path(path).exists():
        return recipe
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        folder = read_json(run / "environment.json")["working_folder"]
        return recipe.with_data_path(str(Path(folder) / path))
    return recipe


def choose_data(recipe: Recipe | None, given: str | None) -> DataConfig:
    """The data section to evaluate on: the recipe's own, or one that looks elsewhere.

    Elsewhere the whole evaluation split counts: `val_fraction` and `max_eval_images` belong to the recipe's own data.

    Args:
        recipe: What the weights were trained with, where known.
        given: A path or a data set's name; None for the recipe's own data.

    Raises:
        UserError: Nothing is given and no recipe is known, or the path does not exist.
    """
    if given is None:
        if recipe is None:
            raise UserError(NO_DATA)
        return recipe.data
    base = DataConfig() if recipe is None else recipe.data
    if given and at_home(given).exists():
        if base.path is not None and at_home(base.path).resolve() == at_home(given).resolve():
            return base
        name = "auto" if base.name == "digits" else base.name
        return base.model_copy(update={"name": name, "path": given} | _WHOLE)
    if given == "digits" or given.partition("/")[0] in ("torch", "hfds", "wds"):
        path = None if given == "digits" else base.path
        return base.model_copy(update={"name": given, "path": path} | _WHOLE)
    from illama.data.layout import look_alike

    kinds = "give a folder, a list of files, a parquet file, or a name such as digits, torch/cifar10, hfds/..., wds/..."
    hint = look_alike(at_home(given)) or kinds
    raise UserError(f"data {given!r} does not exist and is no data set's name; {hint}")


def needed_transform(meta: Meta, checkpoint: Path | str) -> EvalTransform:
    """The evaluation transform that travels with the weights.

    Raises:
        UserError: There is none, or it does not prepare images as the network takes them.
    """
    from illama.data import EvalTransform

    if meta.eval_transform is None:
        raise UserError(
            f"{checkpoint} does not say how its images are to be resized and normalised; put its "
            f"preprocessor_config.json beside it, or say it: illama convert {checkpoint} FILE.safetensors --transform "
            "imagenet (or half)"
        )
    transform, config = EvalTransform.from_dict(meta.eval_transform), meta.config
    if (transform.img_size, transform.in_chans) != (config.height_width, config.in_chans):
        raise UserError(
            f"{checkpoint} prepares images of {transform.img_size} pixels in {transform.in_chans} channels, but its "
            f"network takes {config.height_width} in {config.in_chans}; fetch or convert it again"
        )
    return transform
