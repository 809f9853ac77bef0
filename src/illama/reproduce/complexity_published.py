"""Sizes and costs as the paper prints them, each beside the configuration that they are printed for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

from illama.models.config import ModelConfig
from illama.models.variants import VARIANTS, roadmap_config

MILLION, BILLION = 10**6, 10**9


@dataclass(frozen=True)
class PublishedCost:
    """A row of Tables 6 and 11.

    Attributes:
        model: How the paper calls it.
        data: What it was trained on.
        config: The network.
        parameters: Printed parameters in millions, digit for digit.
        multiply_adds: Printed multiply-adds in billions, digit for digit; None where the paper prints none.
        images_per_s: Printed throughput on an A100, batch 1024; None where the paper prints none.
    """

    model: str
    data: str
    config: ModelConfig
    parameters: str
    multiply_adds: str | None
    images_per_s: int | None


def _illama(variant: str, px: int) -> ModelConfig:
    return dataclasses.replace(VARIANTS[variant], img_size=px)


def _vit(variant: str, px: int) -> ModelConfig:
    return roadmap_config("vit", variant, img_size=px)


_BOTH = "in21k, in1k"
PUBLISHED = (
    PublishedCost("iLLaMA-T", "in1k", _illama("tiny", 224), "5.7", "1.3", 6958),
    PublishedCost("iLLaMA-S", "in1k", _illama("small", 224), "21.9", "4.6", 3222),
    PublishedCost("iLLaMA-B", "in1k", _illama("base", 224), "86.3", "17.6", 1345),
    PublishedCost("iLLaMA-B", "in1k", _illama("base", 384), "86.3", "55.5", 332),
    PublishedCost("iLLaMA-B", _BOTH, _illama("base", 224), "86.3", "17.6", 1345),
    PublishedCost("iLLaMA-B", _BOTH, _illama("base", 384), "86.3", "55.5", 332),
    PublishedCost("iLLaMA-L", _BOTH, _illama("large", 224), "310.2", "62.8", 456),
    PublishedCost("iLLaMA-L", _BOTH, _illama("large", 384), "310.2", "194.7", 116),
    PublishedCost("DeiT-Ti", "in1k", _vit("tiny", 224), "5.7", "1.3", 6051),
    PublishedCost("DeiT-S", "in1k", _vit("small", 224), "22.1", "4.6", 3080),
    PublishedCost("DeiT-B", "in1k", _vit("base", 224), "86.4", "17.6", 1348),
    PublishedCost("ViT-B/16", _BOTH, _vit("base", 384), "86.4", "55.5", 349),
    PublishedCost("ViT-L/16", _BOTH, _vit("large", 384), "304.1", "191.2", 124),
    PublishedCost("VisionLLaMA-L", "in1k, in1k", roadmap_config("visionllama", "large"), "310", None, None),
)


def table_2_bidirectional(tokens: int, width: int) -> int:
    """Multiply-adds of an attention layer in the paper's Table 2: 4 N D^2 + 2 N^2 D."""
    return 4 * tokens * width**2 + 2 * tokens**2 * width


def table_2_causal(tokens: int, width: int) -> int:
    """Multiply-adds of a causal attention layer in Table 2: 4 N D^2 + N^2 D + (floor(N^2 / 2) + 1) D."""
    return 4 * tokens * width**2 + tokens**2 * width + (tokens**2 // 2 + 1) * width


def agrees_to_the_printed_digits(count: int, printed: str, unit: int) -> bool:
    """Whether a count, rounded half up to as many digits as are printed, is what is printed.

    Args:
        count: Exact.
        printed: A number in units, such as "86.3".
        unit: What it is printed in units of, such as `MILLION`.
    """
    return (Decimal(count) / unit).quantize(Decimal(printed), ROUND_HALF_UP) == Decimal(printed)
