"""Evaluation: one pass over the data, metrics as functions of logits, and predictions for single images."""

from illama.evaluation.classify import (
    EvalResult,
    collect_logits,
    evaluate,
    evaluate_model,
    evaluate_together,
    evaluating,
)
from illama.evaluation.predict import Prediction, predict
from illama.evaluation.saved_logits import SavedLogits
from illama.evaluation.scores import Scores

__all__ = [
    "EvalResult",
    "Prediction",
    "SavedLogits",
    "Scores",
    "collect_logits",
    "evaluate",
    "evaluate_model",
    "evaluate_together",
    "evaluating",
    "predict",
]
