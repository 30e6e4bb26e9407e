"""Training side of the detector: PyTorch model, loss, data, loop and checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.weights import load_model

__all__ = ["load_model"]


def __getattr__(name: str) -> Any:
    """`from train import load_model` without importing torch for those who only want the configuration."""
    if name == "load_model":
        from train.weights import load_model

        return load_model
    raise AttributeError(f"module 'train' has no attribute {name!r}")
