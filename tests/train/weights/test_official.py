"""The authors' published checkpoints: every variant computes what the reference says, and what is wrong is named."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from export.onnx import main as export_onnx
from runtime import cli
from runtime.backends.ort import OrtBackend
from runtime.errors import InputError, ModelError
from runtime.files import sha256
from runtime.ops.decode import decode
from tests.support.official_reference import Network
from tests.support.small_models import Trap
from train.weights import load_model, open_weights, read_weights
from train.weights.__main__ import main
from train.weights.names import COCO_CLASSES, read_names

# Variant, our recipe, and `fingerprint` of the names and shapes in the authors' file.
PUBLISHED = [
    ("asff", "yolov3-asff", "ecb12e709c11af15d1b3a9d4d94bf0470c2bb8fc58e719693703ff831907a5f3"),
    ("asff_star", "yolov3-asff-star", "3f1178e729e91ba37f50d4696e6c318637f5d1f9ea6ad104f4eccca1224b8e81"),
    ("baseline", "yolov3-baseline", "b6acf9533872ce3ab817a01435acff1bec6661442716156d34a882e0e98e6b3e"),
    ("baseline_rfb", "yolov3-baseline-rfb", "f9f33ddaf131b0b98c83d90055a80c1c997f29cb51e1f91135b71b212fab8014"),
    ("mobile", "yolov3-mobilenetv2", "43239256875b2cf526673cec6ac3398e311a923c03b8a6585cf5bcb1012a8e23"),
    ("mobile_asff", "yolov3-mobilenetv2-asff", "eed1540d536607c642b00ec8c0f0f93629884c2e1481a45ecda5cbf41f8eb4b1"),
]
HEAD = "level_1_header.conv.weight"


def fingerprint(state: dict[str, Tensor]) -> str:
    """SHA-256 of the sorted names and shapes."""
    return hashlib.sha256(json.dumps(sorted((name, list(value.shape)) for name, value in state.items())).encode()).hexdigest()


@pytest.mark.parametrize(("variant", "recipe", "digest"), PUBLISHED)
def test_a_published_checkpoint_computes_what_the_reference_does(
    variant: str, recipe: str, digest: str, tmp_path: Path
) -> None:
    network, images, file = Network(variant), torch.randn(2, 3, 64, 96), tmp_path / "published.pth"
    with torch.no_grad():
        expected = network.run(images)
        assert fingerprint(network.tensors.state) == digest
        torch.save(network.tensors.state, file)
        model = load_model(file)
        rounded = model(images)
        found = model.double()(images.double())
    file.unlink()  # 300 MB
    assert expected[..., 2:4].min() > 0.5
    assert expected[..., 4:].std(dim=1).min() > 0.01  # nothing is saturated
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=1e-5, atol=1e-6)
    # In float32 a random MobileNetV2 magnifies rounding to a few thousandths; a wrong tensor would cost far more.
    torch.testing.assert_close(rounded.double(), expected, rtol=1e-2, atol=1e-3)
    assert model.loss_config.label_smoothing


def test_a_published_checkpoint_is_exported_as_it_is(tmp_path: Path) -> None:
    network, images = Network("mobile"), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        network.run(images)
        state = network.tensors.state
        for name in state:
            if name.endswith("running_var"):
                state[name] *= 4  # calmer than a random network is, so that rounding is not magnified
        expected = Network("mobile", state).run(images)[0].numpy()
    source, output = save(tmp_path / "published.pth", state), tmp_path / "model.onnx"
    assert export_onnx(["--weights", str(source), "--output", str(output), "--size", "64"]) == 0
    with OrtBackend(output) as backend:
        maps = backend.infer(images.numpy())
        spec = backend.spec
    assert (spec.name, spec.resize, spec.class_names) == ("yolov3-mobilenetv2", "stretch", COCO_CLASSES)
    assert spec.source_sha256 == sha256(source)
    found = decode([level[0] for level in maps], spec, 0.0)
    np.testing.assert_allclose(found.boxes[:, 2:] - found.boxes[:, :2], expected[:, 2:4], rtol=1e-3)
    np.testing.assert_allclose(found.scores, expected[:, 4] * expected[:, 5:].max(axis=1), rtol=1e-3)


@functools.cache
def shapes(variant: str) -> dict[str, torch.Size]:
    network = Network(variant)
    with torch.no_grad():
        network.run(torch.randn(1, 3, 64, 64))
    return {name: value.shape for name, value in network.tensors.state.items()}


def published(classes: int = 80) -> dict[str, Tensor]:
    """A MobileNetV2 checkpoint whose every tensor holds one number of its own, so that its file is small."""
    state = {}
    for index, (name, shape) in enumerate(shapes("mobile").items()):
        if "header.conv" in name:
            shape = torch.Size([4 * (5 + classes), *shape[1:]])
        kind = torch.int64 if name.endswith("num_batches_tracked") else torch.float32
        state[name] = torch.tensor(index / 64, dtype=kind).expand(shape)
    return state


def save(path: Path, content: object, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {f"module.{name}": value for name, value in state.items()}, "optimizer": {"lr": 0.1}},
        lambda state: {name: value.half() if value.is_floating_point() else value for name, value in state.items()},
        lambda state: {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")},
    ],
    ids=["plain", "module", "state_dict", "model", "float16", "no counters"],
)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_every_wrapping_holds_the_same_model(wrap: Callable[[Any], Any], legacy: bool, tmp_path: Path) -> None:
    state = published()
    loaded = open_weights(save(tmp_path / "m.pth", wrap(state), legacy), model="yolov3-mobilenetv2")
    assert loaded.spec.resize == "stretch"
    assert loaded.spec.input_size == (608, 608)
    assert loaded.spec.anchors[0][2] == (373, 326)
    assert loaded.spec.class_names == COCO_CLASSES
    weight = loaded.weights["heads.1.predict.weight"]
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight, state[HEAD], rtol=1e-3, atol=0)


def test_other_class_counts_have_other_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, names = save(tmp_path / "m.pth", published(classes=3)), tmp_path / "names.txt"
    assert open_weights(file).spec.class_names == ("class 0", "class 1", "class 2")
    assert "does not name its 3 classes" in caplog.text
    names.write_text("cat\n dog \n\nbird\n")
    assert open_weights(file, classes=read_names(names)).spec.class_names == ("cat", "dog", "bird")
    with pytest.raises(InputError, match="3 classes, but 2 names"):
        open_weights(file, classes=("cat", "dog"))


def _no_head(state: dict[str, Tensor]) -> None:
    del state["level_0_header.conv.weight"]


def _odd_head(state: dict[str, Tensor]) -> None:
    state["level_0_header.conv.weight"] = torch.zeros(1).expand(342, 1024, 1, 1)


def _without(state: dict[str, Tensor]) -> None:
    for name in [name for name in state if name.endswith("running_var")]:
        del state[name]


def _with(state: dict[str, Tensor]) -> None:
    state["ema.decay"] = torch.zeros(1)


def _other_shape(state: dict[str, Tensor]) -> None:
    state["module_list.0.0.weight"] = torch.zeros(1).expand(16, 3, 3, 3)


def _rfb(state: dict[str, Tensor]) -> None:
    state["level_0_header.Feature_adaption.rfb.branch_0.0.weight"] = torch.zeros(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_no_head, "lacks its head level_0_header.conv.weight"),
        (_odd_head, "342 channels, expected 4 x"),
        (_without, r"73 missing \(module_list.0.1.running_var, module_list.1[^,]*, [^,]*, \.\.\.\)$"),
        (_with, r"1 unexpected \(ema.decay\)$"),
        (_other_shape, r"1 of another shape \(module_list.0.0.weight \[16, 3, 3, 3\] instead of \[32, 3, 3, 3\]\)$"),
        (_rfb, "receptive field block on mobilenetv2"),
    ],
)
def test_a_layout_that_does_not_fit_is_listed(
    change: Callable[[dict[str, Tensor]], None], message: str, tmp_path: Path
) -> None:
    state = published()
    change(state)
    with pytest.raises(ModelError, match=message):
        open_weights(save(tmp_path / "m.pth", state))


def refuse(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Runs the command on a file that it must refuse; returns its error line."""
    with pytest.raises(SystemExit) as stopped:
        cli.run(lambda: main([str(argument) for argument in arguments]))
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_values_that_are_not_finite_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = published()
    state[HEAD] = torch.tensor(float("nan")).expand(state[HEAD].shape)
    line = refuse(capsys, save(tmp_path / "m.pth", state), "--output", tmp_path / "w.pt")
    assert "not finite, the first is heads.1.predict.weight" in line
    assert not (tmp_path / "w.pt").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"just some text, long enough to hold a header", "neither a PyTorch file nor Darknet weights"),
        (b"PK\3\4 and nothing that follows", "it is damaged"),
        (b"\x80\x02 and nothing that follows", "it is damaged"),
        (None, "a folder"),
    ],
)
def test_what_is_no_weights_file_is_named(
    content: bytes | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    if content is None:
        source.mkdir()
    else:
        source.write_bytes(content)
    line = refuse(capsys, source, "--output", tmp_path / "w.pt")
    assert message in line
    assert "expected a checkpoint of this project, one that the paper's authors published, Darknet's" in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": 1, "b": 2}, r"2 entries \(a, b\), a layout not known here; expected"),
        ({}, "nothing, a layout"),
        ([1], "holds a list; expected"),
        ({"kind": "yolov3-asff-backbone", "version": 2}, "version 2"),
        ({"kind": "yolov3-asff-backbone", "version": 1, "name": "vgg"}, "'vgg', expected darknet53 or mobilenetv2"),
        ({"kind": "yolov3-asff-backbone", "version": 1, "name": "darknet53", "mean": 1}, "misstates its mean"),
        ({"kind": "yolov3-asff-backbone", "version": 1, "name": "mobilenetv2", "mean": [0] * 3, "std": [1] * 3}, "do not fit"),
    ],
)
def test_a_foreign_pytorch_file_is_named(content: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        read_weights(save(tmp_path / "m.pth", content))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_truncated_file_is_refused(legacy: bool, tmp_path: Path) -> None:
    file = save(tmp_path / "m.pth", published(), legacy)
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="it is damaged"):
        load_model(file)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_code_in_a_file_is_never_run(legacy: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trap = tmp_path / "sprung"
    file = save(tmp_path / "evil.pth", {"state_dict": published(), "extra": Trap(trap)}, legacy)
    line = refuse(capsys, file, "--output", tmp_path / "w.pt")
    assert "holds more than tensors" in line
    assert not trap.exists()
    torch.load(file, weights_only=False)
    assert trap.exists()  # a careless reader would have


def test_the_command_asserts_what_a_file_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, output = save(tmp_path / "m.pth", published()), tmp_path / "w.pt"
    line = refuse(capsys, file, "--output", output, "--model", "yolov3-asff")
    assert "holds yolov3-mobilenetv2, not yolov3-asff" in line
    assert main([str(file), "--output", str(output), "--model", "mobile"]) == 0  # the variant's own name
    assert main([str(file), "--output", str(output), "--model", "yolov3-mobilenetv2"]) == 0
    assert capsys.readouterr().out.split() == [str(output)] * 2
    original, converted = open_weights(file), open_weights(output)
    assert (converted.config, converted.spec) == (original.config, original.spec)
    assert all(torch.equal(value, converted.weights[name]) for name, value in original.weights.items())


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe"], ids=["empty", "blank", "binary"])
def test_a_file_without_names_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(InputError, match=r"names\.txt"):
        read_names(tmp_path / "names.txt")


def test_coco_names_are_those_of_its_annotations() -> None:
    if "DATASETS" not in os.environ:
        pytest.skip("set DATASETS to the folder that holds coco/")
    content = json.loads((Path(os.environ["DATASETS"]) / "coco/annotations/instances_val2017.json").read_text())
    categories = sorted(content["categories"], key=lambda category: category["id"])
    assert tuple(category["name"] for category in categories) == COCO_CLASSES
