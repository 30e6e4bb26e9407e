"""Defines the interface of dataset readers: one module a layout."""

from __future__ import annotations

from typing import Protocol

from runtime.datasets.dataset import Dataset
from runtime.datasets.folder import DatasetFolder


class DatasetReader(Protocol):
    """Reads one dataset layout. A new layout is a module with these members, listed in `runtime.datasets.open`.

    Attributes:
        LAYOUT: the layout in a few words, and the files by which it is recognized.
    """

    LAYOUT: str

    def splits(self, folder: DatasetFolder) -> list[str]:
        """Lists the names of the splits in a folder; empty where it is not of this layout."""

    def read(self, folder: DatasetFolder, split: str) -> Dataset:
        """Reads one of the splits that `splits` lists.

        Raises:
            InputError: annotations that are missing, damaged or contradict each other; the message names the file.
        """
