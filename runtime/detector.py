"""Runs preprocessing, inference, decoding and NMS: images in, detections in original pixels out."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Optional, Union, overload

import numpy as np
from numpy.typing import NDArray

from runtime.backends.base import Backend, check_outputs
from runtime.backends.open import open_backend
from runtime.detections import Detections
from runtime.errors import InputError
from runtime.files import PathLike
from runtime.media.image import ImageLike, as_image
from runtime.ops import boxes as box_ops
from runtime.ops.decode import Candidates, decode
from runtime.ops.image import Image, check_image
from runtime.ops.nms import nms
from runtime.ops.preprocess import Geometry, preprocess
from runtime.spec import ModelSpec
from runtime.streaming.detection_queue import DetectionQueue
from runtime.streaming.prefetch import batches, flat, prefetch
from runtime.streaming.statistics import RunStatistics

DEFAULT_SCORE = 0.25
"""Lowest score of detections where neither the caller nor the model's spec names one."""

# On a CPU more at a time only costs memory: the full YOLOv3+ASFF at 416 takes 0.9 GB for one image, 2.7 for 16, 5.3 for 32.
_LARGEST_BATCH = 16


class Detector:
    """Detects objects in images. Thread-safe; `close` waits for inference that runs in other threads.

    Args:
        model: an exported `.onnx` file, another model that `open_backend` takes, or an opened `Backend`.
        backend: what runs a file, see `open_backend`.
        score_threshold: detections below it are dropped, in [0, 1]; by default the operating threshold in the model's spec,
            or 0.25 where it has none.
        iou_threshold: of NMS, in (0, 1]; the model's own by default (0.6 in the paper).
        max_detections: kept per image.
        class_ids: of the only classes that are detected; all by default.
        statistics: counts images and detections, and times the stages.

    Example:
        >>> import cv2
        >>> from runtime import Detector
        >>> with Detector("model.onnx") as detector:
        ...     found = detector(cv2.imread("street.jpg"))
        >>> for box, score, class_id in zip(found.boxes, found.scores, found.class_ids):
        ...     print(detector.spec.class_names[class_id], round(float(score), 2), box.round().tolist())
        ring 0.99 [64.0, 4.0, 96.0, 28.0]
    """

    def __init__(
        self,
        model: Union[PathLike, Backend],
        *,
        backend: str = "auto",
        score_threshold: Optional[float] = None,
        iou_threshold: Optional[float] = None,
        max_detections: int = 100,
        class_ids: Optional[Sequence[int]] = None,
        statistics: Optional[RunStatistics] = None,
    ) -> None:
        if score_threshold is not None and not 0 <= score_threshold <= 1:
            raise InputError(f"score threshold: expected a number in 0-1, got {score_threshold}")
        if iou_threshold is not None and not 0 < iou_threshold <= 1:
            raise InputError(f"IoU threshold: expected a number above 0 and at most 1, got {iou_threshold}")
        if max_detections < 1:
            raise InputError(f"max detections: expected at least 1, got {max_detections}")
        self._backend: Backend = model if hasattr(model, "infer") else open_backend(model, backend)  # type: ignore[assignment]
        self._score_threshold = default_score_threshold(self.spec) if score_threshold is None else score_threshold
        self._iou_threshold = self.spec.nms_threshold if iou_threshold is None else iou_threshold
        self._max_detections = max_detections
        self._class_ids = None if class_ids is None else np.asarray(class_ids, np.int64)
        self._statistics = statistics

    @property
    def spec(self) -> ModelSpec:
        """The model's spec."""
        return self._backend.spec

    @property
    def score_threshold(self) -> float:
        """Lowest score of a detection, in [0, 1]."""
        return self._score_threshold

    @property
    def batch_size(self) -> int:
        """The model's fixed batch size; 1 where it takes any."""
        return self._batch(None)

    @overload
    def __call__(self, images: ImageLike) -> Detections: ...  # type: ignore[overload-overlap]  # a str is a Sequence[str] too

    @overload
    def __call__(self, images: Sequence[ImageLike]) -> list[Detections]: ...

    def __call__(self, images: Union[ImageLike, Sequence[ImageLike]]) -> Union[Detections, list[Detections]]:
        """Detects in one uint8 BGR image `[H, W, 3]` of any size, in the image of a file, or in a list of such.

        A list is run in batches of 16, or of the model's fixed batch size, so memory does not grow with its length.

        Args:
            images: arrays, or paths that `read_image` reads; arrays are checked before anything is run.

        Raises:
            InputError: an image of another dtype or shape, None, or a file that cannot be read.
            ModelError: the model was closed, or is damaged.
        """
        if images is None or isinstance(images, (np.ndarray, str, os.PathLike)):
            return self._detect([as_image(images)])[0]
        checked = [image if isinstance(image, (str, os.PathLike)) else check_image(image) for image in images]
        parts = batches(checked, self._backend.batch_size or _LARGEST_BATCH)
        return [found for part in parts for found in self._detect([as_image(image) for image in part])]

    def stream(
        self, images: Iterable[ImageLike], *, batch: Optional[int] = None
    ) -> Generator[tuple[Image, Detections], None, None]:
        """Detects in images as they come; yields each with its detections, in order.

        One thread reads `images` and a second one runs the model, so that reading, inference and the use of the results
        overlap. At most 5 batches of images are held at a time. An error raised by `images` is raised here after the results
        of the images before it. Leaving the loop ends both threads after their current item, and closes `images` if it is a
        generator.

        Args:
            images: uint8 BGR `[H, W, 3]` each, or the path of a file.
            batch: batch size; by default the model's fixed one, or 1.

        Raises:
            InputError: what a call refuses, after the results of the images before it.

        Example:
            >>> from runtime import Detector, read_video
            >>> with Detector("model.onnx") as detector:
            ...     for frame, found in detector.stream(read_video("film.mp4")):
            ...         print(frame.shape, len(found))
            (64, 128, 3) 0
            (64, 128, 3) 1
        """
        step = self._batch(batch)

        def run(part: list[Image]) -> list[tuple[Image, Detections]]:
            return list(zip(part, self._detect(part)))

        read = prefetch(images, as_image, depth=2 * step)
        return flat(prefetch(batches(read, step), run, depth=2))

    def queue(self, *, batch: Optional[int] = None) -> DetectionQueue:
        """Returns a queue that batches images from any number of asyncio tasks, see `DetectionQueue`.

        Args:
            batch: largest batch size; by default the model's fixed one, or 1.

        Example:
            >>> import asyncio, cv2
            >>> from runtime import Detector
            >>> async def main(detector, paths):
            ...     async with detector.queue(batch=4) as queue:
            ...         return await asyncio.gather(*(queue.detect(cv2.imread(path)) for path in paths))
            >>> with Detector("model.onnx") as detector:
            ...     [len(found) for found in asyncio.run(main(detector, ["street.jpg", "night.jpg"]))]
            [1, 0]
        """
        return DetectionQueue(self._detect, self._batch(batch))

    def timed(self, images: Sequence[Image], times: RunStatistics) -> list[Detections]:
        """Detects in a list of images as a call does, and adds the time of its stages to `times` alone."""
        return self._detect(images, times)

    def _batch(self, wanted: Optional[int]) -> int:
        if wanted is not None and wanted < 1:
            raise InputError(f"batch: expected at least 1, got {wanted}")
        return wanted or self._backend.batch_size or 1

    def _detect(self, images: Sequence[Image], times: Optional[RunStatistics] = None) -> list[Detections]:
        times = self._statistics if times is None else times
        for image in images:
            check_image(image)
        step = self._backend.batch_size or _LARGEST_BATCH
        found: list[Detections] = []
        for start in range(0, len(images), step):
            with _timed("preprocess", times):
                inputs, geometries = zip(*(preprocess(image, self.spec) for image in images[start : start + step]))
                batch = as_batch(inputs)
            with _timed("infer", times):
                outputs = self._infer(batch)
            with _timed("postprocess", times):
                rows = [[output[i] for output in outputs] for i in range(len(geometries))]
                part = [self.postprocess(row, geometry) for row, geometry in zip(rows, geometries)]
            found += part
            if self._statistics is not None:
                self._record(self._statistics, part, rows)
        return found

    def _record(self, statistics: RunStatistics, part: list[Detections], rows: Sequence[Sequence[NDArray[np.float32]]]) -> None:
        """Counts the images of a batch; while nothing was found in any, looks for the highest score below the threshold."""
        statistics.count([len(found) for found in part])
        if not statistics.detections:
            for row in rows:
                # Only what is better than the best so far is decoded.
                seen = self._of_chosen_classes(decode(row, self.spec, statistics.best_score or 0.0)).scores
                statistics.see(float(seen.max(initial=0.0)))

    def _infer(self, batch: NDArray[Any]) -> list[NDArray[np.float32]]:
        """Runs a batch, padded to the model's fixed batch size where it has one."""
        missing = (self._backend.batch_size or len(batch)) - len(batch)
        if missing:
            batch = np.concatenate([batch, np.zeros((missing, *batch.shape[1:]), batch.dtype)])
        outputs = self._backend.infer(batch)
        check_outputs(outputs, self.spec.outputs, len(batch))  # a backend may be anybody's
        return outputs

    def postprocess(self, outputs: Sequence[NDArray[np.float32]], geometry: Geometry) -> Detections:
        """Decodes the outputs of one image of a batch to its detections in original pixels."""
        return self.select(self.candidates(outputs), geometry)[0]

    def candidates(self, outputs: Sequence[NDArray[np.float32]]) -> Candidates:
        """Decodes one image's outputs to the boxes above the score threshold, in input pixels; see `decode`."""
        return self._of_chosen_classes(decode(outputs, self.spec, self._score_threshold))

    def _of_chosen_classes(self, candidates: Candidates) -> Candidates:
        return candidates if self._class_ids is None else candidates[np.isin(candidates.class_ids, self._class_ids)]

    def select(self, candidates: Candidates, geometry: Geometry) -> tuple[Detections, NDArray[np.int64]]:
        """Applies NMS to one image's candidates; the result is best first, in original pixels.

        Returns:
            The detections, and int64 `[N]`: the output level of each, an index into the spec's strides.
        """
        found = Detections(geometry.to_original(candidates.boxes), candidates.scores, candidates.class_ids)
        inside = box_ops.area(found.boxes) > 0  # a box in the letterbox border alone shows nothing of the image
        found = found[inside]
        keep = nms(candidates.boxes[inside], found.scores, found.class_ids, self._iou_threshold, self._max_detections)
        return found[keep], candidates.levels[inside][keep]

    def close(self) -> None:
        """Releases the model."""
        self._backend.close()

    def __enter__(self) -> Detector:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()


def default_score_threshold(spec: ModelSpec) -> float:
    """Returns the lowest score of a detection where the caller names none."""
    return DEFAULT_SCORE if spec.operating_threshold is None else spec.operating_threshold


def _timed(stage: str, times: Optional[RunStatistics]) -> AbstractContextManager[None]:
    return contextlib.nullcontext() if times is None else times.time(stage)


def as_batch(inputs: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Stacks prepared images to `[N, *spec.input_shape]`; a single one, the most frequent case, is not copied."""
    return inputs[0][None] if len(inputs) == 1 else np.stack(inputs)
