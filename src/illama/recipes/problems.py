"""All that is wrong with a recipe, in words: dotted key, what is allowed, what was given."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from illama.console.text import is_utf8, shown
from illama.errors import UserError
from illama.models.config import ModelConfig
from illama.recipes.rules import broken_rules, flatten
from illama.recipes.schema import Recipe, RecipeSection, without_auto

Problem = tuple[str, str]  # (dotted key, what is wrong and what to do)
_LONGEST_TEXT = 2000  # characters of what is said of a key
_UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")


@dataclass(frozen=True)
class Key:
    """What a recipe key may hold and decides; `default` is missing (`...`) where the recipe has to say."""

    allowed: str
    default: Any
    description: str


@functools.cache
def all_keys() -> Mapping[str, Key]:
    """Every key of a recipe by its dotted name, in the order of the schema."""
    return dict(_section_keys(Recipe, ""))


def _section_keys(section: type[RecipeSection], prefix: str) -> Iterator[tuple[str, Key]]:
    for name, field in section.model_fields.items():
        kind = field.annotation
        if kind is ModelConfig:
            hints, texts = get_type_hints(ModelConfig), _attributes(ModelConfig)
            for part in dataclasses.fields(ModelConfig):
                hint = int | Literal["auto"] if part.name == "num_classes" else hints[part.name]
                yield f"{prefix}{name}.{part.name}", Key(_allowed(hint), part.default, texts[part.name])
        elif isinstance(kind, type) and issubclass(kind, RecipeSection):
            yield from _section_keys(kind, f"{prefix}{name}.")
        else:
            default = ... if field.is_required() else field.default
            hint = get_type_hints(section, include_extras=True)[name]
            yield f"{prefix}{name}", Key(_allowed(hint, _limits([field])), default, field.description or "")


def _attributes(kind: type) -> dict[str, str]:
    """What a class's docstring says of its attributes."""
    _, _, listed = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
    return dict(re.findall(r"(?ms)^    (\w+): (.*?)(?=^    \w+: |\Z)", listed))


def keys_as_markdown() -> str:
    """All keys by section, as tables: what each holds, its default, what it decides."""
    lines: list[str] = []
    section = None
    for name, key in all_keys().items():
        above, _, last = name.rpartition(".")
        if above != section:
            section = above
            lines += [
                "",
                f"## {section or 'The recipe itself'}",
                "",
                "| key | allowed | default | what |",
                "|---|---|---|---|",
            ]
        default = "" if key.default is ... else f"`{json.dumps(key.default)}`"
        cells = (f"`{last}`", key.allowed, default, " ".join(key.description.split()))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines[1:]) + "\n"


def find_problems(tree: Mapping[str, Any]) -> list[Problem]:
    """Everything wrong with the tree of a recipe: types, ranges, unknown and missing keys, impossible pairs.

    Args:
        tree: A recipe in JSON's types, variant already expanded.
    """
    texts = {key: f"{key} {json.dumps(value, ensure_ascii=False)}" for key, value in flatten(tree).items()}
    if not all(map(is_utf8, texts.values())):  # JSON, in which the types are compared, has no such text
        return [(key, "not UTF-8; give it another name") for key, text in texts.items() if not is_utf8(text)]
    keys = all_keys()
    problems: dict[str, str] = {}
    try:
        Recipe.model_validate_json(json.dumps(without_auto(dict(tree))))
    except ValidationError as error:
        for detail in error.errors():
            key, text = _explain(detail["type"], detail["loc"], detail.get("input"), keys)
            problems.setdefault(key, text)
    problems.pop("", None)  # impossible pairs: told below, also where other keys are wrong
    if isinstance(tree.get("model"), Mapping):
        problems.pop("model", None)
    for key, text in _model_problems(without_auto(dict(tree)).get("model"), problems):
        problems.setdefault(key, text)
    flat = {key: spec.default for key, spec in keys.items() if spec.default is not ...}
    flat |= {key: value for key, value in flatten(tree).items() if key in keys}
    wrong = [key for key in keys if any(key == bad or key.startswith(f"{bad}.") for bad in problems)]
    for key, text in broken_rules(flat, ignore=wrong):
        problems.setdefault(key, text)
    order = {key: place for place, key in enumerate(keys)}
    return sorted(problems.items(), key=lambda item: order.get(item[0], -1))


def raise_problems(label: str, problems: Iterable[Problem]) -> None:
    """Raise one `UserError` for all problems: one line for one problem, an aligned list for more."""
    told = [(shown(key), shown(text, _LONGEST_TEXT)) for key, text in problems]
    if not told:
        return
    if len(told) == 1:
        raise UserError(f"{label}: {told[0][0]}: {told[0][1]}")
    width = max(len(key) for key, _ in told)
    lines = [f"  {key:<{width}}  {text}" for key, text in told]
    raise UserError("\n".join([f"{label} has {len(told)} problems", *lines]))


def hint(key: str) -> str:
    """The nearest known key for an unknown one, or the keys of its section."""
    keys = list(all_keys())
    sections = {name[: name.rindex(".")] for name in keys if "." in name}
    candidates = [*keys, *sorted(sections), "model.variant"]
    section, _, last = key.rpartition(".")
    near = [name for name in candidates if name.rpartition(".")[2] == last]
    near = near or difflib.get_close_matches(key, candidates, n=1, cutoff=0.8)
    if not near:
        ends = {name.rpartition(".")[2]: name for name in reversed(candidates)}
        near = [ends[end] for end in difflib.get_close_matches(last, ends, n=1, cutoff=0.7)]
    if near:
        return f"did you mean {' or '.join(near)}?"
    here = [name.rpartition(".")[2] for name in candidates if name.rpartition(".")[0] == section]
    return f"known here: {', '.join(here or sorted(Recipe.model_fields))}"


def _allowed(annotation: Any, limits: Iterable[Any] = ()) -> str:
    """In words, the values that a type with limits allows."""
    origin, parts, limits = get_origin(annotation), get_args(annotation), list(limits)
    if origin is Annotated:
        return _allowed(parts[0], [*_limits(parts[1:]), *limits])
    if origin in (Union, UnionType):
        return " or ".join(_allowed(part, limits) for part in parts)
    if origin is Literal:
        *most, last = map(str, parts)
        return f"{', '.join(most)} or {last}" if most else last
    if origin is tuple:
        count = "values" if Ellipsis in parts else f"{len(parts)} values"
        return f"a list of {count}, each {_allowed(parts[0])}"
    if annotation is str:
        examples = [item.examples or [] for item in limits if isinstance(item, FieldInfo)]
        return f"text like {', '.join(examples[0])}" if examples else "text"
    if annotation in (NoneType, bool):
        return "null" if annotation is NoneType else "true or false"
    return _range(limits, "whole number" if annotation is int else "number")


def _limits(metadata: Iterable[Any]) -> Iterator[Any]:
    """Limits, of fields too; a field itself where it has examples."""
    for item in metadata:
        if not isinstance(item, FieldInfo):
            yield item
            continue
        yield from item.metadata
        if item.examples:
            yield item


def _explain(kind: str, loc: tuple[int | str, ...], given: Any, keys: Mapping[str, Key]) -> Problem:
    """One of pydantic's complaints in our words; `loc` may end in union branches and list positions."""
    if kind in _UNKNOWN_KEY:
        key = ".".join(map(str, loc))
        return key or "''", f"unknown key; {hint(key)}"  # "" is what no key is to blame for
    sections = {name[:place] for name in keys for place, letter in enumerate(name) if letter == "."}
    for length in range(len(loc), 0, -1):
        key = ".".join(map(str, loc[:length]))
        if key in keys or key in sections or key in Recipe.model_fields:
            break
    else:
        return "", "values that do not fit together"
    allowed = f"allowed: {keys[key].allowed if key in keys else 'a section of keys'}"
    if kind == "missing":
        return key, f"missing; {allowed if key in keys else 'the section is required'}"
    return key, f"{allowed}, given {_shown(given)}"


def _model_problems(model: Any, problems: Mapping[str, str]) -> list[Problem]:
    """What `ModelConfig` itself refuses; its shapes are judged only once all its types are right."""
    if not isinstance(model, Mapping):
        return []
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    wrong = {key.partition(".")[2] for key in problems if key.startswith("model.")}
    values = {name: value for name, value in model.items() if name in fields - wrong}
    if isinstance(values.get("img_size"), list):
        values["img_size"] = tuple(values["img_size"])
    shapes = ("img_size", "num_heads") if wrong & fields else ()
    return [(f"model.{name}", text) for name, text in _Unchecked(**values).problems() if name not in shapes]


class _Unchecked(ModelConfig):
    """A configuration that may be wrong, to be asked what is wrong with it."""

    def __post_init__(self) -> None:
        pass


def _range(limits: list[Any], noun: str) -> str:
    bounds = {
        name: getattr(limit, name) for limit in limits for name in ("ge", "gt", "le", "lt") if hasattr(limit, name)
    }
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if low is None:
        return f"a {noun}"
    kind = "whole numbers " if noun == "whole number" else ""
    if high is None:
        return f"{kind}at least {low}" if "ge" in bounds else f"{kind}above {low}"
    excluded = [f"{bounds[name]}" for name in ("gt", "lt") if name in bounds]
    return f"{kind}{low} to {high}" + (f" ({' and '.join(excluded)} excluded)" if excluded else "")


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
