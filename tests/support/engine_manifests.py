"""The `engine` entry of a manifest, for tests to change."""

from __future__ import annotations

from typing import Any

FACTS: dict[str, Any] = {
    "flavour": "tensorrt",
    "version": "10.12.0",
    "gpu": "NVIDIA H200",
    "compute_capability": "9.0",
    "batch": {"min": 1, "opt": 2, "max": 8},
    "version_compatible": False,
    "hardware_compatible": True,
}
