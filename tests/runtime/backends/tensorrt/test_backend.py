"""TrtBackend on a fake GPU: order of calls, batches, threads, closing, failures, RTX."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest

from runtime.backends.inspection import inspection_shapes
from runtime.backends.open import open_backend
from runtime.backends.tensorrt import backend as module
from runtime.backends.tensorrt.backend import TrtBackend
from runtime.benchmark.stages import CopyingBackend, TimedBackend
from runtime.errors import InputError, MissingComponentError, ModelError
from tests.support.cuda_fakes import FakeGpu
from tests.support.trt_machine import CAPTURE, REPLAY, RTX, RUN, SPEC, MakeMachine, check, numbered


def test_opening_runs_once_so_that_the_first_image_is_not_slow(machine: MakeMachine) -> None:
    here = machine()
    with open_backend(here.path) as backend:
        assert isinstance(backend, TrtBackend)
        assert (backend.spec, backend.batch_size) == (SPEC, None)
        assert here.gpu.log == ["stream", *["pinned", "memory"] * 3, "context", "shape 2", *RUN]
    assert here.gpu.live == []


GRAPHS = {
    "10.12.0": [  # a context for each of the last two sizes
        (2, CAPTURE + REPLAY),  # the first was the warm-up
        (2, REPLAY),
        (3, ["context", "shape 3", *RUN]),
        (3, CAPTURE + REPLAY),
        (2, REPLAY),
        (3, REPLAY),
        (4, ["shape 4", *RUN]),
        (3, REPLAY),
        (4, CAPTURE + REPLAY),
        (2, ["shape 2", *RUN]),
        (11, ["shape 8", *RUN, "shape 3", *RUN]),
    ],
    "8.6.1": [  # one context
        (2, CAPTURE + REPLAY),
        (3, ["shape 3", *RUN]),
        (3, CAPTURE + REPLAY),
        (2, ["shape 2", *RUN]),
        (3, ["shape 3", *RUN]),
    ],
}


@pytest.mark.parametrize("version", GRAPHS)
def test_a_graph_is_captured_at_the_second_run_of_a_size_and_kept(version: str, machine: MakeMachine) -> None:
    here = machine(version=version)
    with TrtBackend(here.path) as backend:
        for count, expected in GRAPHS[version]:
            start = len(here.gpu.log)
            check(backend.infer(numbered(count, first=start)), count, first=start)
            assert here.since(start) == expected
    assert here.gpu.live == [] and here.gpu.graphs == {}


def test_without_memory_for_a_second_context_the_first_serves_all_sizes(machine: MakeMachine) -> None:
    here = machine()
    with TrtBackend(here.path) as backend:
        here.engine.free_contexts = 0
        for count in (3, 2, 3):
            start = len(here.gpu.log)
            check(backend.infer(numbered(count)), count)
            assert here.since(start) == [f"shape {count}", *RUN]
    assert here.gpu.live == []


def test_a_failed_capture_is_tried_again_ever_more_rarely(machine: MakeMachine) -> None:
    here = machine()
    here.gpu.is_capturable = False
    with TrtBackend(here.path) as backend:
        for attempts in (1, 1, 1, 2, 2, 2, 2, 2, 3):
            check(backend.infer(numbered(2, first=5)), 2, first=5)
            assert here.gpu.calls["begin capture"] == attempts
            assert here.gpu.log[-len(RUN) :] == RUN
        here.gpu.is_capturable = True
        for _ in range(9):
            backend.infer(numbered(2))
        assert here.gpu.log[-len(REPLAY) :] == REPLAY
    assert here.gpu.live == []


@pytest.mark.parametrize(
    ("batch", "count", "shapes"),
    [
        ((1, 1, 8), 1, []),
        ((1, 1, 8), 8, [8]),
        ((1, 1, 8), 9, [8]),  # the second part, of one image, is computed as such
        ((1, 1, 3), 8, [3, 2]),
        ((4, 4, 8), 9, [8]),
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


@pytest.mark.parametrize("package", ["cuda-bindings", "pycuda"])
def test_the_time_on_the_gpu_is_of_all_parts_of_a_batch(package: str, machine: MakeMachine) -> None:
    here = machine(package=package)
    with TrtBackend(here.path) as backend:
        assert isinstance(backend, TimedBackend)
        for count, expected in ((2, 5), (8, 5), (11, 10)):  # two copies back, one there, a run, and the first event
            outputs, milliseconds = backend.infer_timed(numbered(count))
            check(outputs, count)
            assert milliseconds == 3.0 * expected
        assert here.gpu.log[-1] == "synchronize"
    assert here.gpu.live == []


def test_kernels_can_be_compiled_at_the_first_run_of_a_size(machine: MakeMachine) -> None:
    here = machine(**RTX)
    with TrtBackend(here.path) as backend:
        backend.compile_at_once()
        assert here.engine.config.dynamic_shapes_kernel_specialization_strategy == "EAGER"
        start = len(here.gpu.log)
        check(backend.infer(numbered(2)), 2)
        assert "context" in here.since(start)  # the one before compiles as before
    assert here.gpu.live == []


def test_other_libraries_compile_all_kernels_beforehand(machine: MakeMachine) -> None:
    here = machine()
    with TrtBackend(here.path) as backend:
        start = len(here.gpu.log)
        backend.compile_at_once()
        assert here.since(start) == []


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
        assert (here.gpu.calls["pinned"], here.gpu.calls["memory"]) == (3, len(here.engine.shapes))
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
        assert here.gpu.calls["stream"] <= 2
        assert here.gpu.calls["context"] <= here.gpu.calls["stream"] * (1 if version == "8.6.1" else 2)
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
    + [
        (call, 1, ModelError, "failed on the GPU .*CUDA_ERROR_ILLEGAL_ADDRESS")
        for call in ("upload", "download", "synchronize")
    ],
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
        start = len(here.gpu.log)
        check(backend.infer(numbered(count, first=4)), count, first=4)
        assert here.since(start)[0] == "stream"
    assert here.gpu.live == []


def test_threads_beyond_the_limit_wait_for_each_other(machine: MakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine()
    with TrtBackend(here.path) as backend:
        pause = Pause(here.gpu, monkeypatch)
        threads = [threading.Thread(target=backend.infer, args=(numbered(2),)) for _ in range(6)]
        for thread in threads:
            thread.start()
        reached = [pause.reached.acquire(timeout=10 if number < 4 else 0.1) for number in range(5)]
        pause.go.set()
        for thread in threads:
            thread.join(timeout=10)
        assert reached == [True] * 4 + [False]
        assert here.gpu.calls["stream"] == 4
    assert here.gpu.live == []


def test_after_an_error_that_ends_the_context_everything_can_still_be_closed(machine: MakeMachine) -> None:
    here = machine()
    with TrtBackend(here.path) as backend:
        here.gpu.fail["execute"], here.gpu.fails_for_good = here.gpu.calls["execute"] + 1, True
        with pytest.raises(ModelError, match=r"cannot run the engine: made-up failure; .* restart the process$"):
            backend.infer(numbered(3))
        with pytest.raises(MissingComponentError, match="restart the process"):
            backend.infer(numbered(3))


@pytest.mark.parametrize("package", ["cuda-bindings", "pycuda"])
def test_a_model_that_nobody_closed_is_freed_in_whichever_thread_drops_it(package: str, machine: MakeMachine) -> None:
    here = machine(package=package)
    held = [TrtBackend(here.path)]
    held[0].infer(numbered(2))
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join(timeout=10)
    gc.collect()
    assert here.gpu.live == [] and here.gpu.memory == {} and here.gpu.graphs == {}


def test_models_are_closed_at_exit(machine: MakeMachine) -> None:
    here = machine()
    models = [TrtBackend(here.path) for _ in range(2)]
    module._close_all()
    assert here.gpu.live == []
    module._close_all()
    with pytest.raises(ModelError, match="the model was closed"):
        models[0].infer(numbered(1))


def test_rtx_keeps_its_config_as_long_as_a_context(machine: MakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine(**RTX)
    backend = TrtBackend(here.path)
    pause = Pause(here.gpu, monkeypatch)
    thread = threading.Thread(target=backend.infer, args=(numbered(2),))
    thread.start()
    assert pause.reached.acquire(timeout=10)
    backend.close()
    config = weakref.ref(here.engine.config)
    del here.engine.config
    here.engine.configs.clear()
    gc.collect()
    assert config() is not None
    pause.go.set()
    thread.join(timeout=10)
    gc.collect()
    assert config() is None


def test_a_library_that_refuses_a_shape_says_why(machine: MakeMachine) -> None:
    here = machine()
    here.engine.batch = (3, 8)
    with pytest.raises(ModelError, match=r"TensorRT 10.12.0 cannot run the engine"):
        TrtBackend(here.path)
    assert here.gpu.live == []


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
