"""The TensorRT backend on a made-up GPU: what is refused before loading, the order of calls, who owns what.

The numbers come from the fake, whose every map is the mean of its image plus the level's number.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from runtime import detect, evaluate
from runtime.backends.inspection import inspection_shapes
from runtime.backends.open import open_backend
from runtime.backends.tensorrt import cuda
from runtime.backends.tensorrt.backend import TrtBackend
from runtime.benchmark.stages import CopyingBackend
from runtime.errors import InputError, MissingComponentError, ModelError
from runtime.manifest import Origin, manifest_path, write_manifest
from runtime.spec import ModelSpec
from tests.support import engine_manifests
from tests.support.cuda_fakes import FakeEngine, FakeGpu, install

Command = Callable[..., tuple[int, str, str]]
SPEC = ModelSpec("tiny", ("dot",), (32, 32), (((8.0, 8.0),), ((4.0, 4.0),)), strides=(32, 16))
FACTS = {**engine_manifests.FACTS, "gpu": "Fake GPU", "compute_capability": "8.6", "hardware_compatible": False}
RTX = {"flavour": "rtx", "version": "1.7.1", "gpu": None, "compute_capability": None}
RUN = ["upload", "execute", "download", "download", "synchronize"]
CAPTURE = ["begin capture", *RUN[:-1], "end capture", "instantiate"]
REPLAY = ["launch", "synchronize"]


@dataclasses.dataclass
class Machine:
    """A machine with one engine, and the GPU that it is loaded to."""

    path: Path
    gpu: FakeGpu
    engine: FakeEngine

    def since(self, start: int) -> list[str]:
        return self.gpu.log[start:]


MakeMachine = Callable[..., Machine]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeMachine:
    """Keywords change the manifest's facts; `installed`, `capability` are the machine's own."""

    def make(
        installed: str = "",
        capability: str = "8.6",
        spec: ModelSpec = SPEC,
        further: dict[str, tuple[int, int, int]] | None = None,
        **changes: Any,
    ) -> Machine:
        facts: dict[str, Any] = {**FACTS, **changes}
        path = tmp_path / "tiny.engine"
        path.write_bytes(b"plan")
        write_manifest(path, spec, [Origin("onnx", "tiny.onnx", "0")], {"engine": facts})
        gpu = FakeGpu()
        engine = FakeEngine(gpu, spec, (facts["batch"]["min"], facts["batch"]["max"]), further or {})
        install(monkeypatch, gpu, engine, installed or facts["version"], capability)
        return Machine(path, gpu, engine)

    return make


def numbered(count: int, first: int = 0, size: tuple[int, int] = (32, 32)) -> np.ndarray:
    """Each filled with its own number."""
    return np.broadcast_to(np.arange(first, first + count, dtype=np.float32).reshape(-1, 1, 1, 1), (count, 3, *size)).copy()


def check(maps: list[np.ndarray], count: int, first: int = 0) -> None:
    for level, values in enumerate(maps):
        assert values.shape == (count, *SPEC.map_shape(level)) and values.dtype == np.float32
        expected = np.arange(first, first + count, dtype=np.float32).reshape(-1, 1, 1, 1) + level
        assert np.array_equal(values, np.broadcast_to(expected, values.shape))


def test_opening_runs_once_so_that_the_first_image_is_not_slow(machine: MakeMachine) -> None:
    here = machine()
    with open_backend(here.path) as backend:
        assert isinstance(backend, TrtBackend)
        assert (backend.spec, backend.batch_size) == (SPEC, None)
        assert here.gpu.log == ["stream", *["pinned", "memory"] * 3, "context", "shape 2", *RUN]
    assert here.gpu.live == []


def test_a_graph_is_captured_at_the_second_run_of_a_shape_and_again_when_it_changes(machine: MakeMachine) -> None:
    here = machine()
    with TrtBackend(here.path) as backend:
        for count, expected in [
            (2, CAPTURE + REPLAY),  # the first was the warm-up
            (2, REPLAY),
            (3, ["shape 3", *RUN]),
            (3, CAPTURE + REPLAY),
            (2, ["shape 2", *RUN]),
            (3, ["shape 3", *RUN]),
        ]:
            start = len(here.gpu.log)
            check(backend.infer(numbered(count, first=start)), count, first=start)
            assert here.since(start) == expected
            assert len(here.gpu.graphs) == (expected[-2:] == REPLAY)
    assert here.gpu.live == [] and here.gpu.graphs == {}


def test_without_graphs_every_run_is_call_by_call_and_capture_is_tried_once(machine: MakeMachine) -> None:
    here = machine()
    here.gpu.is_capturable = False
    with TrtBackend(here.path) as backend:
        for attempts in (1, 1, 1):
            check(backend.infer(numbered(2, first=5)), 2, first=5)
            assert here.gpu.calls["begin capture"] == attempts
            assert here.gpu.log[-len(RUN) :] == RUN
    assert here.gpu.live == []


@pytest.mark.parametrize(
    ("batch", "count", "shapes"),
    [
        ((1, 1, 8), 1, []),
        ((1, 1, 8), 8, [8]),
        ((1, 1, 8), 9, [8]),  # the second part, of one image, is padded to 8
        ((1, 1, 3), 8, [3]),
        ((4, 8, 8), 1, [4]),  # the engine takes no less
    ],
)
def test_any_number_of_images_fits(batch: tuple[int, int, int], count: int, shapes: list[int], machine: MakeMachine) -> None:
    here = machine(batch=dict(zip(("min", "opt", "max"), batch)))
    with TrtBackend(here.path) as backend:
        start = len(here.gpu.log)
        check(backend.infer(numbered(count, first=3)), count, first=3)
        assert [line for line in here.since(start) if line.startswith("shape")] == [f"shape {rows}" for rows in shapes]
        check(backend.infer(numbered(1, first=9)), 1, first=9)  # nothing is left of the images before


def test_no_image_is_refused_as_by_every_backend(machine: MakeMachine) -> None:
    with TrtBackend(machine().path) as backend, pytest.raises(InputError, match=r"got float32 \[0, 3, 32, 32\]"):
        backend.infer(numbered(0))


def test_padding_is_empty(machine: MakeMachine) -> None:
    here = machine(batch={"min": 4, "opt": 4, "max": 8})
    with TrtBackend(here.path) as backend:
        backend.infer(numbered(4, first=1))
        backend.infer(numbered(1, first=1))
        memory = next(iter(here.gpu.memory.values())).array((4, 3 * 32 * 32), np.float32)
        assert memory.mean(axis=1).tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("count", [1, 2, 11])
def test_copying_alone_is_every_copy_of_an_inference_and_no_execution(count: int, machine: MakeMachine) -> None:
    here = machine()
    with TrtBackend(here.path) as backend:
        assert isinstance(backend, CopyingBackend)
        assert backend.title == "TensorRT 10.12.0, Fake GPU"
        here.engine.batch = (9, 9)  # no shape is set either: that would cost the next inference its graph
        start = len(here.gpu.log)
        backend.copy(numbered(count))
        alone = [call for call in RUN if call != "execute"]
        assert here.since(start) == alone * (2 if count > 8 else 1)
        here.engine.batch = (1, 8)
        check(backend.infer(numbered(count)), count)
        with pytest.raises(InputError, match=r"images: expected float32"):
            backend.copy(numbered(0))
    assert here.gpu.live == []


def test_a_fixed_batch_is_the_only_one(machine: MakeMachine) -> None:
    here = machine(batch={"min": 2, "opt": 2, "max": 2})
    with TrtBackend(here.path) as backend:
        assert backend.batch_size == 2
        check(backend.infer(numbered(2)), 2)
        with pytest.raises(InputError, match=r"expected float32 \[2, 3, 32, 32\], got float32 \[3, 3, 32, 32\]"):
            backend.infer(numbered(3))
        check(backend.infer(numbered(2, first=1)), 2, first=1)


def test_results_are_the_callers_own(machine: MakeMachine) -> None:
    here = machine()
    with TrtBackend(here.path) as backend:
        first = backend.infer(numbered(2))
        backend.infer(numbered(2, first=50))
        images = numbered(2, first=7)
        later = backend.infer(images)
        assert np.array_equal(images, numbered(2, first=7))
    check(first, 2)
    check(later, 2, first=7)


def test_further_outputs_stay_on_the_gpu(machine: MakeMachine) -> None:
    here = machine(further=inspection_shapes(SPEC.input_size))
    with TrtBackend(here.path) as backend:
        check(backend.infer(numbered(2)), 2)
        assert here.gpu.calls["download"] == 2 * 2
    assert here.gpu.live == []


def test_nothing_piles_up_over_ten_thousand_inferences(machine: MakeMachine) -> None:
    here = machine()
    with TrtBackend(here.path) as backend:
        backend.infer(numbered(2))
        live, images = list(here.gpu.live), numbered(2)
        taken = {name: here.gpu.calls[name] for name in ("stream", "pinned", "memory", "context", "instantiate")}
        for _ in range(10_000):
            backend.infer(images)
        assert here.gpu.live == live
        assert {name: here.gpu.calls[name] for name in taken} == taken
    assert here.gpu.live == []


@pytest.mark.parametrize("version", ["8.6.1", "10.12.0"])
def test_threads_do_not_disturb_each_other(version: str, machine: MakeMachine) -> None:
    here = machine(version=version)
    barrier, failures = threading.Barrier(2), []

    def work(first: int) -> None:
        try:
            barrier.wait(timeout=10)
            for step in range(200):
                check(backend.infer(numbered(1 + step % 3, first)), 1 + step % 3, first)
        except BaseException as error:
            failures.append(error)

    with TrtBackend(here.path) as backend:
        threads = [threading.Thread(target=work, args=(first,)) for first in (100, 200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert failures == []
        assert here.gpu.calls["context"] == here.gpu.calls["stream"] <= 2
    assert here.gpu.live == []


class Pause:
    """Stops the thread that gets to execute, until it is let go."""

    def __init__(self, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.go, self._real = threading.Semaphore(0), threading.Event(), gpu.call
        monkeypatch.setattr(gpu, "call", self._call)

    def _call(self, name: str) -> None:
        self._real(name)
        if name == "synchronize":
            self.reached.release()
            assert self.go.wait(timeout=10)


@pytest.mark.parametrize(("version", "at_once"), [("8.6.1", 1), ("10.12.0", 2)])
def test_threads_at_once_get_a_context_each_where_the_library_allows_it(
    version: str, at_once: int, machine: MakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = machine(version=version)
    with TrtBackend(here.path) as backend:
        pause = Pause(here.gpu, monkeypatch)
        threads = [threading.Thread(target=backend.infer, args=(numbered(2),)) for _ in range(2)]
        for thread in threads:
            thread.start()
        reached = [pause.reached.acquire(timeout=10 if number < at_once else 0.2) for number in range(2)]
        pause.go.set()
        for thread in threads:
            thread.join(timeout=10)
        assert reached == [True, at_once == 2]
        assert here.gpu.calls["context"] == at_once
        backend.infer(numbered(2))
        assert here.gpu.calls["context"] == at_once  # those that are there are used again
    assert here.gpu.live == []


def test_closing_waits_for_nobody_and_leaves_nothing(machine: MakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    here, results = machine(), []
    backend = TrtBackend(here.path)
    pause = Pause(here.gpu, monkeypatch)
    thread = threading.Thread(target=lambda: results.append(backend.infer(numbered(2))))
    thread.start()
    assert pause.reached.acquire(timeout=10)
    backend.close()
    assert here.gpu.live != []  # what is in use stays
    pause.go.set()
    thread.join(timeout=10)
    check(results[0], 2)
    assert here.gpu.live == []


def test_after_close_it_says_so_and_closing_twice_is_fine(machine: MakeMachine) -> None:
    here = machine()
    backend = TrtBackend(here.path)
    backend.close()
    backend.close()
    assert here.gpu.live == []
    with pytest.raises(ModelError, match="the model was closed; open it again"):
        backend.infer(numbered(1))


@pytest.mark.parametrize(
    ("call", "number", "kind", "message"),
    [("stream", 1, MissingComponentError, "no stream"), ("context", 1, None, "context failed")]
    + [(call, number, MissingComponentError, "Fake GPU has no") for call in ("pinned", "memory") for number in (1, 3)]
    + [("execute", 1, ModelError, r"TensorRT 10.12.0 cannot run the engine: made-up failure")]
    + [(call, 1, ModelError, f"failed on the GPU .{call} failed") for call in ("upload", "download", "synchronize")],
)
def test_what_fails_while_opening_leaves_nothing(
    call: str, number: int, kind: type[Exception] | None, message: str, machine: MakeMachine
) -> None:
    here = machine()
    here.gpu.fail[call] = number
    with pytest.raises(kind or Exception, match=message):
        TrtBackend(here.path)
    assert here.gpu.live == []


@pytest.mark.parametrize("call", ["upload", "execute", "download", "synchronize", "launch"])
def test_after_a_failure_the_next_call_starts_afresh(call: str, machine: MakeMachine) -> None:
    here = machine()
    with TrtBackend(here.path) as backend:
        backend.infer(numbered(2))
        here.gpu.fail[call] = here.gpu.calls[call] + 1
        count = 2 if call == "launch" else 3  # another shape runs call by call
        with pytest.raises(ModelError, match=r"failed on the GPU|cannot run the engine"):
            backend.infer(numbered(count))
        assert here.gpu.live == []
        check(backend.infer(numbered(count, first=4)), count, first=4)
        assert here.gpu.calls["context"] == 2
    assert here.gpu.live == []


def test_a_library_that_refuses_a_shape_says_why(machine: MakeMachine) -> None:
    here = machine()
    here.engine.batch = (3, 8)
    with pytest.raises(ModelError, match=r"TensorRT 10.12.0 cannot run the engine"):
        TrtBackend(here.path)
    assert here.gpu.live == []


# What is asked before loading


def remove(path: Path) -> None:
    manifest_path(path).unlink()


def damage(path: Path) -> None:
    manifest_path(path).write_text("{")


def swap(path: Path) -> None:
    path.write_bytes(b"another plan")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def update(path: Path) -> None:
    content = json.loads(manifest_path(path).read_text())
    manifest_path(path).write_text(json.dumps({**content, "version": 2}))


def edit(**changes: Any) -> Callable[[Path], None]:
    def work(path: Path) -> None:
        content = json.loads(manifest_path(path).read_text())
        content["details"]["engine"].update(changes)
        manifest_path(path).write_text(json.dumps(content))

    return work


def forget(path: Path) -> None:
    content = json.loads(manifest_path(path).read_text())
    manifest_path(path).write_text(json.dumps({**content, "details": {}}))


def batch(*sizes: Any) -> dict[str, Any]:
    return dict(zip(("min", "opt", "max"), sizes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove, "tiny.engine: without its manifest tiny.engine.json; put that beside it, or build it again"),
        (damage, "tiny.engine.json: not a manifest that can be read .*; build the engine again"),
        (swap, "tiny.engine: is not the file that tiny.engine.json describes; copy both again, or build it again"),
        (cut, "tiny.engine: is not the file that tiny.engine.json describes; copy both again, or build it again"),
        (update, "tiny.engine.json: manifest version 2, this code reads 1; update the code; build the engine again"),
        (forget, r"tiny.engine.json: does not describe an engine \(KeyError: 'engine'\); build it again"),
        *(
            (edit(**changes), "tiny.engine.json: does not describe an engine")
            for changes in (
                {"flavour": "other"},
                {"flavour": ["tensorrt"]},
                {"version": None},
                {"version": [10, 12, 0]},
                {"version": "new"},
                {"compute_capability": "new"},
                {"compute_capability": 8.6},
                {"batch": None},
                {"batch": {"min": 1, "max": 8}},
                {"batch": batch(0, 1, 8)},
                {"batch": batch(1, 9, 8)},
                {"batch": batch(1, 2, "8")},
                {"batch": batch(1, 2, 10**9)},
                {"batch": batch(True, 1, 8)},
            )
        ),
    ],
)
def test_an_engine_without_its_own_manifest_is_refused(
    change: Callable[[Path], None], message: str, machine: MakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = machine()
    change(here.path)
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # the manifest is asked first
    with pytest.raises(ModelError, match=message) as caught:
        open_backend(here.path)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    assert here.gpu.log == []


@pytest.mark.parametrize(
    ("built", "installed", "compatible", "loads"),
    [
        ("10.12.0", "10.12.0", False, True),
        ("10.12.0", "10.13.0", False, False),
        ("10.12.0", "10.13.0", True, True),
        ("10.12.0", "11.4.0", True, True),
        ("10.12.0", "10.9.0", True, False),  # compatible with later ones only
        ("11.4.0", "10.12.0", True, False),
    ],
)
def test_another_version_loads_it_only_if_built_for_that(
    built: str, installed: str, compatible: bool, loads: bool, machine: MakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = machine(installed, version=built, version_compatible=compatible)
    if loads:
        with TrtBackend(here.path):
            return
    monkeypatch.setattr(cuda, "find_gpu", lambda: None)  # the library is asked before the GPU
    flag = " --version-compatible" if compatible else ""
    with pytest.raises(ModelError) as caught:
        TrtBackend(here.path)
    assert str(caught.value) == (
        f"{here.path}: built by version {built}, installed is TensorRT {installed}; build it again here with `python -m"
        f" export.engine --onnx {here.path.parent / 'tiny.onnx'} --output {here.path} --flavor tensorrt --batch 1,2,8{flag}`"
    )


def test_the_command_that_is_advised_is_safe_to_copy(machine: MakeMachine) -> None:
    here = machine("10.13.0")
    write_manifest(here.path, SPEC, [Origin("onnx", "/a b/x.onnx; reboot", "0")], {"engine": FACTS})
    with pytest.raises(ModelError, match=r"--onnx '/a b/x\.onnx; reboot' --output"):
        TrtBackend(here.path)


@pytest.mark.parametrize(("facts", "package"), [({}, "tensorrt"), (RTX, "tensorrt-rtx")])
def test_without_the_library_its_package_is_named(
    facts: dict[str, Any], package: str, machine: MakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = machine(**facts)
    monkeypatch.setitem(sys.modules, package.replace("-", "_"), None)
    with pytest.raises(MissingComponentError, match=f"run `pip install {package}") as caught:
        open_backend(here.path)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("built", "capability", "compatible", "loads"),
    [
        ("8.6", "8.6", False, True),
        ("8.6", "8.9", False, False),
        ("8.6", "8.9", True, True),
        ("8.6", "7.5", True, False),  # compatible from Ampere on
        ("8.6", "12.0", True, True),
        (None, "8.9", False, True),  # nothing is known of the machine that built it
    ],
)
def test_another_kind_of_gpu_runs_it_only_if_built_for_that(
    built: str | None, capability: str, compatible: bool, loads: bool, machine: MakeMachine
) -> None:
    here = machine(capability=capability, compute_capability=built, hardware_compatible=compatible)
    if loads:
        with TrtBackend(here.path):
            return
    message = (
        rf"built for Fake GPU \(compute capability {built}\), this machine has Fake GPU \({capability}\); build it again here"
    )
    with pytest.raises(ModelError, match=message):
        TrtBackend(here.path)
    assert here.gpu.log == []


@pytest.mark.parametrize(
    ("capability", "listed"), [("7.5", False), ("8.0", True), ("8.9", True), ("9.0", False), ("12.0", True), ("12.1", True)]
)
@pytest.mark.parametrize("built", [None, "8.6"])
def test_rtx_engines_only_warn_of_gpus_that_are_not_listed(
    built: str | None, capability: str, listed: bool, machine: MakeMachine, caplog: pytest.LogCaptureFixture
) -> None:
    here = machine(capability=capability, **{**RTX, "compute_capability": built})
    with caplog.at_level(logging.WARNING), TrtBackend(here.path):
        assert ("does not list Fake GPU" in caplog.text) == (not listed)


def test_a_plan_that_does_not_load_says_why_and_what_to_do(machine: MakeMachine) -> None:
    here = machine()
    here.engine.is_loadable = False
    with pytest.raises(
        ModelError, match=r"tiny.engine: not an engine for TensorRT 10.12.0 here: made-up reason; build it again"
    ):
        TrtBackend(here.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"images": (-1, 3, 64, 64)},
            r"input images is float32 \[N, 3, 64, 64\], its spec says .* \[N, 3, 32, 32\]; build",
        ),
        ({"images": (4, 3, 32, 32)}, "takes 4 to 4 images, its manifest says 1 to 8; build"),
        ({"images2": (-1, 3, 32, 32)}, "expected one input 'images', found images, images2; build"),
        ({"p4": (-1, 5, 2, 2)}, r"output p4 is float32 \[N, 5, 2, 2\], its spec says float32 \[N, 6, 2, 2\]; build"),
    ],
)
def test_an_engine_that_is_not_as_its_manifest_promises_is_refused(
    change: dict[str, tuple[int, ...]], message: str, machine: MakeMachine
) -> None:
    here = machine()
    here.engine.shapes.update(change)
    here.engine.types = dict.fromkeys(here.engine.shapes, "FLOAT")
    here.engine.num_io_tensors = len(here.engine.shapes)
    with pytest.raises(ModelError, match=message):
        TrtBackend(here.path)
    assert here.gpu.log == []


@pytest.mark.parametrize("profile", [(1, 4), (2, 8), (1, 16)])
def test_an_engine_of_other_batch_sizes_is_refused(profile: tuple[int, int], machine: MakeMachine) -> None:
    here = machine()
    here.engine.profile = profile
    with pytest.raises(ModelError, match=rf"takes {profile[0]} to {profile[1]} images, its manifest says 1 to 8; build it"):
        TrtBackend(here.path)
    assert here.gpu.log == []


def test_an_engine_that_makes_more_rows_than_images_is_refused(machine: MakeMachine) -> None:
    here = machine()
    here.engine.rows_per_image = 2
    with pytest.raises(ModelError, match=r"for 2 images the engine makes p5 \[4, 6, 1, 1\], not one row each; it is damaged"):
        TrtBackend(here.path)
    assert "execute" not in here.gpu.log
    del here.engine
    assert here.gpu.live == []


def test_an_engine_of_other_types_is_refused(machine: MakeMachine) -> None:
    here = machine()
    here.engine.types["p4"] = "HALF"
    with pytest.raises(
        ModelError,
        match=r"tiny.engine: output p4 is float16 .*, its spec says float32 .*; build it again",
    ):
        TrtBackend(here.path)


def test_an_engine_with_options(machine: MakeMachine) -> None:
    spec = SPEC.replace(input_type="uint8", top_k=5)
    here = machine(spec=spec)
    with TrtBackend(here.path) as backend:
        for count in (1, 3, 2, 11):
            images = np.broadcast_to(np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1), (count, 32, 32, 3))
            (rows,) = backend.infer(images)
            assert rows.dtype == np.float32 and rows.shape == (count, 5, 7)
            assert np.array_equal(rows, np.broadcast_to(np.arange(count, dtype=np.float32).reshape(-1, 1, 1), rows.shape))
        with pytest.raises(InputError, match=r"expected uint8 \['N', 32, 32, 3\], got float32"):
            backend.infer(numbered(1))
        uploaded = [memory.bytes.nbytes for memory in here.gpu.memory.values()]
        assert sorted(uploaded) == [8 * 5 * 7 * 4, 8 * 32 * 32 * 3]  # a byte a pixel, and kilobytes back
    assert here.gpu.live == []
    here.engine.types["images"] = "FLOAT"
    with pytest.raises(ModelError, match=r"tiny.engine: input images is float32 .*, its spec says uint8 .*; build it again"):
        TrtBackend(here.path)


# TensorRT-RTX


def test_rtx_captures_by_itself(machine: MakeMachine) -> None:
    here = machine(**RTX)
    with TrtBackend(here.path) as backend:
        for first in range(3):
            check(backend.infer(numbered(2, first)), 2, first)
        assert here.engine.configs == [here.engine.config]
        assert here.engine.config.cuda_graph_strategy == "WHOLE"
        assert here.gpu.calls["begin capture"] == 0
    assert here.gpu.live == []


@pytest.mark.parametrize(
    ("there", "afterwards"), [(None, b"kernels"), (b"kernels and more", b"kernels and more"), (b"of another GPU", b"kernels")]
)
def test_rtx_keeps_what_it_compiled(there: bytes | None, afterwards: bytes, machine: MakeMachine) -> None:
    here = machine(**RTX)
    cache = here.path.with_name("tiny.engine.cache")
    if there is not None:
        cache.write_bytes(there)
    TrtBackend(here.path).close()
    assert cache.read_bytes() == afterwards


def test_where_nothing_can_be_kept_rtx_runs_all_the_same(machine: MakeMachine) -> None:
    here = machine(**RTX)
    here.path.with_name("tiny.engine.cache").mkdir()
    with TrtBackend(here.path) as backend:
        check(backend.infer(numbered(2)), 2)
    assert here.gpu.live == []


# Commands


def test_detect_runs_an_engine(
    machine: MakeMachine, command: Command, make_spec: Callable[..., ModelSpec], tmp_path: Path
) -> None:
    here = machine(spec=make_spec())
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((20, 30, 3), np.uint8))
    arguments = ("--engine", here.path, "--source", tmp_path / "black.png", "--json", "--conf", "0.9")
    code, out, err = command(detect.main, *arguments)
    assert (code, json.loads(out)["detections"]) == (0, []), err
    assert here.gpu.calls["execute"] == 2 and here.gpu.live == []  # the warm-up and the image


@pytest.mark.parametrize(
    ("lacking", "remedy"),
    [("driver", "install it, and check with `nvidia-smi`"), ("pycuda", "pip install pycuda"), ("gpu", "check `nvidia-smi`")],
)
def test_commands_say_in_one_line_what_is_missing(
    lacking: str, remedy: str, machine: MakeMachine, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = machine(**RTX)

    def no_driver(name: str) -> None:
        raise OSError("no such library")

    if lacking == "driver":
        monkeypatch.setattr("ctypes.CDLL", no_driver)
    elif lacking == "pycuda":
        monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    else:
        monkeypatch.setattr(cuda, "find_gpu", lambda: None)
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((20, 30, 3), np.uint8))
    for main, arguments in [
        (detect.main, ("--source", tmp_path / "black.png", "--json")),
        (evaluate.main, ("--data", tmp_path)),
    ]:
        code, out, err = command(main, "--engine", here.path, *arguments)
        assert (code, out) == (3, "") and remedy in err
        assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda here: swap(here.path), "is not the file that tiny.engine.json describes"),
        (lambda here: edit(version="10.13.0")(here.path), "built by version 10.13.0"),
        (lambda here: edit(compute_capability="9.0")(here.path), "built for Fake GPU (compute capability 9.0)"),
        (lambda here: setattr(here.engine, "is_loadable", False), "not an engine for TensorRT 10.12.0 here"),
        (lambda here: here.engine.shapes.update(p4=(-1, 5, 2, 2)), "output p4 is float32 [N, 5, 2, 2], its spec says"),
        (lambda here: setattr(here.engine, "offset", float("nan")), "holds NaN"),
    ],
    ids=["another plan", "version", "GPU", "not loadable", "shapes", "not numbers"],
)
def test_commands_refuse_a_bad_engine_in_one_line_and_leave_nothing(
    break_it: Callable[[Machine], None],
    message: str,
    machine: MakeMachine,
    command: Command,
    make_spec: Callable[..., ModelSpec],
    make_coco: Callable[..., Path],
) -> None:
    here = machine(spec=make_spec())
    data = make_coco(images=[(1, 64, 48, 200)], boxes=[(1, 3, (1, 2, 30, 40))])
    break_it(here)
    for main, arguments in [
        (detect.main, ("--source", data / "val2017" / "1.png", "--json")),
        (evaluate.main, ("--data", data)),
    ]:
        code, out, err = command(main, "--engine", here.path, *arguments)
        assert (code, out) == (2, "") and message in err and len(err.splitlines()) == 1
        assert here.gpu.live == [] and here.gpu.graphs == {}
