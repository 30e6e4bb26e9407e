"""Exported ONNX files compute what PyTorch computes: every backbone and fusion, at small width."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export import onnx as exporter
from export.onnx_export import parity, tracer
from export.onnx_export.export import check_parity, parity_images
from export.onnx_export.parity import OutputDifference
from runtime.backends.open import open_backend
from runtime.backends.ort import OrtBackend
from runtime.detector import Detector
from runtime.errors import CheckFailed, InputError
from runtime.files import sha256
from runtime.manifest import manifest_path
from runtime.media.image import read_image
from runtime.ops.decode import decode
from runtime.ops.preprocess import preprocess
from runtime.spec import ModelSpec
from tests.support.small_models import CLASSES, settled, tiny
from train.config import MOBILENET_ANCHORS
from train.spec import model_spec
from train.torch_backend import TorchBackend
from train.weights import load_model

VARIANTS = [
    {"backbone": backbone, "fusion": fusion, "adaption": backbone == "darknet53"}
    for backbone in ("darknet53", "mobilenetv2")
    for fusion in ("none", "sum", "concat", "asff")
]
VARIANTS.append({"guided": False, "adaption": False, "fusion": "none", "spp": False})  # plain YOLOv3
VARIANTS.append({"rfb": True, "compress": 8})  # ASFF*
VARIANTS.append({"backbone": "mobilenetv2", "adaption": False, "anchors": MOBILENET_ANCHORS})
VARIANTS += [{"detector": "retinanet", "fusion": fusion} for fusion in ("none", "sum", "concat", "asff")]


def run(arguments: list[str]) -> int:
    return exporter.main(arguments)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(str(x) for x in v.values() if isinstance(x, (str, bool))))
def test_onnx_equals_pytorch(variant: dict[str, object], tmp_path: Path) -> None:
    config = tiny(**variant)
    model, spec = settled(config), model_spec(config, CLASSES)
    for size in ((64, 64), (96, 64)):  # square and not
        sized = spec.replace(input_size=size)
        path = tmp_path / f"{size[0]}.onnx"
        tracer.write_onnx(model, sized, path)
        images = parity_images(sized, None, 3)
        with OrtBackend(path) as exported:
            difference = check_parity(TorchBackend(model, sized), exported, images)
            assert difference.agrees("fp32"), difference
            assert exported.spec == sized


@pytest.mark.parametrize("size", [(320, 320), (416, 416), (608, 608), (800, 800), (320, 608), (96, 32)])
def test_one_set_of_weights_serves_any_size(size: tuple[int, int], tmp_path: Path) -> None:
    """PyTorch, ONNX and the runtime agree at the paper's sizes and at some that are not square, in raw maps and in boxes."""
    config = tiny()
    sized = model_spec(config, CLASSES).replace(input_size=size)
    model = settled(config)
    tracer.write_onnx(model, sized, tmp_path / "m.onnx", batch=1)
    image = np.random.default_rng(1).integers(0, 256, (300, 500, 3), dtype=np.uint8)
    with OrtBackend(tmp_path / "m.onnx") as exported:
        ours = TorchBackend(model, sized)
        images = preprocess(image, sized)[0][None]
        want, found = ours.infer(images), exported.infer(images)
        difference = parity.worst(parity.compare(sized.map_names, want, found))
        assert difference.agrees("fp32"), difference
        detections = Detector(exported, score_threshold=0.0)(image)
    wanted, candidates = (decode([level[0] for level in maps], sized, 0.0) for maps in (want, found))
    np.testing.assert_allclose(candidates.boxes, wanted.boxes, rtol=1e-2, atol=0.1)
    np.testing.assert_allclose(candidates.scores, wanted.scores, atol=1e-3)
    cells = sum(size[0] * size[1] // stride**2 for stride in sized.strides)
    assert len(candidates.boxes) == 4 * cells
    assert detections.boxes[:, 2].max() > 250 and detections.boxes[:, 3].max() > 150  # in the image's own pixels


def test_a_size_may_be_given_as_height_x_width(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    output = tmp_path / "model.onnx"
    assert run(["--weights", str(make_checkpoint()), "--output", str(output), "--size", "64x96"]) == 0
    with open_backend(output) as backend:
        assert backend.spec.input_size == (64, 96)
        assert [o.shape[2:] for o in backend.infer(np.zeros((1, 3, 64, 96), np.float32))] == [(2, 3), (4, 6), (8, 12)]


@pytest.mark.parametrize("size", ["64x96x32", "x64", "100", "0", "64x", "-32", "wide"])
def test_other_sizes_are_refused_in_one_line(size: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(["--weights", "w.pt", "--output", str(tmp_path / "m.onnx"), f"--size={size}"])
    assert caught.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_the_command_writes_the_contract(
    make_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, output = make_checkpoint(), tmp_path / "model.onnx"
    assert run(["--weights", str(weights), "--output", str(output), "--size", "96"]) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == str(output)
    assert "96x96, batch 1 and 3" in captured.err
    assert "160x160, batch 1 and 3" in captured.err
    model = onnx.load(str(output))
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    assert {node.domain for node in model.graph.node} == {""}
    operators = {node.op_type for node in model.graph.node}
    assert "GridSample" in operators
    assert "BatchNormalization" not in operators
    with open_backend(output) as backend:
        assert backend.batch_size is None
        assert backend.spec.class_names == CLASSES
        assert backend.spec.input_size == (96, 96)
        assert backend.spec.source_sha256 == sha256(weights)
        assert any(tool.startswith("torch ") for tool in backend.spec.made_with)
        outputs = backend.infer(np.zeros((2, 3, 96, 96), np.float32))
        assert [o.shape for o in outputs] == [(2, 32, 3, 3), (2, 32, 6, 6), (2, 32, 12, 12)]
        assert all(o.dtype == np.float32 for o in outputs)


def test_retinanet_is_written_with_its_head_and_five_levels(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    output = tmp_path / "model.onnx"
    weights = make_checkpoint(detector="retinanet")
    assert run(["--weights", str(weights), "--output", str(output), "--size", "96x160"]) == 0
    operators = {node.op_type for node in onnx.load(str(output)).graph.node}
    assert "BatchNormalization" not in operators
    with open_backend(output) as backend:
        assert backend.spec.head == "retinanet"
        assert backend.spec.map_names == ("p7", "p6", "p5", "p4", "p3")
        outputs = backend.infer(np.zeros((2, 3, 96, 160), np.float32))
    sizes = ((1, 2), (2, 3), (3, 5), (6, 10), (12, 20))  # P7 and P6 are rounded up
    assert [o.shape for o in outputs] == [(2, 9 * 7, *size) for size in sizes]


def test_retinanet_detects_the_same_before_and_after(
    make_checkpoint: Callable[..., Path], coco_set: Path, tmp_path: Path
) -> None:
    weights, output = make_checkpoint(detector="retinanet"), tmp_path / "model.onnx"
    assert run(["--weights", str(weights), "--output", str(output), "--size", "64x96", "--images", str(coco_set / "val")]) == 0
    images = [read_image(path) for path in sorted((coco_set / "val").iterdir())]
    with Detector(output, score_threshold=0.1) as exported:
        found = exported(images)
        original = Detector(TorchBackend(load_model(weights), exported.spec), score_threshold=0.1)(images)
    assert sum(map(len, found)) > 10
    for a, b in zip(found, original):
        np.testing.assert_allclose(a.boxes, b.boxes, atol=0.05)
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-4)
        np.testing.assert_array_equal(a.class_ids, b.class_ids)


def test_the_same_weights_give_the_same_bytes(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    weights = make_checkpoint()
    for name in ("a.onnx", "b.onnx"):
        assert run(["--weights", str(weights), "--output", str(tmp_path / name)]) == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_fixed_batch_is_fixed(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    output = tmp_path / "m.onnx"
    assert run(["--weights", str(make_checkpoint()), "--output", str(output), "--batch", "2", "--opset", "16"]) == 0
    with open_backend(output) as backend:
        assert backend.batch_size == 2
    assert onnx.load(str(output)).opset_import[0].version == 16


def test_real_images_can_be_compared_on(make_checkpoint: Callable[..., Path], coco_set: Path, tmp_path: Path) -> None:
    arguments = ["--weights", str(make_checkpoint()), "--output", str(tmp_path / "m.onnx"), "--images", str(coco_set / "val")]
    assert run(arguments) == 0


def damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the exporter change one output, as a wrong conversion would."""
    fold = tracer.fold_batch_norm

    def damaged(model: torch.nn.Module) -> torch.nn.Module:
        folded = fold(model)
        folded.heads[1].predict.bias.data += 0.01
        return folded

    monkeypatch.setattr(tracer, "fold_batch_norm", damaged)


def test_a_file_that_differs_is_refused_and_not_written(
    make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, output = make_checkpoint(), tmp_path / "out" / "m.onnx"
    damage(monkeypatch)
    with pytest.raises(CheckFailed, match="output p4 differs"):
        run(["--weights", str(weights), "--output", str(output)])
    assert list(output.parent.iterdir()) == []


def test_what_is_no_more_than_rounding_is_written_with_a_warning(
    make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Stands in for weights that magnify rounding: the limit is put below any rounding."""
    monkeypatch.setitem(parity.LIMITS, "fp32", 1e-9)
    output = tmp_path / "m.onnx"
    arguments = ["--weights", str(make_checkpoint()), "--output", str(output)]
    with pytest.raises(CheckFailed, match=r"not written: .* never trained magnify rounding; .*export\.onnx --allow-rounding"):
        run(arguments)  # not unless it is asked for
    assert not output.exists() and not caplog.text
    assert run([*arguments, "--allow-rounding"]) == 0
    assert "these weights magnify rounding: PyTorch itself is" in caplog.text
    details = json.loads(manifest_path(output).read_text())["details"]
    assert details["settings"]["allow_rounding"] is True
    for found in details["parity"].values():
        assert 1e-9 < found["relative"] <= parity.ROUNDING * found["pytorch_rounding"] < parity.MOST_ROUNDING
    output.unlink()
    monkeypatch.setattr(parity, "ROUNDING", 1e-3)  # a difference beyond rounding is refused
    with pytest.raises(CheckFailed, match=r"was not written: .*rounding does not explain it: PyTorch itself is"):
        run([*arguments, "--allow-rounding"])
    assert not output.exists()


def test_a_wrong_file_is_refused_even_if_rounding_is_allowed(
    make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(monkeypatch)
    output = tmp_path / "out" / "m.onnx"
    with pytest.raises(CheckFailed, match=r"output p4 differs .*rounding does not explain it"):
        run(["--weights", str(make_checkpoint()), "--output", str(output), "--allow-rounding"])
    assert list(output.parent.iterdir()) == []


def test_rounding_is_allowed_in_float32_alone(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--allow-rounding: .*--precision fp16; leave it out"):
        run(
            [
                "--weights",
                str(make_checkpoint()),
                "--output",
                str(tmp_path / "m.onnx"),
                "--precision",
                "fp16",
                "--allow-rounding",
            ]
        )


def test_exact_outputs_are_the_models_in_float64() -> None:
    config = tiny(rfb=True, compress=8)
    model = settled(config)
    images = np.random.default_rng(0).normal(size=(2, 3, 64, 96)).astype(np.float32)
    exact = tracer.exact_outputs(model, images, inspect=True)
    assert len(exact) == 9 and all(output.dtype == np.float64 for output in exact)
    with torch.no_grad():
        maps, weights, activations = model.inspect(torch.from_numpy(images))
    for wide, narrow in zip(exact, (*maps, *weights, *activations), strict=True):
        assert narrow.dtype == torch.float32
        difference = np.abs(wide - narrow.numpy()).max() / np.abs(wide).max()
        assert 1e-9 < difference < 1e-3  # close but not equal: all of it was computed in float64


def test_folding_batch_norm_changes_nothing_and_leaves_the_original() -> None:
    model = settled(tiny())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = model.maps(images)
        folded = tracer.fold_batch_norm(model)
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
        for a, b, again in zip(before, folded.maps(images), model.maps(images)):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(again, a, rtol=0, atol=0)


def test_a_difference_is_reported_for_the_worst_output() -> None:
    config = tiny()
    spec = model_spec(config, CLASSES)

    class Shifted(TorchBackend):
        def infer(self, images: np.ndarray) -> list[np.ndarray]:
            maps = super().infer(images)
            return [maps[0], maps[1], maps[2] + 1]

    model = settled(config)
    found: OutputDifference = check_parity(TorchBackend(model, spec), Shifted(model, spec), [np.zeros((64, 64, 3), np.uint8)])
    assert found.output == "p3"
    assert found.absolute == pytest.approx(1, rel=1e-5)


def test_metadata_is_the_whole_spec(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    output = tmp_path / "m.onnx"
    run(["--weights", str(make_checkpoint()), "--output", str(output)])
    entries = {entry.key: entry.value for entry in onnx.load(str(output)).metadata_props}
    assert set(entries) == set(ModelSpec.from_metadata(entries).to_metadata())
