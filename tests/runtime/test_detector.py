"""`Detector` from image to boxes in the image's own pixels, over a backend whose answer is known."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import numpy as np
import pytest

from runtime.backends.base import Backend, check_images
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.errors import InputError, ModelError
from runtime.media.image import write_image
from runtime.spec import ModelSpec
from tests.support.pairs import zip_equal

MakeSpec = Callable[..., ModelSpec]


class KnownBackend:
    """Answers every image with the given maps; objectness rises by 20 times the mean brightness."""

    def __init__(self, spec: ModelSpec, maps: list[np.ndarray], batch_size: int | None = None) -> None:
        self.spec, self.batch_size = spec, batch_size
        self.maps = maps
        self.batches: list[np.ndarray] = []
        self.closed = 0

    def infer(self, images: np.ndarray) -> list[np.ndarray]:
        check_images(images, self.spec, self.batch_size)
        self.batches.append(images)
        outputs = []
        for raw in self.maps:
            batch = np.repeat(raw[None], len(images), 0)
            batch[:, 4 :: 5 + self.spec.num_classes] += 20 * images.mean((1, 2, 3))[:, None, None, None]
            outputs.append(batch)
        return outputs

    def close(self) -> None:
        self.closed += 1

    def __enter__(self) -> Backend:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


@pytest.fixture
def backend(make_spec: MakeSpec, known_maps: Callable[[ModelSpec], list[np.ndarray]]) -> Callable[..., KnownBackend]:
    def build(batch_size: int | None = None, **changes: object) -> KnownBackend:
        spec = make_spec(**changes)
        return KnownBackend(spec, known_maps(spec), batch_size)

    return build


def white(width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), 255, np.uint8)


# The known object covers (32, 18, 48, 30) of the 64 x 64 input.
@pytest.mark.parametrize(
    ("mode", "size", "box"),
    [
        ("letterbox", (64, 64), [32, 18, 48, 30]),
        ("stretch", (64, 64), [32, 18, 48, 30]),
        ("letterbox", (128, 128), [64, 36, 96, 60]),
        # wide: 64 x 32 of the input from y = 16; tall: 32 x 64 from x = 16
        ("letterbox", (128, 64), [64, 4, 96, 28]),
        ("letterbox", (64, 128), [32, 36, 64, 60]),
        ("stretch", (128, 64), [64, 18, 96, 30]),
        ("stretch", (32, 640), [16, 180, 24, 300]),
        # wide, 64 x 16 from y = 24: the object's upper half lies in the border and is cut
        ("letterbox", (256, 64), [128, 0, 192, 24]),
    ],
)
def test_boxes_are_in_original_pixels(
    mode: str, size: tuple[int, int], box: list[float], backend: Callable[..., KnownBackend]
) -> None:
    found = Detector(backend(resize=mode))(white(*size))
    np.testing.assert_allclose(found.boxes, [box], atol=1e-3)
    assert found.class_ids.tolist() == [1]
    assert found.scores[0] > 0.8 and found.boxes.dtype == np.float32


def test_what_lies_in_the_border_alone_is_dropped(backend: Callable[..., KnownBackend]) -> None:
    detector = Detector(backend(pad_value=255))
    assert len(detector(white(640, 70))) == 1  # y from 28 or 29: the object reaches 1 or 2 px into the image
    assert len(detector(white(640, 20))) == 0  # y from 31: beyond the object


def test_black_holds_nothing(backend: Callable[..., KnownBackend]) -> None:
    found = Detector(backend(), score_threshold=0.01)(np.zeros((64, 64, 3), np.uint8))
    assert len(found) == 0 and found.boxes.shape == (0, 4)


@pytest.mark.parametrize("batch_size", [None, 1, 2, 3, 5])
def test_a_list_equals_its_images(batch_size: int | None, backend: Callable[..., KnownBackend]) -> None:
    images = [white(64, 64), np.zeros((30, 40, 3), np.uint8), white(128, 64), white(1, 1), white(40, 64)]
    one_by_one = [Detector(backend())(image) for image in images]
    model = backend(batch_size=batch_size)
    together = Detector(model)(images)
    assert [len(found) for found in together] == [1, 0, 1, 1, 1]
    for single, found in zip_equal(one_by_one, together):
        np.testing.assert_array_equal(found.boxes, single.boxes)
        np.testing.assert_array_equal(found.scores, single.scores)
    expected = {None: [5], 1: [1] * 5, 2: [2] * 3, 3: [3] * 2, 5: [5]}[batch_size]
    assert [len(batch) for batch in model.batches] == expected


def test_an_incomplete_batch_is_padded(backend: Callable[..., KnownBackend]) -> None:
    model = backend(batch_size=4)
    assert len(Detector(model)(white(64, 64))) == 1
    assert model.batches[0].shape == (4, 3, 64, 64) and not model.batches[0][1:].any()


def outputs_but_last(change: Callable[[np.ndarray], object]) -> Callable[[list[np.ndarray]], list[object]]:
    return lambda outputs: [*outputs[:-1], change(outputs[-1])]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda outputs: outputs[:2], "gave 2 outputs, expected p5, p4, p3"),
        (lambda outputs: [*outputs, outputs[0]], "gave 4 outputs"),
        (lambda outputs: [], "gave 0 outputs"),
        (lambda outputs: outputs[::-1], r"output p5 is float32 \[2, 28, 8, 8\] .* expected float32 \[2, 28, 2, 2\]"),
        (outputs_but_last(lambda last: last[:1]), r"output p3 is float32 \[1, 28, 8, 8\] for a batch of 2"),
        (outputs_but_last(lambda last: last[..., None]), r"output p3 is float32 \[2, 28, 8, 8, 1\]"),
        (outputs_but_last(lambda last: last.ravel()), r"output p3 is float32 \[3584\]"),
        (outputs_but_last(lambda last: last[0, 0, 0, 0]), "output p3 is float32"),
        (outputs_but_last(lambda last: last.astype(np.float64)), "output p3 is float64"),
        (outputs_but_last(lambda last: last.astype(np.float16)), "output p3 is float16"),
        (outputs_but_last(lambda last: last.astype(object)), "output p3 is object"),
        (outputs_but_last(lambda last: last.tolist()), "output p3 is list"),
        (outputs_but_last(lambda last: None), "output p3 is NoneType"),
    ],
)
def test_a_backend_that_breaks_its_contract(
    change: Callable[[list[np.ndarray]], list[np.ndarray]], message: str, backend: Callable[..., KnownBackend]
) -> None:
    model = backend()
    honest = model.infer
    model.infer = lambda images: change(honest(images))  # type: ignore[method-assign]
    with pytest.raises(ModelError, match=message):
        Detector(model)([white(64, 64)] * 2)


@pytest.mark.parametrize(
    "view",
    [
        lambda image: image[::-1, ::-1][::-1, ::-1],
        lambda image: np.asfortranarray(image),
        lambda image: np.flip(np.flip(image, 2).copy(), 2),
        lambda image: np.repeat(image, 2, axis=1)[:, ::2],
        lambda image: np.concatenate([image, image], axis=2)[..., :3],
        lambda image: np.pad(image, ((3, 5), (7, 1), (0, 0)))[3:-5, 7:-1],
        lambda image: np.ma.masked_array(image),
        lambda image: np.require(image, requirements="C").view(),
    ],
)
def test_any_layout_in_memory_is_the_same_image(
    view: Callable[[np.ndarray], np.ndarray], backend: Callable[..., KnownBackend]
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    seen = view(image)
    seen.flags.writeable = False
    plain, other = backend(), backend()
    Detector(plain)(image)
    Detector(other)(seen)
    assert np.array_equal(plain.batches[0], other.batches[0])


def sized(height: int, width: int) -> np.ndarray:
    """An image of any size that takes no memory."""
    return np.broadcast_to(np.uint8(0), (height, width, 3))


@pytest.mark.parametrize("nothing", [[], ()])
def test_an_empty_list(nothing: list[np.ndarray], backend: Callable[..., KnownBackend]) -> None:
    model = backend(batch_size=2)
    assert Detector(model)(nothing) == [] and model.batches == []


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.empty((0, 0, 3), np.uint8), r"got uint8 \[0, 0, 3\]"),
        (np.empty((0, 5, 3), np.uint8), r"got uint8 \[0, 5, 3\]"),
        (np.zeros((8, 8), np.uint8), r"got uint8 \[8, 8\]"),
        (np.zeros((8, 8, 1), np.uint8), r"got uint8 \[8, 8, 1\]"),
        (np.zeros((8, 8, 4), np.uint8), r"got uint8 \[8, 8, 4\]"),
        (np.zeros((3, 8, 8), np.uint8), r"got uint8 \[3, 8, 8\]"),
        (np.zeros((1, 8, 8, 3), np.uint8), r"got uint8 \[1, 8, 8, 3\]"),
        (np.zeros((8, 8, 3), np.float32), r"got float32 \[8, 8, 3\]"),
        (np.zeros((8, 8, 3), np.uint16), r"got uint16 \[8, 8, 3\]"),
        (sized(1, 2**30), "image: 1073741824x1, at most 268 million pixels"),
        (sized(2**30, 1), "image: 1x1073741824, at most"),
        (sized(2**14, 2**14 + 1), "image: 16385x16384, at most"),
        (None, "got None; cv2.imread returns None where the file is missing or no image"),
        ("absent.jpg", "absent.jpg: "),
        (Path("absent.jpg"), "absent.jpg: "),
        (b"image.jpg", "got bytes"),
    ],
)
def test_wrong_images(image: object, message: str, backend: Callable[..., KnownBackend]) -> None:
    model = backend()
    with pytest.raises(InputError, match=message):
        Detector(model)([white(8, 8), image])  # type: ignore[list-item]
    if not isinstance(image, bytes):  # bytes are a sequence
        with pytest.raises(InputError, match=message):
            Detector(model)(image)  # type: ignore[call-overload]
    assert model.batches == []  # refused before anything ran


@pytest.mark.parametrize(
    "options",
    [
        {"score_threshold": -0.1},
        {"score_threshold": 1.1},
        {"score_threshold": float("nan")},
        {"iou_threshold": 0},
        {"iou_threshold": 1.1},
        {"iou_threshold": float("nan")},
        {"max_detections": 0},
        {"max_detections": -1},
    ],
)
def test_parameters_out_of_range(options: dict[str, float], backend: Callable[..., KnownBackend]) -> None:
    with pytest.raises(InputError, match=next(iter(options)).split("_")[0].replace("iou", "IoU")):
        Detector(backend(), **options)  # type: ignore[arg-type]


def everywhere(spec: ModelSpec) -> list[np.ndarray]:
    """Maps with an object of the first class in every cell of every anchor."""
    maps = [np.zeros(spec.map_shape(level), np.float32) for level in range(3)]
    for raw in maps:
        raw.reshape(-1, 7, *raw.shape[1:])[:, 4:6] = 9
    return maps


def test_thresholds_are_applied(make_spec: MakeSpec) -> None:
    model = KnownBackend(make_spec(), everywhere(make_spec()))
    image = np.zeros((64, 64, 3), np.uint8)
    counts = [len(Detector(model, iou_threshold=iou, max_detections=1000)(image)) for iou in (0.1, 0.6, 1)]
    assert counts[0] < counts[1] < counts[2] == 4 * (4 + 16 + 64)
    assert len(Detector(model, iou_threshold=1, max_detections=7)(image)) == 7
    assert len(Detector(model, score_threshold=0.9999)(image)) == 0
    assert len(Detector(model, max_detections=1000)(image)) == counts[1]  # the spec's own 0.6
    stricter = KnownBackend(make_spec(nms_threshold=0.1), everywhere(make_spec()))
    assert len(Detector(stricter, max_detections=1000)(image)) == counts[0]


def test_best_first(make_spec: MakeSpec) -> None:
    rng = np.random.default_rng(0)
    spec = make_spec()
    maps = [rng.normal(0, 2, spec.map_shape(level)).astype(np.float32) for level in range(3)]
    found = Detector(KnownBackend(spec, maps))(np.zeros((50, 90, 3), np.uint8))
    assert len(found) == 100 and (np.diff(found.scores) <= 0).all()
    assert (found.boxes >= 0).all() and (found.boxes <= [90, 50, 90, 50]).all()


def test_close_and_context(backend: Callable[..., KnownBackend]) -> None:
    model = backend()
    with Detector(model) as detector:
        assert detector.spec is model.spec
    assert model.closed == 1


def test_a_long_list_is_run_in_parts(backend: Callable[..., KnownBackend]) -> None:
    model = backend()
    assert [len(found) for found in Detector(model)([white(8, 8)] * 40)] == [1] * 40
    assert [len(batch) for batch in model.batches] == [16, 16, 8]


# --- threads


def mixed() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.full((*rng.integers(20, 200, 2), 3), shade, np.uint8) for shade in (255, 0, 250, 255, 3, 245, 255)]


def same(found: Detections, expected: Detections) -> bool:
    return all(np.array_equal(getattr(found, name), getattr(expected, name)) for name in ("boxes", "scores", "class_ids"))


def test_several_threads_get_what_one_gets(tiny_onnx: Path) -> None:
    images = mixed()
    with Detector(tiny_onnx) as detector, ThreadPoolExecutor(6) as pool:
        expected = [detector(image) for image in images]
        assert {len(found) for found in expected} == {0, 1}
        orders = [np.random.default_rng(seed).permutation(len(images)) for seed in range(30)]

        def work(number: int) -> bool:
            order = orders[number]
            chosen = [images[index] for index in order]
            together = detector(chosen) if number % 2 else [found for _, found in detector.stream(chosen)]
            return all(same(found, expected[index]) for found, index in zip_equal(together, order))

        assert all(pool.map(work, range(30)))


def test_closing_while_other_threads_detect(tiny_onnx: Path) -> None:
    detector = Detector(tiny_onnx)
    started = threading.Barrier(4)

    def work(_: int) -> str:
        started.wait()
        try:
            while True:
                assert len(detector(white(64, 64))) == 1
        except ModelError as error:
            return str(error)

    with ThreadPoolExecutor(3) as pool:
        said = pool.map(work, range(3))
        started.wait()
        detector.close()
        detector.close()
        assert set(said) == {"the model was closed; open it again"}


# --- streams


@pytest.mark.parametrize(("fixed", "batch", "runs"), [(None, None, 7), (None, 3, 3), (4, None, 2), (2, 3, 5)])
def test_a_stream_gives_each_image_and_its_detections(
    fixed: int | None, batch: int | None, runs: int, backend: Callable[..., KnownBackend]
) -> None:
    model, images = backend(batch_size=fixed), mixed()
    detector = Detector(model)
    streamed = list(detector.stream(iter(images), batch=batch))
    assert len(model.batches) == runs
    for (image, found), given_, expected in zip_equal(streamed, images, detector(images)):
        assert image is given_ and same(found, expected)


def test_a_stream_holds_five_batches_at_most(backend: Callable[..., KnownBackend]) -> None:
    taken = 0

    def source() -> Iterator[np.ndarray]:
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield white(8, 8)

    for batch in (1, 3):
        taken = 0
        for used, _ in enumerate(Detector(backend()).stream(source(), batch=batch), 1):
            time.sleep(0.001)
            assert taken - used < 5 * batch


def test_the_path_of_a_file_does_as_its_image_does(tmp_path: Path, backend: Callable[..., KnownBackend]) -> None:
    file = tmp_path / "white.png"
    write_image(file, white(8, 8))
    detector = Detector(backend(batch_size=2))
    expected = detector(white(8, 8)).boxes.tolist()
    assert len(expected) == 1
    given = [str(file), file, white(8, 8)]
    singles = [detector(str(file)), detector(file)]
    for found in singles + detector(given) + [found for _, found in detector.stream(given)]:
        assert found.boxes.tolist() == expected
    assert [image.shape for image, _ in detector.stream(given)] == [(8, 8, 3)] * 3


def test_a_bad_image_in_a_stream_comes_after_those_before_it(backend: Callable[..., KnownBackend]) -> None:
    results = Detector(backend()).stream([white(8, 8)] * 4 + [np.zeros((8, 8, 3))], batch=3)
    assert [len(next(results)[1]) for _ in range(4)] == [1] * 4
    with pytest.raises(InputError, match=r"got float64 \[8, 8, 3\]"):
        next(results)


def test_a_stream_of_a_closed_model(tiny_onnx: Path) -> None:
    detector = Detector(tiny_onnx)
    results = detector.stream(white(64, 64) for _ in range(1000))
    assert len(next(results)[1]) == 1
    detector.close()
    with pytest.raises(ModelError, match="the model was closed; open it again"):
        list(results)


def test_a_batch_of_none_is_refused_at_once(backend: Callable[..., KnownBackend]) -> None:
    with pytest.raises(InputError, match="batch: expected at least 1, got 0"):
        Detector(backend()).stream([], batch=0)


def test_a_file_of_format_1_still_detects(
    make_spec: MakeSpec, write_onnx: Callable[..., Path], tiny_onnx: Path, tmp_path: Path
) -> None:
    metadata = {key: text for key, text in make_spec().to_metadata().items() if key != "head"}
    old = write_onnx(tmp_path / "old.onnx", metadata={**metadata, "format_version": "1"})
    with Detector(old) as first, Detector(tiny_onnx) as second:
        found, expected = first(white(64, 64)), second(white(64, 64))
    assert len(found) == 1
    np.testing.assert_array_equal(found.boxes, expected.boxes)


def test_the_score_threshold_is_the_callers_the_models_or_the_default(backend: Callable[..., KnownBackend]) -> None:
    assert Detector(backend()).score_threshold == 0.25
    assert Detector(backend(operating_threshold=0.4)).score_threshold == 0.4
    assert Detector(backend(operating_threshold=0.4), score_threshold=0).score_threshold == 0
