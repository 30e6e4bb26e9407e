"""Runs PyTorch models behind the runtime's `Backend`, so that the code that scores exported files scores them too."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.backends.base import check_images
from runtime.backends.inspection import Inspection
from runtime.files import PathLike, sha256
from runtime.spec import ModelSpec
from train import checkpoint
from train.model import DetectorModel
from train.weights import open_weights

_T = TypeVar("_T")


class TorchBackend:
    """Runs a model where it is, in evaluation mode; its training mode is restored after each call.

    Args:
        model: the detector.
        spec: its spec, a plain one (see `ModelSpec.plain`): a model in PyTorch has no export options.
    """

    def __init__(self, model: DetectorModel, spec: ModelSpec) -> None:
        assert spec == spec.plain()
        self._model, self._spec = model, spec

    @property
    def spec(self) -> ModelSpec:
        """The model's spec."""
        return self._spec

    @property
    def batch_size(self) -> None:
        """None: any batch size."""
        return None

    @property
    def title(self) -> str:
        """PyTorch's version."""
        return f"PyTorch {torch.__version__}"

    def infer(self, images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """See `runtime.backends.base.Backend.infer`."""
        return _arrays(self._run(self._model.maps, images))

    def check_inspectable(self) -> None:
        """See `runtime.backends.inspection.InspectableBackend.check_inspectable`; InputError for a model without ASFF."""
        self._model.check_inspectable()

    def inspect(self, images: NDArray[np.float32]) -> Inspection:
        """See `runtime.backends.inspection.InspectableBackend.inspect`."""
        maps, weights, activations = self._run(self._model.inspect, images)
        return Inspection(_arrays(maps), _arrays(weights), _arrays(activations))

    @torch.no_grad()
    def _run(self, method: Callable[[Tensor], _T], images: NDArray[np.float32]) -> _T:
        check_images(images, self._spec, None)
        was_training = self._model.training
        self._model.eval()
        try:
            device = next(self._model.parameters()).device
            return method(torch.from_numpy(images).to(device))
        finally:
            self._model.train(was_training)

    def close(self) -> None:
        """Nothing to release."""

    def __enter__(self) -> TorchBackend:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _arrays(tensors: list[Tensor]) -> list[NDArray[np.float32]]:
    return [tensor.cpu().numpy() for tensor in tensors]


def open_torch_backend(weights: PathLike, size: tuple[int, int] | None = None) -> TorchBackend:
    """Opens any file that `train.weights.open_weights` takes as a backend on the CPU.

    Args:
        weights: the file.
        size: (height, width) in pixels to run at, multiples of 32; None for the file's own.
    """
    loaded = open_weights(weights)
    spec = loaded.spec.plain().replace(input_size=size or loaded.spec.input_size, source_sha256=sha256(weights))
    return TorchBackend(checkpoint.restore(weights, loaded), spec)
