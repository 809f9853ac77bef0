"""Evaluation: one pass over the data, metrics as functions of logits, and predictions for single images."""

from illama.callable_package import make_callable
from illama.evaluate.classify import EvalResult, collect_logits, evaluate_model, evaluating
from illama.evaluate.metrics import Scores
from illama.evaluate.predict import Prediction, predict
from illama.evaluate.run import evaluate

__all__ = [
    "EvalResult",
    "Prediction",
    "Scores",
    "collect_logits",
    "evaluate",
    "evaluate_model",
    "evaluating",
    "predict",
]

make_callable(__name__, "illama.evaluate.run", "evaluate")
