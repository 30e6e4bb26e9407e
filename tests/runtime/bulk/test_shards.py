"""Shards of bulk runs: rows, schema, full disks, and which shards count as made."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from runtime.bulk.shards import Counts, read_counts, shard_path, to_row, write_shard
from runtime.detections import Detections
from runtime.errors import InputError, OutputError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

METADATA = {"class_names": json.dumps(["dot", "ring"]), "model_sha256": "ab"}
FOUND = Detections.from_arrays([[1, 2, 30, 40.5], [0, 0, 1, 1]], [0.9, 0.5], [1, 0])
ROWS = [
    to_row(b"a.png", (64, 48), FOUND),
    to_row(b"\xff.png", (1, 1), Detections.empty()),
    to_row(None, None, InputError("no\nname")),
]


def test_what_a_shard_holds(tmp_path: Path) -> None:
    path = shard_path(tmp_path, 7)
    assert path.name == "shard-000007.parquet" and write_shard(path, ROWS, METADATA) == Counts(3, 1, 2)
    written = pq.read_table(path)
    assert str(written.schema.field("boxes").type) == "list<element: list<element: float>>"
    assert json.loads(written.schema.metadata[b"class_names"]) == ["dot", "ring"]
    nothing = {"boxes": [], "scores": [], "class_ids": []}
    assert written.to_pylist() == [
        {
            "path": "a.png",
            "width": 64,
            "height": 48,
            "boxes": [[1, 2, 30, 40.5], [0, 0, 1, 1]],
            "scores": FOUND.scores.tolist(),
            "class_ids": [1, 0],
            "error": None,
        },
        {"path": "\\xff.png", "width": 1, "height": 1, **nothing, "error": None},
        {"path": None, "width": None, "height": None, **nothing, "error": "no\\nname"},
    ]


def test_which_shards_count(tmp_path: Path) -> None:
    path = shard_path(tmp_path, 0)
    assert read_counts(path, 3, METADATA) is None
    write_shard(path, ROWS, METADATA)
    assert read_counts(path, 3, METADATA) == Counts(3, 1, 2)
    assert read_counts(path, 4, METADATA) is None and read_counts(path, 3, {**METADATA, "model_sha256": "cd"}) is None
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        assert read_counts(path, 3, METADATA) is None
    pq.write_table(pa.table({"a": [1, 2, 3]}), path)
    assert read_counts(path, 3, METADATA) is None


def test_a_full_disk_leaves_nothing(tmp_path: Path, full_disk: Callable[..., AbstractContextManager[None]]) -> None:
    with (
        full_disk(1000),
        pytest.raises(OutputError, match=r"cannot write .*shard-0.*: File too large; .*free some space"),
    ):
        write_shard(shard_path(tmp_path, 0), ROWS, METADATA)
    assert not list(tmp_path.iterdir())
