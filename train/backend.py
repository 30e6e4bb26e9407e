"""A PyTorch model behind the runtime's `Backend`, so that it is evaluated by the very code that exported files are."""

from __future__ import annotations

from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray

from runtime.backend import check_images
from runtime.spec import ModelSpec
from train.model import DetectorModel


class TorchBackend:
    """Runs a model where it is, in evaluation mode; its training mode is restored after each call."""

    def __init__(self, model: DetectorModel, spec: ModelSpec) -> None:
        self._model, self._spec = model, spec

    @property
    def spec(self) -> ModelSpec:
        """The model's description."""
        return self._spec

    @property
    def batch_size(self) -> None:
        """Any."""
        return None

    @torch.no_grad()
    def infer(self, images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """See `runtime.backend.Backend.infer`."""
        check_images(images, self._spec, None)
        was_training = self._model.training
        self._model.eval()
        try:
            device = next(self._model.parameters()).device
            return [level.cpu().numpy() for level in self._model.maps(torch.from_numpy(images).to(device))]
        finally:
            self._model.train(was_training)

    def close(self) -> None:
        """Nothing to release."""

    def __enter__(self) -> TorchBackend:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
