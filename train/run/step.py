"""Makes one optimizer step: forward and backward passes over a batch, on one device or many."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from runtime.errors import InputError
from train.config import TrainConfig
from train.data.device_feed import DeviceBatch
from train.data.epoch import Purpose, generator
from train.distributed import World
from train.ema import WeightAverage
from train.losses.packing import PackedTargets
from train.memory import is_out_of_memory
from train.model import DetectorModel
from train.parts import set_frozen, set_training_mode
from train.precision import Precision


class Stepper:
    """Makes the optimizer steps of a run.

    A batch that the devices cannot hold at once is computed in parts, whose gradients add up to the batch's: every sum of the
    loss is divided by what the whole batch has, on all ranks.

    Args:
        config: of the run.
        model: as it is saved.
        optimizer: of its parameters.
        precision: of the run.
        average: of the weights, updated too; None for none.
        world: ranks that share each batch; None for this process alone.
        part: most images that a device computes at a time; None for all of its share.

    Attributes:
        parts: of a rank's share of a batch, one pass each.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: DetectorModel,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        average: WeightAverage | None = None,
        world: World | None = None,
        part: int | None = None,
    ) -> None:
        self._config, self._model, self._optimizer, self._precision = config, model, optimizer, precision
        self._average, self._world, self._part, self.parts = average, world or World(), part, 1
        self._device = next(model.parameters()).device
        self._net = self._world.wrap(model)
        self._norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]

    def freeze(self, parts: set[str]) -> None:
        """Has exactly these parts of the model stay as they are, in training mode from now on."""
        if set_frozen(self._model, parts):
            for parameter in self._model.parameters():
                parameter.grad = None
            # Which weights have their gradients averaged over the ranks is settled when the model is wrapped.
            self._net = self._model
            gc.collect()  # the old wrapper's hooks, which a circle of references keeps alive
            self._net = self._world.wrap(self._model)
        set_training_mode(self._model, parts)

    def plan(self, images: int) -> None:
        """Prepares for batches of so many images, on all ranks together.

        Raises:
            InputError: a rank would have none.
        """
        least, most = images // self._world.size, -(-images // self._world.size)
        if least < 1:
            raise InputError(
                f"a batch of {images} images cannot be divided among {self._world.size} processes; start fewer of them"
            )
        # All ranks make the same number of passes, since they wait for each other in each.
        self.parts = min(-(-most // self._part), least) if self._part else 1
        for norm in self._norms:  # the parts of a step together move it once
            norm.momentum = 1 - (1 - self._config.norm_momentum) ** (1 / self.parts)

    def __call__(self, parts: Sequence[DeviceBatch], rate: float, seed: int) -> list[Tensor]:
        """Updates the weights by one batch; nothing in it waits for the device.

        Args:
            parts: this rank's share of the batch.
            rate: learning rate.
            seed: of all that is random in the network.

        Returns:
            Scalars on the device: of this rank's share the model's `components` and `total`, and the norm of the batch's
            gradient before clipping.

        Raises:
            InputError: the device has too little memory; the message says how many images fit.
        """
        torch.manual_seed(seed)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group.get("rate_factor", 1.0)  # which an earlier version's checkpoint lacks
        try:
            losses = self._add_gradients(parts)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            losses = None
        if losses is None:  # out here, where the error no longer holds on to the tensors of the pass
            raise InputError(self._memory_advice(parts[0]))
        norm = self._precision.clip(self._optimizer, self._model.parameters(), self._config.clip_gradient)
        self._precision.step(self._optimizer)
        if self._average:
            self._average.update()
        return [*losses, norm]

    def _add_gradients(self, parts: Sequence[DeviceBatch]) -> list[Tensor]:
        """Computes the gradients of this rank's share; returns its losses, `total` last."""
        self._optimizer.zero_grad()
        normalizer = self._normalizer(parts)
        sums: list[Tensor] = []
        for number, part in enumerate(parts, 1):
            with self._gradients_kept_apart(is_last=number == len(parts)):
                with self._precision.autocast():
                    losses = self._net(part.images, part.targets, normalizer)
                self._precision.backward(losses["total"])
            values = [losses[name].detach() for name in (*self._model.components, "total")]
            sums = [one + other for one, other in zip(sums, values)] if sums else values
        return sums

    def _gradients_kept_apart(self, is_last: bool) -> contextlib.AbstractContextManager[Any]:
        """Has the gradients averaged over the ranks once a step: with its last part."""
        if is_last or not isinstance(self._net, DistributedDataParallel):
            return contextlib.nullcontext()
        return self._net.no_sync()

    def _normalizer(self, parts: Sequence[DeviceBatch]) -> Tensor | None:
        """Returns what each sum of the loss is divided by: the whole batch's number, as a mean over the ranks.

        Gradients and losses are averaged over the ranks afterwards. None leaves it to the loss, which sees the whole batch.
        """
        if len(parts) == self._world.size == 1:
            return None
        mine = 0
        for part in parts:
            assert isinstance(part.targets, PackedTargets)  # made in the workers
            mine += self._model.normalizer(part.images, part.targets)
        # In float64 on any device: a scalar does not widen the loss.
        share = self._world.mean(torch.full((), mine, dtype=torch.float64, device=self._device))
        return share.clamp(min=1 / self._world.size)

    def _memory_advice(self, part: DeviceBatch) -> str:
        """Says how many images the device can hold, by trying."""
        count, _, height, width = part.images.shape
        said = f"{count} images of {width}x{height} pixels at a time do not fit into the memory of {self._device}"
        self._optimizer.zero_grad()
        fits = next((tried for tried in _halves(count) if self._fits(part, tried)), 0)
        if not fits:
            return f"{said}, and neither does one; lower --size, or choose a smaller recipe"
        return f"{said}, but {fits} do: add --device-batch {fits}, which keeps the batch of {self._config.batch}"

    def _fits(self, part: DeviceBatch, count: int) -> bool:
        """Tries a forward and backward pass of so many images, by this rank alone."""
        for norm in self._norms:
            norm.eval()  # which does not wait for other ranks
        try:
            with self._precision.autocast():
                total = self._model.loss(part.images[:count], part.batch.labels[:count])["total"]
            # Without .backward(), on which the other ranks would have to join in.
            torch.autograd.grad(total, [weight for weight in self._model.parameters() if weight.requires_grad])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True


def step_seed(config: TrainConfig, epoch: int, position: int) -> int:
    """Returns the seed of all that is random in the network at a step, by the position of its first image in the epoch."""
    return int(generator(config.seed, epoch, position, Purpose.NETWORK).integers(2**63))


def _halves(count: int) -> Sequence[int]:
    """Lists count / 2, count / 4, ... 1."""
    return [count >> shift for shift in range(1, count.bit_length())]
