"""`Detector`: image in, detections in the image's own pixels out. The one road through all steps."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from types import TracebackType
from typing import Any, Optional, Union, overload

import numpy as np
from numpy.typing import NDArray

from runtime.backends.base import Backend
from runtime.backends.open import open_backend
from runtime.detections import Detections
from runtime.errors import InputError
from runtime.files import PathLike
from runtime.media.image import Image, check_image
from runtime.ops import boxes as box_ops
from runtime.ops.decode import Candidates, decode
from runtime.ops.nms import nms
from runtime.ops.preprocess import Geometry, preprocess
from runtime.spec import ModelSpec
from runtime.streaming.detection_queue import DetectionQueue
from runtime.streaming.prefetch import batches, flat, prefetch

# On a CPU more at a time only costs memory: the full YOLOv3+ASFF at 416 takes 0.9 GB for one image, 2.7 for 16, 5.3 for 32.
_LARGEST_BATCH = 16


class Detector:
    """Detects objects in images. May be used by several threads at once; `close` lets runs in other threads end.

    Args:
        model: an exported `.onnx` file, or an opened `Backend`.
        backend: what runs a file, see `open_backend`.
        score_threshold: detections below it are dropped, in [0, 1].
        iou_threshold: of NMS, in (0, 1]; the model's own by default (0.6 in the paper).
        max_detections: kept per image.

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
        score_threshold: float = 0.25,
        iou_threshold: Optional[float] = None,
        max_detections: int = 100,
    ) -> None:
        if not 0 <= score_threshold <= 1:
            raise InputError(f"score threshold: expected a number in 0-1, got {score_threshold}")
        if iou_threshold is not None and not 0 < iou_threshold <= 1:
            raise InputError(f"IoU threshold: expected a number above 0 and at most 1, got {iou_threshold}")
        if max_detections < 1:
            raise InputError(f"max detections: expected at least 1, got {max_detections}")
        self._backend: Backend = model if hasattr(model, "infer") else open_backend(model, backend)  # type: ignore[assignment]
        self._score_threshold = score_threshold
        self._iou_threshold = self.spec.nms_threshold if iou_threshold is None else iou_threshold
        self._max_detections = max_detections

    @property
    def spec(self) -> ModelSpec:
        """The model's description, class names among it."""
        return self._backend.spec

    @overload
    def __call__(self, images: Image) -> Detections: ...

    @overload
    def __call__(self, images: Sequence[Image]) -> list[Detections]: ...

    def __call__(self, images: Union[Image, Sequence[Image]]) -> Union[Detections, list[Detections]]:
        """Detect in one uint8 BGR image `[H, W, 3]` of any size, or in a list of them.

        A list is run 16 images at a time, or as many as the model's fixed batch size, so that its length costs no memory.

        Raises:
            InputError: an image of another dtype or shape.
            ModelError: the model was closed, or is damaged.
        """
        return self._detect([images])[0] if isinstance(images, np.ndarray) else self._detect(list(images))

    def stream(
        self, images: Iterable[Image], *, batch: Optional[int] = None
    ) -> Generator[tuple[Image, Detections], None, None]:
        """Detect in images as they come: each with its detections, in order.

        `images` is read in one other thread and the model runs in a second one, so that reading, detecting and what is done
        with the results overlap. At most 5 batches of images are held at a time. An error of `images` is raised after the
        results of the images before it. Leaving the loop ends both threads, once they are done with what they are at;
        `images` is closed too if it is a generator.

        Args:
            batch: images run at a time; by default the model's fixed batch size, or 1.

        Raises:
            InputError: an image of another dtype or shape, after the results of those before it.

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

        read = prefetch(images, check_image, depth=2 * step)
        return flat(prefetch(batches(read, step), run, depth=2))

    def queue(self, *, batch: Optional[int] = None) -> DetectionQueue:
        """For any number of asyncio tasks that each have images of their own, see `DetectionQueue`.

        Args:
            batch: images run at a time, at most: those that are waiting. By default the model's fixed batch size, or 1.

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

    def _batch(self, wanted: Optional[int]) -> int:
        if wanted is not None and wanted < 1:
            raise InputError(f"batch: expected at least 1, got {wanted}")
        return wanted or self._backend.batch_size or 1

    def _detect(self, images: Sequence[Image]) -> list[Detections]:
        for image in images:
            check_image(image)
        step = self._backend.batch_size or _LARGEST_BATCH
        found: list[Detections] = []
        for start in range(0, len(images), step):
            inputs, geometries = zip(*(preprocess(image, self.spec) for image in images[start : start + step]))
            outputs = self._infer(as_batch(inputs))
            for i, geometry in enumerate(geometries):
                found.append(self.postprocess([output[i] for output in outputs], geometry))
        return found

    def _infer(self, batch: NDArray[Any]) -> list[NDArray[np.float32]]:
        """Run a batch, padded to the model's fixed batch size where it has one."""
        missing = (self._backend.batch_size or len(batch)) - len(batch)
        if missing:
            batch = np.concatenate([batch, np.zeros((missing, *batch.shape[1:]), batch.dtype)])
        return self._backend.infer(batch)

    def postprocess(self, outputs: Sequence[NDArray[np.float32]], geometry: Geometry) -> Detections:
        """One image's outputs, as `Backend.infer` gives them for each of a batch, to its detections in original pixels."""
        return self.select(self.candidates(outputs), geometry)[0]

    def candidates(self, outputs: Sequence[NDArray[np.float32]]) -> Candidates:
        """The boxes in one image's outputs that reach the score threshold, in input pixels; see `decode`."""
        return decode(outputs, self.spec, self._score_threshold)

    def select(self, candidates: Candidates, geometry: Geometry) -> tuple[Detections, NDArray[np.int64]]:
        """What NMS leaves of one image's candidates, best first, in original pixels.

        Returns:
            the detections, and int64 `[N]`, which output level (index into the spec's strides) made each.
        """
        found = Detections(geometry.to_original(candidates.boxes), candidates.scores, candidates.class_ids)
        inside = box_ops.area(found.boxes) > 0  # what lies in the letterbox border alone is nothing in the image
        found = found[inside]
        keep = nms(candidates.boxes[inside], found.scores, found.class_ids, self._iou_threshold, self._max_detections)
        return found[keep], candidates.levels[inside][keep]

    def close(self) -> None:
        """Release the model."""
        self._backend.close()

    def __enter__(self) -> Detector:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()


def as_batch(inputs: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Inputs of one or more images as `[N, *spec.input_shape]`; a single one, the most frequent case, is not copied."""
    return inputs[0][None] if len(inputs) == 1 else np.stack(inputs)
