"""What a model is: one frozen description for the family, every roadmap row and the peer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from illama.errors import UserError

Ffn = Literal["swiglu", "mlp"]
Norm = Literal["rms", "layer"]
Mask = Literal["causal", "none", "modified_causal"]
MaskMode = Literal["post_softmax", "pre_softmax"]
ClsPosition = Literal["last", "first"]
Position = Literal["learned", "rope", "learned+rope", "rope2d"]
DropPathShape = Literal["linear", "constant"]
Pool = Literal["token", "avg", ""]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that decides the function and the parameter shapes of an `ILlama`.

    The defaults are iLLaMA-T as published: 224 px, 1000 classes.

    Attributes:
        img_size: Height and width in pixels; one number means a square. Multiples of `patch_size`.
        patch_size: Side of a square patch in pixels.
        in_chans: Channels of the input image.
        num_classes: Rows of the head; 0 leaves the head out.
        embed_dim: Width D of a token.
        depth: Number L of blocks.
        num_heads: Heads h of an attention; D/h must be even (divisible by 4 for `rope2d`).
        ffn: "swiglu" (LLaMA) or "mlp" (ViT: GELU, ratio 4, biases).
        norm: "rms" (LLaMA) or "layer" (ViT: mean, shift).
        norm_eps: Added to the mean square (the variance) under the root; networks of other projects have others.
        mask: "causal", "none" (bidirectional) or "modified_causal" (causal, the class token's row unmasked).
        mask_mode: "post_softmax" (Eq. 2, published) or "pre_softmax" (Eq. 1, LLaMA's own).
        cls_position: Where the class token stands: "last" (PS [cls]) or "first" (ViT).
        position: "learned", "rope", "learned+rope", or "rope2d" (VisionLLaMA).
        qkv_bias: Whether the packed q, k, v projection has a bias.
        layer_scale: Initial value of LayerScale on both branches; None leaves it out.
        drop_path: Stochastic-depth rate, 0 to 1 (excluded).
        drop_path_shape: "linear" (rate i/(L-1) in block i) or "constant" (the same in every block).
        global_pool: What the head sees: the class "token", the "avg" of the patches, or all tokens ("").
        drop_rate: Dropout probability in front of the head.
        rope2d_cls_y: Row of the class token under `rope2d`: -1 (floor division) or 0 (PyTorch < 1.13).
        rope2d_auto_scale: Whether `rope2d` multiplies coordinates by 224 / height (AS2D).
        attention_backend: A name of `illama.attention.BACKENDS`, or "auto".
    """

    # How recipes read this section: nothing unknown, nothing converted.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"strict": True, "extra": "forbid", "allow_inf_nan": False}

    img_size: int | tuple[int, int] = 224
    patch_size: int = 16
    in_chans: int = 3
    num_classes: int = 1000
    embed_dim: int = 192
    depth: int = 12
    num_heads: int = 3
    ffn: Ffn = "swiglu"
    norm: Norm = "rms"
    norm_eps: float = 1e-6
    mask: Mask = "causal"
    mask_mode: MaskMode = "post_softmax"
    cls_position: ClsPosition = "last"
    position: Position = "learned+rope"
    qkv_bias: bool = True
    layer_scale: float | None = None
    drop_path: float = 0.0
    drop_path_shape: DropPathShape = "linear"
    global_pool: Pool = "token"
    drop_rate: float = 0.0
    rope2d_cls_y: int = -1
    rope2d_auto_scale: bool = False
    attention_backend: str = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.img_size, list):  # yaml and json know no tuples
            object.__setattr__(self, "img_size", tuple(self.img_size))
        problems = self.problems()
        if problems:
            raise UserError("; ".join(f"{field}: {text}" for field, text in problems))

    @property
    def height_width(self) -> tuple[int, int]:
        """Image size in pixels as (height, width)."""
        return (self.img_size, self.img_size) if isinstance(self.img_size, int) else self.img_size

    @property
    def grid(self) -> tuple[int, int]:
        """Patches as (rows, columns)."""
        height, width = self.height_width
        return height // self.patch_size, width // self.patch_size

    @property
    def num_patches(self) -> int:
        """n of the specification."""
        return self.grid[0] * self.grid[1]

    @property
    def head_dim(self) -> int:
        """Width d of a head."""
        return self.embed_dim // self.num_heads

    @property
    def hidden_dim(self) -> int:
        """Hidden width of the feed-forward: LLaMA's rule for SwiGLU, four times D for the MLP."""
        if self.ffn == "mlp":
            return 4 * self.embed_dim
        return 256 * -(-(8 * self.embed_dim // 3) // 256)

    def problems(self) -> list[tuple[str, str]]:
        """All that is wrong, as (field, what is allowed); empty for a usable configuration."""
        wrong = []
        for field, hint in get_type_hints(ModelConfig).items():
            value, allowed = getattr(self, field), get_args(hint)
            if get_origin(hint) is Literal and value not in allowed:
                wrong.append((field, f"{value!r} is not one of {', '.join(map(repr, allowed))}"))
        for field, (least, most) in _RANGES.items():
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                wrong.append((field, f"{value!r} is not a whole number of at least {least}"))
            elif value > most:
                wrong.append((field, f"{value} is more than the {most} that a network may have"))
        for field in ("drop_path", "drop_rate"):
            value = getattr(self, field)
            if not isinstance(value, int | float) or not 0 <= value < 1:
                wrong.append((field, f"{value!r} is not a rate from 0 to 1 (1 excluded)"))
        if not isinstance(self.norm_eps, int | float) or not 0 <= self.norm_eps < 1:
            wrong.append(("norm_eps", f"{self.norm_eps!r} is not a number from 0 to 1 (1 excluded)"))
        if self.rope2d_cls_y not in (-1, 0):
            wrong.append(("rope2d_cls_y", f"{self.rope2d_cls_y!r} is neither -1 nor 0"))
        return wrong or list(self._wrong_shapes())

    def _wrong_shapes(self) -> list[tuple[str, str]]:
        wrong = []
        sides = self.height_width
        if len(sides) == 2 and any(isinstance(s, int) and s > MOST_PIXELS for s in sides):
            wrong.append(("img_size", f"{self.img_size!r} has a side of more than {MOST_PIXELS} pixels"))
        elif len(sides) != 2 or any(not isinstance(s, int) or s < 1 or s % self.patch_size for s in sides):
            wrong.append(
                ("img_size", f"{self.img_size!r} is not a positive multiple of patch_size ({self.patch_size})")
            )
        if self.embed_dim % self.num_heads:
            wrong.append(("num_heads", f"{self.num_heads} does not divide embed_dim ({self.embed_dim})"))
        else:
            step = {"learned": 1, "rope2d": 4}.get(self.position, 2)
            if self.head_dim % step:
                rule = f"must be divisible by {step} for position {self.position}"
                wrong.append(("num_heads", f"head width {self.head_dim} {rule}"))
        return wrong

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for yaml and json; `ModelConfig(**d)` restores it."""
        plain = dataclasses.asdict(self)
        if isinstance(self.img_size, tuple):
            plain["img_size"] = list(self.img_size)
        return plain


# A number in somebody's file must not become an allocation: far above all networks, far below all memory.
MOST_PIXELS = 1 << 15  # of a side of the input
# How the published networks look at images: up to here as they are, from there on warped to the size, else a crop.
SMALL_PX, WARP_PX = 32, 384
LEAST_STD, LEAST_CROP = 1e-6, 0.01  # of how images are prepared: below them values and sizes are endless
_RANGES = {
    "patch_size": (1, MOST_PIXELS),
    "in_chans": (1, 1 << 10),
    "num_classes": (0, 1_000_000),
    "embed_dim": (1, 1 << 16),
    "depth": (1, 1 << 12),
    "num_heads": (1, 1 << 12),
}
