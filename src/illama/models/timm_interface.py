"""Looking inside a model: tokens of any block, attention maps, and the names that timm's tools call.

Letters: B batch, n patches, N = n + 1 tokens, D width, h heads, L depth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from illama.errors import UserError
from illama.models.config import ModelConfig

if TYPE_CHECKING:
    from illama.models.position import RotaryTable

Tokens = Literal["patches", "class", "all"]
Layout = Literal["tokens", "map"]


class TimmInterface:
    """What `ILlama` answers about its inside."""

    config: ModelConfig
    blocks: nn.ModuleList
    norm: nn.Module
    head: nn.Module
    softness: torch.Tensor
    rope: RotaryTable | None
    embed: Callable[[torch.Tensor], torch.Tensor]
    run_blocks: Callable[..., torch.Tensor]
    reset_classifier: Callable[..., None]

    def get_features(
        self,
        images: torch.Tensor,
        block: int = -1,
        *,
        tokens: Tokens = "patches",
        norm: bool = True,
        layout: Layout = "tokens",
    ) -> torch.Tensor:
        """Tokens of one block.

        Args:
            images: Normalised images (B, in_chans, H, W).
            block: Index of the block, 0 to L - 1, or negative from the end; its output is returned.
            tokens: "patches" in raster order, the "class" token, or "all" tokens in sequence order.
            norm: Whether to apply the final norm.
            layout: "tokens", or "map" for patches on their grid.

        Returns:
            (B, n, D) for patches, (B, D, rows, columns) with `layout="map"`, (B, D) for the class token,
            (B, N, D) for all.

        Raises:
            UserError: No such block, or a map of something other than the patches.
        """
        if layout == "map" and tokens != "patches":
            raise UserError(f'layout "map" exists for tokens "patches" only; got tokens {tokens!r}')
        index = self.block_index(block)
        x_BND = self.run_blocks(self.embed(images), stop_after=index)
        x_BND = self.norm(x_BND) if norm else x_BND
        if tokens == "class":
            return x_BND[:, self.cls_index]
        if tokens == "all":
            return x_BND
        patches = self.patch_tokens(x_BND)
        return self._as_map(patches) if layout == "map" else patches

    def get_attention(self, images: torch.Tensor, block: int = -1, head: int | None = None) -> torch.Tensor:
        """The matrix that multiplies v in one block: after the softmax and after the mask, rows are queries.

        The weights come from the reference backend whatever backend the model uses, for no other forms them.

        Args:
            images: Normalised images (B, in_chans, H, W).
            block: Index of the block, 0 to L - 1, or negative from the end.
            head: One head, or all when None.

        Returns:
            (B, h, N, N), or (B, N, N) for one head.
        """
        index = self.block_index(block)
        heads = self.config.num_heads
        if head is not None and not -heads <= head < heads:
            raise UserError(f"head {head} does not exist; the model has heads 0 to {heads - 1}")
        x_BND = self.embed(images)
        if index:
            x_BND = self.run_blocks(x_BND, stop_after=index - 1)
        chosen: Any = self.blocks[index]
        rope = None if self.rope is None else self.rope.tables()
        weights_BhNN = chosen.attn.weights(chosen.norm1(x_BND), self.softness, rope)
        return weights_BhNN if head is None else weights_BhNN[:, head]

    def patch_tokens(self, x_BND: torch.Tensor) -> torch.Tensor:
        """The patches (B, n, D) of a token sequence (B, N, D), in raster order."""
        return x_BND[:, :-1] if self.config.cls_position == "last" else x_BND[:, 1:]

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """timm's way to ask for intermediates: the patches of several blocks in one pass.

        Args:
            x: Normalised images (B, in_chans, H, W).
            indices: The last n blocks for a number, the blocks named by a sequence, all when None.
            return_prefix_tokens: Pair each intermediate with its class token (B, 1, D), wherever it stands.
            norm: Whether to apply the final norm to the intermediates.
            stop_early: Whether to stop after the last block asked for.
            output_fmt: "NCHW" for maps (B, D, rows, columns), "NLC" for tokens (B, n, D).
            intermediates_only: Whether to return the list alone instead of (final tokens, list).
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise UserError(f'output_fmt must be "NCHW" or "NLC"; got {output_fmt!r}')
        wanted = self._block_indices(indices)
        intermediates: list[Any] = []

        def keep(index: int, x_BND: torch.Tensor) -> None:
            if index not in wanted:
                return
            x_BND = self.norm(x_BND) if norm else x_BND
            patches = self.patch_tokens(x_BND)
            patches = self._as_map(patches) if output_fmt == "NCHW" else patches
            intermediates.append((patches, x_BND[:, self.cls_index].unsqueeze(1)) if return_prefix_tokens else patches)

        final = self.run_blocks(self.embed(x), after_block=keep, stop_after=max(wanted) if stop_early else None)
        return intermediates if intermediates_only else (self.norm(final), intermediates)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the asked intermediates do not need (timm's `features_only`); returns the block indices."""
        wanted = self._block_indices(indices)
        self.blocks = self.blocks[: max(wanted) + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0)
        return wanted

    @property
    def cls_index(self) -> int:
        """Position of the class token in the sequence."""
        return -1 if self.config.cls_position == "last" else 0

    @property
    def num_features(self) -> int:
        """Width of the features, D."""
        return self.config.embed_dim

    embed_dim = head_hidden_size = num_features

    @property
    def num_classes(self) -> int:
        """Classes of the head."""
        return self.config.num_classes

    @property
    def global_pool(self) -> str:
        """What the head sees."""
        return self.config.global_pool

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens in front of the patches: none where the class token stands last."""
        return 0 if self.config.cls_position == "last" else 1

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """timm's description of the intermediates: channels and pixels per cell, one entry per block."""
        return [
            {"module": f"blocks.{i}", "num_chs": self.config.embed_dim, "reduction": self.config.patch_size}
            for i in range(len(self.blocks))
        ]

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def no_weight_decay(self) -> set[str]:
        """Parameters of more than one dimension that are not decayed."""
        return {"cls_token", "pos_embed"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's patterns for layer-wise groups: embeddings, each block, then the final norm and the head."""
        return {
            "stem": r"^cls_token|^pos_embed|^patch_embed",
            "blocks": r"^blocks\.(\d+)" if coarse else [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def _as_map(self, patches_BnD: torch.Tensor) -> torch.Tensor:
        return patches_BnD.transpose(1, 2).unflatten(2, self.config.grid).contiguous()

    def block_index(self, block: int) -> int:
        """The index 0 to L - 1 of a block that may be counted from the end.

        Raises:
            UserError: No such block.
        """
        depth = len(self.blocks)
        if not -depth <= block < depth:
            raise UserError(f"block {block} does not exist; the model has blocks 0 to {depth - 1}")
        return block % depth

    def _block_indices(self, indices: int | Sequence[int] | None) -> list[int]:
        depth = len(self.blocks)
        if indices is None:
            return list(range(depth))
        if isinstance(indices, int):
            if not 1 <= indices <= depth:
                raise UserError(f"the last {indices} blocks were asked for; the model has {depth}")
            return list(range(depth - indices, depth))
        return [self.block_index(index) for index in indices]
