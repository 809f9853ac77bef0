"""YAML as recipes use it: `1e-3` is a number, a key may stand only once, lists stay on one line."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

# YAML 1.1, which PyYAML follows, takes a number with an exponent but without dot and sign for text.
_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
_FLOAT_TAG = "tag:yaml.org,2002:float"


_DEEPEST = 20  # sections in sections; a recipe has three
LONGEST = 1 << 20  # characters
_MOST_DIGITS = 1000  # of a number: Python refuses to convert more than 4,300


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


def parse(text: str) -> Any:
    """The value of a YAML text, in JSON's types only (dates become text, keys become text).

    Raises:
        yaml.YAMLError: The text is not YAML, or a key stands twice.
    """
    if len(text) > LONGEST:
        raise yaml.YAMLError(f"longer than {LONGEST} characters")
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


def dump(tree: dict[str, Any]) -> str:
    """YAML text of a nested dictionary; `parse` gives it back exactly."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True, width=110)


def complaint(error: yaml.YAMLError) -> str:
    """One line for a YAML error: what is wrong and where."""
    what = getattr(error, "problem", None) or str(error).splitlines()[0]
    mark = getattr(error, "problem_mark", None)
    where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
    return f"{what}{where}"
