"""Files exported with `--inspect` give out the same fusion as the checkpoint, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export import onnx as exporter
from export.onnx_export import tracer
from runtime import evaluate
from runtime import visualize as visualize_engine
from runtime.backends.open import open_backend
from runtime.backends.ort import OrtBackend
from runtime.detector import Detector
from runtime.errors import CheckFailed, InputError
from runtime.media.image import read_image
from runtime.viz.fusion_view import look
from tests.support.small_models import CLASSES, settled, tiny
from train import visualize as visualize_checkpoint
from train.spec import model_spec
from train.torch_backend import TorchBackend, open_torch_backend
from train.weights import load_model


def export(weights: Path, output: Path, *arguments: str) -> Path:
    assert exporter.main(["--weights", str(weights), "--output", str(output), *arguments]) == 0
    return output


@pytest.mark.parametrize(("backbone", "batch"), [("darknet53", "dynamic"), ("mobilenetv2", "2")])
def test_the_further_outputs_equal_pytorch(
    backbone: str, batch: str, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    weights = make_checkpoint(backbone=backbone)
    plain = export(weights, tmp_path / "plain.onnx", "--batch", batch, "--size", "64x96")
    path = export(weights, tmp_path / "m.onnx", "--batch", batch, "--size", "64x96", "--inspect")
    outputs = [item.name for item in onnx.load(str(path)).graph.output]
    assert outputs == ["p5", "p4", "p3", "w5", "w4", "w3", "f5", "f4", "f3"]
    images = np.random.default_rng(1).normal(size=(2, 3, 64, 96)).astype(np.float32)
    model = load_model(weights)
    with OrtBackend(path) as backend, open_backend(plain) as without, torch.no_grad():
        found = backend.inspect(images)
        for maps in (backend.infer(images), without.infer(images)):
            for a, b in zip(found.outputs, maps, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
        features = model.pyramid(torch.from_numpy(images))
        for level, fusion in enumerate(model.fusions()):  # not by way of `inspect`
            resized = [resize(x) for resize, x in zip(fusion.resize, features)]
            np.testing.assert_allclose(found.weights[level], fusion.weights(resized).numpy(), atol=1e-4)
            activation = fusion.fuse(features).abs().mean(dim=1, keepdim=True).numpy()
            np.testing.assert_allclose(found.activations[level], activation, rtol=1e-4, atol=1e-4)


def test_a_further_output_that_differs_is_refused(
    make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fold = tracer.fold_batch_norm

    def damaged(model: torch.nn.Module) -> torch.nn.Module:
        folded = fold(model)
        folded.fusion[1].weights.register_forward_hook(lambda module, inputs, output: output + 0.01)
        return folded

    monkeypatch.setattr(tracer, "fold_batch_norm", damaged)
    with pytest.raises(CheckFailed, match=r"output [wfp]4 differs"):
        export(make_checkpoint(), tmp_path / "out" / "m.onnx", "--inspect")
    assert list((tmp_path / "out").iterdir()) == []


def test_views_of_the_engine_and_the_checkpoint_are_the_same(
    make_checkpoint: Callable[..., Path], coco_set: Path, tmp_path: Path
) -> None:
    weights = make_checkpoint()
    reference = open_torch_backend(weights)
    image = read_image(coco_set / "val" / "1.png")
    with OrtBackend(export(weights, tmp_path / "m.onnx", "--inspect")) as exported:
        ours, theirs = (look(Detector(backend, score_threshold=0.05), backend, image) for backend in (reference, exported))
    assert len(ours.found)
    np.testing.assert_allclose(theirs.found.boxes, ours.found.boxes, rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(theirs.found.scores, ours.found.scores, atol=1e-4)
    np.testing.assert_array_equal(theirs.levels, ours.levels)
    for a, b in zip([*theirs.weights, *theirs.activations], [*ours.weights, *ours.activations], strict=True):
        assert a.shape[-2:] == (48, 64)  # the letterbox border of a 96 x 72 image is cut away
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_both_commands_draw_the_same(make_checkpoint: Callable[..., Path], coco_set: Path, tmp_path: Path) -> None:
    weights, source = make_checkpoint(), coco_set / "val"
    model = export(weights, tmp_path / "m.onnx", "--inspect", "--size", "96x64")
    a, b = tmp_path / "a", tmp_path / "b"
    assert visualize_engine.main(["--engine", str(model), "--source", str(source), "--output", str(a), "--conf", "0.05"]) == 0
    arguments = ["--weights", str(weights), "--source", str(source), "--output", str(b), "--conf", "0.05", "--size", "96x64"]
    assert visualize_checkpoint.main(arguments) == 0
    assert (
        sorted(path.name for path in a.iterdir()) == sorted(path.name for path in b.iterdir()) == [f"{i}.png" for i in range(4)]
    )
    for path in a.iterdir():
        difference = np.abs(read_image(path).astype(int) - read_image(b / path.name))
        # Rounding may move a box's edge by a pixel or a number's last digit; one map of twelve is 5 % of the figure.
        assert (difference > 8).mean() < 5e-3


@pytest.mark.parametrize("fusion", ["none", "sum", "concat"])
def test_a_model_without_asff_is_refused_by_name(fusion: str, make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    weights = make_checkpoint(fusion=fusion)
    with pytest.raises(InputError, match=f"expected a model with fusion asff, this one has {fusion}"):
        export(weights, tmp_path / "m.onnx", "--inspect")
    assert not (tmp_path / "m.onnx").exists()
    with pytest.raises(InputError, match=f"this one has {fusion}"):
        visualize_checkpoint.main(["--weights", str(weights), "--source", str(tmp_path), "--output", str(tmp_path / "out")])


def test_a_file_with_further_outputs_is_evaluated_as_one_without(
    coco_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny()
    model, spec = settled(config), model_spec(config, CLASSES)
    tables = []
    for inspect in (False, True):
        tracer.write_onnx(model, spec, tmp_path / "m.onnx", inspect=inspect)
        assert evaluate.main(["--engine", str(tmp_path / "m.onnx"), "--data", str(coco_set)]) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1]


def test_inspection_leaves_no_trace_on_the_model() -> None:
    config = tiny()
    model = settled(config)
    backend = TorchBackend(model.train(), model_spec(config, CLASSES))
    backend.inspect(np.zeros((1, 3, 64, 64), np.float32))
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
