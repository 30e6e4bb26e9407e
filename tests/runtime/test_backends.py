"""What every backend promises, asked of each of them. A new one passes by being added to `CASES`."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_models import mini, write_precisions
from small_models import CLASSES, noise, settled, tiny

from export.tracer import write_onnx
from runtime.backend import Backend
from runtime.detector import Detector
from runtime.errors import InputError, ModelError
from runtime.openvino_backend import OpenVinoBackend
from runtime.ort_backend import OrtBackend
from runtime.spec import ModelSpec
from train.backend import TorchBackend
from train.model import DetectorModel
from train.spec import model_spec


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


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_names_shapes_dtypes_and_values(backend: Backend, subject: Subject, batch: int) -> None:
    images = noise(batch, batch)
    maps = backend.infer(images)
    assert [level.shape for level in maps] == [(batch, *subject.spec.output_shape(i)) for i in range(3)]
    assert {level.dtype for level in maps} == {np.dtype(np.float32)}
    assert distance(maps, expected(subject, images)) < 1e-4


def test_a_batch_is_its_pictures(backend: Backend) -> None:
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
    pictures = list(np.random.default_rng(0).integers(0, 256, (5, 48, 80, 3), dtype=np.uint8))
    detector = Detector(backend, score_threshold=0.0, max_detections=5)
    together = [*detector(pictures[:3]), *detector(pictures[3:])]
    for found, picture in zip(together, pictures):
        alone = detector(picture)
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_fixed_batch(open_file: Callable[..., Backend], subject: Subject, count: int) -> None:
    with open_file(subject.fixed) as fixed:
        assert fixed.batch_size == 2
        assert distance(fixed.infer(noise(0, 2)), expected(subject, noise(0, 2))) < 1e-4
        with pytest.raises(InputError, match=r"expected float32 \[2, 3, 64, 64\]"):
            fixed.infer(noise(0, 1))
        pictures = list(np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8))
        assert len(Detector(fixed)(pictures)) == count  # the last batch is filled up


# --- closing


def test_closing_twice_is_fine(case: Case, subject: Subject) -> None:
    backend = case.open(subject)
    backend.infer(noise(0, 1))
    backend.close()
    backend.close()


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
