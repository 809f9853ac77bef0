"""iLLaMA (arXiv 2404.06773): a LLaMA decoder that classifies images. One class for every roadmap row and the peer.

Letters: B batch, n patches, N = n + 1 tokens, D width, h heads, d head width, L depth, C classes.
The equations are the paper's; where paper and published code differ, this is what produced the published numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from illama.attention import Tables, attention_weights, soft_causal_attention, soft_causal_attention_qkvpacked
from illama.device.linear import Linear, project_rows
from illama.errors import UserError
from illama.models.config import ModelConfig, Pool
from illama.models.layers import DropPath, PatchEmbed, build_ffn, build_layer_scale, build_norm
from illama.models.position import RotaryTable, resize_position
from illama.models.timm_interface import TimmInterface

INIT_STD = 0.02
Softness = float | torch.Tensor  # 0 (causal) to 1 (bidirectional); a 0-d tensor unless it is known to be 0


class Attention(nn.Module):
    """Multi-head self-attention with a soft mask: packed q, k, v, rotary positions, Eq. 1 or Eq. 2, projection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.qkv = Linear(config.embed_dim, 3 * config.embed_dim, bias=config.qkv_bias)
        self.proj = Linear(config.embed_dim, config.embed_dim)

    def forward(self, x_BND: torch.Tensor, softness: Softness, rope: Tables | None) -> torch.Tensor:
        config = self.config
        qkv_BN3hd = self.qkv(x_BND).unflatten(2, (3, config.num_heads, -1))
        attended_BhNd = soft_causal_attention_qkvpacked(
            qkv_BN3hd,
            softness,
            mask=config.mask,
            mask_mode=config.mask_mode,
            backend=config.attention_backend,
            rope=rope,
        )
        return self.proj(attended_BhNd.transpose(1, 2).flatten(2))

    def of_token(self, index: int, x_BND: torch.Tensor, softness: Softness, rope: Tables | None) -> torch.Tensor:
        """What `forward` gives for one token, (B, 1, D): keys and values of all tokens, one query."""
        config, width, heads = self.config, self.config.embed_dim, self.config.num_heads
        q_B1D = project_rows(self.qkv, x_BND.narrow(1, index, 1), slice(0, width))
        kv_BN2D = project_rows(self.qkv, x_BND, slice(width, 3 * width))
        k, v = kv_BN2D.unflatten(2, (2, heads, -1)).permute(2, 0, 3, 1, 4)
        q = q_B1D.unflatten(2, (heads, -1)).transpose(1, 2)
        attended_Bh1d = soft_causal_attention(
            q,
            k,
            v,
            softness,
            mask=config.mask,
            mask_mode=config.mask_mode,
            backend=config.attention_backend,
            rope=rope,
            query_start=index,
        )
        return self.proj(attended_Bh1d.transpose(1, 2).flatten(2))

    def weights(self, x_BND: torch.Tensor, softness: Softness, rope: Tables | None) -> torch.Tensor:
        """The matrix that multiplies v, (B, h, N, N): after the softmax and after the mask."""
        q, k, _ = self.qkv(x_BND).unflatten(2, (3, self.config.num_heads, -1)).permute(2, 0, 3, 1, 4)
        config = self.config
        return attention_weights(q, k, softness, mask=config.mask, mask_mode=config.mask_mode, rope=rope)


class Block(nn.Module):
    """Pre-norm decoder block: x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm1 = build_norm(config)
        self.attn = Attention(config)
        self.ls1 = build_layer_scale(config)
        self.drop_path1 = DropPath()
        self.norm2 = build_norm(config)
        self.mlp = build_ffn(config)
        self.ls2 = build_layer_scale(config)
        self.drop_path2 = DropPath()

    def forward(
        self, x_BND: torch.Tensor, softness: Softness, rope: Tables | None, token: int | None = None
    ) -> torch.Tensor:
        """All tokens (B, N, D), or (B, 1, D) when only the one of index `token` is asked for."""
        normed_BND = self.norm1(x_BND)
        if token is None:
            attended = self.attn(normed_BND, softness, rope)
        else:
            attended = self.attn.of_token(token, normed_BND, softness, rope)
            x_BND = x_BND.narrow(1, token, 1)
        x_BND = x_BND + self.drop_path1(self.ls1(attended))
        return x_BND + self.drop_path2(self.ls2(self.mlp(self.norm2(x_BND))))


class ILlama(TimmInterface, nn.Module):
    """The image LLaMA.

    `forward` maps normalised images (B, in_chans, H, W) to logits (B, C). `get_features` and `get_attention` look
    inside. The names that timm's tools expect (`forward_features`, `forward_intermediates`, `reset_classifier`,
    `set_input_size`, ...) are here as well.

    Attributes:
        config: The `ModelConfig` that this model is; changed only by `reset_classifier` and `set_input_size`.
        softness: 0-d non-persistent buffer, 0 (causal, the state of a new model) to 1 (bidirectional); changed by
            `set_softness`.
        only_needed_tokens: Whether `forward` lets the last block compute the class token alone, where the head sees
            no other. Logits and gradients are the same; set it to False when a hook on that block wants all tokens.
    """

    softness: torch.Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.grad_checkpointing = False
        self.only_needed_tokens = True
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        learned = "learned" in config.position
        self.pos_embed = nn.Parameter(torch.zeros(1, config.num_patches + 1, config.embed_dim)) if learned else None
        self.rope = None if config.position == "learned" else RotaryTable(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = build_norm(config)
        self.head_drop = nn.Dropout(config.drop_rate)
        self.head = self._new_head()
        self.register_buffer("softness", torch.zeros(()), persistent=False)
        self._causal = True
        self.set_drop_path(config.drop_path)
        self.init_weights()

    def forward(self, images: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (B, C) of normalised images (B, in_chans, H, W).

        Where the head sees the class token alone, the last block computes nothing else (`only_needed_tokens`).

        Args:
            images: The images.
            kept: Patches that are computed, int64 of any number, rising, the same for all images; the others are as if
                they were not there, and each token keeps its position. None is all of them.
        """
        rows = None if kept is None else self._token_rows(kept)
        tokens_BND = self.embed(images)
        if rows is not None:
            tokens_BND = tokens_BND.index_select(1, rows)
        if not (self.only_needed_tokens and self.config.global_pool == "token" and len(self.blocks)):
            return self.forward_head(self.norm(self.run_blocks(tokens_BND, rows=rows)))
        class_token_B1D = self.norm(self.run_blocks(tokens_BND, only_class_token=True, rows=rows))
        return self.head(self.head_drop(class_token_B1D.squeeze(1)))

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """All tokens (B, N, D) after the last block and the final norm."""
        return self.norm(self.run_blocks(self.embed(images)))

    def forward_head(self, tokens_BND: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Pool normed tokens and classify: (B, C), or with `pre_logits` what the head would see, (B, D)."""
        pooled = self.pool(tokens_BND)
        return pooled if pre_logits else self.head(self.head_drop(pooled))

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Patches, the class token after (or before) them, and the learned position: (B, N, D)."""
        patches = self.patch_embed(images)
        cls_token = self.cls_token.expand(patches.shape[0], -1, -1)
        order = [patches, cls_token] if self.config.cls_position == "last" else [cls_token, patches]
        tokens = torch.cat(order, dim=1)
        return tokens if self.pos_embed is None else tokens + self.pos_embed

    def run_blocks(
        self,
        x_BND: torch.Tensor,
        after_block: Callable[[int, torch.Tensor], None] | None = None,
        stop_after: int | None = None,
        only_class_token: bool = False,
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The blocks in order, without the final norm.

        Args:
            x_BND: Embedded tokens.
            after_block: Called with the block's index and its output (B, N, D).
            stop_after: Index of the last block to run; all when None.
            only_class_token: Whether the last block that runs computes its class token alone: (B, 1, D).
            rows: Places that the tokens have in the whole sequence, (N,) int64; None where this is the whole.
        """
        last = len(self.blocks) - 1 if stop_after is None else stop_after
        class_token = self.cls_index % x_BND.shape[1]
        softness, rope = self._known_softness(), None if self.rope is None else self.rope.tables(rows)
        for index, block in enumerate(self.blocks[: last + 1]):
            token = class_token if only_class_token and index == last else None
            if self.grad_checkpointing and torch.is_grad_enabled():
                x_BND = checkpoint(block, x_BND, softness, rope, token, use_reentrant=False)
            else:
                x_BND = block(x_BND, softness, rope, token)
            if after_block is not None:
                after_block(index, x_BND)
        return x_BND

    def pool(self, tokens_BND: torch.Tensor) -> torch.Tensor:
        """What the head sees: the class token (B, D), the mean of the patches (B, D), or all tokens (B, N, D)."""
        if self.config.global_pool == "token":
            return tokens_BND[:, self.cls_index]
        return self.patch_tokens(tokens_BND).mean(dim=1) if self.config.global_pool == "avg" else tokens_BND

    def set_softness(self, softness: float) -> None:
        """Set how much of later tokens is seen, 0 (causal) to 1 (bidirectional), in place and without a host sync."""
        if not 0.0 <= softness <= 1.0:
            raise UserError(f"softness must lie between 0 (causal) and 1 (bidirectional); got {softness}")
        self.softness.fill_(softness)
        self._causal = softness == 0.0

    def set_drop_path(self, rate: float) -> None:
        """Set the stochastic-depth rate: rate * i/(L-1) in block i, or the same in every block."""
        if not 0.0 <= rate < 1.0:
            raise UserError(f"drop path must be a rate from 0 to 1 (1 excluded); got {rate}")
        for index, block in enumerate(self.blocks):
            share = 1.0 if self.config.drop_path_shape == "constant" else index / max(1, self.config.depth - 1)
            for module in block.children():
                if isinstance(module, DropPath):
                    module.set_rate(rate * share)

    def share_drop_path(self, rows: torch.Tensor | None, of: int = 0) -> None:
        """Draw stochastic depth for a larger batch of `of` images, of which each batch is the `rows` (B,) int64.

        So several processes drop what one with the whole batch would drop. None: for each batch by itself.
        """
        for module in self.modules():
            if isinstance(module, DropPath):
                module.share(rows, of)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    def reset_classifier(self, num_classes: int, global_pool: Pool | None = None) -> None:
        """Replace the head by a newly initialised one; 0 classes leave it out, logits are then pooled features."""
        pool = self.config.global_pool if global_pool is None else global_pool
        self.config = dataclasses.replace(self.config, num_classes=num_classes, global_pool=pool)
        self.head = self._new_head().to(self.cls_token)
        _init_linear(self.head)

    def set_input_size(self, img_size: int | tuple[int, int] | None = None, patch_size: int | None = None) -> None:
        """Take another image size: the position embedding is resized on its grid, the rotary table recomputed.

        Raises:
            UserError: Another patch size (it would need other weights), or a size that it does not divide.
        """
        if patch_size not in (None, self.config.patch_size):
            raise UserError(
                f"patch size {patch_size} needs other weights than this model's ({self.config.patch_size}); "
                "build a new model for it"
            )
        if img_size is None:
            return
        size = img_size if isinstance(img_size, int) else (img_size[0], img_size[1])
        old_grid = self.config.grid
        self.config = self.patch_embed.config = dataclasses.replace(self.config, img_size=size)
        if self.pos_embed is not None:
            resized = resize_position(self.pos_embed.data, old_grid, self.config.grid, self.config.cls_position)
            self.pos_embed = nn.Parameter(resized, requires_grad=self.pos_embed.requires_grad)
        if self.rope is not None:
            self.rope = RotaryTable(self.config).to(self.cls_token)

    def init_weights(self) -> None:
        """Initialise as published.

        Linear weights, `pos_embed` and `cls_token`: normal, std 0.02, cut at +-2 (100 deviations: in effect not cut).
        Linear biases 0, norm weights 1, LayerScale its initial value; the patch convolution keeps Conv2d's default.
        """
        for module in self.modules():
            _init_linear(module)
        nn.init.trunc_normal_(self.cls_token, std=INIT_STD)
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=INIT_STD)

    def _token_rows(self, kept: torch.Tensor) -> torch.Tensor:
        """Places in the whole sequence of these patches and of the class token, in order."""
        if self.config.cls_position == "last":
            return torch.cat((kept, torch.full_like(kept[:1], self.config.num_patches)))
        return torch.cat((torch.zeros_like(kept[:1]), kept + 1))

    def _known_softness(self) -> Softness:
        """The softness as a tensor, so that one compiled graph serves all values; SDPA must know a 0 to use it."""
        return 0.0 if self.config.mask_mode == "pre_softmax" and self._causal else self.softness

    def _new_head(self) -> nn.Module:
        classes = self.config.num_classes
        return Linear(self.config.embed_dim, classes) if classes else nn.Identity()

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        exact = self.softness
        super()._apply(fn, recurse)
        if self.softness.dtype in (torch.float16, torch.bfloat16):  # 0.35 in bfloat16 is 0.3496: keep what was set
            self.softness = exact.to(self.softness.device)
        return self


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=INIT_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
