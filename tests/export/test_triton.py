"""`python -m export.triton`, judged by Triton's own schema; a Detector over a server of its protocol finds the same."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from calibration.__main__ import main as calibrate
from export.deepstream import main as deepstream
from export.engine import main as build_engine
from export.triton import main
from export.verify import main as verify
from runtime import detect, evaluate
from runtime.backends.open import open_backend
from runtime.benchmark.__main__ import main as benchmark
from runtime.bulk.__main__ import main as bulk
from runtime.detector import Detector
from runtime.errors import InputError, ModelError
from runtime.manifest import Origin, find_changes, read_manifest, write_manifest
from runtime.media.image import write_image
from runtime.serve import main as serve_command
from runtime.spec import ModelSpec
from tests.support.detect_command import Command, one_error, white
from tests.support.engine_manifests import FACTS
from tests.support.kserve_server import serve

model_config = pytest.importorskip("tritonclient.grpc.model_config_pb2")
pytest.importorskip("tritonclient.http")
text_format = pytest.importorskip("google.protobuf.text_format")
json_format = pytest.importorskip("google.protobuf.json_format")

DESCRIPTORS = Path("/proc/self/fd")


def decoding(path: Path, spec: ModelSpec, batch: int | None) -> Path:
    """A model of `--uint8-input` and `--topk`: bright images hold boxes of class 1."""
    rows = np.zeros((1, spec.top_k, 7), np.float32)
    rows[0, :, :4] = (40, 24, 16, 12)
    rows[0, 1, 0], rows[0, :, 5] = 10, 1
    gain = np.zeros_like(rows)
    gain[0, :2, 4] = 1 / 256
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("ReduceMean", ["mean"], ["one"], axes=[1], keepdims=1),
        helper.make_node("Unsqueeze", ["one", "axis"], ["two"]),
        helper.make_node("Mul", ["two", "gain"], ["scaled"]),
        helper.make_node("Add", ["scaled", "rows"], ["candidates"]),
    ]
    ends = (("images", TensorProto.UINT8, spec.input_shape), ("candidates", TensorProto.FLOAT, (spec.top_k, 7)))
    first, last = (helper.make_tensor_value_info(name, kind, [batch or "N", *shape]) for name, kind, shape in ends)
    values = {"gain": gain, "rows": rows, "axis": np.array([1], np.int64)}
    weights = [numpy_helper.from_array(value, name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "g", [first], [last], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, spec.to_metadata())
    onnx.save(model, path)
    return path


@pytest.fixture
def build(tmp_path: Path, write_onnx: Any, make_spec: Any) -> Callable[..., Path]:
    def made(kind: str, batch: int | None = None) -> Path:
        if kind == "decoding":
            return decoding(tmp_path / "m.onnx", make_spec(input_type="uint8", top_k=4, input_size=(64, 96)), batch)
        size = (64, 96) if kind == "rectangular" else (64, 64)
        names = ("dot", 'a "ring" \\ größe') if kind == "names" else ("dot", "ring")
        return Path(write_onnx(tmp_path / "m.onnx", make_spec(input_size=size, class_names=names), batch))

    return made


def config_of(folder: Path) -> Any:
    return text_format.Parse((folder / "config.pbtxt").read_text(encoding="utf-8"), model_config.ModelConfig())


def as_json(config: Any) -> Any:
    """The configuration as Triton's HTTP protocol gives it."""
    return json_format.MessageToDict(config, preserving_proto_field_name=True)


@pytest.mark.parametrize("batch", [None, 1, 3])
@pytest.mark.parametrize("kind", ["square", "rectangular", "decoding", "names"])
def test_a_served_model_finds_the_same(kind: str, batch: int | None, build: Any, command: Command, tmp_path: Path) -> None:
    model = build(kind, batch)
    code, out, _ = command(main, "--engine", model, "--output", tmp_path / "repository", "--max-batch", batch or 4)
    folder = tmp_path / "repository" / "m"
    assert code == 0 and out == f"{folder}\n"
    spec = open_backend(model).spec
    config = config_of(folder)
    assert (config.name, config.platform, config.max_batch_size) == ("m", "onnxruntime_onnx", 0 if batch else 4)
    assert list(config.input[0].dims) == [*([batch] if batch else []), *spec.input_shape]
    assert config.input[0].data_type == (model_config.TYPE_UINT8 if kind == "decoding" else model_config.TYPE_FP32)
    assert [item.name for item in config.output] == list(spec.outputs)
    assert config.HasField("dynamic_batching") == (batch is None)
    assert (folder / "labels.txt").read_text(encoding="utf-8").splitlines() == list(spec.class_names)
    assert sorted(path.name for path in (folder / "1").iterdir()) == ["model.onnx", "model.onnx.json"]
    assert find_changes(folder / "1" / "model.onnx.json") == []
    images = [white(), np.zeros((40, 50, 3), np.uint8), white(100, 30), white(64, 64), white(), white(7, 9)]
    with serve(folder / "1" / "model.onnx", as_json(config)) as (address, batches):
        with Detector(model) as local, Detector(address) as remote:
            assert remote.spec == local.spec and remote.batch_size == local.batch_size
            expected, found = local(images), remote(images)
            with ThreadPoolExecutor(3) as pool:
                in_threads = list(pool.map(remote, images))
        assert batches[:2] == ([4, 2] if batch is None else [batch, batch])
    for one, other, third in zip(expected, found, in_threads):
        for name in ("boxes", "scores", "class_ids"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
            np.testing.assert_array_equal(getattr(one, name), getattr(third, name))
    if kind == "square":
        write_image(tmp_path / "a.png", white())
        with serve(folder / "1" / "model.onnx", as_json(config)) as (address, _):
            given = ("--engine", address, "--source", tmp_path / "a.png", "--output", tmp_path, "--save", "csv")
            assert command(detect.main, *given)[0] == 0
            given = ("--engine", address, "--compare", Path(address), "--batch", batch or 1, "--repeats", 1, "--warm-up", 0)
            code, out, err = command(benchmark, *given, "--json")
            assert (code, err) == (0, "") and len(json.loads(out)["comparisons"]) == 1
            assert json.loads(out)["models"][0]["file"] == address
            code, _, err = command(evaluate.main, "--engine", address, "--data", "absent", "--store")
            assert code == 2 and f"{address}: a threshold is stored in a model's file" in one_error(err)
        assert len((tmp_path / "detections.csv").read_text().splitlines()) == 2
    assert [len(item) > 0 for item in found] == [True, False, True, True, True, True]


@pytest.mark.skipif(not DESCRIPTORS.is_dir(), reason="this system does not list a process's descriptors")
def test_neither_threads_nor_backends_leave_descriptors(build: Any, command: Command, tmp_path: Path) -> None:
    def count() -> int:
        return len(list(DESCRIPTORS.iterdir()))

    assert command(main, "--engine", build("square"), "--output", tmp_path)[0] == 0
    model = tmp_path / "m" / "1" / "model.onnx"
    with serve(model, as_json(config_of(tmp_path / "m"))) as (address, _):
        Detector(address).close()  # what libraries open once
        before = count()
        for _ in range(2):
            with Detector(address) as remote:
                remote(white())
                opened = count()
                for _ in range(3):
                    assert len(list(remote.stream([white(), white()]))) == 2
                assert count() <= opened
        until = time.monotonic() + 10  # the server notices late that a client went
        while count() > before and time.monotonic() < until:
            time.sleep(0.02)
        assert count() <= before
        with pytest.raises(ModelError, match="closed; open it again"):
            remote(white())


@pytest.mark.parametrize(
    ("batch", "options", "message"),
    [
        (3, ("--max-batch", 4), "takes batches of 3 alone; leave it out"),
        (None, ("--name", "../up"), "--name ../up: expected letters"),
        (None, ("--engine", "gone.onnx"), "gone.onnx: no such model file"),
        (None, ("--engine", __file__), "expected an .onnx or .engine model"),
    ],
)
def test_refused(
    batch: int | None, options: tuple[Any, ...], message: str, build: Any, command: Command, tmp_path: Path
) -> None:
    code, _, err = command(main, "--engine", build("square", batch), "--output", tmp_path / "repository", *options)
    assert code == 2 and message in one_error(err) and not (tmp_path / "repository").exists()


@pytest.mark.parametrize(
    ("run", "arguments"),
    [
        (main, ("--output", "r", "--engine")),
        (deepstream, ("--output", "d", "--engine")),
        (serve_command, ("--engine",)),
        (bulk, ("--source", "s", "--output", "o", "--engine")),
        (calibrate, ("--data", "d", "--output", "o", "--onnx")),
        (build_engine, ("--onnx",)),
        (verify, ("--weights", "w", "--data", "d")),
    ],
)
def test_commands_that_need_the_file(run: Callable[..., int], arguments: tuple[str, ...], command: Command) -> None:
    code, _, err = command(run, *arguments, "triton://host:8000/m")
    assert code == 2 and "expected a model's file, got triton://host:8000/m; give the file" in one_error(err)


def test_a_model_that_is_there_stays(build: Any, command: Command, tmp_path: Path) -> None:
    arguments = ("--engine", build("square"), "--output", tmp_path, "--name", "a")
    assert command(main, *arguments)[0] == 0
    assert "is there already; remove it" in one_error(command(main, *arguments)[2])


def test_a_full_disk_leaves_nothing(
    build: Any, command: Command, tmp_path: Path, full_disk: Callable[..., AbstractContextManager[None]]
) -> None:
    model = build("square")
    with full_disk(500):
        code, _, err = command(main, "--engine", model, "--output", tmp_path / "repository")
    assert code == 2 and "free some space" in one_error(err) and not os.listdir(tmp_path / "repository")


def test_engines(tmp_path: Path, command: Command, make_spec: Any, tiny_onnx: Path) -> None:
    for flavor, batch, message in (
        ("tensorrt", (1, 4, 8), ""),
        ("tensorrt", (2, 2, 2), ""),
        ("tensorrt", (2, 4, 8), "build it with --batch 1,4,8"),
        ("rtx", (1, 1, 1), "no backend for engines of TensorRT-RTX"),
    ):
        name = f"{flavor}-{batch[0]}-{batch[2]}"
        engine = tmp_path / f"{name}.engine"
        engine.write_bytes(b"plan")
        facts = {**FACTS, "flavour": flavor, "batch": dict(zip(("min", "opt", "max"), batch))}
        write_manifest(engine, make_spec(), [Origin.of("onnx", tiny_onnx, engine)], {"engine": facts})
        code, _, err = command(main, "--engine", engine, "--output", tmp_path / "repository")
        if message:
            assert code == 2 and message in one_error(err)
            continue
        assert code == 0, err
        folder = tmp_path / "repository" / name
        config = config_of(folder)
        assert (config.platform, config.max_batch_size) == ("tensorrt_plan", 0 if batch[0] == 2 else 8)
        assert config.instance_group[0].kind == model_config.ModelInstanceGroup.KIND_GPU
        assert read_manifest(folder / "1" / "model.plan.json").details["engine"]["batch"]["max"] == batch[2]


def test_addresses(build: Any, command: Command, tmp_path: Path) -> None:
    model = build("square")
    assert command(main, "--engine", model, "--output", tmp_path)[0] == 0
    config = as_json(config_of(tmp_path / "m"))
    with serve(model, config) as (address, _):
        with pytest.raises(ModelError, match=r"the server refuses .*unknown model"):
            open_backend(f"{address}-other")
        with pytest.raises(InputError, match="leave out --backend onnxruntime"):
            open_backend(address, "onnxruntime")
        backend = open_backend(address)
        with pytest.raises(InputError, match="images: expected float32"):
            backend.infer(np.zeros((1, 3, 32, 32), np.float32))
    with pytest.raises(ModelError, match="no Triton server answers"):
        backend.infer(np.zeros((1, 3, 64, 64), np.float32))
    backend.close()
    with pytest.raises(ModelError, match="was closed"):
        backend.infer(np.zeros((1, 3, 64, 64), np.float32))
    with pytest.raises(InputError, match="no Triton server answers"):
        open_backend(address)
    with serve(model, {**config, "parameters": {}}) as (address, _), pytest.raises(ModelError, match="has no model spec"):
        open_backend(address)
    for bad in ("triton://host/model", "triton://host:8000", "triton://user@host:8000/m", "triton://"):
        with pytest.raises(InputError, match="expected triton://host:port/model"):
            open_backend(bad)
