"""Keeps slow results in files beside the output, each with a key of all its inputs and a checksum of its content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import InputError
from runtime.files import atomic_write, read_arrays, read_json, write_json

_LARGEST = 1 << 30  # bytes of histograms: those of 30,000 activations


def read_values(path: Path, key: str) -> dict[str, float]:
    """Reads what `write_values` wrote under the same key; nothing if the file is missing, changed or of another key."""
    try:
        content = read_json(path)
        values = {str(name): float(value) for name, value in content["values"].items()}
        return values if content["key"] == key and content["sha256"] == _checksum(key, values) else {}
    except (InputError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def write_values(path: Path, key: str, values: Mapping[str, float]) -> None:
    """Writes numbers by name."""
    write_json(path, {"key": key, "values": dict(values), "sha256": _checksum(key, values)})


def _checksum(key: str, values: Mapping[str, float]) -> str:
    return hashlib.sha256(json.dumps([key, dict(values)]).encode()).hexdigest()


def read_states(path: Path, key: str) -> tuple[int, NDArray[np.float64]] | None:
    """Reads what `write_states` wrote under the same key; None if the file is missing, changed or of another key."""
    try:
        content = read_arrays(path, _LARGEST)
        done, states = int(content["done"]), content["states"]
        whole = str(content["key"]) == key and str(content["sha256"]) == _checksum_of_states(key, done, states)
    except (InputError, ValueError, KeyError, TypeError):
        return None
    return (done, states) if whole and states.dtype == np.float64 else None


def write_states(path: Path, key: str, done: int, states: NDArray[np.float64]) -> None:
    """Writes what was found on images of each tensor: histograms, or the peaks of channels.

    Args:
        path: of the file.
        key: of all that it depends on but `done`.
        done: number of images that it is of.
        states: float64 `[tensors, K]`, see `Histogram.state` and `calibration.collect.find_peaks`.
    """
    checksum = np.array(_checksum_of_states(key, done, states))
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, key=np.array(key), done=np.array(done), states=states, sha256=checksum)


def _checksum_of_states(key: str, done: int, states: NDArray[Any]) -> str:
    head = json.dumps([key, done, str(states.dtype), list(states.shape)])
    return hashlib.sha256(head.encode() + np.ascontiguousarray(states).tobytes()).hexdigest()
