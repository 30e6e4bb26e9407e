"""FP16 files: FP16 inside, float32 inputs and outputs, and no value beyond the range of FP16."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from export import onnx as exporter
from export.onnx_export import parity, tracer
from export.onnx_export.fp16_range import FP16_MAX, check_range, scan
from runtime.backends.open import open_backend
from runtime.backends.ort import OrtBackend
from runtime.errors import CheckFailed
from tests.support.small_models import CLASSES, settled, tiny
from train.spec import model_spec
from train.torch_backend import TorchBackend

VARIANTS = [
    {"rfb": True, "compress": 8},
    {"backbone": "mobilenetv2", "fusion": "sum"},
    {"guided": False, "adaption": False, "fusion": "none", "spp": False},
    {"detector": "retinanet"},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v.values())))
def test_an_fp16_file_is_close_to_pytorch_and_keeps_the_contract(variant: dict[str, object], tmp_path: Path) -> None:
    config = tiny(**variant)
    model, spec = settled(config), model_spec(config, CLASSES).replace(precision="fp16", input_size=(96, 128))
    tracer.write_onnx(model, spec, tmp_path / "m.onnx")
    images = np.random.default_rng(0).normal(size=(3, 3, 96, 128)).astype(np.float32)
    with OrtBackend(tmp_path / "m.onnx") as exported:
        assert exported.spec == spec
        found, want = exported.infer(images), TorchBackend(model, spec).infer(images)
    assert all(level.dtype == np.float32 for level in found)
    difference = parity.worst(parity.compare(spec.map_names, want, found))
    assert difference.agrees("fp16"), difference
    assert difference.rms > 1e-5  # it is not float32 in disguise


def types_of(proto: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(proto)
    items = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    types = {item.name: item.type.tensor_type.elem_type for item in items}
    return types | {item.name: item.data_type for item in inferred.graph.initializer}


def test_every_convolution_is_fp16_and_the_islands_are_float(tmp_path: Path) -> None:
    config = tiny(rfb=True, compress=8)
    spec = model_spec(config, CLASSES).replace(precision="fp16")
    tracer.write_onnx(settled(config), spec, tmp_path / "m.onnx")
    tracer.write_onnx(settled(config), spec.replace(precision="fp32"), tmp_path / "full.onnx")
    proto = onnx.load(str(tmp_path / "m.onnx"))
    types = types_of(proto)
    convolutions = [node for node in proto.graph.node if node.op_type == "Conv"]
    assert len(convolutions) > 60
    assert {types[name] for node in convolutions for name in (*node.input, *node.output)} == {TensorProto.FLOAT16}
    sampling = [node for node in proto.graph.node if node.op_type == "GridSample"]
    assert len(sampling) == 3
    assert {types[name] for node in sampling for name in (*node.input, *node.output)} == {TensorProto.FLOAT}
    assert {item.type.tensor_type.elem_type for item in (*proto.graph.input, *proto.graph.output)} == {TensorProto.FLOAT}
    assert (tmp_path / "m.onnx").stat().st_size < 0.6 * (tmp_path / "full.onnx").stat().st_size
    # The same layers have the same names, so that the two files can be compared layer by layer.
    full = {node.name for node in onnx.load(str(tmp_path / "full.onnx")).graph.node if node.op_type == "Conv"}
    assert {node.name for node in convolutions} == full


def test_the_command_writes_fp16_and_says_how_much_of_its_range_is_used(
    make_checkpoint: Callable[..., Path], coco_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    output = tmp_path / "m.onnx"
    weights = make_checkpoint(guided=False, adaption=False, fusion="none")  # without the parts that magnify rounding
    arguments = ["--weights", str(weights), "--output", str(output), "--precision", "fp16", "--batch", "3"]
    assert exporter.main([*arguments, "--images", str(coco_set / "train")]) == 0
    assert "largest activation on 8 images" in caplog.text and "the FP16 range" in caplog.text
    with open_backend(output) as backend:
        assert backend.spec.precision == "fp16"
    caplog.clear()
    assert exporter.main(arguments) == 0
    assert "on noise only; --images" in caplog.text


def test_a_weight_beyond_the_range_is_named(tmp_path: Path) -> None:
    config = tiny()
    model = settled(config)
    with torch.no_grad():
        model.heads[2].predict.bias[4] = 7e4
    with pytest.raises(CheckFailed, match=r"does not hold heads\.2\.predict\.bias: its largest weight is 7e\+04"):
        tracer.write_onnx(model, model_spec(config, CLASSES).replace(precision="fp16"), tmp_path / "m.onnx")


def chain(path: Path, *factors: float) -> None:
    """Writes a file that casts `images` to FP16, multiplies by each factor in turn, and casts back to float32."""
    nodes = [helper.make_node("Cast", ["images"], ["x0"], name="start", to=TensorProto.FLOAT16)]
    constants = []
    for index, factor in enumerate(factors):
        constants.append(numpy_helper.from_array(np.array(factor, np.float16), f"c{index}"))
        nodes.append(helper.make_node("Mul", [f"x{index}", f"c{index}"], [f"x{index + 1}"], name=f"layer{index}"))
    nodes.append(helper.make_node("Cast", [f"x{len(factors)}"], ["out"], name="end", to=TensorProto.FLOAT))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 2, 2]) for name in ("images", "out")]
    graph = helper.make_graph(nodes, "chain", [values[0]], [values[1]], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


def test_the_scan_measures_each_layer(tmp_path: Path) -> None:
    chain(tmp_path / "m.onnx", 10.0, -100.0, 0.001)
    images = [np.full((1, 3, 2, 2), value, np.float32) for value in (1.0, -3.0, 2.0)]
    layers = scan(tmp_path / "m.onnx", images)
    assert [layer.layer for layer in layers] == ["start", "layer0", "layer1", "layer2"]
    assert [layer.peak for layer in layers] == pytest.approx([3, 30, 3000, 3], rel=1e-2)
    assert not any(layer.nonfinite for layer in layers)
    assert check_range(tmp_path / "m.onnx", images).layer == "layer1"


def test_the_first_layer_that_overflows_is_named(tmp_path: Path) -> None:
    chain(tmp_path / "m.onnx", 100.0, 1000.0, 0.01)
    fine, large = (np.full((1, 3, 2, 2), value, np.float32) for value in (0.5, 1.0))
    assert check_range(tmp_path / "m.onnx", [fine]).peak < FP16_MAX
    with pytest.raises(CheckFailed, match=r"layer1 \(Mul\) gives 12 values that are not finite, as 1 of 4 layers do"):
        check_range(tmp_path / "m.onnx", [fine, large])
