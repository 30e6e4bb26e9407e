"""Keeps the images of a split in columns: COCO's hundred thousand would take a gigabyte as objects, in every worker."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Optional, Union, overload

import numpy as np
from numpy.typing import NDArray

from runtime.datasets.dataset import LabeledImage, SourceId


class ImageTable(Sequence[LabeledImage]):
    """The images of a split, each made when it is asked for.

    Args:
        image_ids: int64 `[I]`, see `LabeledImage`.
        paths: of the image files.
        sizes: int64 `[I, 2]`, width and height.
        ends: int64 `[I + 1]`: the objects of image i are those from `ends[i]` to `ends[i + 1]`.
        boxes: float32 `[N, 4]` xyxy, of all objects, ordered by image.
        class_ids: int64 `[N]`.
        crowd: bool `[N]`.
        source_ids: one an image, or None where the layout has none.
    """

    def __init__(
        self,
        image_ids: NDArray[np.int64],
        paths: Sequence[str],
        sizes: NDArray[np.int64],
        ends: NDArray[np.int64],
        boxes: NDArray[np.float32],
        class_ids: NDArray[np.int64],
        crowd: NDArray[np.bool_],
        source_ids: Sequence[Optional[SourceId]],
    ) -> None:
        self._image_ids, self._sizes, self._ends = image_ids, sizes, ends
        self._boxes, self._class_ids, self._crowd = boxes, class_ids, crowd
        self._paths, self._source_ids = list(paths), _column(source_ids)

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> LabeledImage: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[LabeledImage, ...]: ...

    def __getitem__(self, index: Union[int, slice]) -> Union[LabeledImage, tuple[LabeledImage, ...]]:
        if isinstance(index, slice):
            return tuple(self[position] for position in range(*index.indices(len(self))))
        position = range(len(self))[index]
        objects = slice(int(self._ends[position]), int(self._ends[position + 1]))
        width, height = self._sizes[position].tolist()
        source_id = self._source_ids[position]
        return LabeledImage(
            int(self._image_ids[position]),
            Path(self._paths[position]),
            width,
            height,
            self._boxes[objects],
            self._class_ids[objects],
            self._crowd[objects],
            int(source_id) if isinstance(source_id, np.integer) else source_id,
        )


def _column(values: Sequence[Optional[SourceId]]) -> Union[NDArray[np.int64], list[Optional[SourceId]]]:
    """Returns numbers as an array where all of them fit."""
    if {*map(type, values)} <= {int}:
        try:
            return np.array(values, np.int64)
        except OverflowError:
            pass
    return list(values)
