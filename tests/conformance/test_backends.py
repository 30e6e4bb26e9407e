"""Conformance suite of the backends: every test runs on each. A new backend joins by an entry in `CASES`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.runtime_references import opencv_preprocess
from export.onnx_export.tracer import write_onnx
from runtime.backends.base import Backend
from runtime.benchmark.images import made_up_image
from runtime.benchmark.timing import interleave, milliseconds
from runtime.detector import Detector
from runtime.errors import InputError, ModelError
from runtime.ops.boxes import xyxy_to_xywh
from runtime.ops.preprocess import preprocess
from tests.conformance.cases import CASES, Case, Subject, distance, expected
from tests.support.packages import need
from tests.support.small_models import noise


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


# --- what goes in and what comes out


def test_the_spec_is_the_models(backend: Backend, subject: Subject) -> None:
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


@pytest.mark.perf
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


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="tells memory by /proc, which only Linux has")
@pytest.mark.parametrize("name", CASES)
def test_memory_is_flat(name: str, tmp_path: Path) -> None:
    need(CASES[name].package)
    command = [sys.executable, "-m", "tests.conformance.memory_growth", name, str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # torch's threads would wait for each other on a busy machine
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, env=environment)
    # To keep every output would take 14 kB or more a call, every input 230 kB.
    assert int(done.stdout) < 3_000_000
