"""Device, stream, buffers and graphs on a fake GPU: order of calls, everything freed."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

import numpy as np
import pytest

from runtime.backends.gpu import Gpu
from runtime.backends.tensorrt import bindings, cuda
from runtime.errors import MissingComponentError, ModelError
from tests.support.cuda_fakes import FakeGpu, PycudaError
from tests.support.cuda_packages import Status
from tests.support.trt_machine import install

PACKAGES = ("cuda-bindings", "pycuda")


@pytest.fixture(params=PACKAGES)
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """Reached through either package."""
    fake = FakeGpu()
    install(monkeypatch, fake, None, "10.12.0", "8.6", request.param)
    return fake


def no_driver(patch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    patch.setattr(ctypes, "CDLL", missing)


def no_package(patch: pytest.MonkeyPatch) -> None:
    for name in ("pycuda.driver", "cuda.bindings.driver"):
        patch.setitem(sys.modules, name, None)


def no_gpu(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cuda, "find_gpu", lambda: None)


def a_gpu_in_trouble(patch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise PycudaError("cuInit failed: system not yet initialized\nin a second line")

    if sys.modules["pycuda.driver"]:
        patch.setattr(sys.modules["pycuda.driver"], "init", fail)
    else:
        patch.setattr(sys.modules["cuda.bindings.driver"], "cuInit", lambda flags: (Status.CUDA_ERROR_ILLEGAL_ADDRESS,))


@pytest.mark.parametrize(
    ("lacking", "message"),
    [
        (no_driver, r"no NVIDIA driver here \(libcuda.so.1 cannot be loaded\); install it, and check with `nvidia-smi`"),
        (
            no_package,
            r"neither cuda-bindings \(.*\) nor pycuda \(.*\) can be imported; run `pip install cuda-bindings`, or `CUDA_E",
        ),
        (no_gpu, r"the NVIDIA driver shows no GPU; check `nvidia-smi`, CUDA_VISIBLE_DEVICES and --device"),
        (a_gpu_in_trouble, r"the GPU does not answer \(cuInit.*(initialized|ADDRESS \(700\))\); `nvidia-smi`"),
    ],
)
@pytest.mark.usefixtures("gpu")
def test_what_is_missing_is_named_with_its_remedy(
    lacking: Callable[[pytest.MonkeyPatch], None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking(monkeypatch)
    with pytest.raises(MissingComponentError, match=f"^{message}") as caught:
        cuda.open_device()
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)


def test_the_context_is_only_there_within(gpu: FakeGpu) -> None:
    device = cuda.open_device()
    assert device.gpu == Gpu("Fake GPU", "8.6", 28)
    with device.active(), device.active():
        pass
    with pytest.raises(AssertionError, match="no context"):
        device.create_stream()
    with pytest.raises(KeyError), device.active():
        raise KeyError
    with pytest.raises(AssertionError, match="no context"):
        gpu.check_context()


def test_copies_wait_for_each_other_and_nobody_waits_for_them_but_at_the_end(gpu: FakeGpu) -> None:
    device = cuda.open_device()
    with device.active():
        stream, buffer = device.create_stream(), device.allocate((4, 3), "float32")
        buffer.host[:] = 7
        with stream.running():
            stream.upload(buffer, 2)
            stream.download(buffer, 2)
            buffer.host[:] = 1  # before anything was copied
            assert gpu.log[-1] == "download"
        assert gpu.log[-3:] == ["upload", "download", "synchronize"]
        memory = gpu.memory[buffer.address].bytes.view(np.float32)
        assert np.array_equal(memory[:6], np.ones(6)) and np.isnan(memory[6:]).all()  # two rows of four
        buffer.close()
        stream.close()
    assert gpu.live == [] and gpu.memory == {}


@pytest.mark.parametrize("call", ["pinned", "memory"])
def test_without_memory_the_size_is_named_and_nothing_is_kept(call: str, gpu: FakeGpu) -> None:
    gpu.fail[call] = 1
    device = cuda.open_device()
    with (
        device.active(),
        pytest.raises(MissingComponentError, match=r"Fake GPU has no 48 MB left \(.*(ADDRESS|failed).*--batch"),
    ):
        device.allocate((4, 3_000_000), "float32")
    assert gpu.live == []


def test_no_stream_is_one_line(gpu: FakeGpu) -> None:
    gpu.fail["stream"] = 1
    device = cuda.open_device()
    with (
        device.active(),
        pytest.raises(
            MissingComponentError, match=r"no stream \((stream failed: made up|cuStreamCreate: CUDA_ERR.*)\); `nvidia-smi`"
        ),
    ):
        device.create_stream()


def test_an_error_of_the_gpu_shows_when_it_is_waited_for(gpu: FakeGpu) -> None:
    gpu.fail["synchronize"] = 1
    device = cuda.open_device()
    with device.active():
        stream = device.create_stream()
        with (
            pytest.raises(ModelError, match=r"failed on the GPU \(.*ynchronize.*\); `nvidia-smi` shows its state$"),
            stream.running(),
        ):
            pass
        stream.close()
    assert gpu.live == []


def test_a_graph_repeats_what_was_captured_and_did_not_run_then(gpu: FakeGpu) -> None:
    device = cuda.open_device()
    with device.active():
        stream, buffer = device.create_stream(), device.allocate((2,), "float32")
        buffer.host[:] = 5
        graph = stream.capture(lambda: stream.upload(buffer, 2))
        assert graph is not None
        with stream.running():
            pass
        assert np.isnan(gpu.memory[buffer.address].bytes.view(np.float32)).all()
        for value in (5, 6):
            buffer.host[:] = value
            with stream.running():
                stream.launch(graph)
            assert np.array_equal(gpu.memory[buffer.address].bytes.view(np.float32), [value, value])
        assert gpu.calls["upload"] == 1
        gpu.fail["launch"] = 3
        with pytest.raises(ModelError, match=r"failed on the GPU \(cuGraphLaunch: .*700"), stream.running():
            stream.launch(graph)
        for item in (graph, buffer, stream):
            item.close()
    assert gpu.live == []


@pytest.mark.parametrize("failing", ["begin capture", "upload", "end capture", "instantiate", "refusal"])
def test_without_a_graph_the_stream_goes_on_as_before(failing: str, gpu: FakeGpu) -> None:
    device = cuda.open_device()
    gpu.fail[failing] = 1
    with device.active():
        stream, buffer = device.create_stream(), device.allocate((2,), "float32")
        buffer.host[:] = 5

        def work() -> None:
            if failing == "refusal":
                raise ModelError("not while capturing")
            stream.upload(buffer, 2)

        assert stream.capture(work) is None
        assert gpu.capturing == {}
        with stream.running():
            stream.upload(buffer, 2)
        assert np.array_equal(gpu.memory[buffer.address].bytes.view(np.float32), [5, 5])
        buffer.close()
        stream.close()
    assert gpu.live == []


def test_a_driver_too_old_for_graphs_does_without(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.modules["pycuda.driver"]:
        monkeypatch.delattr(FakeGpu, "cuGraphInstantiateWithFlags")
    else:

        def missing(graph: int, flags: int) -> None:
            raise RuntimeError('Function "cuGraphInstantiate" not found')

        monkeypatch.setattr(sys.modules["cuda.bindings.driver"], "cuGraphInstantiate", missing)
    device = cuda.open_device()
    with device.active():
        stream = device.create_stream()
        assert stream.capture(lambda: None) is None
        stream.close()
    assert gpu.live == []


def test_after_an_error_that_ends_the_context_one_is_told_to_restart(gpu: FakeGpu) -> None:
    gpu.fail["synchronize"], gpu.fails_for_good = 1, True
    device = cuda.open_device()
    with device.active():
        stream, buffer = device.create_stream(), device.allocate((2,), "float32")
        lost = r"the GPU's context is lost, and with it every later call: restart the process$"
        with pytest.raises(ModelError, match=rf"failed on the GPU \(.*ynchronize.*\); {lost}"), stream.running():
            pass
        with pytest.raises(ModelError, match=rf"^the library's own words; {lost}"), stream.running():
            raise ModelError("the library's own words")
        buffer.close()
        stream.close()


def test_a_package_that_is_newer_than_the_driver_is_named(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError(f"{name}: undefined symbol: cuCtxCreate_v4")

    monkeypatch.setattr(bindings, "import_library", fail)
    monkeypatch.setattr(bindings, "driver_version", lambda: "12.8")
    with pytest.raises(
        MissingComponentError, match=r"undefined symbol: .*: built for a newer CUDA than the driver's 12.8; update"
    ):
        cuda.open_device()


def test_other_mistakes_are_not_taken_for_a_graph_that_cannot_be_had(gpu: FakeGpu) -> None:
    device = cuda.open_device()

    def wrong() -> None:
        raise ZeroDivisionError

    with device.active():
        stream = device.create_stream()
        with pytest.raises(ZeroDivisionError):
            stream.capture(wrong)
        assert gpu.capturing == {}
        stream.close()
    assert gpu.live == []
