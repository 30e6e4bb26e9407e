"""`python -m export.deepstream`: a valid configuration, and a parser that finds what the runtime finds."""

from __future__ import annotations

import configparser
import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export import deepstream
from export.deepstream import main
from export.model_folder import copy_model
from runtime.manifest import Origin, find_changes, read_manifest, write_manifest
from runtime.ops import boxes as box_ops
from runtime.ops.decode import decode
from runtime.ops.nms import nms
from runtime.spec import ModelSpec
from tests.support.detect_command import Command, one_error

STUB = Path(__file__).parents[1] / "support" / "deepstream"
NAMES = ("dot", "ring", "a;b größe")
ROWS, WIDTH, HEIGHT = 60, 96, 64
FILES = ["Makefile", "asff_model.h", "asff_parser.cpp", "config_infer_primary.txt", "labels.txt"]
FILES += ["model.onnx", "model.onnx.json"]


@pytest.fixture
def spec(make_spec: Any) -> ModelSpec:
    built: ModelSpec = make_spec(
        class_names=NAMES, input_size=(HEIGHT, WIDTH), top_k=ROWS, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    return built


def write_model(path: Path, spec: ModelSpec, batch: int | None = None) -> Path:
    """A model of constant rows: it is opened, not run."""
    (name, shape), uint8 = next(iter(spec.outputs.items())), spec.input_type == "uint8"
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats"], ["mean"], axes=[1, 2, 3], keepdims=1),
        helper.make_node("Squeeze", ["mean", "last"], ["row"]),
        helper.make_node("Add", ["row", "rows"], [name]),
    ]
    kind = TensorProto.UINT8 if uint8 else TensorProto.FLOAT
    first = helper.make_tensor_value_info("images", kind, [batch or "N", *spec.input_shape])
    last = helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch or "N", *shape])
    values = {"rows": np.zeros((1, *shape), np.float32), "last": np.array([3], np.int64)}
    graph = helper.make_graph(nodes, "g", [first], [last], [numpy_helper.from_array(v, k) for k, v in values.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, spec.to_metadata())
    onnx.save(model, path)
    return path


def settings(folder: Path) -> dict[str, str]:
    parsed = configparser.ConfigParser(comment_prefixes=("#",), delimiters=("=",))
    parsed.read_string((folder / "config_infer_primary.txt").read_text(encoding="utf-8"))
    return {**parsed["property"], **parsed["class-attrs-all"]}


def test_the_configuration_is_that_of_the_model(spec: ModelSpec, command: Command, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.onnx", spec)
    target = tmp_path / "new" / "deepstream"
    code, out, err = command(main, "--engine", model, "--output", target, "--batch", 4)
    assert (code, out) == (0, f"{target}\n"), err
    assert sorted(os.listdir(target)) == FILES and os.listdir(target.parent) == ["deepstream"]
    assert "r, g, b is off by +1.3%, -0.9%, -0.4%" in err and "gray 114" in err
    found = settings(target)
    expected = {"infer-dims": "3;64;96", "batch-size": "4", "num-detected-classes": "3", "output-blob-names": "candidates"}
    expected |= {"maintain-aspect-ratio": "1", "symmetric-padding": "1", "model-color-format": "0", "network-mode": "0"}
    expected |= {"cluster-mode": "4", "pre-cluster-threshold": "0.25", "onnx-file": "model.onnx", "network-input-order": "0"}
    assert {key: found[key] for key in expected} == expected
    assert (target / "labels.txt").read_text(encoding="utf-8") == "dot\nring\na,b größe\n"
    assert (target / "model.onnx").read_bytes() == model.read_bytes()
    manifest = read_manifest(target / "model.onnx.json")  # from which an engine is built where onnx is not installed
    assert manifest.spec == spec and find_changes(target / "model.onnx.json") == []
    assert "is there already; remove it" in one_error(command(main, "--engine", model, "--output", target)[2])


@pytest.mark.parametrize("deviations", [(0.229, 0.224, 0.225), (1.0, 1.0, 1.0), (0.5, 0.25, 1.0)])
def test_normalization_is_off_by_what_is_said(deviations: Any, spec: ModelSpec) -> None:
    spec = spec.replace(std=deviations, color="bgr", resize="stretch", precision="int8", operating_threshold=0.4)
    text = deepstream.build_config(spec, 1, 0.4, [])
    found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    pixels = np.linspace(0, 255, 7)
    for channel, (mean, deviation) in enumerate(zip(spec.mean, spec.std)):
        theirs = float(found["net-scale-factor"]) * (pixels - float(found["offsets"].split(";")[channel]))
        error = float(found["net-scale-factor"]) * 255 * deviation
        np.testing.assert_allclose(theirs, (pixels / 255 - mean) / deviation * error, rtol=1e-6, atol=1e-7)
    assert any("one factor" in line for line in deepstream.differences(spec)) == (len(set(deviations)) > 1)
    assert found["maintain-aspect-ratio"] == found["symmetric-padding"] == "0"
    assert (found["model-color-format"], found["network-mode"]) == ("1", "1") and "onnx-file" not in found


@pytest.mark.parametrize(
    ("changes", "batch", "options", "message"),
    [
        ({"top_k": 0}, None, (), "has raw maps, the parser reads decoded rows; export it again with --topk"),
        ({"input_type": "uint8"}, None, (), "takes bytes, DeepStream gives floats; export it again without --uint8-input"),
        ({}, 2, (), "takes batches of 2 alone"),
        ({}, 1, ("--batch", 2), "sends up to --batch 2"),
        ({}, None, ("--engine", "a.engine"), "expected an .onnx file"),
        ({}, None, ("--engine", "gone.onnx"), "gone.onnx: no such model file"),
    ],
)
def test_refused(
    changes: Any, batch: Any, options: Any, message: str, spec: ModelSpec, write_onnx: Any, command: Command, tmp_path: Path
) -> None:
    spec = spec.replace(**changes)
    model = write_model(tmp_path / "m.onnx", spec, batch) if spec.top_k else write_onnx(tmp_path / "m.onnx", spec)
    code, _, err = command(main, "--engine", model, "--output", tmp_path / "out", *options)
    assert code == 2 and message in one_error(err) and os.listdir(tmp_path) == ["m.onnx"]


def test_a_full_disk_leaves_nothing(
    spec: ModelSpec, command: Command, tmp_path: Path, full_disk: Callable[..., AbstractContextManager[None]]
) -> None:
    model = write_model(tmp_path / "m.onnx", spec)
    with full_disk(500):
        code, _, err = command(main, "--engine", model, "--output", tmp_path / "out")
    assert code == 2 and "free some space" in one_error(err) and os.listdir(tmp_path) == ["m.onnx"]


def build_parser(folder: Path) -> Any:
    """Compiles the parser by its own Makefile, against the stand-in for DeepStream's header; a function for ctypes."""
    if not (shutil.which("g++") and shutil.which("make")):
        pytest.skip("g++ or make is not installed")
    includes = folder / "sources" / "includes"
    includes.parent.mkdir()
    includes.symlink_to(STUB)
    make = ["make", "-s", "-C", str(folder), f"DEEPSTREAM={folder}", "CXXFLAGS=-O1 -Wall -Wextra -Werror"]
    libraries = [str(folder / "libcaller.so"), "-L", str(folder), "-lasff_parser", f"-Wl,-rpath,{folder}"]
    caller = ["g++", "-std=c++14", "-fPIC", "-shared", f"-I{STUB}", str(STUB / "caller.cpp"), "-o", *libraries]
    for line in (make, caller):
        done = subprocess.run(line, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    call = ctypes.CDLL(str(folder / "libcaller.so")).call
    unsigned = ctypes.c_uint
    call.argtypes = [ctypes.c_void_p, unsigned, ctypes.c_char_p, ctypes.c_int, unsigned, unsigned, ctypes.c_float, unsigned]
    call.argtypes = [*call.argtypes, ctypes.c_void_p]
    return call


def random_rows(spec: ModelSpec, rng: np.random.Generator, crowding: float) -> np.ndarray:
    """Rows of distinct anchors, some equal in score, some beside the image or of no size."""
    rows = np.zeros((spec.top_k, 7), np.float32)
    centers = rng.uniform(-0.2, 1.2, (spec.top_k, 2)) * (WIDTH, HEIGHT)
    rows[:, :2] = (centers // crowding) * crowding
    rows[:, 2:4] = rng.choice([0, 8, 10, 20, 90], (spec.top_k, 2))
    rows[:, 4] = rng.choice([0, 0.1, 0.25, 0.5, 0.75, 0.999, 1], spec.top_k)
    rows[:, 5] = rng.integers(0, spec.num_classes, spec.top_k)
    rows[:, 6] = rng.choice(sum(spec.boxes_per_level()), spec.top_k, replace=False)
    return rows


def reference(rows: np.ndarray, spec: ModelSpec, threshold: float) -> np.ndarray:
    """What the runtime finds in a frame of the input's size: `[N, 6]` left, top, width, height, score, class."""
    found = decode([rows], spec, threshold)
    found = found[box_ops.area(box_ops.clip(found.boxes, WIDTH, HEIGHT)) > 0]
    found = found[nms(found.boxes, found.scores, found.class_ids, spec.nms_threshold, 100)]
    boxes = box_ops.clip(found.boxes, WIDTH, HEIGHT)
    return np.column_stack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2], found.scores, found.class_ids]).astype(np.float32)


def test_the_parser_finds_what_the_runtime_finds(
    spec: ModelSpec, command: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = spec.replace(nms_threshold=0.5)  # which some pairs of boxes meet exactly
    assert command(main, "--engine", write_model(tmp_path / "m.onnx", spec), "--output", tmp_path / "out")[0] == 0
    call = build_parser(tmp_path / "out")

    def parsed(rows: np.ndarray, threshold: float = 0.25, name: bytes = b"candidates", kind: int = 0, classes: int = 3) -> Any:
        rows, found = np.ascontiguousarray(rows, np.float32), np.zeros((ROWS, 6), np.float32)
        number = call(rows.ctypes.data, len(rows), name, kind, WIDTH, HEIGHT, threshold, classes, found.ctypes.data)
        return None if number < 0 else found[:number]

    rng = np.random.default_rng(0)
    suppressed = 0
    for index in range(60):
        rows = random_rows(spec, rng, crowding=(1, 4, 16)[index % 3])
        for threshold in (0.0, 0.25, 0.9):
            expected = reference(rows, spec, threshold)
            np.testing.assert_array_equal(parsed(rows, threshold), expected)
            suppressed += int((rows[:, 4] >= threshold).sum()) - len(expected)
    assert suppressed > 1000
    huge = rows.copy()
    huge[0, :5] = (np.inf, -np.inf, 1e30, np.inf, 1)
    np.testing.assert_array_equal(parsed(huge), reference(huge, spec, 0.25))
    for column, value in ((0, np.nan), (3, -1), (4, 1.5), (4, np.nan), (5, 3), (5, 0.5), (6, -1), (6, np.nan)):
        broken = rows.copy()
        broken[7, column] = value
        assert parsed(broken) is None
    assert parsed(rows[:-1]) is None and parsed(rows, name=b"p5") is None
    assert parsed(rows, kind=1) is None and parsed(rows, classes=2) is None
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 12 and all(line.startswith("asff_parser: ") for line in said)


def test_the_manifest_keeps_the_origins_of_this_model_alone(spec: ModelSpec, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.onnx", spec)
    write_manifest(model, spec, [Origin("weights", "best.pt", "0" * 64)], {"parity": 1})
    for index, details in enumerate(({"parity": 1}, {})):
        copy_model(model, spec, tmp_path / f"{index}.onnx", tmp_path / "to" / "model.onnx")
        manifest = read_manifest(tmp_path / f"{index}.onnx.json")
        assert manifest.details == details
        assert [origin.role for origin in manifest.made_from] == ["model", "weights"][: 2 - index]
        write_model(model, spec.replace(name="another"))
