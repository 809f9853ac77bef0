"""From a packaged name or a file to a checked `Recipe`: base, overrides, variant, problems; and what two differ in."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from illama.console.text import is_utf8, shown
from illama.errors import UserError
from illama.models.variants import VARIANTS
from illama.recipes.problems import Problem, find_problems, hint, raise_problems
from illama.recipes.rules import flatten
from illama.recipes.schema import LONGEST_YAML, DataConfig, Recipe, parse_yaml, without_auto, yaml_complaint
from illama.registry import closest
from illama.system.files import is_file, read_given_text, why

Tree = dict[str, Any]

# What a variant decides: the fields in which the variants differ.
_VARIANT_FIELDS = tuple(
    field.name
    for field in dataclasses.fields(VARIANTS["tiny"])
    if len({getattr(config, field.name) for config in VARIANTS.values()}) > 1
)


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply overrides, check everything.

    Args:
        name_or_path: A name of `list_recipes()`, or the path of a YAML file (it ends in .yaml or has a folder).
        overrides: `section.key=value`, the value written as in YAML; they win over the file.

    Raises:
        UserError: No such recipe or file, or a recipe with problems; the message lists all of them.
    """
    source = _find(name_or_path)
    tree = _read_with_base(source, ())
    tree.setdefault("name", Path(source.name).stem)
    edits, problems = parse_overrides(overrides)
    return _build(_merge(tree, edits), _label(source), problems)


def parse_recipe(tree: Mapping[str, Any], label: str = "recipe") -> Recipe:
    """A recipe from nested dictionaries, for instance those that a checkpoint stores.

    Args:
        tree: What `Recipe.to_dict` gave, or a part of it; `model.variant` is understood.
        label: What the message calls it.

    Raises:
        UserError: As `load_recipe`.
    """
    return _build(json.loads(json.dumps(tree)), label, [])


def edit_data(data: DataConfig, overrides: Sequence[str]) -> DataConfig:
    """A data section with overrides of its keys, outside of a recipe.

    Args:
        data: What they change.
        overrides: `data.key=value`.

    Raises:
        UserError: A key of another section, or one with a problem; the message lists all of them.
    """
    if not overrides:
        return data
    if not is_utf8(data.path or ""):
        raise UserError(f"data {shown(data.path)} has a name that is not UTF-8; rename it (convmv does)")
    edits, problems = parse_overrides(overrides)
    problems += [
        (key, "only keys of the section data count here (data.class_depth=2)") for key in edits if key != "data"
    ]
    tree = _merge(load_recipe("cifar10_micro").to_dict(), {"data": data.model_dump(mode="json")})
    tree = _merge(tree, {"data": edits.get("data", {})})
    problems += [(key, text) for key, text in find_problems(tree) if key.partition(".")[0] == "data"]
    raise_problems("data", problems)
    return DataConfig.model_validate_json(json.dumps(tree["data"]))


def override(key: str, value: object) -> str:
    """An override as `load_recipe` reads it back, in words that need as few quotes as can be.

    Args:
        key: Dotted key.
        value: One of JSON's types.
    """
    plain = isinstance(value, str) and _is_plain(value)
    return f"{key}={value if plain else json.dumps(value, ensure_ascii=False, separators=(',', ':'))}"


def overridden_keys(overrides: Sequence[str]) -> set[str]:
    """Dotted keys that overrides set; those that are no overrides are left to `load_recipe` to complain about."""
    return set(flatten(parse_overrides(overrides)[0]))


def list_recipes() -> list[str]:
    """Names of the packaged recipes; files that only serve as a base (leading underscore) are left out."""
    return sorted(Path(name).stem for name in _packaged() if not name.startswith("_"))


def _packaged() -> dict[str, Traversable]:
    return {entry.name: entry for entry in files("illama.recipes").iterdir() if entry.name.endswith(".yaml")}


def _find(name_or_path: str | Path) -> Traversable:
    """The file behind a packaged name or a path."""
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith((".yaml", ".yml")) or "/" in text or "\\" in text:
        path = Path(name_or_path)
        if not is_file(path):
            raise UserError(f"recipe file {shown(text)} does not exist; packaged recipes are called by name alone")
        return path
    if text not in list_recipes():
        raise UserError(
            f"unknown recipe {text!r}; {closest(text, list_recipes())} (a file needs its ending: {text}.yaml)"
        )
    return _packaged()[f"{text}.yaml"]


def _label(source: Traversable) -> str:
    return str(source) if isinstance(source, Path) and not _is_packaged(source) else f"recipe {Path(source.name).stem}"


def _is_packaged(source: Path) -> bool:
    return source.resolve().parent == Path(str(files("illama.recipes"))).resolve()


def _read_with_base(source: Traversable, children: tuple[str, ...]) -> Tree:
    """The tree of a file on top of its base's, which may have a base itself."""
    if str(source) in children:
        raise UserError(f"{_label(source)}: base: the recipes name each other in a circle")
    tree = _read(source)
    if "base" not in tree:
        return tree
    base = tree.pop("base")
    if not isinstance(base, str):
        raise UserError(f"{_label(source)}: base: allowed: the name or path of one recipe; given {json.dumps(base)}")
    below = _read_with_base(_find_base(base, source), (*children, str(source)))
    below.pop("name", None)
    return _merge(below, tree)


def _find_base(base: str, source: Traversable) -> Traversable:
    """A base is a packaged recipe (bare ones included) or a file relative to the recipe that names it."""
    if f"{base}.yaml" in _packaged():
        return _packaged()[f"{base}.yaml"]
    if base.endswith((".yaml", ".yml")) and isinstance(source, Path):
        path = source.parent / base
        if is_file(path):
            return path
        raise UserError(f"{_label(source)}: base: file {path} does not exist")
    raise UserError(f"{_label(source)}: base: unknown recipe {base!r}; {closest(base, list_recipes())}")


def _read(source: Traversable) -> Tree:
    try:
        if isinstance(source, Path):
            text = read_given_text(source, 4 * LONGEST_YAML)
        else:
            text = source.read_text(encoding="utf-8")
        tree = parse_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"{_label(source)} is not YAML: {yaml_complaint(error)}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{_label(source)} cannot be read: {why(error)}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{_label(source)} is no recipe: it holds no `key: value` lines")
    return tree


def parse_overrides(overrides: Sequence[str]) -> tuple[Tree, list[Problem]]:
    """Overrides as a tree, and those that are none; the last one for a key wins."""
    tree: Tree = {}
    problems: list[Problem] = []
    for text in overrides:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            meant = f"did you mean --data {shown(text)}?" if os.path.exists(text) else hint(key)
            problems.append((shown(text), f"an override is key=value; {meant}"))
            continue
        if not is_utf8(value):
            problems.append((key, f"{shown(value)} is not UTF-8; rename the file or the folder (convmv does)"))
            continue
        try:
            parsed = parse_yaml(value)
        except yaml.YAMLError as error:
            problems.append((key, f"not a YAML value: {yaml_complaint(error)}; quote text with special signs"))
            continue
        node = tree
        *sections, last = key.split(".")
        for section in sections:
            if not isinstance(node.get(section), dict):
                node[section] = {}
            node = node[section]
        node[last] = parsed
    return tree, problems


def _is_plain(text: str) -> bool:
    """Whether YAML takes a text for itself, without quotes."""
    try:
        return bool(parse_yaml(text) == text)
    except yaml.YAMLError:
        return False


def _merge(below: Tree, above: Tree) -> Tree:
    """Sections are merged key by key, everything else is replaced; a variant replaces the sizes below it."""
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            under = merged[key]
            if key == "model" and "variant" in value:
                under = {name: size for name, size in under.items() if name not in _VARIANT_FIELDS}
            merged[key] = _merge(under, value)
        else:
            merged[key] = value
    return merged


def _build(tree: Tree, label: str, problems: list[Problem]) -> Recipe:
    """The recipe of a merged tree, or one message with all its problems."""
    model = tree.get("model")
    if isinstance(model, dict) and "variant" in model:
        rest = {name: value for name, value in model.items() if name != "variant"}
        try:
            sizes = {name: getattr(VARIANTS[str(model["variant"])], name) for name in _VARIANT_FIELDS}
        except UserError as error:
            sizes = {}
            problems = [*problems, ("model.variant", str(error))]
        tree = {**tree, "model": {**sizes, **rest}}
    raise_problems(label, [*problems, *find_problems(tree)])
    return Recipe.model_validate_json(json.dumps(without_auto(tree)))


class Change(NamedTuple):
    """A key whose value differs."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.old} -> {self.new}"


def recipe_diff(old: Recipe, new: Recipe) -> list[Change]:
    """All keys in which `new` differs from `old`, in the order of the schema."""
    before, after = flatten(old.to_dict()), flatten(new.to_dict())
    return [Change(key, before[key], after[key]) for key in after if before[key] != after[key]]
