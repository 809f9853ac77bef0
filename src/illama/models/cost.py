"""What a configuration costs on paper: parameters, multiply-adds, and the bytes that must move. No torch here.

Letters: B batch, N tokens, D width, L depth, m hidden width of the feed-forward, p patch side, n patches.
Arithmetic is counted in multiply-adds of matrix products and of the patch convolution, per image; two floating-point
operations each. Norms, rotations, gates, softmax and additions are not counted. What the paper prints follows the
counters of two libraries, which differ a little: `counted_parameters`, `counted_multiply_adds`.
"""

from __future__ import annotations

import dataclasses

from illama.models.config import ModelConfig


def parameters(config: ModelConfig) -> int:
    """Number of parameters; 5,701,096 for tiny at 224 px with 1000 classes (spec of the family, section 3)."""
    positions = config.num_patches + 1 if "learned" in config.position else 0
    norms = _norms(config) if config.norm == "rms" else 0
    scales = 0 if config.layer_scale is None else 2 * config.depth
    class_token = 1
    return counted_parameters(config) + (class_token + positions + norms + scales) * config.embed_dim


def counted_parameters(config: ModelConfig) -> int:
    """Parameters as the paper's Tables 6 and 11 print them: of linear layers, the patch convolution and LayerNorms.

    A counter that adds up the modules whose type it knows (thop does) misses what belongs to none of them: the class
    token and the position embedding, which are attributes of the network, and layers that torch does not have
    (RMSNorm of the published code, LayerScale). So base is 86,331,112 at every image size, printed as 86.3; with
    RMSNorm it would be 86.4, and ViT-L without LayerNorm 304.0 where 304.1 is printed.
    """
    width, hidden = config.embed_dim, config.hidden_dim
    norms = 2 * width * _norms(config) if config.norm == "layer" else 0
    qkv = 3 * width * width + (3 * width if config.qkv_bias else 0)
    proj = width * width + width
    ffn = 3 * width * hidden if config.ffn == "swiglu" else 2 * width * hidden + hidden + width
    patches = _patch_inputs(config) * width + width
    head = (width + 1) * config.num_classes
    return config.depth * (qkv + proj + ffn) + norms + patches + head


def multiply_adds(config: ModelConfig) -> int:
    """Multiply-adds of a forward pass that computes everything.

    Both matrix products of attention are counted in full, N^2 D each, whatever the mask (Tables 2 and 6): tiny 1.254 G,
    small 4.599, base 17.564, large 62.794 at 224 px.
    """
    return sum(multiply_add_parts(config).values())


def counted_multiply_adds(config: ModelConfig) -> int:
    """Multiply-adds as Tables 6 and 11 print them: `multiply_adds`, and five operations per value for each LayerNorm.

    That is what fvcore counts. It takes LayerNorm for one operation that it knows, and a written-out RMSNorm for
    nothing, so only peers are larger by it; ViT-L at 384 px is printed as 191.2 (191.211; its products are 191.066).
    """
    tokens, per_value = config.num_patches + 1, 5
    norms = _norms(config) if config.norm == "layer" else 0
    return multiply_adds(config) + per_value * tokens * config.embed_dim * norms


def multiply_add_parts(config: ModelConfig) -> dict[str, int]:
    """What `multiply_adds` adds up, by part of the network, in the order of a forward pass."""
    pairs = (config.num_patches + 1) ** 2
    return _parts(config, config.depth, (pairs, pairs))


def needed_multiply_adds(config: ModelConfig, softness: float = 0.0) -> int:
    """Multiply-adds that the logits really need.

    Two savings change no result. At softness 0 the product of weights and values stops at the diagonal, and with
    `pre_softmax` the scores do as well; with `post_softmax` every score stays in the denominator. And when the head
    sees the class token only, the last block needs keys and values of all tokens, but the query, the projection
    and the feed-forward of the class token alone.

    Args:
        config: The model.
        softness: Softness of the mask; above 0 every weight is used.
    """
    return sum(needed_parts(config, softness).values())


def needed_parts(config: ModelConfig, softness: float = 0.0) -> dict[str, int]:
    """What `needed_multiply_adds` adds up, under the names of `multiply_add_parts`."""
    pairs = _attended_pairs(config, softness)
    if config.global_pool != "token":
        return _parts(config, config.depth, pairs)
    tokens, width = config.num_patches + 1, config.embed_dim
    scored, weighted = _class_pairs(config, softness)
    last_block = {
        "projections": (2 * tokens + 2) * width**2,
        "scores": scored * width,
        "weighted values": weighted * width,
        "feed-forward": _ffn(config),
    }
    return {part: count + last_block.get(part, 0) for part, count in _parts(config, config.depth - 1, pairs).items()}


def attention_multiply_adds(config: ModelConfig, softness: float = 0.0) -> int:
    """Multiply-adds that one attention layer needs for all tokens, projections included (what Table 2 compares).

    Args:
        config: The model; its mask and mask mode decide which scores and weights are needed.
        softness: Softness of the mask; above 0 every weight is used.
    """
    tokens, width = config.num_patches + 1, config.embed_dim
    return 4 * tokens * width**2 + sum(_attended_pairs(config, softness)) * width


def training_multiply_adds(config: ModelConfig, forward: int) -> int:
    """Multiply-adds of a forward and backward pass, from those of the forward pass.

    The backward pass has two products for each of the forward pass (gradients of both factors), skipped where the
    forward product is; images have no gradient, which saves one product of the patch embedding. Scores that a
    fused kernel computes again are an implementation's choice and not counted; the optimizer has no products.

    Args:
        config: The model.
        forward: `needed_multiply_adds` or `multiply_adds` of it.
    """
    return 3 * forward - _patch_embedding(config)


def on_patches(config: ModelConfig, patches: int) -> ModelConfig:
    """The network while it computes so many patches of each image, for the counts of this module."""
    return _OnPatches(**{**vars(config), "patches": patches})


@dataclasses.dataclass(frozen=True, kw_only=True)
class _OnPatches(ModelConfig):
    patches: int

    @property
    def num_patches(self) -> int:
        return self.patches


def peer_config(config: ModelConfig) -> ModelConfig:
    """The plain ViT of the same size (same D, L, heads, patches): two-layer MLP, LayerNorm, no mask."""
    return dataclasses.replace(
        config, ffn="mlp", norm="layer", mask="none", cls_position="first", position="learned", layer_scale=None
    )


def forward_bytes(config: ModelConfig, batch: int, bytes_per_value: int) -> int:
    """Least traffic with memory of a forward pass, in bytes, when every matrix product is one kernel.

    Weights are read once, images once, logits written once. Per token and block, what one product hands to the next
    crosses memory (element-wise work rides along): x in, q, k, v out (4 D); q, k, v in, attended out (4 D); attended
    and x in, x out (3 D); x in, hidden out (D + m); hidden and x in, x out (2 D + m): 14 D + 2 m. Nothing of size
    N x N crosses. The patch embedding and the final norm write and read the tokens once more.
    """
    tokens, width = config.num_patches + 1, config.embed_dim
    return bytes_per_value * (
        parameters(config)
        + batch * (_image_values(config) + config.num_classes + tokens * _token_values(config, width))
    )


def training_bytes(config: ModelConfig, batch: int, bytes_per_value: int) -> int:
    """Least traffic with memory of a training step with AdamW, in bytes; weights and their state in float32.

    Weights cross ten times: read forward and backward, gradient written; then gradient, weight and both moments
    read, weight and moments written. An activation that crosses twice in the forward pass (written, read) crosses
    three times more in the backward pass (read again, its gradient written and read).
    """
    tokens, width = config.num_patches + 1, config.embed_dim
    activations = batch * tokens * _token_values(config, width) * 5 // 2
    images = batch * (2 * _image_values(config) + 3 * config.num_classes)
    return 10 * 4 * parameters(config) + bytes_per_value * (activations + images)


def working_set_bytes(config: ModelConfig, batch: int, bytes_per_value: int) -> int:
    """Weights and the activations of one block, in bytes: what must fit into a cache for it to replace memory."""
    tokens = config.num_patches + 1
    return bytes_per_value * (parameters(config) + batch * tokens * (5 * config.embed_dim + config.hidden_dim))


def _norms(config: ModelConfig) -> int:
    return 2 * config.depth + 1


def _parts(config: ModelConfig, blocks: int, pairs: tuple[int, int]) -> dict[str, int]:
    """Multiply-adds by part, of `blocks` blocks that compute all tokens.

    Args:
        config: The model.
        blocks: How many.
        pairs: (query, key) pairs in a block that have a score, and that have a weight.
    """
    tokens, width = config.num_patches + 1, config.embed_dim
    scored, weighted = pairs
    return {
        "patch embedding": _patch_embedding(config),
        "projections": blocks * 4 * tokens * width**2,
        "scores": blocks * scored * width,
        "weighted values": blocks * weighted * width,
        "feed-forward": blocks * tokens * _ffn(config),
        "head": _head(config),
    }


def _patch_inputs(config: ModelConfig) -> int:
    return config.in_chans * config.patch_size**2


def _patch_embedding(config: ModelConfig) -> int:
    return config.num_patches * _patch_inputs(config) * config.embed_dim


def _head(config: ModelConfig) -> int:
    rows = {"token": 1, "avg": 1, "": config.num_patches + 1}[config.global_pool]
    return rows * config.embed_dim * config.num_classes


def _ffn(config: ModelConfig) -> int:
    """Multiply-adds of the feed-forward for one token."""
    return (3 if config.ffn == "swiglu" else 2) * config.embed_dim * config.hidden_dim


def _attended_pairs(config: ModelConfig, softness: float) -> tuple[int, int]:
    """(query, key) pairs whose score, and whose weight, is needed in a block that computes all tokens."""
    tokens = config.num_patches + 1
    if config.mask == "none" or softness > 0:
        return tokens**2, tokens**2
    visible = tokens * (tokens + 1) // 2 + (tokens - 1 if config.mask == "modified_causal" else 0)
    return (visible if config.mask_mode == "pre_softmax" else tokens**2), visible


def _class_pairs(config: ModelConfig, softness: float) -> tuple[int, int]:
    """The same for the class token's query alone."""
    tokens = config.num_patches + 1
    alone = config.mask == "causal" and config.cls_position == "first" and softness == 0
    visible = 1 if alone else tokens
    return (visible if config.mask_mode == "pre_softmax" else tokens), visible


def _image_values(config: ModelConfig) -> int:
    height, width = config.height_width
    return config.in_chans * height * width


def _token_values(config: ModelConfig, width: int) -> int:
    """Values per token that cross memory in a forward pass; see `forward_bytes`."""
    return config.depth * (14 * width + 2 * config.hidden_dim) + 2 * width
