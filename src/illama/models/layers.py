"""The parts of a block that are not attention: norms, feed-forwards, LayerScale, stochastic depth, patches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from illama import native
from illama.device.linear import Linear, is_plain
from illama.errors import UserError
from illama.models.config import ModelConfig

NORM_EPS = 1e-6


class RMSNorm(nn.Module):
    """x * rsqrt(mean(x^2) + eps) over the last axis in at least float32, cast back, times a learned weight."""

    def __init__(self, dim: int, eps: float = NORM_EPS) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if native.serves(x, self.weight):
            return native.rms_norm(x, self.weight, self.eps, self._formula)
        return self._formula(x, self.weight)

    def _formula(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        normed = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + self.eps)
        return normed.to(x.dtype) * weight


class SwiGLU(nn.Module):
    """LLaMA's feed-forward W2(SiLU(W1 x) * W3 x) without biases; fc1 is the gate, fc3 the value."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden, bias=False)
        self.fc2 = Linear(hidden, dim, bias=False)
        self.fc3 = Linear(dim, hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, value = self._gate_and_value(x)
        return self.fc2(native.gate(gate, value, _gated) if native.serves(gate, value) else _gated(gate, value))

    def _gate_and_value(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """fc1(x) and fc3(x); on CUDA one product of both weights, which reads x once. CPUs gain nothing by it."""
        if x.is_cuda and is_plain(self.fc1) and is_plain(self.fc3):
            gate, value = F.linear(x, torch.cat((self.fc1.weight, self.fc3.weight))).chunk(2, dim=-1)
            return gate, value
        return self.fc1(x), self.fc3(x)


def _gated(gate: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return F.silu(gate) * value


class Mlp(nn.Module):
    """ViT's feed-forward: two linear layers with biases around a GELU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch."""

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.initial = initial
        self.gamma = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch per sample with probability `rate`, scales up the survivors.

    The probability lies in a 0-d tensor, so that a compiled model follows a schedule without a new compilation.
    """

    keep: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.rate = 0.0
        self.active = False
        self.of = 0
        self.register_buffer("keep", torch.ones(()), persistent=False)
        self.rows: torch.Tensor | None = None  # no buffer: it is each process's own

    def set_rate(self, rate: float) -> None:
        """Set the probability of dropping, 0 to 1 (excluded); nothing happens on the device when it stays the same."""
        if rate != self.rate:
            self.rate, self.active = rate, rate > 0.0
            self.keep.fill_(1.0 - rate)

    def share(self, rows: torch.Tensor | None, of: int = 0) -> None:
        """Draw for a larger batch of `of` samples and take these `rows` (B,) of it; None: for each batch alone."""
        self.rows, self.of = rows, of

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not (self.active and self.training):
            return x
        drawn = x.shape[0] if self.rows is None else self.of
        survivors = torch.bernoulli(self.keep.expand((drawn,) + (1,) * (x.dim() - 1)))
        if self.rows is not None:
            survivors = survivors[self.rows]
        return x * (survivors / self.keep).to(x.dtype)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        dtype = torch.float64 if self.keep.dtype == torch.float64 else torch.float32  # 0.9 in bfloat16 is 0.8984
        self.keep = torch.full((), 1.0 - self.rate, dtype=dtype, device=self.keep.device)
        return self

    def extra_repr(self) -> str:
        return f"rate={self.rate:.4g}"


class PatchEmbed(nn.Module):
    """Images (B, in_chans, H, W) to patch tokens (B, n, D) in raster order: a convolution with kernel = stride."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.proj = nn.Conv2d(config.in_chans, config.embed_dim, config.patch_size, stride=config.patch_size)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        expected = (self.config.in_chans, *self.config.height_width)
        if tuple(images.shape[1:]) != expected:
            raise UserError(
                f"images have shape {tuple(images.shape)}, the model was built for (B, *{expected}); "
                "call model.set_input_size((height, width)) first, or resize the images"
            )
        if images.device.type == "cuda":
            # cuDNN would convolve in TF32, whatever float32 products are set to.
            return F.linear(in_patches(images, self.config.patch_size), self.proj.weight.flatten(1), self.proj.bias)
        return self.proj(images).flatten(2).transpose(1, 2)


def in_patches(images: torch.Tensor, size: int) -> torch.Tensor:
    """Images (B, C, H, W) by patches in raster order, (B, n, C size size); each in the order of a kernel's weights."""
    B, C, H, W = images.shape
    rows, columns = H // size, W // size
    cut_BCrscs = images.reshape(B, C, rows, size, columns, size)
    return cut_BCrscs.permute(0, 2, 4, 1, 3, 5).reshape(B, rows * columns, C * size * size)


def build_norm(config: ModelConfig) -> nn.Module:
    """RMSNorm or LayerNorm of width D."""
    kind = RMSNorm if config.norm == "rms" else nn.LayerNorm
    return kind(config.embed_dim, eps=config.norm_eps)


def build_ffn(config: ModelConfig) -> nn.Module:
    """SwiGLU or MLP from width D through the hidden width of the configuration."""
    kind = SwiGLU if config.ffn == "swiglu" else Mlp
    return kind(config.embed_dim, config.hidden_dim)


def build_layer_scale(config: ModelConfig) -> nn.Module:
    """LayerScale, or the identity when the configuration has none."""
    return nn.Identity() if config.layer_scale is None else LayerScale(config.embed_dim, config.layer_scale)
