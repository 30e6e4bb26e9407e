"""A file and its manifest are written together: whatever fails, and wherever the process is killed."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import OutputError
from runtime.manifest import atomic_pair, find_changes, manifest_path, read_manifest, write_manifest
from runtime.spec import ModelSpec

SPEC = ModelSpec("m", ("cat", "dog"), (64, 96), (((1.0, 2.0),),) * 3)
OLD, NEW = b"old content", b"new content"
STEPS = ("replace", "unlink", "rmdir", "mkdir", "rename", "open")  # what changes a folder, in `os`


class Killed(BaseException):
    """Stands for the end of the process: nothing of it runs any more."""


class Faults:
    """Lets the process end, or a call fail, at one of the calls that change a folder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: int, error: BaseException) -> None:
        self.calls, self.step, self.error, self.is_dead = 0, step, error, False
        for name in STEPS:
            monkeypatch.setattr(os, name, self._faulty(name, getattr(os, name)))

    def _faulty(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def faulty(*arguments: Any, **options: Any) -> Any:
            if self.is_dead:
                raise Killed
            if name != "open":  # which reads, too
                self.calls += 1
                if self.calls - 1 == self.step:
                    self.is_dead = isinstance(self.error, Killed)
                    raise self.error
            return call(*arguments, **options)

        return faulty


def make(file: Path, content: bytes) -> None:
    with atomic_pair(file) as written:
        written.write_bytes(content)
        write_manifest(written, SPEC, [], {"content": content.decode()})


def state(file: Path) -> str:
    """`old` or `new` for a pair that belongs together, `none`, or `stale` for one that says so."""
    beside = manifest_path(file)
    if not file.exists() and not beside.exists():
        return "none"
    if not beside.exists() or find_changes(beside):
        return "stale"
    manifest = read_manifest(beside)
    assert manifest.details["content"] == file.read_text()
    return file.read_text().split()[0]


@pytest.mark.parametrize("earlier", [None, OLD])
def test_a_kill_at_any_step_leaves_a_pair_or_one_that_says_it_is_stale(earlier: bytes | None, tmp_path: Path) -> None:
    found = []
    for step in range(100):
        file = tmp_path / str(step) / "m.onnx"
        file.parent.mkdir()
        if earlier:
            make(file, earlier)
        with pytest.MonkeyPatch.context() as patch:
            faults = Faults(patch, step, Killed())
            with contextlib.suppress(Killed):
                make(file, NEW)
        found.append(state(file))
        assert file.exists() or not earlier
        make(file, NEW)  # and making it again helps, whatever was left
        assert state(file) == "new"
        if not faults.is_dead:
            break
    before = "old" if earlier else "none"
    assert found == sorted(found, key=[before, "stale", "new"].index) and set(found) == {before, "stale", "new"}


@pytest.mark.parametrize("earlier", [None, OLD])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_at_any_step_leaves_the_old_pair(error: BaseException, earlier: bytes | None, tmp_path: Path) -> None:
    found = []
    for step in range(100):
        file = tmp_path / str(step) / "m.onnx"
        file.parent.mkdir()
        if earlier:
            make(file, earlier)
        with pytest.MonkeyPatch.context() as patch:
            faults = Faults(patch, step, error)
            with contextlib.suppress(OutputError, KeyboardInterrupt):
                make(file, NEW)
        found.append(state(file))
        if faults.calls <= step:
            break
    assert set(found) == {"old" if earlier else "none", "new"}


@pytest.mark.parametrize("taken", ["m.onnx", "m.onnx.json"])
def test_a_folder_in_the_place_of_one_costs_nothing(taken: str, tmp_path: Path) -> None:
    other = tmp_path / ("m.onnx.json" if taken == "m.onnx" else "m.onnx")
    other.write_text("kept")
    (tmp_path / taken).mkdir()
    with pytest.raises(OutputError, match=rf"cannot write .*{taken}: it is a folder"):
        make(tmp_path / "m.onnx", NEW)
    assert other.read_text() == "kept" and sorted(os.listdir(tmp_path)) == ["m.onnx", "m.onnx.json"]
