"""Builder options per version, progress and inspection, with fake libraries: checks the calls that they get."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from export.trt.build_progress import BuildProgress
from export.trt.builder import (
    BuildOptions,
    batch_profile,
    build_plan,
    configure,
    load_timing_cache,
    save_timing_cache,
    usable_options,
)
from export.trt.precision_check import NetworkPrecision, check_inspected, inspected_types, network_precision
from runtime.backends.tensorrt.library import TensorRT
from runtime.errors import CheckFailed, InputError, ModelError
from tests.support.tensorrt_fakes import VERSIONS, Config, Layer, library, network

NETWORKS = {
    "fp32": NetworkPrecision(("a",), (), (), 0, 0, ()),
    "fp16": NetworkPrecision(("island",), ("a", "b"), (), 9, 0, ()),
    "int8": NetworkPrecision(("a",), (), ("q",), 0, 9, ()),
    "int8 and fp16": NetworkPrecision((), ("a",), ("q",), 4, 9, ()),
}


def adapter(version: str) -> TensorRT:
    return TensorRT("rtx" if version.startswith("1.") else "tensorrt", library(version))


def configured(version: str, kind: str, options: BuildOptions | None = None, layers: list[Layer] | None = None) -> Config:
    trt = adapter(version)
    builder = trt.create_builder()
    config = configure(trt, builder, network(layers or []), NETWORKS[kind], (1, 1, 8), options or BuildOptions())
    assert isinstance(config, Config)
    return config


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("fp32", []),
        ("fp16", ["FP16", "OBEY_PRECISION_CONSTRAINTS"]),
        ("int8", ["INT8"]),
        ("int8 and fp16", ["INT8", "FP16", "OBEY_PRECISION_CONSTRAINTS"]),
    ],
)
def test_only_tensorrt_8_is_told_the_precision_by_flags(kind: str, flags: list[str]) -> None:
    assert configured("8.6.1", kind).flags == flags
    assert [configured(version, kind).flags for version in VERSIONS[1:]] == [[]] * 3


def test_tensorrt_8_keeps_the_float_islands_of_an_fp16_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Layer, "is_typed", False)
    layers = [
        Layer("to half", "CAST", "FLOAT", "HALF"),
        Layer("a", "CONVOLUTION", "HALF", "HALF", "to half"),
        Layer("sample", "GRID_SAMPLE", "FLOAT", "FLOAT"),
        Layer("move", "SHUFFLE", "FLOAT", "FLOAT"),  # of values beyond FP16, such as the anchor indices of candidates
        Layer("best", "TOPK", "FLOAT", "INT32"),
        Layer("shape", "SHUFFLE", "INT32", "INT32", "best"),
        Layer("cast", "CAST", "FLOAT", "HALF"),
        Layer("dequantize", "DEQUANTIZE", "INT8", "FLOAT"),
        Layer("q", "CONVOLUTION", "FLOAT", "FLOAT", "dequantize"),  # a quantized one: its dequantized inputs are float
        Layer("leaky", "ACTIVATION", "FLOAT", "FLOAT", "q"),  # fused into it
        Layer("to_grid", "SHUFFLE", "FLOAT", "FLOAT", "q"),  # not followed by a Quantize layer
        Layer("quantize", "QUANTIZE", "FLOAT", "INT8", "leaky"),
        Layer("half", "CAST", "FLOAT", "HALF", "q"),
        Layer("back", "CAST", "HALF", "FLOAT", "half"),
        Layer("island", "ELEMENTWISE", "FLOAT", "FLOAT", "back"),
        Layer("last", "QUANTIZE", "FLOAT", "INT8", "island"),
    ]
    configured("8.6.1", "int8 and fp16", layers=layers)
    assert [layer.name for layer in layers if layer.precision] == ["sample", "move", "best", "to_grid", "island"]
    assert {layer.precision for layer in layers[2:5]} == {"FLOAT"}
    assert [layer.output_types for layer in layers[2:5]] == [{0: "FLOAT"}, {0: "FLOAT"}, {}]
    configured("10.12.0", "int8 and fp16", layers=layers[:2])
    assert not layers[1].precision


@pytest.mark.parametrize("version", VERSIONS)
def test_the_precision_of_a_network_is_found_in_every_version(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = adapter(version)
    monkeypatch.setattr(Layer, "is_typed", trt.is_typed)
    half = [
        Layer("to half", "CAST", "FLOAT", "HALF"),
        Layer("a", "CONVOLUTION", "HALF", "HALF", "to half"),
        Layer("leaky", "ACTIVATION", "HALF", "HALF", "a"),
        Layer("b", "CONVOLUTION", "HALF", "HALF", "leaky"),
        Layer("back", "CAST", "HALF", "FLOAT", "b"),
        Layer("island", "CONVOLUTION", "FLOAT", "FLOAT", "back"),
    ]
    quantized = [
        Layer("weights", "CONSTANT", "", "INT8"),
        Layer("scaled", "DEQUANTIZE", "INT8", "FLOAT", "weights"),
        Layer("quantize", "QUANTIZE", "FLOAT", "INT8"),
        Layer("dequantize", "DEQUANTIZE", "INT8", "FLOAT", "quantize"),
    ]
    found = network_precision(trt, network(half))
    assert (found.fp16, found.fp32, found.fp16_tensors, found.int8_tensors) == (("a", "b"), ("island",), 4, 0)
    assert not found.problem("fp16") and "fp16" in found.problem("fp32")
    found = network_precision(trt, network(quantized))
    assert (found.int8_tensors, found.fp16_tensors) == (2, 0)
    weights = [Layer("half weights", "CONSTANT", "", "HALF"), Layer("a", "CONVOLUTION", "FLOAT", "FLOAT")]
    found = network_precision(trt, network(weights))
    assert (found.fp32, found.fp16_tensors) == (("a",), 1)


def test_options_reach_the_builder() -> None:
    options = BuildOptions(workspace=0.5, level=5, version_compatible=True, hardware_compatible=True)
    config = configured("10.12.0", "fp32", options)
    assert config.flags == ["VERSION_COMPATIBLE"]
    assert config.pools == {"WORKSPACE": 2**29}
    assert (config.builder_optimization_level, config.hardware_compatibility_level) == (5, "AMPERE_PLUS")  # type: ignore[attr-defined]
    plain = configured("10.12.0", "fp32")
    assert (plain.flags, plain.pools, plain.builder_optimization_level) == ([], {}, 3)
    assert usable_options(adapter("10.12.0"), options) == options
    with pytest.raises(InputError, match="--version-compatible"):
        usable_options(adapter("1.7.1"), options)


def test_engines_for_one_compute_capability_need_a_library_that_has_them() -> None:
    options = BuildOptions(same_compute_capability=True)
    config = configured("10.12.0", "fp32", options)
    assert config.hardware_compatibility_level == "SAME_COMPUTE_CAPABILITY"  # type: ignore[attr-defined]
    assert usable_options(adapter("10.12.0"), options) == options
    for version, message in (("8.6.1", "10.9 and later do; leave it out"), ("1.7.1", "cannot make such engines; leave it out")):
        with pytest.raises(InputError, match=f"--same-compute-capability: .*{message}"):
            usable_options(adapter(version), options)
    with pytest.raises(InputError, match="exclude each other"):
        usable_options(adapter("10.12.0"), BuildOptions(same_compute_capability=True, hardware_compatible=True))


def test_a_dynamic_batch_gets_a_profile() -> None:
    trt, shapes = adapter("10.12.0"), []
    builder = trt.create_builder()
    builder.create_optimization_profile = lambda: SimpleNamespace(set_shape=lambda *args: shapes.append(args))
    builder.config.add_optimization_profile = lambda profile: 0
    configure(trt, builder, network([], batch=-1), NETWORKS["fp32"], (1, 2, 8), BuildOptions())
    assert shapes == [("images", (1, 3, 64, 64), (2, 3, 64, 64), (8, 3, 64, 64))]
    assert batch_profile(None, None) == (1, 1, 8)
    assert batch_profile(4, None) == batch_profile(4, (4, 4, 4)) == (4, 4, 4)


def test_timings_are_read_extended_and_written(tmp_path: Path) -> None:
    trt, config, file = adapter("10.12.0"), Config(), tmp_path / "timing.cache"
    load_timing_cache(trt, config, file)
    save_timing_cache(config, file)
    load_timing_cache(trt, config, file)
    save_timing_cache(config, file)
    assert file.read_bytes() == b"+more+more"


@pytest.mark.parametrize("content", [b"garbage", b"other GPU"])
def test_a_file_that_is_no_timing_cache_is_left_alone(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "holiday.jpg"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"not a timing cache of TensorRT 10.12.0 and this GPU"):
        load_timing_cache(adapter("10.12.0"), Config(), file)
    assert file.read_bytes() == content


def test_progress_adds_up_over_nested_phases() -> None:
    progress = BuildProgress()
    assert progress.read() == ("", 0.0)
    progress.started("build", "", 4)
    assert progress.stepped("build", 0)
    progress.started("tactics", "build", 2)
    assert progress.read() == ("tactics", 0.25)
    progress.stepped("tactics", 0)
    assert progress.read() == ("tactics", 0.375)
    progress.started("kernels", "tactics", 0)  # a phase without steps
    progress.stepped("kernels", 0)
    assert progress.read() == ("kernels", 0.5)
    progress.finished("kernels")
    progress.finished("tactics")
    assert progress.read() == ("build", 0.25)
    progress.cancel()
    assert not progress.stepped("build", 1)


def test_a_failing_build_is_raised_where_it_was_asked_for() -> None:
    trt, config = adapter("8.6.1"), Config()
    with pytest.raises(ModelError, match=r"cannot build this network: TensorRT 8.6.1 gives no reason"):
        build_plan(trt, SimpleNamespace(build_serialized_network=lambda network, config: None), None, config)
    broken = SimpleNamespace()
    with pytest.raises(AttributeError):
        build_plan(trt, broken, None, config)
    works = SimpleNamespace(build_serialized_network=lambda network, config: b"plan")
    assert build_plan(trt, works, None, config) == b"plan"


def layer(kind: str, text: str, key: str = "Format/Datatype") -> dict[str, Any]:
    return {"Name": "x", "LayerType": kind, "Inputs": [{"Name": "data", key: text}, {"Name": "more", key: "Int32"}]}


# As versions 8.6, 10 and 11 write them.
FP32_LAYERS = ["Row major linear FP32", "Float", "Row major linear FP32 format"]
FP16_LAYERS = ["Row major linear FP16 format", "Half", "Channel major FP16 format where channel % 8 == 0"]
INT8_LAYERS = [
    "Thirty-two wide channel vectorized row major Int8 format",
    "Int8",
    "Channel major INT8 format where channel % 32 == 0",
]
IMAGE = layer("Reformat", "Row major linear UInt8 format")


def dynamic_layer(kind: str, weights: str | None = None) -> dict[str, Any]:
    """As TensorRT 8.6.0 described the layers of engines with a range of batch sizes on an H100."""
    found = layer(kind, "N/A due to dynamic shapes")
    return {**found, "Weights": {"Type": weights, "Count": 432}} if weights else found


@pytest.mark.parametrize(
    ("layers", "counts", "true"),
    [
        ([layer("CaskConvolution", text) for text in FP32_LAYERS], (3, 0, 0), ["fp32"]),
        ([layer("CaskConvolution", text) for text in FP16_LAYERS], (0, 3, 0), ["fp16"]),
        ([layer("CaskConvolution", text) for text in INT8_LAYERS], (0, 0, 3), ["int8"]),
        ([IMAGE, layer("Convolution", "Float", "Datatype")], (1, 0, 0), ["fp32"]),
        ([layer("Convolution", "UInt8"), layer("Convolution", "Float")], (1, 0, 0), ["fp32"]),
        ([layer("Reformat", "Row major linear INT8 format"), layer("Convolution", "Half")], (0, 1, 0), ["fp16"]),
        ([layer("Convolution", text) for text in ("Half", "Int8", "Int8")], (0, 1, 2), ["int8"]),
        ([layer("Convolution", text) for text in ("Float", "Half", "Int8", "Int8")], (1, 1, 2), []),
        ([layer("Convolution", text) for text in ("Float", "Float", "Half")], (2, 1, 0), []),
        ([layer("kgen", text) for text in ("Half", "Half")], (0, 2, 0), ["fp16"]),  # no layer is called a convolution
        ([{"Name": "/backbone/conv/Conv", "Inputs": [{"Datatype": "Half"}]}, layer("Pooling", "Float")], (0, 1, 0), ["fp16"]),
        ([dynamic_layer("CaskConvolution", text) for text in ("Half", "Half", "Float")], (1, 2, 0), ["fp16"]),
        ([dynamic_layer("CaskConvolution", "Int8"), dynamic_layer("Reformat")], (0, 0, 1), ["int8"]),
    ],
)
def test_most_convolutions_must_have_the_precision(layers: list[Any], counts: tuple[int, ...], true: list[str]) -> None:
    found = inspected_types(layers)
    assert tuple(found.values()) == counts
    for claim in found:
        if claim in true:
            check_inspected(adapter("10.12.0"), found, claim)
        else:
            with pytest.raises(CheckFailed, match=f"not {claim}"):
                check_inspected(adapter("10.12.0"), found, claim)


def test_float32_is_not_tf32_unless_allowed() -> None:
    assert configured("10.12.0", "fp32").flags == []
    assert configured("10.12.0", "fp32", BuildOptions(tf32=True)).flags == ["TF32"]
    assert BuildOptions(tf32=True).settings()["tf32"] is True


@pytest.mark.parametrize(("version", "flags"), [("8.6.1", []), ("11.0.0", ["STRICT_NANS"])])
def test_candidates_keep_nan_where_the_library_can(version: str, flags: list[str]) -> None:
    trt = adapter(version)
    config = configure(trt, trt.create_builder(), network([]), NETWORKS["fp32"], (1, 1, 8), BuildOptions(), keep_nan=True)
    assert config.flags == flags


def test_an_inspector_that_names_no_types_proves_only_a_typed_network() -> None:
    counts = inspected_types(["layer 1", {"Name": "layer 2"}])
    check_inspected(adapter("10.12.0"), counts, "fp16")
    with pytest.raises(CheckFailed, match="names no types"):
        check_inspected(adapter("8.6.1"), counts, "fp16")


def test_few_int8_convolutions_are_enough_where_the_file_says_so() -> None:
    few = NetworkPrecision(fp32=(), fp16=("a", "b", "c", "d"), int8=("e", "f"), fp16_tensors=8, int8_tensors=4, other_types=())
    none = dataclasses.replace(few, fp16=(*few.fp16, *few.int8), int8=())
    assert few.problem("int8") == few.problem("int8", 3) == "2 of its 6 convolutions are"
    assert not few.problem("int8", 4)
    assert none.problem("int8", 6) == "0 of its 6 convolutions are"
    counts = {"fp32": 0, "fp16": 4, "int8": 2}
    check_inspected(adapter("10.12.0"), counts, "int8", 2)
    for expected in (None, 3):
        with pytest.raises(CheckFailed, match="2 int8"):
            check_inspected(adapter("10.12.0"), counts, "int8", expected)
