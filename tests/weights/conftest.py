"""The model of the checkpoint's tests."""

from tests.checkpoint.conftest import config, meta, model

__all__ = ["config", "meta", "model"]
