"""Recovery by training with rounding: the file it writes, its lineage, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from calibration.__main__ import main as calibrate
from calibration.graph import Graph
from calibration.quantize import quantized_activation
from export import onnx as export_onnx
from export import recover as command
from export.recovery import recover as recovery
from export.recovery.quant_plan import read_quant_plan
from export.recovery.recover import RecoverRequest, recover
from runtime.backends.ort import OrtBackend
from runtime.errors import InputError, ModelError
from runtime.manifest import find_changes, manifest_path, read_manifest
from runtime.media.image import write_image
from tests.support.small_models import noise
from train.model.folding import fold_batch_norm
from train.qat.fake_quant import FakeQuantization
from train.qat.finetune import FinetuneOptions
from train.weights import load_model


@dataclass
class Made:
    """An INT8 file, the weights that it is made from, and their data."""

    weights: Path
    model: Path
    data: Path

    @property
    def output(self) -> Path:
        return self.model.with_name("new.onnx")

    def request(self, **changes: object) -> RecoverRequest:
        options = FinetuneOptions(epochs=3, batch=2, device="cpu")
        values = {"weights": self.weights, "model": self.model, "data": self.data, "output": self.output, "options": options}
        return RecoverRequest(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def made(make_checkpoint: Callable[..., Path], coco_set: Path, tmp_path: Path) -> Made:
    weights, plain, model = make_checkpoint(), tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    assert export_onnx.main(["--weights", str(weights), "--output", str(plain)]) == 0
    arguments = ["--onnx", str(plain), "--data", str(coco_set), "--output", str(model)]
    assert calibrate([*arguments, "--method", "minmax", "--max-ap-drop", "none"]) == 0
    return Made(weights, model, coco_set)


def scales(model: Path) -> dict[str, float]:
    """The scale of each quantized activation of a file."""
    graph = Graph(onnx.load(str(model)))
    found = {
        quantized_activation(node): graph.constant(node.input[1]) for node in graph.nodes if node.op_type == "QuantizeLinear"
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def judged_as(monkeypatch: pytest.MonkeyPatch, *errors: float) -> None:
    """Has the images held back say so of the given file, and after each epoch: random weights detect nothing."""
    left = iter(errors)
    monkeypatch.setattr(recovery, "DetectionError", lambda spec, reference: lambda outputs: (list(outputs), next(left))[1])


def test_the_file_computes_what_was_trained(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    judged_as(monkeypatch, *range(9, 0, -1))
    learned = recover(made.request(options=FinetuneOptions(epochs=8, batch=2, device="cpu")))
    assert learned.distances[-1] < 0.9 * learned.distances[0]
    before, after = scales(made.model), scales(made.output)
    assert before.keys() == after.keys()
    assert any(abs(after[name] / before[name] - 1) > 1e-3 for name in before)
    plan = read_quant_plan(made.model)
    for name, scale in plan.scales.items():
        assert after[name] == pytest.approx(learned.scales[scale], rel=1e-5)
    model = load_model(made.weights)
    model.load_state_dict(learned.weights)
    with OrtBackend(made.output) as backend:
        images = noise(0, side=backend.spec.input_size[0])
        found = backend.infer(images)
    folded = fold_batch_norm(model)
    with torch.no_grad(), FakeQuantization(folded, read_quant_plan(made.output)):
        expected = folded.maps(torch.from_numpy(images))
    for one, other in zip(found, expected):
        difference = np.abs(one - other.numpy()) / other.abs().max().item()
        assert np.median(difference) < 2e-3  # a value on the border of two steps may become either


def test_the_epoch_of_the_least_error_is_chosen(
    made: Made, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    files = []
    given = read_manifest(manifest_path(made.model)).details["calibration"]["ranges"]
    for errors in ((1, 2, 3), (1, 0.5, 0.7), (1, 0.7, 0.5)):
        judged_as(monkeypatch, *errors)
        learned = recover(made.request(options=FinetuneOptions(epochs=2, batch=2, device="cpu")))
        assert learned.errors == list(errors)
        files.append(onnx.load(str(made.output)).graph)
        ranges = read_manifest(manifest_path(made.output)).details["calibration"]["ranges"]
        assert (ranges == given) == (learned.epoch == 0)
    assert files[0] == onnx.load(str(made.model)).graph
    assert files[0] != files[1] != files[2]
    assert [record.message for record in caplog.records if "stays as it was" in record.message] == [
        "no epoch brought the file nearer to the float model on the images held back; it stays as it was"
    ]


def test_images_that_are_all_the_same_are_refused(made: Made) -> None:
    for path in (made.data / "train").iterdir():
        write_image(path, np.zeros((72, 96, 3), np.uint8))
    with pytest.raises(InputError, match="all images have the same content"):
        recover(made.request())


def test_the_original_weights_stay_its_source(made: Made) -> None:
    recover(made.request())
    manifest = read_manifest(manifest_path(made.output))
    source = read_manifest(manifest_path(made.model))
    assert manifest.spec.source_sha256 == source.spec.source_sha256
    assert [item.role for item in manifest.made_from] == ["weights", "onnx"]
    assert find_changes(manifest_path(made.output)) == []
    recovery = manifest.details["recovery"]
    assert (len(recovery["images"]), len(recovery["held back"])) == (7, 1)
    assert recovery["held back"][0] not in recovery["images"]
    assert manifest.details["calibration"]["half_layers"] == source.details["calibration"]["half_layers"]


def test_what_cannot_be_trained_is_refused(
    made: Made, make_checkpoint: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    other = make_checkpoint("other.pt", fusion="none")
    plain = made.model.with_name("fp32.onnx")
    for change, kind, message in (
        ({"weights": other}, ModelError, "was not made from"),
        ({"model": plain}, ModelError, "is of precision fp32"),
        ({"train_split": "val"}, InputError, "the gate must score other images"),
        ({"images": 9}, InputError, "has 8 images, 9 were asked for"),
    ):
        with pytest.raises(kind, match=message):
            recover(made.request(**change))
    write_image(made.data / "val" / "0.png", np.zeros((72, 96, 3), np.uint8))
    write_image(made.data / "train" / "0.png", np.zeros((72, 96, 3), np.uint8))
    with pytest.raises(InputError, match="are trained on too"):
        recover(made.request())
    assert not made.output.exists()


def test_the_file_that_it_starts_from_is_kept(made: Made) -> None:
    before = made.model.read_bytes()
    given = ["--weights", str(made.weights), "--onnx", str(made.model), "--data", str(made.data)]
    for output, message in ((made.model, "would replace"), (made.model.with_suffix(".engine"), "ending in .onnx")):
        with pytest.raises(InputError, match=message):
            command.main([*given, "--output", str(output)])
    assert made.model.read_bytes() == before
