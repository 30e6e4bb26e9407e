"""TensorRT with fake libraries that have the names of each version: the calls made, not their results."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.backends.gpu import Gpu
from runtime.backends.tensorrt import library as tensorrt_adapter
from runtime.backends.tensorrt.library import TensorRT, open_tensorrt
from runtime.errors import MissingComponentError, ModelError
from tests.support.tensorrt_fakes import VERSIONS, library


def adapter(version: str) -> TensorRT:
    return TensorRT("rtx" if version.startswith("1.") else "tensorrt", library(version))


@pytest.mark.parametrize(
    ("version", "flags", "typed"), list(zip(VERSIONS, (0b01, 0b11, 0b10, 0b10), (False, True, True, True)))
)
def test_networks_are_explicit_and_typed_where_that_can_be_asked_for(version: str, flags: int, typed: bool) -> None:
    trt = adapter(version)
    builder = trt.create_builder()
    trt.create_network(builder)
    assert builder.network_flags == flags
    assert trt.is_typed == typed


def test_a_library_without_a_choice_of_networks_is_typed() -> None:
    api = library("11.4.0")
    del api.NetworkDefinitionCreationFlag
    trt = TensorRT("tensorrt", api)
    builder = trt.create_builder()
    trt.create_network(builder)
    assert (builder.network_flags, trt.is_typed) == (0, True)


def test_nothing_from_the_library_becomes_an_error_with_its_last_lines() -> None:
    trt = adapter("10.12.0")
    logger = trt.create_builder().logger

    def fail() -> None:
        for line in ("first", "second", "third\n  broken over lines", "fourth"):
            logger.log(1, line)
        logger.log(2, "a mere warning")

    with pytest.raises(ModelError, match=r"^building: second \| third broken over lines \| fourth$"):
        trt.checked("building", fail)
    with pytest.raises(ModelError, match=r"^again: TensorRT 10.12.0 gives no reason$"):  # earlier lines are gone
        trt.checked("again", lambda: None)
    assert trt.checked("fine", lambda: 0) == 0


def test_a_builder_that_does_not_start_is_a_missing_component() -> None:
    api = library("10.12.0")

    def start(logger: Any) -> None:
        logger.log(1, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    api.Builder = start
    with pytest.raises(MissingComponentError, match=r"failure with error: 35.*nvidia-smi"):
        TensorRT("tensorrt", api).create_builder()


@pytest.mark.parametrize("knows_names", [False, True])
def test_a_parser_error_names_the_node(knows_names: bool) -> None:
    api = library("10.12.0" if knows_names else "8.6.1")
    error = SimpleNamespace(node=lambda: 7, desc=lambda: "no such\n operator")
    if knows_names:
        error.node_name, error.node_operator = (lambda: "neck/odd"), (lambda: "Odd")
    parser = SimpleNamespace(parse_from_file=lambda path: False, num_errors=1, get_error=lambda index: error)
    api.OnnxParser = lambda network, logger: parser
    want = r"'neck/odd' \(Odd\)" if knows_names else r"7 \(operator unknown\)"
    with pytest.raises(ModelError, match=rf"m.onnx: .* cannot read node {want}: no such operator; export it again"):
        TensorRT("tensorrt", api).parse_onnx(None, "m.onnx")


def test_progress_is_passed_on_where_there_is_any() -> None:
    class Observer:
        def __init__(self) -> None:
            self.told: list[tuple[object, ...]] = []

        def started(self, phase: str, parent: str, steps: int) -> None:
            self.told.append((phase, parent, steps))

        def stepped(self, phase: str, step: int) -> bool:
            self.told.append((phase, step))
            return step < 1

        def finished(self, phase: str) -> None:
            self.told.append((phase,))

    observer = Observer()
    assert adapter("8.6.1").create_monitor(observer) is None
    monitor = adapter("10.12.0").create_monitor(observer)
    monitor.phase_start("build", None, 2)
    assert [monitor.step_complete("build", step) for step in (0, 1)] == [True, False]
    monitor.phase_finish("build")
    assert observer.told == [("build", "", 2), ("build", 0), ("build", 1), ("build",)]


@pytest.mark.parametrize("compatible", [False, True])
def test_a_plan_runs_its_own_code_only_if_it_was_built_for_that(compatible: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_adapter, "find_gpu", lambda: Gpu("G", "8.6"))
    api = library("10.12.0")
    runtime = SimpleNamespace(engine_host_code_allowed=False, deserialize_cuda_engine=lambda plan: plan or None)
    api.Runtime = lambda logger: runtime
    trt = TensorRT("tensorrt", api)
    assert trt.deserialize(b"plan", version_compatible=compatible) == b"plan"
    assert runtime.engine_host_code_allowed == compatible
    with pytest.raises(ModelError, match="not an engine for TensorRT"):
        trt.deserialize(b"")
    monkeypatch.setattr(tensorrt_adapter, "find_gpu", lambda: None)
    del api.Runtime  # without a driver the lean runtime ends the process
    with pytest.raises(MissingComponentError, match="loads no engine without an NVIDIA GPU and driver"):
        trt.deserialize(b"plan")


def test_an_engine_gets_the_dla_core_that_it_was_built_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_adapter, "find_gpu", lambda: Gpu("G", "8.7"))
    api = library("10.12.0")
    runtime = SimpleNamespace(num_DLA_cores=2, DLA_core=-1, deserialize_cuda_engine=lambda plan: plan)
    api.Runtime = lambda logger: runtime
    trt = TensorRT("tensorrt", api)
    assert trt.deserialize(b"plan") == b"plan" and runtime.DLA_core == -1
    assert trt.deserialize(b"plan", dla_core=1) == b"plan" and runtime.DLA_core == 1
    with pytest.raises(MissingComponentError, match=r"built for DLA core 2, .* finds 2 here"):
        trt.deserialize(b"plan", dla_core=2)


def test_the_inspector_is_asked_for_json() -> None:
    inspector = SimpleNamespace(
        get_engine_information=lambda kind: json.dumps({"Layers": ["a", {"Name": kind}], "Bindings": []})
    )
    engine = SimpleNamespace(create_engine_inspector=lambda: inspector)
    assert adapter("8.6.1").inspect(engine) == ["a", {"Name": "JSON"}]


def test_names_of_fused_layers_may_hold_control_characters() -> None:
    inspector = SimpleNamespace(get_engine_information=lambda kind: '{"Layers": [{"Name": "a\x1fb"}]}')
    assert adapter("8.6.1").inspect(SimpleNamespace(create_engine_inspector=lambda: inspector)) == [{"Name": "a\x1fb"}]


@pytest.mark.parametrize(
    ("has_gpu", "installed", "chosen"),
    [(True, "both", "tensorrt"), (False, "both", "rtx"), (True, "rtx", "rtx"), (False, "tensorrt", None), (True, "none", None)],
)
def test_auto_takes_tensorrt_with_a_gpu_and_rtx_without(
    has_gpu: bool, installed: str, chosen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    libraries = {"tensorrt": library("10.12.0"), "tensorrt_rtx": library("1.7.1")}
    for name, flavor in (("tensorrt", "tensorrt"), ("tensorrt_rtx", "rtx")):
        monkeypatch.setitem(sys.modules, name, libraries[name] if installed in ("both", flavor) else None)
    monkeypatch.setattr(tensorrt_adapter, "find_gpu", lambda: Gpu("G", "8.6") if has_gpu else None)
    monkeypatch.setattr(tensorrt_adapter, "load_tensorrt", tensorrt_adapter.load_tensorrt.__wrapped__)
    if chosen:
        assert open_tensorrt().flavor == chosen
        assert open_tensorrt(chosen).flavor == chosen
    else:
        with pytest.raises(MissingComponentError, match="no TensorRT here"):
            open_tensorrt()


def test_tensorrt_without_a_gpu_says_what_works_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", library("10.12.0"))
    monkeypatch.setattr(tensorrt_adapter, "find_gpu", lambda: None)
    monkeypatch.setattr(tensorrt_adapter, "load_tensorrt", tensorrt_adapter.load_tensorrt.__wrapped__)
    with pytest.raises(MissingComponentError, match=r"needs an NVIDIA GPU and driver.*flavor rtx"):
        open_tensorrt("tensorrt")
