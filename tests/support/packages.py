"""Skips tests whose package is not installed."""

import importlib.util
import os

import pytest


def need(package: str) -> None:
    """Skips the test unless the package is installed; does not import it.

    OpenVINO's tests run in a process of their own, see CONTRIBUTING.md.
    """
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    if package == "openvino" and not os.environ.get("TEST_OPENVINO"):
        pytest.skip("runs in a process of its own: make test-openvino")
