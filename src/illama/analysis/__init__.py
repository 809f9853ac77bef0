"""What a trained network does inside, as pure functions of a model and images."""

from illama.analysis.causality import exchange, image_gradient, jacobian_norms
from illama.analysis.class_token import class_attention, class_token_leak

__all__ = ["class_attention", "class_token_leak", "exchange", "image_gradient", "jacobian_norms"]
