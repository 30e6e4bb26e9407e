"""Keeps an exponential moving average of a model's weights, which is evaluated and exported in their place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from runtime.errors import ModelError


class WeightAverage:
    """Exponential moving average of parameters and batch norm's statistics.

    The decay rises with the steps, `(1 + t) / (10 + t)` up to its end value, so that a short run is not held at its start.

    Attributes:
        decay: the end value, in (0, 1).
        steps: averaged so far.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self._live = _floats(model)
        self._average = {name: value.detach().clone() for name, value in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the model's weights after a step; nothing waits for the device."""
        self.steps += 1
        share = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(list(self._average.values()), list(self._live.values()), share)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Puts the average into the model until the end of the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_dict(self) -> dict[str, Tensor]:
        """The average by the names of the weights, and `steps`."""
        return {**self._average, "steps": torch.tensor(self.steps)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over what `state_dict` gave.

        Raises:
            ModelError: other names or shapes.
        """
        if {*state} != {*self._average, "steps"} or any(state[name].shape != x.shape for name, x in self._average.items()):
            raise ModelError("the checkpoint's average of the weights does not fit its model; the file is damaged")
        for name, value in self._average.items():
            value.copy_(state[name])
        self.steps = int(state["steps"])

    @torch.no_grad()
    def _swap(self) -> None:
        for name, live in self._live.items():
            held = live.detach().clone()
            live.copy_(self._average[name])
            self._average[name].copy_(held)


def _floats(model: nn.Module) -> dict[str, Tensor]:
    """The model's own floating-point parameters and buffers, by name; what counts in whole numbers is no average."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: value for name, value in tensors.items() if value.is_floating_point()}
