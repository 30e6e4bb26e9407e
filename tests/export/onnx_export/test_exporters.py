"""Torch's newer exporter writes files that equal the tracer's: values, names, quantization, AP."""

from __future__ import annotations

import importlib.util
import logging
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from onnx import helper

from benchmarks.engine_files import write_int8
from calibration.graph import Graph
from calibration.placement import TARGETS, place
from export import engine
from export import onnx as command_line
from export.accuracy import gate
from export.onnx_export import parity, tracer
from export.onnx_export.export import check_parity, parity_images
from export.onnx_export.exporters import TORCH_EXPORT, TRACER, choose_opset
from export.onnx_export.layer_names import name_by_module
from runtime.backends.ort import OrtBackend
from runtime.datasets.open import open_dataset
from runtime.errors import InputError
from runtime.spec import ModelSpec
from tests.support.small_models import CLASSES, settled, tiny
from tests.support.small_sets import Exported
from train.config import MOBILENET_ANCHORS
from train.model import DetectorModel
from train.spec import model_spec
from train.torch_backend import TorchBackend
from train.weights import load_model

needs_onnxscript = pytest.mark.skipif(not importlib.util.find_spec("onnxscript"), reason="onnxscript is not installed")
FP16_OPTIONS = {"precision": "fp16"}
DECODING = {"input_type": "uint8", "top_k": 50}
STRUCTURES = [  # changes to the model, changes to the spec, batch, opset
    pytest.param({"rfb": True, "compress": 8}, {}, None, 18, id="ASFF*"),
    pytest.param({"rfb": True, "compress": 8}, DECODING, None, 18, id="ASFF*, decoding"),
    pytest.param({}, {"input_size": (96, 64)}, 2, 18, id="fixed batch, not square, fusion outputs"),
    pytest.param({}, FP16_OPTIONS, None, 18, id="FP16"),
    pytest.param({}, {}, None, 19, id="opset 19"),
    pytest.param({}, {"top_k": 50}, None, 20, id="opset 20"),
    pytest.param({"guided": False, "adaption": False, "fusion": "none", "spp": False}, {}, None, 18, id="plain YOLOv3"),
    pytest.param({"fusion": "concat"}, {}, None, 18, id="concat"),
    pytest.param({"backbone": "mobilenetv2", "anchors": MOBILENET_ANCHORS}, {}, None, 18, id="MobileNet"),
    pytest.param({"detector": "retinanet", "fusion": "asff"}, {}, None, 18, id="RetinaNet"),
    pytest.param({"detector": "retinanet", "fusion": "none"}, DECODING, None, 18, id="RetinaNet, decoding"),
]


@pytest.mark.parametrize(
    ("exporter", "opset", "expected"),
    [
        (TRACER, None, 17),
        (TRACER, 16, 16),
        (TORCH_EXPORT, None, 18),
        (TORCH_EXPORT, 20, 20),
        (TRACER, 18, "--exporter tracer writes 16 or 17, got 18; leave --opset out, or take --exporter torch-export"),
        (
            TORCH_EXPORT,
            17,
            "--exporter torch-export writes 18 or 19 or 20, got 17; leave --opset out, or take --exporter tracer",
        ),
        (TRACER, 15, "--exporter tracer writes 16 or 17, got 15; leave --opset out"),
        (TORCH_EXPORT, 99, "--exporter torch-export writes 18 or 19 or 20, got 99; leave --opset out"),
    ],
)
def test_each_exporter_has_its_opsets(exporter: str, opset: int | None, expected: int | str) -> None:
    if isinstance(expected, int):
        assert choose_opset(exporter, opset) == expected
        return
    with pytest.raises(InputError, match=re.escape(f"--opset: {expected}") + "$"):
        choose_opset(exporter, opset)


def test_the_command_refuses_before_it_works(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    arguments = ("--weights", tmp_path / "no.pt", "--output", tmp_path / "m.onnx", "--exporter", TORCH_EXPORT, "--opset", "17")
    code, _, err = command(command_line.main, *arguments)
    assert code == 2 and "take --exporter tracer" in err and "no.pt" not in err


def test_without_onnxscript_the_remedy_is_named(
    make_checkpoint: Callable[..., Path],
    tmp_path: Path,
    command: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    output = tmp_path / "out" / "m.onnx"
    code, _, err = command(command_line.main, "--weights", make_checkpoint(), "--output", output, "--exporter", TORCH_EXPORT)
    assert code == 3 and "onnxscript is not installed; run `pip install onnxscript`" in err
    assert list(output.parent.iterdir()) == []


def test_only_the_warnings_that_are_meant_are_silenced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(guided=False, adaption=False, fusion="none", spp=False)
    model = settled(config)
    maps = model.maps

    def warning_maps(images: torch.Tensor) -> list[torch.Tensor]:
        warnings.warn("odd", UserWarning, stacklevel=2)
        return maps(images)

    monkeypatch.setattr(tracer, "fold_batch_norm", lambda model: model.eval())
    monkeypatch.setattr(model, "maps", warning_maps)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        tracer.write_onnx(model, model_spec(config, CLASSES), tmp_path / "m.onnx")
    assert {str(item.message) for item in heard} == {"odd"}


def test_layers_are_named_after_modules() -> None:
    """Nodes without a note take the module of what they read; repeated names are numbered; the notes are dropped."""

    def note(node: onnx.NodeProto, *scopes: str) -> onnx.NodeProto:
        node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=str(["", *scopes, "x"]))
        node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="/home/someone")
        return node

    make = helper.make_node
    nodes = [
        note(make("Relu", ["images"], ["a"], name="n0"), "model.body", "model.body.0", "model.body.0.12"),
        make("Split", ["a"], ["b", "c"], name="n1", num_outputs=2),
        note(make("Relu", ["b"], ["d"], name="n2"), "model.body", "model.body.0", "model.body.0.12"),
        note(make("Add", ["d", "c"], ["p5"], name="n3")),
    ]
    inputs, outputs = ([helper.make_tensor_value_info(name, 1, [2])] for name in ("images", "p5"))
    model = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs), opset_imports=[helper.make_opsetid("", 18)])
    name_by_module(model)
    folder = "/body/body.0/body.0.12"
    assert [node.name for node in model.graph.node] == [f"{folder}/Relu", f"{folder}/Split", f"{folder}/Relu_1", "/Add"]
    assert model.graph.node[3].input == [f"{folder}/Relu_1_output_0", f"{folder}/Split_output_1"]
    assert model.graph.node[3].output == ["p5"] and model.graph.node[0].input == ["images"]
    assert b"someone" not in model.SerializeToString() and model.ir_version == 8


def assert_equal(model: DetectorModel, spec: ModelSpec, one: Path, other: Path, inspect: bool = False) -> None:
    """Two files of a model agree with PyTorch and one another, and are quantized in the same places."""
    images = parity_images(spec, None, 3)
    with OrtBackend(one) as traced, OrtBackend(other) as exported:
        assert exported.spec == traced.spec == spec and exported.batch_size == traced.batch_size
        for backend in (traced, exported):
            difference = check_parity(TorchBackend(model, spec.plain()), backend, images, inspect=inspect)
            assert difference.measure(spec.precision) < (2e-2 if spec.precision == "fp16" else parity.LIMITS["fp32"])
        if not spec.top_k:
            assert check_parity(traced, exported, images, inspect=inspect).relative < 1e-5
    graphs = [Graph(onnx.load(str(path))) for path in (one, other)]
    assert graphs[0].outputs == graphs[1].outputs
    for target in TARGETS if spec.precision == "fp32" else ():
        first, second = (place(graph, target) for graph in graphs)
        if spec.head == "yolov3":
            assert first == second
        assert [len(part) for part in (first.layers, first.float_layers, first.tensors)] == [
            len(part) for part in (second.layers, second.float_layers, second.tensors)
        ]
        assert len(first.layers) > 0 and len(first.float_layers) > 0


@needs_onnxscript
def test_files_of_both_exporters_are_equal(exported: Exported, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One file for all checks, since this exporter takes seconds: values, names, placement, AP, engine."""
    model = load_model(exported.weights)
    path = tmp_path / "best.onnx"
    with OrtBackend(exported.model) as traced, caplog.at_level(logging.INFO):
        spec = traced.spec
        tracer.write_onnx(model, spec, path, exporter=TORCH_EXPORT)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO] == []
    assert_equal(model, spec, exported.model, path)
    proto = onnx.load(str(path))
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 18)] and proto.ir_version == 8
    assert str(Path(__file__).parents[3]).encode() not in path.read_bytes()  # no names of this machine

    dataset = open_dataset(str(exported.data), "val")
    with gate.open_files([exported.model, path]) as opened:
        first, second = (gate.measure(item.name, item.backend, item.file, dataset, opened[0].backend) for item in opened)
    assert second.evaluation.ap == pytest.approx(first.evaluation.ap, abs=1e-4) and first.evaluation.ap > 0.9

    write_int8(exported.model, spec, tmp_path / "traced.onnx")
    write_int8(path, spec, tmp_path / "int8.onnx")
    with OrtBackend(tmp_path / "traced.onnx") as one, OrtBackend(tmp_path / "int8.onnx") as other:
        assert check_parity(one, other, parity_images(spec, None, 3)).relative < 1e-5
    if importlib.util.find_spec("tensorrt_rtx"):
        arguments = ["--onnx", str(tmp_path / "int8.onnx"), "--output", str(tmp_path / "m.engine"), "--flavor", "rtx"]
        assert engine.main(arguments) == 0


@needs_onnxscript
@pytest.mark.slow
@pytest.mark.parametrize(("variant", "changes", "batch", "opset"), STRUCTURES)
def test_every_structure_is_equal(
    variant: dict[str, object], changes: dict[str, object], batch: int | None, opset: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = tiny(**variant)
    model, spec = settled(config), model_spec(config, CLASSES).replace(**changes)
    inspect = batch is not None
    tracer.write_onnx(model, spec, tmp_path / "one.onnx", batch=batch, inspect=inspect)
    for name in ("other.onnx", "again.onnx"):
        tracer.write_onnx(model, spec, tmp_path / name, batch=batch, opset=opset, inspect=inspect, exporter=TORCH_EXPORT)
    assert (tmp_path / "other.onnx").read_bytes() == (tmp_path / "again.onnx").read_bytes()
    assert onnx.load(str(tmp_path / "other.onnx")).opset_import[0].version == opset
    assert_equal(model, spec, tmp_path / "one.onnx", tmp_path / "other.onnx", inspect)
