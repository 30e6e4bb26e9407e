"""Reads the losses of a step one step late, so that no step waits for the device, and stops on one that is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from runtime.errors import CheckFailed
from train.distributed import World

_MOST_OVERFLOWS = 50  # in a row: from any start, a sane loss scale is reached in fewer halvings


class _Sent(NamedTuple):
    """Values of one step on their way to this process.

    Attributes:
        values: float64 `[V + 1 + R]` on the host, means over the R ranks: the values, whether to stop, and at a rank's place
            whether its own values are not finite.
        arrived: fires when they are there; None where nothing is to be waited for.
        where: epoch and batch in words.
        sources: the files of this rank's share of the batch.
        planned: lists the images that the plan has for the batch, of all ranks.
        then: called with the values by name once they are read; None for nothing.
    """

    values: Tensor
    arrived: torch.cuda.Event | None
    where: str
    sources: Sequence[str]
    planned: Callable[[], Sequence[str]]
    then: Callable[[dict[str, float]], None] | None


class StepMonitor:
    """Averages the values of steps over the ranks, sums them and checks that they are finite.

    Every rank finds the same step at fault, and the same step to stop behind.

    Attributes:
        sums: of the finite values of all steps read so far, by name.
        steps: read so far.
        asked: True once a rank is known to have asked to stop.
        overflows: steps in a row that were left out because scaled gradients overflowed.
    """

    def __init__(
        self, names: Sequence[str], scaled: bool, world: World | None = None, sums: dict[str, float] | None = None
    ) -> None:
        """Starts with nothing read.

        Args:
            names: of the values of a step; `gradient` is the norm of the gradient.
            scaled: the loss is scaled, so that a gradient which is not finite is no fault by itself.
            world: the ranks; None for this process alone.
            sums: where to sum up; None for new sums.
        """
        self.names, self.scaled, self._world = tuple(names), scaled, world or World()
        self.sums = dict.fromkeys(self.names, 0.0) if sums is None else sums
        self.steps, self.overflows, self.asked = 0, 0, False
        self._sent: _Sent | None = None
        self._buffers: list[Tensor] = []

    @torch.no_grad()
    def add(
        self,
        values: Sequence[Tensor],
        where: str,
        sources: Sequence[str],
        planned: Callable[[], Sequence[str]] = tuple,
        stop: bool = False,
        then: Callable[[dict[str, float]], None] | None = None,
    ) -> bool:
        """Sends a step's values on their way and reads those of the step before.

        Args:
            values: scalars in the order of the names.
            where: epoch and batch in words.
            sources: the files of this rank's share of the batch.
            planned: lists the images that the plan has for the batch, of all ranks; called where they are named alone.
            stop: ask all ranks to stop.
            then: called with the values by name, means over the ranks, once they are read.

        Returns:
            True if a rank asked to stop in a step before: on all ranks with the same step, whoever has flushed.

        Raises:
            CheckFailed: the step before was not finite; the message names its batch.
        """
        held = torch.stack([value.detach().double() for value in values])
        marks = held.new_zeros(1 + self._world.size)
        marks[0].fill_(stop)
        marks[1 + self._world.rank].copy_((~torch.isfinite(held)).any())
        means = self._world.mean(torch.cat([held, marks]))
        before, self._sent = self._sent, self._send(means, _Sent(means, None, where, sources, planned, then))
        self._read(before)
        return self.asked

    def flush(self) -> None:
        """Reads the last step, which waits for it; raises as `add`."""
        before, self._sent = self._sent, None
        self._read(before)

    def _send(self, values: Tensor, sent: _Sent) -> _Sent:
        if values.device.type != "cuda":
            return sent
        if len(self._buffers) < 2:  # one is read while the other is written
            self._buffers.append(torch.empty(values.shape, dtype=values.dtype, pin_memory=True))
        buffer = self._buffers.pop(0)
        self._buffers.append(buffer)
        buffer.copy_(values, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record(torch.cuda.current_stream(values.device))
        return sent._replace(values=buffer, arrived=arrived)

    def _read(self, sent: _Sent | None) -> None:
        if sent is None:
            return
        if sent.arrived is not None:
            sent.arrived.synchronize()
        numbers: list[float] = sent.values.cpu().numpy().tolist()
        values = dict(zip(self.names, numbers))
        stopping, *guilty = numbers[len(self.names) :]
        self.asked = self.asked or stopping > 0
        broken = [name for name, value in values.items() if not math.isfinite(value)]
        overflowed = self.scaled and broken == ["gradient"]
        self.overflows = self.overflows + 1 if overflowed else 0
        if broken and (not overflowed or self.overflows > _MOST_OVERFLOWS):
            raise CheckFailed(self._explain(broken, [rank for rank, share in enumerate(guilty) if share], sent))
        self.steps += 1
        for name, value in values.items():
            self.sums[name] += value if math.isfinite(value) else 0.0
        if sent.then:
            sent.then(values)

    def _explain(self, broken: Sequence[str], guilty: Sequence[int], sent: _Sent) -> str:
        suspects = sent.sources
        if self._world.size > 1 and guilty != [self._world.rank]:
            ranks = guilty or range(self._world.size)
            planned = sent.planned()
            suspects = [name for rank in ranks for name in planned[rank :: self._world.size]]
        names = ", ".join(suspects[:8]) + (" ..." if len(suspects) > 8 else "")
        advice = "check these labels or lower --learning-rate"
        if self.scaled:
            advice += ", or use --precision bf16 or fp32"
        return f"the loss ({', '.join(broken)}) is not finite in {sent.where}: {names}; the last checkpoint is intact; {advice}"
