"""`python -m runtime.bulk` with its workers in this process: results, resuming, refusals, killed workers, full disks."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from runtime.bulk import __main__ as command_module
from runtime.bulk import worker
from runtime.bulk.__main__ import main
from runtime.bulk.attempts import Attempts
from runtime.bulk.cluster import as_error, check_answers
from runtime.bulk.shards import Counts, shard_path
from runtime.detector import Detector
from runtime.errors import InputError, MissingComponentError, OutputError
from runtime.media.image import read_image
from tests.support.bulk_runs import make_images, read_rows, work_here
from tests.support.detect_command import RING, Command, one_error

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    work_here(monkeypatch)


@pytest.fixture
def arguments(tiny_onnx: Path, tmp_path: Path) -> list[Any]:
    make_images(tmp_path / "in")
    return ["--engine", tiny_onnx, "--source", tmp_path / "in", "--output", tmp_path / "out", "--shard-size", 2, "--json"]


def paths(folder: Path) -> list[str]:
    return [str(Path(row["path"]).relative_to(folder.parent / "in")) for row in read_rows(folder)]


def test_one_row_an_image(command: Command, arguments: list[Any], tmp_path: Path) -> None:
    code, out, err = command(main, *arguments, "--batch", 2)
    assert code == 0 and json.loads(out)["failed"] == 1
    assert {**json.loads(out), "seconds": 0, "images_per_second": 0} == {
        "images": 6,
        "failed": 1,
        "detections": 5,
        "shards": 3,
        "new_images": 6,
        "seconds": 0,
        "images_per_second": 0,
    }
    assert "6 images, 1 of them failed, 5 detections; 6 new ones, " in err.splitlines()[-1]
    assert paths(tmp_path / "out") == ["0.png", "2.png", "4.png", "empty.png", "sub/1.png", "sub/3.png"]
    rows = read_rows(tmp_path / "out")
    assert [row["error"] for row in rows if row["error"]] == [f"{tmp_path}/in/empty.png: the file is empty"]
    good = [row for row in rows if not row["error"]]
    assert all(row["boxes"] == [RING["box"]] and row["class_ids"] == [1] and row["width"] == 128 for row in good)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("_plan.parquet", "_run.json", "shard-000000.parquet", "shard-000001.parquet", "shard-000002.parquet")
    ]


def test_the_same_command_goes_on(command: Command, arguments: list[Any], tmp_path: Path) -> None:
    assert command(main, *arguments)[0] == 0
    first = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    shard_path(tmp_path / "out", 1).unlink()
    shard_path(tmp_path / "out", 2).write_bytes(b"half")
    (tmp_path / "out" / ".shard-000001-abcdefgh.parquet").write_bytes(b"left by a killed worker")
    (tmp_path / "in" / "new.png").write_bytes(b"")
    code, out, err = command(main, *arguments)
    assert code == 0 and json.loads(out)["new_images"] == 4 and json.loads(out)["images"] == 6
    assert "1 of 3 shards are there; 2 are left" in err and "1 files came to" in err
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == first
    code, out, _ = command(main, *arguments)
    assert code == 0 and json.loads(out)["new_images"] == 0


@pytest.mark.parametrize("source", ["in", "list.txt", "in/*.png"])
def test_a_source_may_be_written_otherwise(
    source: str, command: Command, arguments: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "list.txt").write_text("in/0.png\nin/sub/1.png\nin/4.png\n")
    assert command(main, *arguments, "--source", tmp_path / source)[0] == 0
    shard_path(tmp_path / "out", 1).unlink()
    monkeypatch.chdir(tmp_path / "in")
    code, out, err = command(main, *arguments, "--source", f"../{source}")
    assert code == 0 and 0 < json.loads(out)["new_images"] < json.loads(out)["images"]
    assert "came to" not in err
    assert not [row["path"] for row in read_rows(tmp_path / "out") if row["error"] and "empty" not in row["path"]]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (("--conf", 0.5), "holds results made with score threshold 0.25, now it is 0.5"),
        (("--classes", "dot"), "made with classes None, now it is dot"),
        (("--shard-size", 3), "made with images per shard 2, now it is 3"),
        (("--source", "IN/sub"), "made with source .*in, now it is .*sub"),
        (("--engine", "OTHER"), "made with model [0-9a-f]{64}, now it is [0-9a-f]{64}"),
    ],
)
def test_another_run_is_refused(
    changed: tuple[Any, ...],
    message: str,
    command: Command,
    arguments: list[Any],
    tmp_path: Path,
    write_onnx: Any,
    make_spec: Any,
) -> None:
    assert command(main, *arguments)[0] == 0
    other = write_onnx(tmp_path / "other.onnx", make_spec(name="other"))
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    value = str(changed[1]).replace("IN", str(tmp_path / "in")).replace("OTHER", str(other))
    code, _, err = command(main, *arguments, changed[0], value)
    assert code == 2
    assert re.search(message, one_error(err))
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_bytes_of_a_table(command: Command, arguments: list[Any], tmp_path: Path) -> None:
    white = (tmp_path / "in" / "0.png").read_bytes()
    pq.write_table(pa.table({"bytes": [white, b"no image", None, white, white]}), tmp_path / "a.parquet", row_group_size=2)
    assert command(main, *arguments, "--source", tmp_path / "a.parquet")[0] == 0
    rows = read_rows(tmp_path / "out")
    assert [row["path"] for row in rows] == [f"a.parquet#{row}" for row in range(5)]
    assert [len(row["boxes"]) for row in rows] == [1, 0, 0, 1, 1]
    assert [row["error"] for row in rows[1:3]] == [
        "a.parquet#1: not an image that can be decoded",
        "a.parquet#2: the table has no bytes here",
    ]
    pq.write_table(pa.table({"bytes": [white] * 6}), tmp_path / "a.parquet")
    assert "made with list " in one_error(command(main, *arguments, "--source", tmp_path / "a.parquet")[2])


def test_paths_of_a_table(command: Command, arguments: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are relative to the table's folder, else to the working folder of the first run; rows stay as they are named."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "5.png").write_bytes((tmp_path / "in" / "0.png").read_bytes())
    names = ["sub/1.png", None, "5.png", "gone.png", "sub/1.png", str(tmp_path / "in" / "2.png"), "a\0.png"]
    pq.write_table(pa.table({"path": names}), tmp_path / "in" / "a.parquet")
    monkeypatch.chdir(tmp_path / "here")
    assert command(main, *arguments, "--source", tmp_path / "in" / "a.parquet")[0] == 0
    rows = read_rows(tmp_path / "out")
    assert [row["path"] for row in rows] == names
    assert [len(row["boxes"]) for row in rows] == [1, 0, 1, 0, 1, 1, 0]
    assert [row["error"].rpartition("(")[2] for row in rows if row["error"]][1:] == [
        "No such file or directory)",
        "embedded null byte)",
    ]
    shard_path(tmp_path / "out", 1).unlink()
    monkeypatch.chdir(tmp_path)
    assert command(main, *arguments, "--source", tmp_path / "in" / "a.parquet")[0] == 0
    assert read_rows(tmp_path / "out") == rows


def test_names_that_are_no_text(command: Command, arguments: list[Any], tmp_path: Path) -> None:
    name = b"\xff\n.png".decode("utf-8", "surrogateescape")
    (tmp_path / "in" / name).write_bytes((tmp_path / "in" / "0.png").read_bytes())
    assert command(main, *arguments)[0] == 0
    (row,) = (row for row in read_rows(tmp_path / "out") if row["path"].endswith("\\xff\n.png"))
    assert row["error"] is None and len(row["boxes"]) == 1


def test_an_image_that_kills_its_worker(
    command: Command, arguments: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def read(path: str) -> Any:
        if path.endswith("2.png"):
            raise Killed
        return read_image(path)

    monkeypatch.setattr(worker, "read_image", read)
    for _ in range(4):
        with pytest.raises(Killed):
            main([str(item) for item in arguments])
    assert command(main, *arguments)[0] == 0
    rows = read_rows(tmp_path / "out")
    assert len(rows) == 6 and [row["path"][-5:] for row in rows if row["error"]] == ["2.png", "y.png"]
    assert "was killed, several times" in rows[1]["error"] and not (tmp_path / "out" / "_attempts").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OutputError("full")])
def test_what_ends_the_run_blames_no_image(
    error: Any, command: Command, arguments: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shard of another worker, which ended with the run, is left begun."""

    def make(*_: object) -> Iterator[Counts]:
        Attempts(tmp_path / "out", 1).note(0)
        yield Counts()
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(command_module, "make_shards", make)
        for _ in range(4):
            code, _, _ = command(main, *arguments)
            assert code == (130 if error is KeyboardInterrupt else 2)
    assert command(main, *arguments)[0] == 0
    assert [row["path"][-5:] for row in read_rows(tmp_path / "out") if row["error"]] == ["y.png"]


def test_a_full_disk_can_be_gone_on_from(
    command: Command, arguments: list[Any], tmp_path: Path, full_disk: Callable[..., AbstractContextManager[None]]
) -> None:
    with full_disk(1000):
        code, out, err = command(main, *arguments)
    assert (code, out) == (2, "") and "free some space" in err.splitlines()[0]
    assert not list((tmp_path / "out").glob("*shard*"))
    code, out, _ = command(main, *arguments)
    assert code == 0 and json.loads(out)["images"] == 6


def test_what_fails_before_there_are_results_leaves_nothing_behind(
    command: Command, arguments: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither images that are blamed, as if they had killed a worker, nor options that are held to."""

    def fail(*_: object) -> None:
        raise OutputError("no space is left; free some")

    code, _, err = command(main, *arguments, "--classes", "rign")
    assert code == 2 and "rign" in one_error(err) and not (tmp_path / "out" / "_run.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr(worker, "write_shard", fail)
        for _ in range(5):
            code, _, err = command(main, *arguments, "--conf", 0.9)
            assert code == 2 and "no space is left" in err
    assert (tmp_path / "out" / "_run.json").exists()
    assert command(main, *arguments)[0] == 0
    assert [row["path"][-5:] for row in read_rows(tmp_path / "out") if row["error"]] == ["y.png"]
    assert "holds results made with score threshold" in one_error(command(main, *arguments, "--conf", 0.9)[2])


def test_a_model_that_fails_stops_the_run(
    command: Command, arguments: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_onnx: Any
) -> None:
    model = write_onnx(tmp_path / "m.onnx")
    opened = Detector.__init__

    def replaced(self: Detector, *given: Any, **options: Any) -> None:
        opened(self, *given, **options)
        self.close()

    monkeypatch.setattr(Detector, "__init__", replaced)
    code, out, err = command(main, *arguments, "--engine", model)
    assert (code, out) == (2, "") and "the model was closed" in err
    assert not list((tmp_path / "out").glob("*shard*"))


def test_a_model_that_is_replaced_stops_the_run(
    command: Command, arguments: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "sha256", lambda path: "of another file")
    code, _, err = command(main, *arguments)
    assert code == 2 and "tiny.onnx: changed since the run began" in err and not list((tmp_path / "out").glob("*shard*"))


def test_only_bad_images(command: Command, arguments: list[Any], tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"")
    code, out, err = command(main, *arguments, "--source", tmp_path / "bad")
    assert code == 2 and json.loads(out)["failed"] == 1 and "none of the 1 images could be used" in err
    assert len(read_rows(tmp_path / "out")) == 1


def test_shards_of_unknown_origin_are_kept(command: Command, arguments: list[Any], tmp_path: Path) -> None:
    shard_path(tmp_path / "out", 0).parent.mkdir()
    shard_path(tmp_path / "out", 0).write_bytes(b"mine")
    assert "holds shards, but not _run.json" in one_error(command(main, *arguments)[2])
    assert shard_path(tmp_path / "out", 0).read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["pyarrow", "ray"])
def test_a_missing_library_is_named(
    name: str, command: Command, arguments: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from runtime.bulk import __main__ as module
    from runtime.bulk import cluster, libraries

    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(module, "load_ray", cluster.load_ray)
    libraries.arrow.cache_clear()
    libraries.parquet.cache_clear()
    code, _, err = command(main, *arguments)
    assert code == 3 and one_error(err) == f"error: {name} is not installed; run `pip install 'yolov3-asff-tensorrt[bulk]'`\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:9", "refused"),
        ("nowhere", "expected auto or host:port"),
        ("ray://127.0.0.1:port", "expected auto or host:port"),
        ("127.0.0.1:99999", "no Ray cluster there"),
    ],
)
def test_no_cluster(address: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        check_answers(address)


def test_errors_of_workers_keep_their_kind() -> None:
    for kind, expected in (
        ("OutputError", OutputError),
        ("InputError", InputError),
        ("MissingComponentError", MissingComponentError),
    ):
        assert type(as_error(kind, "why")) is expected
    assert type(as_error("MemoryError", "")) is MemoryError
    assert str(as_error("KeyError", "'x'")) == "a worker failed: KeyError: 'x'"


def test_nothing_of_killed_workers_stays(
    command: Command, arguments: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker is killed as it writes a shard, and another one before it forgets its attempts."""
    written = worker.write_shard

    def write(path: Path, *given: Any) -> Any:
        path.with_name(f".{path.stem}-abcdefgh.parquet").write_bytes(b"half")
        counts = written(path, *given)
        (tmp_path / "out" / "_attempts" / "000099").write_text("start\n")
        return counts

    monkeypatch.setattr(worker, "write_shard", write)
    assert command(main, *arguments)[0] == 0
    assert not [path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(("shard-", "_plan", "_run"))]
