"""Interface of all backends, and the check of their input."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Optional, Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.errors import InputError
from runtime.spec import ModelSpec


class Backend(Protocol):
    """A loaded model, from preprocessed images to raw outputs."""

    @property
    def spec(self) -> ModelSpec:
        """Spec of the model."""

    @property
    def batch_size(self) -> Optional[int]:
        """The only batch size that the model takes, or None for any."""

    def infer(self, images: NDArray[Any]) -> list[NDArray[np.float32]]:
        """Runs the model.

        Args:
            images: `[N, *spec.input_shape]` of `spec.input_type`.

        Returns:
            float32 `[N, *shape]` for each of `spec.outputs`, in that order.

        Raises:
            InputError: images of another shape or dtype.
            ModelError: the run failed, or the model was closed.
        """

    @property
    def title(self) -> str:
        """Library, version and device, for messages."""

    def close(self) -> None:
        """Frees the model; closing twice is fine."""

    def __enter__(self) -> Backend: ...

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None: ...


def check_images(images: NDArray[Any], spec: ModelSpec, batch_size: Optional[int]) -> None:
    """Raises InputError unless `images` is what a model of this spec takes."""
    expected = (batch_size or "N", *spec.input_shape)
    fits = images.ndim == 4 and images.shape[1:] == spec.input_shape and images.shape[0] == (batch_size or max(len(images), 1))
    if images.dtype != spec.input_type or not fits:
        raise InputError(f"images: expected {spec.input_type} {list(expected)}, got {images.dtype} {list(images.shape)}")
