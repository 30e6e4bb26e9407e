"""Watches clocks, temperature and power of the first GPU while something runs, by `nvidia-smi`."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Optional

from runtime.backends.gpu import pci_bus_id

_FIELDS = ("clocks.sm", "clocks.max.sm", "clocks.mem", "temperature.gpu", "power.draw")
_INTERVAL = 250  # milliseconds


@dataclass(frozen=True)
class Clocks:
    """What the GPU did meanwhile; a GPU that slows down makes times worthless.

    Attributes:
        sm: lowest and highest clock of the multiprocessors, in MHz.
        sm_limit: their highest possible clock, in MHz.
        memory: lowest and highest clock of the memory, in MHz.
        temperature: highest, in °C.
        power: highest, in W; None if unknown.
    """

    sm: tuple[float, float]
    sm_limit: float
    memory: tuple[float, float]
    temperature: float
    power: Optional[float]

    def __str__(self) -> str:
        power = "" if self.power is None else f", up to {self.power:.0f} W"
        return (
            f"SM {self.sm[0]:.0f} to {self.sm[1]:.0f} of {self.sm_limit:.0f} MHz, memory {self.memory[0]:.0f} to"
            f" {self.memory[1]:.0f} MHz, up to {self.temperature:.0f} °C{power}"
        )


@contextlib.contextmanager
def watched() -> Iterator[list[Clocks]]:
    """Watches within; yields a list that holds one `Clocks` afterwards, or none where they cannot be read."""
    found: list[Clocks] = []
    bus = pci_bus_id()
    if bus is None:
        yield found
        return
    command = ["nvidia-smi", f"--id={bus}", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        process = subprocess.Popen(
            [*command, f"--loop-ms={_INTERVAL}"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
    except OSError:  # not there, as on a Jetson
        yield found
        return
    with process:
        try:
            yield found
        finally:
            process.terminate()
            lines, _ = process.communicate()
            found += filter(None, [_summary(lines)])


def _summary(lines: str) -> Optional[Clocks]:
    """Summarizes the samples, one a line; those that are cut off or lack a number other than the power do not count."""
    samples = [sample for sample in map(_sample, lines.splitlines()) if sample is not None]
    if not samples:
        return None
    sm, limit, memory, temperature, power = zip(*samples)
    known = [value for value in power if value is not None]
    return Clocks((min(sm), max(sm)), max(limit), (min(memory), max(memory)), max(temperature), max(known) if known else None)


def _sample(line: str) -> Optional[tuple[float, float, float, float, Optional[float]]]:
    values: list[Optional[float]] = []
    for text in line.split(","):
        try:
            values.append(float(text))
        except ValueError:  # such as [N/A]
            values.append(None)
    if len(values) != len(_FIELDS):
        return None
    sm, limit, memory, temperature, power = values
    if sm is None or limit is None or memory is None or temperature is None:
        return None
    return sm, limit, memory, temperature, power
