"""Writes and checks the Parquet shards of a run: one row an image."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

from runtime.bulk.libraries import arrow, parquet
from runtime.console.terminal import printable
from runtime.detections import Detections
from runtime.errors import InputError
from runtime.files import atomic_write
from runtime.ops.image import Image

Row = dict[str, Any]
"""Row of a shard, see `schema`."""

_COUNTS = b"counts"


@dataclass(frozen=True)
class Counts:
    """Counts of a shard, or of several.

    Attributes:
        images: number of rows.
        failed: rows with an error.
        detections: in all rows.
    """

    images: int = 0
    failed: int = 0
    detections: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.images + other.images, self.failed + other.failed, self.detections + other.detections)


def shard_path(folder: Path, shard: int) -> Path:
    """Returns the path of a shard."""
    return folder / f"shard-{shard:06d}.parquet"


def schema(metadata: Mapping[str, str]) -> Any:
    """Returns the columns of a shard, with metadata."""
    pa = arrow()
    numbers = pa.list_(pa.float32())
    return pa.schema(
        [
            pa.field("path", pa.string()),
            pa.field("width", pa.int32()),
            pa.field("height", pa.int32()),
            pa.field("boxes", pa.list_(numbers)),
            pa.field("scores", numbers),
            pa.field("class_ids", pa.list_(pa.int32())),
            pa.field("error", pa.string()),
        ],
        metadata,
    )


def to_row(name: Optional[bytes], size: Optional[tuple[int, int]], found: Union[Detections, InputError]) -> Row:
    """Returns the row of an image.

    Args:
        name: of the image; None where its table has none.
        size: (width, height) in pixels; None for an image that could not be read.
        found: its detections in pixels of the image, or why there are none.
    """
    width, height = size or (None, None)
    row: Row = {"path": text(name), "width": width, "height": height, "boxes": [], "scores": [], "class_ids": [], "error": None}
    if isinstance(found, Detections):
        boxes, scores, class_ids = found.boxes.tolist(), found.scores.tolist(), found.class_ids.tolist()
        return {**row, "boxes": boxes, "scores": scores, "class_ids": class_ids}
    return {**row, "error": printable(found)}


def text(name: Optional[bytes]) -> Optional[str]:
    """Returns a file's name as text; bytes in it that are none are escaped."""
    return None if name is None else name.decode("utf-8", "backslashreplace")


def size_of(image: Image) -> tuple[int, int]:
    """Returns (width, height) in pixels."""
    return image.shape[1], image.shape[0]


def write_shard(path: Path, rows: Sequence[Row], metadata: Mapping[str, str]) -> Counts:
    """Writes a shard, whole or not at all; raises OutputError where it cannot be written."""
    counts = Counts(len(rows), sum(row["error"] is not None for row in rows), sum(len(row["scores"]) for row in rows))
    columns = schema({**metadata, _COUNTS.decode(): json.dumps(vars(counts))})
    content = arrow().BufferOutputStream()  # a shard has some MB; a full disk then is an error of ours, not of the library
    parquet().write_table(arrow().Table.from_pylist(rows, schema=columns), content, compression="zstd")
    with atomic_write(path, durable=True) as temporary:
        temporary.write_bytes(content.getvalue())
    return counts


def read_counts(path: Path, size: int, metadata: Mapping[str, str]) -> Optional[Counts]:
    """Reads the counts of a shard; None for one that is missing, damaged, or of another run.

    Args:
        path: of the shard.
        size: number of its rows.
        metadata: that it was written with.
    """
    if not os.path.isfile(path):
        return None
    try:
        with parquet().ParquetFile(path) as file:
            found: dict[bytes, bytes] = file.schema_arrow.metadata or {}
            is_same = all(found.get(key.encode()) == value.encode() for key, value in metadata.items())
            counts = Counts(**json.loads(found[_COUNTS]))
            return counts if is_same and file.metadata.num_rows == counts.images == size else None
    except (OSError, arrow().ArrowException, KeyError, TypeError, ValueError):
        return None
