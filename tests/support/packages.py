"""Skips tests whose package is not installed."""

import importlib.util

import pytest


def need(package: str) -> None:
    """Skips the test unless the package is installed; does not import it."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
