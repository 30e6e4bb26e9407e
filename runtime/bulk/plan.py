"""Plans a run once: the order of its images, and the borders of its shards."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from runtime.bulk.libraries import arrow, parquet
from runtime.console.terminal import printable
from runtime.errors import InputError
from runtime.files import PathLike, atomic_write, sha256
from runtime.media.sources import find_files

PLAN = "_plan.parquet"
"""Name of the plan in the output folder; readers of Parquet folders pass over names that begin with `_`."""

_SUFFIXES = (".parquet", ".pq")
_ROWS_AT_ONCE = 16  # rows of bytes in memory at a time


@dataclass(frozen=True)
class Images:
    """Images that a run is to work on, in order.

    Attributes:
        names: as results call them, in bytes, since a file's name need not be text; None in a table without an entry.
        table: absolute path of the Parquet file whose column `bytes` holds them, row by row; None where the names are files.
        folder: absolute path that file names are relative to before the working folder; None for that alone.
    """

    names: Sequence[Optional[bytes]]
    table: Optional[str] = None
    folder: Optional[str] = None


def find_images(source: str, leave_out: Optional[PathLike] = None) -> Images:
    """Lists the images that `source` names.

    Args:
        source: folder, which is read with the folders in it; glob pattern, image, list of files (.txt), or Parquet file with a
            column `bytes` or `path`.
        leave_out: folder whose files are not read: of results.

    Raises:
        InputError: nothing there, or a Parquet file without either column.
    """
    path = Path(source)
    if path.suffix in _SUFFIXES and path.is_file():
        return _of_table(path)
    return Images([os.fsencode(file) for file in find_files(source, recursive=True, leave_out=leave_out)])


def _of_table(path: Path) -> Images:
    with _opened(path) as file:
        columns = [name for name in ("path", "bytes") if name in file.schema_arrow.names]
        if not columns:
            raise InputError(
                f"{path}: expected a column `path` or `bytes`, found {', '.join(file.schema_arrow.names) or 'none'}"
            )
        if not file.metadata.num_rows:
            raise InputError(f"{path}: holds no rows")
        for name in columns:
            _check_type(path, name, file.schema_arrow.field(name).type, "string" if name == "path" else "binary")
        names = _names(path, file, has_paths="path" in columns, has_bytes="bytes" in columns)
    place = os.path.abspath(path)
    return Images(names, place) if "bytes" in columns else Images(names, folder=os.path.dirname(place))


def _check_type(path: Path, name: str, kind: Any, wanted: str) -> None:
    value = kind.value_type if arrow().types.is_dictionary(kind) else kind
    if str(value) not in (wanted, f"large_{wanted}"):
        raise InputError(f"{path}: column {name} is {kind}, expected {wanted}")


def _names(path: Path, file: Any, *, has_paths: bool, has_bytes: bool) -> list[Optional[bytes]]:
    if not has_paths:
        return [os.fsencode(f"{path.name}#{row}") for row in range(file.metadata.num_rows)]
    names = file.read(["path"]).column("path").to_pylist()
    if has_bytes:
        return [os.fsencode(f"{path.name}#{row}" if name is None else name) for row, name in enumerate(names)]
    return [None if name is None else os.fsencode(name) for name in names]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Opens a Parquet file, and turns whatever is wrong with it into InputError, also inside the block."""
    try:
        with parquet().ParquetFile(path) as file:
            yield file
    except (OSError, arrow().ArrowException) as error:
        raise InputError(f"{path}: not a Parquet file that can be read ({printable(error, 200)})") from error


@dataclass(frozen=True)
class Plan:
    """Plan of a run, as it lies in the output folder.

    Attributes:
        path: of the plan: one row an image, one row group a shard.
        images: number of images.
        shard_size: images of each shard but the last.
        sha256: of the file.
    """

    path: Path
    images: int
    shard_size: int
    sha256: str

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.images // self.shard_size)

    def size(self, shard: int) -> int:
        """Returns the number of images of a shard."""
        return min(self.shard_size, self.images - shard * self.shard_size)

    def names(self, shard: int) -> list[Optional[bytes]]:
        """Returns the names of a shard's images, see `Images`."""
        with _opened(self.path) as file:
            found: list[Optional[bytes]] = file.read_row_group(shard).column("path").to_pylist()
        return found

    def all_names(self) -> list[Optional[bytes]]:
        """Returns the names of all images, in order."""
        with _opened(self.path) as file:
            found: list[Optional[bytes]] = file.read(["path"]).column("path").to_pylist()
        return found


def write_plan(folder: Path, images: Images, shard_size: int) -> Plan:
    """Writes the plan of a run into its output folder."""
    pa = arrow()
    table = pa.table({"path": pa.array(images.names, pa.binary())})
    with atomic_write(folder / PLAN, durable=True) as temporary:
        parquet().write_table(table, temporary, row_group_size=shard_size, compression="zstd")
    return open_plan(folder, shard_size)


def open_plan(folder: Path, shard_size: int) -> Plan:
    """Opens the plan in an output folder; raises InputError for one that is missing or damaged."""
    path = folder / PLAN
    with _opened(path) as file:
        return Plan(path, file.metadata.num_rows, shard_size, sha256(path))


def read_rows(table: str, start: int, count: int) -> Iterator[Optional[bytes]]:
    """Yields the column `bytes` of some rows of a Parquet file, a few rows in memory at a time.

    Raises:
        InputError: the file cannot be read.
    """
    with _opened(Path(table)) as file:
        groups, skipped, position = [], 0, 0
        for group in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if position + rows <= start:
                skipped += rows
            elif position < start + count:
                groups.append(group)
            position += rows
        row = skipped
        for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, row_groups=groups, columns=["bytes"]):
            for value in batch.column(0):
                if start <= row < start + count:
                    yield value.as_py()
                row += 1
            if row >= start + count:
                return
