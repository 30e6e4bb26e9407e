"""Defines the interface of dataset readers: one module a layout."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from runtime.datasets.dataset import Dataset


class DatasetReader(Protocol):
    """Reads one dataset layout. A new layout is a module with these two functions, listed in `runtime.datasets.open`."""

    def splits(self, root: Path) -> list[str]:
        """Lists the names of the splits in a folder; empty where it is not of this layout."""

    def read(self, root: Path, split: str) -> Dataset:
        """Reads one of the splits that `splits` lists.

        Raises:
            InputError: annotations that are missing, damaged or contradict each other; the message names the file.
        """
