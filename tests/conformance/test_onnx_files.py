"""ONNX files in the backends that open them: refused files, and the accuracy of OpenVINO."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks.int8 import make_int8
from runtime.backends.base import Backend
from runtime.backends.openvino import OpenVinoBackend
from runtime.backends.ort import BoundRuns, OrtBackend
from runtime.backends.signature import Port
from runtime.errors import InputError, MissingComponentError, ModelError
from runtime.spec import ModelSpec
from tests.conformance.cases import Subject, distance, expected
from tests.support.onnx_writer import FLOAT16
from tests.support.packages import need
from tests.support.pairs import zip_equal
from tests.support.small_models import noise


def test_weights_in_another_file_are_refused(subject: Subject, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(onnx.load(subject.files["fp32"]), path, save_as_external_data=True, location="m.data", size_threshold=0)
    with pytest.raises(ModelError, match=r"m\.onnx: keeps weights in other files, .*put all into one file"):
        OrtBackend(path)
    onnx.save(onnx.load(path), path)
    OrtBackend(path).close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metadata": {}}, "no model spec in its metadata"),
        ({"input_name": "x"}, "expected one input 'images', found x; export it again"),
        (
            {"cast": FLOAT16},
            r"output p5 is float16 \[N, 28, 2, 2\], its spec says float32 \[N, 28, .*; export it again",
        ),
        (
            {"says": {"input_size": (96, 64)}},
            r"input images is float32 \[N, 3, 64, 64\], its spec .* \[N, 3, 96, 64\]",
        ),
        (
            {"says": {"class_names": ("a", "b", "c")}},
            r"output p5 is float32 \[N, 28, 2, 2\], its spec .* \[N, 32, 2, 2\]",
        ),
        ({"cut": 2000}, "not a usable ONNX model"),
        ({"cut": 0}, "model.onnx: "),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_files_that_break_the_contract(
    open_file: Callable[..., Backend],
    changes: dict[str, Any],
    message: str,
    tmp_path: Path,
    make_spec: Callable[..., ModelSpec],
    write_onnx: Callable[..., Path],
) -> None:
    path, changes = tmp_path / "model.onnx", dict(changes)
    cut = changes.pop("cut", None)
    if "says" in changes:
        changes["metadata"] = make_spec(**changes.pop("says")).to_metadata()
    write_onnx(path, **changes)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ModelError, match=message):
        open_file(path)


@pytest.mark.parametrize(
    ("node", "constant", "shape"),
    [
        ("Tile", [2, 1, 1, 1], "[6, 28, 8, 8]"),
        ("Tile", [0, 1, 1, 1], "[0, 28, 8, 8]"),
        ("Tile", [1, 2, 1, 1], "[3, 56, 8, 8]"),
        ("Tile", [1, 1, 0, 1], "[3, 28, 0, 8]"),
        ("Tile", [1, 1, 1, 3], "[3, 28, 8, 24]"),
        ("Reshape", [-1], "[5376]"),
        ("Reshape", [3, 28, 4, 16], "[3, 28, 4, 16]"),
        ("Reshape", [1, 3, 28, 8, 8], "[1, 3, 28, 8, 8]"),
        ("Expand", [2, 1, 1, 1, 1], "[2, 3, 28, 8, 8]"),
    ],
)
def test_outputs_that_take_another_shape_at_run_time(
    open_file: Callable[..., Backend],
    node: str,
    constant: list[int],
    shape: str,
    tiny_onnx: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The file says that the last map has the shape of its spec; what computes it is hidden from shape inference."""
    model = onnx.load(tiny_onnx)
    graph = model.graph
    next(item for item in graph.node if item.output[0] == "p3").output[0] = "p3_before"
    # the sides are computed from the input, so that no library knows them before the run
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(constant, np.float32), "constant"))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(0, np.float32), "nothing"))
    nodes = [
        onnx.helper.make_node("ReduceMax", ["images"], ["largest"], keepdims=0),
        onnx.helper.make_node("Mul", ["largest", "nothing"], ["zero"]),
        onnx.helper.make_node("Add", ["constant", "zero"], ["sides_float"]),
        onnx.helper.make_node("Cast", ["sides_float"], ["sides"], to=onnx.TensorProto.INT64),
        onnx.helper.make_node(node, ["p3_before", "sides"], ["p3"]),
    ]
    graph.node.extend(nodes)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ModelError) as caught, open_file(tmp_path / "model.onnx") as backend:  # some show when it is opened
        backend.infer(noise(0, 3))
    found = str(caught.value)
    assert "\n" not in found
    told = (f"output p3 is float32 {shape} for a batch of 3", "failed to run", "p3 is float32 [N, N, ", "p3 is float32 [N], ")
    assert any(text in found for text in told), found
    assert capfd.readouterr().err == ""  # the library says it in its exception alone


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"letterbox"', b'"letter\xff\xfe"'),
        (b"made_with", b"made_wi\xff\xfe"),
        (b"images", b"imag\xff\xfe"),
        (b"p5", b"\xff5"),
    ],
)
def test_texts_that_are_no_texts(
    open_file: Callable[..., Backend], old: bytes, new: bytes, tiny_onnx: Path, tmp_path: Path
) -> None:
    data = tiny_onnx.read_bytes()
    assert old in data
    (tmp_path / "model.onnx").write_bytes(data.replace(old, new))
    with pytest.raises(ModelError, match=r"model\.onnx: not a usable ONNX model") as caught:
        open_file(tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="tells open files by /proc, which only Linux has")
def test_a_refused_file_is_let_go_of(
    open_file: Callable[..., Backend], make_spec: Callable[..., ModelSpec], write_onnx: Callable[..., Path], tmp_path: Path
) -> None:
    write_onnx(tmp_path / "foreign.onnx", metadata={})
    write_onnx(tmp_path / "classes.onnx", metadata=make_spec(class_names=("a", "b", "c")).to_metadata())
    (tmp_path / "cut.onnx").write_bytes((tmp_path / "foreign.onnx").read_bytes()[:1000])
    with open(tmp_path / "cut.onnx"):
        assert held(tmp_path) == [str(tmp_path / "cut.onnx")]
    for path in tmp_path.iterdir():
        with pytest.raises(ModelError):
            open_file(path)
        assert held(tmp_path) == []


def held(folder: Path) -> list[str]:
    """Files of a folder that this process has open or mapped."""
    open_ones = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    mapped = [line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines()]
    return [name for name in (*open_ones, *mapped) if name.startswith(f"{folder.resolve()}/")]


def errors(found: list[np.ndarray], wanted: list[np.ndarray]) -> np.ndarray:
    """Per level, the root mean square of the difference."""
    return np.array([np.sqrt(((a - b) ** 2).mean()) for a, b in zip(found, wanted)])


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-4), ("fp16", 2e-3)])
def test_openvino_computes_what_onnxruntime_does(subject: Subject, precision: str, limit: float) -> None:
    need("openvino")
    images = noise(0, 2)
    with OrtBackend(subject.files[precision]) as reference, OpenVinoBackend(subject.files[precision]) as backend:
        assert backend.spec == reference.spec
        assert distance(backend.infer(images), reference.infer(images)) < limit


@pytest.mark.parametrize("target", ["tensorrt", "cpu"])
def test_an_int8_file_is_as_good_in_openvino(subject: Subject, target: str, tmp_path: Path) -> None:
    need("openvino")
    # Values that fall on the other side of a rounding step make the two differ; neither may be farther from the truth.
    images, path = noise(0, 4), tmp_path / "int8.onnx"
    make_int8(subject.files["fp32"], path, target, noise(1, 8))
    truth = expected(subject, images)
    with OrtBackend(path) as reference, OpenVinoBackend(path) as backend:
        assert ("for 8-bit operators too" in backend.title) == (target == "tensorrt")
        assert (errors(backend.infer(images), truth) < 1.3 * errors(reference.infer(images), truth)).all()


def test_bfloat16_only_if_asked_for(subject: Subject) -> None:
    need("openvino")
    import openvino

    with pytest.raises(InputError, match="precision: expected one of float32, bfloat16, got 'fp16'"):
        OpenVinoBackend(subject.files["fp32"], "fp16")
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(MissingComponentError, match="this CPU does not compute in bfloat16"):
            OpenVinoBackend(subject.files["fp32"], "bfloat16")
        return
    images = noise(0, 2)
    with OpenVinoBackend(subject.files["fp32"], "bfloat16") as backend:
        assert 1e-3 < distance(backend.infer(images), expected(subject, images)) < 0.1


def test_bound_runs_give_what_plain_runs_do(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(subject.files["fp32"]), providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_outputs()]
    ports = [Port(item.name, "float32", tuple(item.shape)) for item in session.get_outputs()]
    monkeypatch.setattr(BoundRuns, "device", "cpu")  # there a value lies in the array it was made from: each run gets a copy
    runs = BoundRuns(onnxruntime, session, ports)
    earlier = []
    for seed, count in enumerate((2, 2, 1, 3, 2)):  # an input of the same size is used again, one of another is not
        images = noise(seed, 2 * count)[::2]
        before = images.copy()
        earlier.append((runs.run(names, images.copy()), session.run(names, {"images": images})))
        assert np.array_equal(images, before)
    for found, wanted in earlier:  # and later runs leave earlier results alone
        assert all(np.array_equal(a, b) for a, b in zip_equal(found, wanted))
    assert [level.shape[0] for level in runs.run(names[:1], noise(0, 4))] == [4]
