"""Scenarios that `test_driver_double` runs over the host-memory libcuda; the program prints what went wrong, by scenario."""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.support import host_engine

if __name__ == "__main__":
    host_engine.install()

import numpy as np

from runtime.backends.gpu import find_gpu, memory_used
from runtime.backends.tensorrt.backend import TrtBackend
from runtime.backends.tensorrt.binding import CudaError
from runtime.backends.tensorrt.cuda import Device, open_device
from runtime.errors import MissingComponentError, ModelError
from tests.support.host_cuda import NOTHING_LEFT
from tests.support.trt_machine import SPEC, check, numbered

Scenario = Callable[[Device, Path], None]
SCENARIOS: dict[str, Scenario] = {}
ON_AN_INTEGRATED_GPU: dict[str, Scenario] = {}
BLOCKING, GLOBAL = 0, 0


def scenario(work: Scenario) -> Scenario:
    SCENARIOS[work.__name__] = work
    return work


def on_an_integrated_gpu(work: Scenario) -> Scenario:
    ON_AN_INTEGRATED_GPU[work.__name__] = work
    return work


def raised(kind: type[Exception], call: Callable[[], object]) -> str:
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__}")


def in_threads(count: int, work: Callable[[], object]) -> None:
    problems: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]


def status(name: str, *arguments: object) -> int:
    """Calls the driver as another library of the process would."""
    return int(getattr(host_engine.driver, name)(*arguments))


@scenario
def the_gpu_and_its_memory(device: Device, engine: Path) -> None:
    gpu = find_gpu()
    assert gpu and (gpu.name, gpu.compute_capability, gpu.multiprocessors) == ("Host memory", "9.0", 132)
    before = memory_used()
    assert before is not None
    with device.active():
        buffer = device.allocate((1000,), "float32")
        assert memory_used() == before + 4000 and buffer.address % 256 == 0
        message = raised(MissingComponentError, lambda: device.allocate((1 << 20, 1 << 15), "float32", on_host=False))
        assert "Host memory has no 137439 MB left" in message
        buffer.close()


@scenario
def every_call_needs_the_context(device: Device, engine: Path) -> None:
    assert "gives no stream" in raised(MissingComponentError, device.create_stream)
    assert host_engine.account()["fault"]
    host_engine.driver.host_cuda_forgive()


@scenario
def copies_and_graphs_in_four_threads(device: Device, engine: Path) -> None:
    def work() -> None:
        with device.active():
            stream, buffer = device.create_stream(), device.allocate((4, 3), "float32")
            buffer.host[:] = 7

            def enqueue() -> None:
                stream.upload(buffer, 2)
                stream.download(buffer, 3)

            graph = stream.capture(enqueue)
            assert graph is not None
            with stream.running():
                pass
            assert (buffer.host == 7).all()  # captured, not run
            for value in (3, 4):
                buffer.host[:] = value
                with stream.running():
                    stream.launch(graph)
                    buffer.host[0] = 9  # before anything was copied
                assert buffer.host[:2, 0].tolist() == [9, value] and np.isnan(buffer.host[2]).all()
                assert (buffer.host[3] == value).all()
            for item in (graph, buffer, stream):
                item.close()

    in_threads(4, work)


@scenario
def a_capture_leaves_the_legacy_stream_alone(device: Device, engine: Path) -> None:
    with device.active():
        stream, buffer = device.create_stream(), device.allocate((2,), "float32")
        found: list[int] = []

        def enqueue() -> None:
            stream.upload(buffer, 2)
            found.append(status("cuStreamSynchronize", None))
            in_threads(1, allocate)

        def allocate() -> None:  # which this thread may not, while it captures
            with device.active():
                device.allocate((2,), "float32").close()

        graph = stream.capture(enqueue)
        assert graph and found == [0]
        for item in (graph, buffer, stream):
            item.close()


@scenario
def on_a_blocking_stream_it_does_not(device: Device, engine: Path) -> None:
    with device.active():
        stream, graph = ctypes.c_void_p(), ctypes.c_void_p()
        assert status("cuStreamCreate", ctypes.byref(stream), BLOCKING) == 0
        assert status("cuStreamBeginCapture_v2", stream, GLOBAL) == 0
        assert status("cuStreamBeginCapture_v2", stream, GLOBAL) == 401
        assert status("cuStreamSynchronize", None) == 906
        assert status("cuStreamEndCapture", stream, ctypes.byref(graph)) == 901 and not graph.value
        assert status("cuStreamBeginCapture_v2", stream, GLOBAL) == 0
        in_threads(1, lambda: wrong_thread(device, stream))
        assert status("cuStreamDestroy_v2", stream) == 0


def wrong_thread(device: Device, stream: ctypes.c_void_p) -> None:
    graph = ctypes.c_void_p()
    with device.active():
        assert status("cuStreamEndCapture", stream, ctypes.byref(graph)) == 908


@scenario
def what_breaks_a_capture_leaves_a_stream_that_works(device: Device, engine: Path) -> None:
    with device.active():
        stream, buffer = device.create_stream(), device.allocate((2,), "float32")

        def allocate() -> None:
            device.allocate((2,), "float32").close()

        def wait() -> None:
            with stream.running():
                stream.upload(buffer, 2)

        def refuse() -> None:
            raise ModelError("the library's own words")

        assert raised(MissingComponentError, lambda: stream._capture(allocate))
        assert stream.capture(wait) is None
        assert stream.capture(refuse) is None
        for name in ("cuStreamBeginCapture_v2", "cuGraphInstantiateWithFlags"):
            host_engine.fail(name, 1, 900)
            assert stream.capture(lambda: stream.upload(buffer, 2)) is None
        buffer.host[:] = 5
        wait()
        for item in (buffer, stream):
            item.close()


@scenario
def an_engine_runs_batches_of_all_sizes(device: Device, engine: Path) -> None:
    with TrtBackend(engine) as backend:
        for count in (1, 1, 1, 8, 3, 11, 8, 3):
            check(backend.infer(numbered(count, first=count)), count, first=count)
        in_threads(6, lambda: [check(backend.infer(numbered(n, first=n)), n, first=n) for n in (1, 9, 1, 2, 1)])


@scenario
def the_time_on_the_gpu_is_measured(device: Device, engine: Path) -> None:
    with TrtBackend(engine) as backend:
        for count in (1, 11):
            outputs, milliseconds = backend.infer_timed(numbered(count))
            check(outputs, count)
            assert 0 < milliseconds < 10_000


@on_an_integrated_gpu
def nothing_is_copied(device: Device, engine: Path) -> None:
    with TrtBackend(engine) as backend:
        assert device.gpu.is_integrated
        taken = host_engine.account()
        assert (taken["device"], taken["pinned"]) == (2, 3)  # of engine and context; input and outputs
        host_engine.fail("cuMemcpyHtoDAsync_v2", 1, 700)
        for count in (1, 1, 1, 8, 3, 11):
            check(backend.infer(numbered(count, first=count)), count, first=count)
        backend.copy(numbered(8))
        host_engine.fail("", 0, 0)


@scenario
def opening_and_closing_takes_no_memory(device: Device, engine: Path) -> None:
    def once() -> None:
        with TrtBackend(engine) as backend:
            backend.infer(numbered(3))

    for work in (once, lambda: in_threads(1, once)):
        for _ in range(3):
            work()
            assert host_engine.account() == NOTHING_LEFT


@scenario
def a_model_is_freed_when_it_is_dropped_in_another_thread(device: Device, engine: Path) -> None:
    held = [TrtBackend(engine)]
    held[0].infer(numbered(2))
    in_threads(1, held.clear)
    gc.collect()
    assert host_engine.account() == NOTHING_LEFT


@scenario
def a_failure_costs_one_call_and_nothing_else(device: Device, engine: Path) -> None:
    with TrtBackend(engine) as backend:
        for name, result in (("cuStreamSynchronize", 719), ("cuMemcpyHtoDAsync_v2", 1), ("cuMemcpyDtoHAsync_v2", 1)):
            host_engine.fail(name, 1, result)
            assert "failed on the GPU" in raised(ModelError, lambda: backend.infer(numbered(1)))
            check(backend.infer(numbered(3)), 3)


@scenario
def a_lost_context_says_restart(device: Device, engine: Path) -> None:  # the last one: nothing runs after it
    with device.active():
        stream, buffer = device.create_stream(), device.allocate((2,), "float32")
        graph = stream.capture(lambda: stream.download(buffer, 2))
        assert graph
        buffer.close()

        def replay() -> None:
            with stream.running():
                stream.launch(graph)  # on memory that was freed

        for _ in range(2):
            assert raised(ModelError, replay).endswith("with it every later call: restart the process")
        assert raised(CudaError, lambda: device._binding.allocate(4))
        for item in (graph, stream):
            item.close()


def main(folder: Path) -> int:
    device = open_device()
    engine = host_engine.write_engine(folder / "tiny.engine", SPEC, (1, 2, 8))
    found = {}
    for name, work in (ON_AN_INTEGRATED_GPU if device.gpu.is_integrated else SCENARIOS).items():
        try:
            work(device, engine)
            left = host_engine.account()
            found[name] = "" if left == NOTHING_LEFT or name == "a_lost_context_says_restart" else str(left)
        except BaseException:
            found[name] = traceback.format_exc()
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
