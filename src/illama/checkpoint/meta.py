"""What travels with weights: enough to rebuild the model, name its classes and repeat its evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from illama.errors import UserError
from illama.json_text import parse_json
from illama.models.config import ModelConfig

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Meta:
    """Metadata of a weights file, stored as JSON in the safetensors header.

    Attributes:
        config: The model that the weights belong to.
        classes: Class names in index order, as numbered by the training split; () where they are unknown.
        eval_transform: `EvalTransform.to_dict()` of the evaluation that the weights were made for.
        softness: Softness in force when the weights were saved, 0 (causal) to 1 (bidirectional).
        step: Optimizer steps done.
        epoch: Epochs finished.
        ema: Whether these are the averaged weights rather than the trained ones.
        recipe: The resolved recipe as plain values; None for weights that no recipe made.
        source: Name of the published weights that these are, unchanged ("illama_tiny.in1k"); None for all others.
    """

    # How `from_json` reads it: nothing converted.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"strict": True, "allow_inf_nan": False}

    config: ModelConfig
    classes: tuple[str, ...] = ()
    eval_transform: dict[str, Any] | None = None
    softness: float = 0.0
    step: int = 0
    epoch: int = 0
    ema: bool = False
    recipe: dict[str, Any] | None = None
    source: str | None = None

    def to_json(self) -> str:
        """One line of JSON, with the format's version."""
        plain = asdict(self) | {"config": self.config.to_dict(), "classes": list(self.classes)}
        return json.dumps({"format_version": FORMAT_VERSION} | plain, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, origin: str) -> Meta:
        """Read back what `to_json` wrote.

        Args:
            text: The JSON.
            origin: Where it stands, for messages.

        Raises:
            UserError: Not such a JSON, or one that a newer version of the package wrote.
        """
        from pydantic import TypeAdapter, ValidationError

        try:
            plain = parse_json(text)
        except (ValueError, RecursionError):
            plain = None
        if not isinstance(plain, Mapping) or not isinstance(plain.get("config"), Mapping):
            raise UserError(f"{origin}: the metadata is not a description of illama weights")
        version = plain.get("format_version")
        if version != FORMAT_VERSION:
            raise UserError(f"{origin}: weights format {version!r}, this illama reads {FORMAT_VERSION}; update illama")
        known = {field.name for field in fields(cls)}  # what a later version adds may be left out
        values = {key: plain[key] for key in known if key in plain}
        try:
            text = json.dumps(values, allow_nan=False)
        except (ValueError, RecursionError):  # 1e999 is infinite, too
            raise UserError(f"{origin}: the metadata holds a number that is not finite; save it again") from None
        try:
            return TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            where, what = ".".join(map(str, problem["loc"])), problem["msg"].removeprefix("Value error, ")
            raise UserError(f"{origin}: the metadata does not describe a model: {where}: {what}") from None
