"""Reads the losses of a step one step late, so that no step waits for the device, and stops on one that is not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist

from runtime.errors import CheckFailed

_MOST_OVERFLOWS = 50  # in a row: from any start, a sane loss scale is reached in fewer halvings


class _Sent(NamedTuple):
    """Values of one step on their way to this process.

    Attributes:
        values: float64 `[2 * V]` on the host: the values, then 1 where a process found one that is not finite.
        arrived: fires when they are there; None where nothing is to be waited for.
        where: epoch and batch in words.
        sources: the files of the batch.
    """

    values: Tensor
    arrived: torch.cuda.Event | None
    where: str
    sources: Sequence[str]


class StepMonitor:
    """Sums the values of steps and checks that they are finite.

    Every process of a distributed run finds the same step at fault, so that all of them stop.

    Attributes:
        sums: of the finite values of all steps read so far, by name.
        steps: read so far.
        overflows: steps in a row that were left out because scaled gradients overflowed.
    """

    def __init__(self, names: Sequence[str], scaled: bool) -> None:
        """Starts with nothing read.

        Args:
            names: of the values of a step; `gradient` is the norm of the gradient.
            scaled: the loss is scaled, so that a gradient which is not finite is no fault by itself.
        """
        self.names, self.scaled = tuple(names), scaled
        self.sums, self.steps, self.overflows = dict.fromkeys(self.names, 0.0), 0, 0
        self._sent: _Sent | None = None
        self._buffers: list[Tensor] = []

    @torch.no_grad()
    def add(self, values: Sequence[Tensor], where: str, sources: Sequence[str]) -> None:
        """Sends a step's values on their way and reads those of the step before.

        Args:
            values: scalars in the order of the names.
            where: epoch and batch in words.
            sources: the files of the batch.

        Raises:
            CheckFailed: the step before was not finite; the message names its batch.
        """
        held = torch.stack([value.detach().double() for value in values])
        broken = (~torch.isfinite(held)).double()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(broken, dist.ReduceOp.MAX)
        sent = self._send(torch.cat([held, broken]), where, sources)
        before, self._sent = self._sent, sent
        self._read(before)

    def flush(self) -> None:
        """Reads the last step, which waits for it; raises as `add`."""
        before, self._sent = self._sent, None
        self._read(before)

    def means(self) -> dict[str, float]:
        """Reads the last step; returns the mean of each value and starts anew."""
        self.flush()
        result = {name: total / max(self.steps, 1) for name, total in self.sums.items()}
        self.sums, self.steps = dict.fromkeys(self.names, 0.0), 0
        return result

    def _send(self, values: Tensor, where: str, sources: Sequence[str]) -> _Sent:
        if values.device.type != "cuda":
            return _Sent(values, None, where, sources)
        if len(self._buffers) < 2:  # one is read while the other is written
            self._buffers.append(torch.empty(values.shape, dtype=values.dtype, pin_memory=True))
        buffer = self._buffers.pop(0)
        self._buffers.append(buffer)
        buffer.copy_(values, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
        return _Sent(buffer, arrived, where, sources)

    def _read(self, sent: _Sent | None) -> None:
        if sent is None:
            return
        if sent.arrived is not None:
            sent.arrived.synchronize()
        numbers: list[float] = sent.values.cpu().numpy().tolist()
        values = dict(zip(self.names, numbers))
        broken = [name for name, flag in zip(self.names, numbers[len(self.names) :]) if flag]
        overflowed = self.scaled and broken == ["gradient"]
        self.overflows = self.overflows + 1 if overflowed else 0
        if broken and (not overflowed or self.overflows > _MOST_OVERFLOWS):
            raise CheckFailed(self._explain(broken, values, sent))
        self.steps += 1
        for name, value in values.items():
            self.sums[name] += value if math.isfinite(value) else 0.0

    def _explain(self, broken: Sequence[str], values: dict[str, float], sent: _Sent) -> str:
        names = ", ".join(sent.sources[:8]) + (" ..." if len(sent.sources) > 8 else "")
        if all(math.isfinite(values[name]) for name in broken):
            names = f"on another rank, not with its own images ({names})"
        advice = "check these labels or lower --learning-rate"
        if self.scaled:
            advice += ", or use --precision bf16 or fp32"
        return f"the loss ({', '.join(broken)}) is not finite in {sent.where}: {names}; the last checkpoint is intact; {advice}"
