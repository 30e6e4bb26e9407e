"""Interface of all backends, and the checks of their input and output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Optional, Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.errors import InputError, ModelError
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


def check_outputs(outputs: Sequence[Any], shapes: Mapping[str, tuple[int, ...]], count: int) -> None:
    """Raises ModelError unless a run gave what the model's spec promises: what a file says of itself need not hold.

    Args:
        outputs: as the library returned them.
        shapes: for one image, by name, in the same order.
        count: number of images.
    """
    if len(outputs) != len(shapes):
        raise ModelError(f"the model gave {len(outputs)} outputs, expected {', '.join(shapes)}; export it again")
    for output, (name, shape) in zip(outputs, shapes.items()):
        if not isinstance(output, np.ndarray) or output.dtype != np.float32 or output.shape != (count, *shape):
            found = f"{output.dtype} {list(output.shape)}" if isinstance(output, np.ndarray) else type(output).__name__
            raise ModelError(
                f"output {name} is {found} for a batch of {count}, expected float32 {[count, *shape]}; export the model again"
            )
