"""Plans of bulk runs: sources, order, shard borders, rows of a Parquet file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from runtime.bulk.plan import Images, find_images, open_plan, read_rows, write_plan
from runtime.errors import InputError
from tests.support.bulk_runs import make_images

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def table(file: Path, groups: int = 1000, /, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), file, row_group_size=groups)
    return file


def test_folders_lists_and_tables(tmp_path: Path) -> None:
    folder = make_images(tmp_path / "in")
    files = [os.fsencode(folder / name) for name in ("0.png", "2.png", "4.png", "empty.png", "sub/1.png", "sub/3.png")]
    assert find_images(str(folder)).names == files
    (tmp_path / "list.txt").write_text("in/4.png\nin/gone.png\nin/4.png\n")
    assert find_images(str(tmp_path / "list.txt")).names == [files[2], os.fsencode(folder / "gone.png")]
    paths = table(tmp_path / "paths.parquet", path=["in/4.png", None, "gone.png"], more=[1, 2, 3])
    assert find_images(str(paths)) == Images([b"in/4.png", None, b"gone.png"], folder=str(tmp_path))
    packed = find_images(str(table(tmp_path / "packed.parquet", bytes=[b"a", None], path=[None, "b.png"])))
    assert (packed.names, packed.table) == ([b"packed.parquet#0", b"b.png"], str(tmp_path / "packed.parquet"))
    coded = table(tmp_path / "coded.pq", path=pa.array(["in/4.png", "in/4.png"]).dictionary_encode())
    assert find_images(str(coded)).names == [b"in/4.png", b"in/4.png"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": [b"a"]}, "expected a column `path` or `bytes`, found image"),
        ({"path": [1]}, "column path is int64, expected string"),
        ({"bytes": ["text"]}, "column bytes is string, expected binary"),
        ({"path": pa.array([], pa.string())}, "holds no rows"),
        (None, "not a Parquet file that can be read"),
    ],
)
def test_unusable_tables(columns: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1") if columns is None else table(path, **columns)
    with pytest.raises(InputError, match=message):
        find_images(str(path))


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_shards_divide_the_images(size: int, tmp_path: Path) -> None:
    names = [b"%d" % number for number in range(6)] + [b"\xff.png"]
    plan = write_plan(tmp_path, Images(names), size)
    assert open_plan(tmp_path, size) == plan
    parts = [plan.names(shard) for shard in range(plan.shards)]
    assert [name for part in parts for name in part] == names
    assert [len(part) for part in parts] == [plan.size(shard) for shard in range(plan.shards)]


@pytest.mark.parametrize("groups", [1, 3, 4, 100])
def test_rows_of_a_table(groups: int, tmp_path: Path) -> None:
    values = [None if number == 5 else b"%d" % number for number in range(10)]
    path = str(table(tmp_path / "a.parquet", groups, bytes=values))
    for start in range(10):
        for count in range(1, 11 - start):
            assert list(read_rows(path, start, count)) == values[start : start + count]
