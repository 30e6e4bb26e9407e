"""Detections of one image: boxes, scores and class ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.components import load


@dataclass(frozen=True, eq=False)
class Detections:
    """Detections of one image, best first.

    Attributes:
        boxes: float32 `[N, 4]`, xyxy in pixels of the original image, x1 <= x2 and y1 <= y2.
        scores: float32 `[N]` in [0, 1].
        class_ids: int64 `[N]`, indices into the model's class names, >= 0.

    Example:
        >>> found = Detections.from_arrays([[1, 2, 30, 40]], [0.9], [0])
        >>> len(found), float(found.boxes[0, 2])
        (1, 30.0)
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int64]

    def __post_init__(self) -> None:
        count = len(self.boxes)
        _expect("boxes", self.boxes, np.float32, (count, 4))
        _expect("scores", self.scores, np.float32, (count,))
        _expect("class_ids", self.class_ids, np.int64, (count,))
        if not np.isfinite(self.boxes).all() or (self.boxes[:, :2] > self.boxes[:, 2:]).any():
            raise ValueError("boxes: expected finite (x1, y1, x2, y2) with x1 <= x2 and y1 <= y2")
        if not ((self.scores >= 0) & (self.scores <= 1)).all():
            raise ValueError("scores: expected values in [0, 1]")
        if (self.class_ids < 0).any():
            raise ValueError("class_ids: expected values >= 0")

    @classmethod
    def from_arrays(cls, boxes: Any, scores: Any, class_ids: Any) -> Detections:
        """Converts anything array-like to the right dtypes; empty lists give no detections."""
        return cls(
            np.asarray(boxes, np.float32).reshape(-1, 4),
            np.asarray(scores, np.float32).reshape(-1),
            np.asarray(class_ids, np.int64).reshape(-1),
        )

    @classmethod
    def empty(cls) -> Detections:
        return cls.from_arrays([], [], [])

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: Any) -> Detections:
        """Selects detections by a slice, a boolean mask or an integer array."""
        return Detections(self.boxes[index], self.scores[index], self.class_ids[index])

    def to_dicts(self, class_names: Sequence[str]) -> list[dict[str, Any]]:
        """Returns plain values for JSON: `box` in original pixels, `score`, `class_id`, `class_name`."""
        return [
            {
                "box": [round(float(v), 2) for v in box],
                "score": round(float(score), 5),
                "class_id": int(k),
                "class_name": class_names[k],
            }
            for box, score, k in zip(self.boxes, self.scores, self.class_ids)
        ]

    def to_supervision(self, class_names: Sequence[str]) -> Any:
        """Returns a `supervision.Detections` that shares the arrays, with `data["class_name"]`; needs the extra `supervision`.

        Raises:
            MissingComponentError: supervision is not installed, or does not load.
        """
        return load("supervision", "supervision").Detections(
            xyxy=self.boxes,
            confidence=self.scores,
            class_id=self.class_ids,
            data={"class_name": np.array([class_names[k] for k in self.class_ids], np.str_)},
        )


def _expect(name: str, array: NDArray[Any], dtype: Any, shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"{name}: expected {np.dtype(dtype).name} {list(shape)}, got {array.dtype.name} {list(array.shape)}")
