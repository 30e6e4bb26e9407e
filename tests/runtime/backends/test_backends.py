"""What every backend promises, asked of each of them. A new one passes by being added to `CASES`."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from benchmarks.int8 import make_int8
from benchmarks.runtime import opencv_preprocess
from export.onnx_export.tracer import write_onnx
from runtime import detect
from runtime.backends.base import Backend
from runtime.backends.gpu import Gpu
from runtime.backends.open import open_backend
from runtime.backends.openvino import OpenVinoBackend
from runtime.backends.ort import BoundRuns, OrtBackend
from runtime.backends.signature import Port
from runtime.benchmark.images import made_up_image
from runtime.benchmark.timing import interleave, milliseconds
from runtime.detector import Detector
from runtime.errors import InputError, MissingComponentError, ModelError
from runtime.media.image import write_image
from runtime.ops.boxes import xyxy_to_xywh
from runtime.ops.preprocess import preprocess
from runtime.spec import ModelSpec
from tests.support.engine_models import mini, write_precisions
from tests.support.small_models import CLASSES, noise, settled, tiny
from train.model import DetectorModel
from train.spec import model_spec
from train.torch_backend import TorchBackend


@dataclass(frozen=True)
class Subject:
    """One model in every form that a backend may want."""

    model: DetectorModel
    spec: ModelSpec
    files: dict[str, Path]  # by precision
    fixed: Path  # with a batch of 2


@dataclass(frozen=True)
class Case:
    """How to open the subject in one backend, the package that it needs, whether the model is its own to close, and how
    many calls it makes in a second or two."""

    open: Callable[[Subject], Backend]
    package: str
    opens_files: bool = True
    calls: int = 3000


CASES = {
    "onnxruntime": Case(lambda subject: OrtBackend(subject.files["fp32"]), "onnxruntime"),
    "openvino": Case(lambda subject: OpenVinoBackend(subject.files["fp32"]), "openvino"),
    "torch": Case(lambda subject: TorchBackend(subject.model, subject.spec), "torch", opens_files=False, calls=300),
}
FILE_BACKENDS = {"onnxruntime": OrtBackend, "openvino": OpenVinoBackend}


def need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


@pytest.fixture(scope="session")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tmp_path_factory.mktemp("subject")
    torch.manual_seed(0)
    config = tiny()
    model, spec = settled(config), model_spec(config, CLASSES)
    files = write_precisions(model, spec, folder)
    fixed = folder / "fixed.onnx"
    write_onnx(model, spec, fixed, batch=2)
    return Subject(model.eval(), spec, files, fixed)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    """Every backend that is installed."""
    found = CASES[request.param]
    need(found.package)
    return found


@pytest.fixture
def backend(case: Case, subject: Subject) -> Iterator[Backend]:
    with case.open(subject) as opened:
        yield opened


@pytest.fixture(params=FILE_BACKENDS)
def open_file(request: pytest.FixtureRequest) -> Callable[..., Backend]:
    """Every installed backend that opens files."""
    need(request.param)
    return FILE_BACKENDS[request.param]


def expected(subject: Subject, images: np.ndarray) -> list[np.ndarray]:
    with torch.no_grad():
        return [level.numpy() for level in subject.model.maps(torch.from_numpy(images))]


def distance(found: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    """Largest difference of any level, as a share of the level's largest value."""
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(found, wanted))


# --- what goes in and what comes out


def test_the_description_is_the_models(backend: Backend, subject: Subject) -> None:
    assert backend.spec == subject.spec
    assert backend.batch_size is None


def test_it_says_what_runs_it(backend: Backend, case: Case) -> None:
    versions = {"onnxruntime": r"ONNX Runtime [\d.]+, CPU", "openvino": r"OpenVINO [\d.]+, CPU", "torch": r"PyTorch [\d.]+"}
    assert re.match(versions[case.package], backend.title)


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_names_shapes_dtypes_and_values(backend: Backend, subject: Subject, batch: int) -> None:
    images = noise(batch, batch)
    maps = backend.infer(images)
    assert [level.shape for level in maps] == [(batch, *subject.spec.map_shape(i)) for i in range(3)]
    assert {level.dtype for level in maps} == {np.dtype(np.float32)}
    assert distance(maps, expected(subject, images)) < 1e-4


def test_what_comes_before_and_after_takes_no_longer_than_opencv(case: Case, subject: Subject, tmp_path: Path) -> None:
    """At 608 pixels, on the maps as this backend hands them out; by the least of some rounds in turns, which is steady."""
    spec = subject.spec.replace(input_size=(608, 608))
    if case.opens_files:
        write_onnx(subject.model, spec, tmp_path / "large.onnx")
    image = made_up_image(np.random.default_rng(0))
    with case.open(replace(subject, spec=spec, files={"fp32": tmp_path / "large.onnx"})) as backend:
        detector = Detector(backend, score_threshold=0.5)
        maps = [level[0] for level in backend.infer(preprocess(image, spec)[0][None])]
    boxes = detector.candidates(maps)
    assert len(boxes.scores) > 500  # worth timing
    corners, ids = xyxy_to_xywh(boxes.boxes), boxes.class_ids.astype(np.int32)
    ways = {
        "ours": lambda: detector.postprocess(maps, preprocess(image, spec)[1]),
        "opencv": lambda: (
            opencv_preprocess(image, spec),
            cv2.dnn.NMSBoxesBatched(corners, boxes.scores, ids, 0.5, spec.nms_threshold),
        ),
    }
    timed = {name: lambda _, call=call: milliseconds(call) for name, call in ways.items()}
    least = {name: min(times) for name, times in interleave(timed, rounds=12, warm_up=2).items()}
    assert least["ours"] < least["opencv"]


def test_a_batch_is_its_images(backend: Backend) -> None:
    images = noise(0, 4)
    whole = backend.infer(images)
    for index in range(4):
        alone = backend.infer(images[index : index + 1])
        assert distance([level[0] for level in alone], [level[index] for level in whole]) < 1e-4


def test_inputs_that_are_not_contiguous_mean_what_they_say(backend: Backend) -> None:
    images = noise(0, 2)
    rearranged = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert not rearranged.flags.c_contiguous
    assert distance(backend.infer(rearranged), backend.infer(images)) < 1e-4
    assert distance(backend.infer(noise(0, 4)[::2]), backend.infer(noise(0, 4)[::2].copy())) < 1e-4


def test_a_run_leaves_the_input_and_earlier_outputs_alone(backend: Backend) -> None:
    images = noise(0, 2)
    before = images.copy()
    first = backend.infer(images)
    kept = [level.copy() for level in first]
    images[:] = 0
    backend.infer(noise(1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, kept))
    for level in first:
        level[:] = 7  # the caller's to write to
    assert distance(backend.infer(before), kept) < 1e-6


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((0, 3, 64, 64), np.float32),
        np.zeros((3, 64, 64), np.float32),
        np.zeros((1, 1, 64, 64), np.float32),
        np.zeros((1, 64, 64, 3), np.float32),
        np.zeros((1, 3, 64, 96), np.float32),
        np.zeros((1, 3, 64, 64), np.uint8),
        np.zeros((1, 3, 64, 64), np.float16),
        np.zeros((1, 3, 64, 64), np.float64),
    ],
    ids=lambda array: f"{array.dtype} {array.shape}",
)
def test_wrong_inputs_are_refused_and_do_no_harm(backend: Backend, wrong: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"images: expected float32 \['N', 3, 64, 64\], got"):
        backend.infer(wrong)
    assert len(backend.infer(noise(0, 1))) == 3


def test_a_ragged_last_batch(backend: Backend) -> None:
    images = list(np.random.default_rng(0).integers(0, 256, (5, 48, 80, 3), dtype=np.uint8))
    detector = Detector(backend, score_threshold=0.0, max_detections=5)
    together = [*detector(images[:3]), *detector(images[3:])]
    for found, image in zip(together, images):
        alone = detector(image)
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_fixed_batch(open_file: Callable[..., Backend], subject: Subject, count: int) -> None:
    with open_file(subject.fixed) as fixed:
        assert fixed.batch_size == 2
        assert distance(fixed.infer(noise(0, 2)), expected(subject, noise(0, 2))) < 1e-4
        with pytest.raises(InputError, match=r"expected float32 \[2, 3, 64, 64\]"):
            fixed.infer(noise(0, 1))
        images = list(np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8))
        assert len(Detector(fixed)(images)) == count  # the last batch is filled up


# --- closing


def test_closing_twice_is_fine(case: Case, subject: Subject) -> None:
    backend = case.open(subject)
    backend.infer(noise(0, 1))
    backend.close()
    backend.close()
    assert backend.spec == subject.spec


def test_a_closed_file_is_not_used_again_and_can_be_opened_again(case: Case, subject: Subject) -> None:
    if not case.opens_files:
        pytest.skip("has nothing to close: its model belongs to the caller")
    with case.open(subject) as backend:
        pass
    with pytest.raises(ModelError, match="the model was closed; open it again"):
        backend.infer(noise(0, 1))
    assert backend.spec == subject.spec
    with case.open(subject) as again:
        assert len(again.infer(noise(0, 1))) == 3


# --- threads and time


def test_threads_do_not_get_each_others_results(backend: Backend, subject: Subject) -> None:
    inputs = [noise(seed, 1 + seed % 2) for seed in range(4)]
    wanted = [backend.infer(images) for images in inputs]
    wrong: list[object] = []

    def work(index: int) -> None:
        try:
            for _ in range(10):
                if distance(backend.infer(inputs[index]), wanted[index]) > 1e-4:
                    wrong.append(index)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="tells memory by /proc, which only Linux has")
def test_memory_is_flat(case: Case, subject: Subject, tmp_path: Path) -> None:
    small = replace(subject, files={"fp32": mini(tmp_path / "mini.onnx")})
    with case.open(small) as backend:
        inputs = [noise(0, count) for count in (8, 1, 5)]
        for _ in range(case.calls // 10):
            for images in inputs:
                backend.infer(images)
        before = resident()
        for _ in range(case.calls // 3):
            for images in inputs:
                backend.infer(images)
        grown = resident() - before
    # To keep every output would take 14 kB or more a call, every input 230 kB.
    assert grown < 3_000_000


# --- files, and what they are computed in


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metadata": {}}, "no model spec in its metadata"),
        ({"input_name": "x"}, "expected one input 'images', found x; export it again"),
        (
            {"cast": TensorProto.FLOAT16},
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


@pytest.mark.parametrize(("repeats", "rows"), [(2, 6), (0, 0)])
def test_a_graph_that_gives_other_than_a_row_an_image(
    open_file: Callable[..., Backend], repeats: int, rows: int, tiny_onnx: Path, tmp_path: Path
) -> None:
    model = onnx.load(tiny_onnx)
    next(node for node in model.graph.node if node.output[0] == "p3").output[0] = "p3_before"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([repeats, 1, 1, 1]), "repeats"))
    model.graph.node.append(onnx.helper.make_node("Tile", ["p3_before", "repeats"], ["p3"]))
    next(item for item in model.graph.output if item.name == "p3").type.tensor_type.shape.dim[0].dim_param = "M"
    onnx.save(model, tmp_path / "model.onnx")
    with (
        open_file(tmp_path / "model.onnx") as backend,
        pytest.raises(ModelError, match=rf"output p3 is \[{rows}, 28, 8, 8\] for a batch of 3; export the model again"),
    ):
        backend.infer(noise(0, 3))


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


def test_bound_runs_give_what_plain_runs_do(subject: Subject) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(subject.files["fp32"]), providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_outputs()]
    ports = [Port(item.name, "float32", tuple(item.shape)) for item in session.get_outputs()]
    runs = BoundRuns(onnxruntime, session, ports, "cpu")
    earlier = []
    for seed, count in enumerate((2, 2, 1, 3, 2)):  # an input of the same size is used again, one of another is not
        images = noise(seed, 2 * count)[::2]
        before = images.copy()
        earlier.append((runs.run(names, images), session.run(names, {"images": images})))
        assert np.array_equal(images, before)
    for found, wanted in earlier:  # and later runs leave earlier results alone
        assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert [level.shape[0] for level in runs.run(names[:1], noise(0, 4))] == [4]


# --- which one a file is opened with


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("auto", r"ONNX Runtime [\d.]+, CPUExecutionProvider \(.+\)"),
        ("onnxruntime", r"ONNX Runtime [\d.]+, CPUExecutionProvider \(as asked\)"),
        ("openvino", r"OpenVINO [\d.]+, CPU, float32 \(as asked\)"),
    ],
)
def test_what_was_picked_is_said(name: str, said: str, tiny_onnx: Path, caplog: pytest.LogCaptureFixture) -> None:
    need("openvino" if name == "openvino" else "onnxruntime")
    with caplog.at_level(logging.INFO), open_backend(tiny_onnx, name) as backend:
        assert isinstance(backend, OpenVinoBackend if name == "openvino" else OrtBackend)
    (line,) = caplog.messages
    assert re.fullmatch(f"{re.escape(str(tiny_onnx))} runs in {said}", line)


def test_without_onnxruntime_openvino_is_picked(
    tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    need("openvino")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with caplog.at_level(logging.INFO), open_backend(tiny_onnx) as backend:
        assert isinstance(backend, OpenVinoBackend)
    assert caplog.messages[0].endswith("(onnxruntime is not installed)")


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_missing_library_is_named(name: str, tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingComponentError, match=f"{name} is not installed; run `pip install {name}`"):
        open_backend(tiny_onnx, name)


def test_a_backend_that_does_not_exist(tiny_onnx: Path) -> None:
    with pytest.raises(InputError, match=r"backend: expected one of auto, onnxruntime, .*, got 'tflite'"):
        open_backend(tiny_onnx, "tflite")
    with pytest.raises(InputError, match="provider: expected one of cpu, cuda, tensorrt, got 'gpu'"):
        OrtBackend(tiny_onnx, "gpu")


@pytest.fixture
def gpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """An onnxruntime that is built for GPUs, but quietly opens every file on the CPU."""
    import onnxruntime

    real = onnxruntime.InferenceSession
    providers = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda path, options, providers: real(path, options, providers[-1:]))


@pytest.mark.usefixtures("gpu_build")
@pytest.mark.parametrize(
    ("name", "provider"),
    [
        ("onnxruntime-cuda", "CUDAExecutionProvider"),
        ("onnxruntime-tensorrt", "TensorrtExecutionProvider"),
        ("auto", "CUDAExecutionProvider"),
    ],
)
def test_a_slower_provider_is_never_taken_in_silence(
    name: str, provider: str, tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.backends.open.find_gpu", lambda: Gpu("H200", "9.0"))
    with pytest.raises(MissingComponentError, match=f"{provider} does not start .* fell back to CPU.* --backend onnxruntime"):
        open_backend(tiny_onnx, name)
    with open_backend(tiny_onnx, "onnxruntime") as asked_for:
        assert asked_for.spec.name == "tiny"


@pytest.mark.usefixtures("gpu_build")
def test_a_gpu_build_without_a_gpu_runs_on_the_cpu_and_says_so(
    tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("runtime.backends.open.find_gpu", lambda: None)
    with caplog.at_level(logging.INFO), open_backend(tiny_onnx):
        assert caplog.messages[0].endswith("CPUExecutionProvider (no NVIDIA GPU found)")


def test_a_provider_that_the_build_lacks(tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    message = r"no CUDAExecutionProvider \(it has CPUExecutionProvider\); run `pip install onnxruntime-gpu`"
    with pytest.raises(MissingComponentError, match=message):
        open_backend(tiny_onnx, "onnxruntime-cuda")


def test_commands_take_a_backend(tiny_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    need("openvino")
    write_image(tmp_path / "white.png", np.full((64, 128, 3), 255, np.uint8))
    arguments = ["--engine", str(tiny_onnx), "--source", str(tmp_path / "white.png"), "--json"]
    found = []
    for name in ("onnxruntime", "openvino"):
        assert detect.main([*arguments, "--backend", name]) == 0
        (record,) = json.loads(capsys.readouterr().out)["detections"]
        found.append(record)
    assert found[0]["class_name"] == found[1]["class_name"] == "ring"
    np.testing.assert_allclose(found[1]["box"], found[0]["box"], atol=1e-2)
