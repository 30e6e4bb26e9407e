"""A cache is believed only with its own key and content."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from calibration.cache import read_values, write_values

VALUES = {"a": 1.5, "b": float("inf"), "ä": -0.1}


def test_values_come_back(tmp_path: Path) -> None:
    write_values(tmp_path / "c", "key", VALUES)
    assert read_values(tmp_path / "c", "key") == VALUES
    assert read_values(tmp_path / "c", "other") == {}
    assert read_values(tmp_path / "none", "key") == {}


@pytest.mark.parametrize(
    "change",
    [
        {"values": dict.fromkeys(VALUES, 0.0)},
        {"values": {"a": 1.5}},
        {"values": {**VALUES, "b": "much"}},
        {"values": [1]},
        {"values": None},
        {"sha256": ""},
        {"sha256": None},
    ],
)
def test_changed_values_are_not_believed(change: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "c"
    write_values(path, "key", VALUES)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert read_values(path, "key") == {}


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b"null", b'{"key": "key"}'])
def test_what_is_no_cache_is_not_believed(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(content)
    assert read_values(tmp_path / "c", "key") == {}
