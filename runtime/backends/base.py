"""What every way of running a model looks like from outside, and what each of them checks."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Optional, Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.errors import InputError
from runtime.spec import ModelSpec


class Backend(Protocol):
    """A loaded model: prepared images in, outputs out, as its spec says. Everything before and after is done elsewhere."""

    @property
    def spec(self) -> ModelSpec:
        """The model's own description."""

    @property
    def batch_size(self) -> Optional[int]:
        """The only batch size it takes, or None for any."""

    def infer(self, images: NDArray[Any]) -> list[NDArray[np.float32]]:
        """`[N, *spec.input_shape]` of `spec.input_type` to float32 `[N, *shape]` for each of `spec.outputs`."""

    @property
    def title(self) -> str:
        """What runs it, for people: library, version, device."""

    def close(self) -> None:
        """Release what it holds; closing twice is fine."""

    def __enter__(self) -> Backend: ...

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None: ...


def check_images(images: NDArray[Any], spec: ModelSpec, batch_size: Optional[int]) -> None:
    """Raise InputError unless `images` is what a model of this spec takes."""
    expected = (batch_size or "N", *spec.input_shape)
    fits = images.ndim == 4 and images.shape[1:] == spec.input_shape and images.shape[0] == (batch_size or max(len(images), 1))
    if images.dtype != spec.input_type or not fits:
        raise InputError(f"images: expected {spec.input_type} {list(expected)}, got {images.dtype} {list(images.shape)}")
