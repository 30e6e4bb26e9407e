"""Pairs sequences that must be equally long; `zip(strict=True)` needs Python 3.10."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any


def zip_equal(*parts: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    """Zips; fails where the parts differ in length."""
    lists = [list(part) for part in parts]
    assert len({len(part) for part in lists}) == 1, [len(part) for part in lists]
    return zip(*lists)
