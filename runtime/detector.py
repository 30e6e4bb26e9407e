"""`Detector`: picture in, detections in the picture's own pixels out. The one road through all steps."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Optional, Union, overload

import numpy as np
from numpy.typing import NDArray

from runtime import boxes as box_ops
from runtime.backend import Backend
from runtime.decode import Candidates, decode
from runtime.detections import Detections
from runtime.errors import InputError
from runtime.files import PathLike
from runtime.images import Image
from runtime.nms import nms
from runtime.opening import open_backend
from runtime.preprocess import Geometry, preprocess
from runtime.spec import ModelSpec


class Detector:
    """Detects objects in pictures.

    Args:
        model: an exported `.onnx` file, or an opened `Backend`.
        backend: what runs a file, see `open_backend`.
        score_threshold: detections below it are dropped, in [0, 1].
        iou_threshold: of NMS, in (0, 1]; the model's own by default (0.6 in the paper).
        max_detections: kept per picture.

    Example:
        detector = Detector("model.onnx")
        found = detector(cv2.imread("street.jpg"))
        for box, score, class_id in zip(found.boxes, found.scores, found.class_ids): ...
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
        """Detect in one uint8 BGR picture `[H, W, 3]` of any size, or in a list of them (run as one batch).

        Raises:
            InputError: a picture of another dtype or shape.
        """
        if isinstance(images, np.ndarray):
            return self._detect([images])[0]
        return self._detect(list(images)) if len(images) else []

    def _detect(self, images: list[Image]) -> list[Detections]:
        inputs, geometries = zip(*(preprocess(_checked(image), self.spec) for image in images))
        step = self._backend.batch_size or len(images)
        found: list[Detections] = []
        for start in range(0, len(images), step):
            outputs = self._infer(as_batch(inputs[start : start + step]), step)
            for i, geometry in enumerate(geometries[start : start + step]):
                found.append(self.postprocess([output[i] for output in outputs], geometry))
        return found

    def _infer(self, batch: NDArray[Any], step: int) -> list[NDArray[np.float32]]:
        """Run a batch, padded to the model's fixed batch size where it has one."""
        missing = (step - len(batch)) if self._backend.batch_size else 0
        if missing:
            batch = np.concatenate([batch, np.zeros((missing, *batch.shape[1:]), batch.dtype)])
        return self._backend.infer(batch)

    def postprocess(self, outputs: Sequence[NDArray[np.float32]], geometry: Geometry) -> Detections:
        """One picture's outputs, as `Backend.infer` gives them for each of a batch, to its detections in original pixels."""
        return self.select(self.candidates(outputs), geometry)[0]

    def candidates(self, outputs: Sequence[NDArray[np.float32]]) -> Candidates:
        """The boxes in one picture's outputs that reach the score threshold, in input pixels; see `decode`."""
        return decode(outputs, self.spec, self._score_threshold)

    def select(self, candidates: Candidates, geometry: Geometry) -> tuple[Detections, NDArray[np.int64]]:
        """What NMS leaves of one picture's candidates, best first, in original pixels.

        Returns:
            the detections, and int64 `[N]`, which output level (index into the spec's strides) made each.
        """
        found = Detections(geometry.to_original(candidates.boxes), candidates.scores, candidates.class_ids)
        inside = box_ops.area(found.boxes) > 0  # what lies in the letterbox border alone is nothing in the picture
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


def as_batch(inputs: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Inputs `[3, H, W]` of one or more pictures as `[N, 3, H, W]`; a single one, the most frequent case, is not copied."""
    return inputs[0][None] if len(inputs) == 1 else np.stack(inputs)


def _checked(image: Image) -> Image:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        found = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f"image: expected uint8 BGR [H, W, 3], got {found}")
    return image
