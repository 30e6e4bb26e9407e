"""Holds a labeled set of images in the form that training, calibration and evaluation share, whatever its layout."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import numpy as np
from numpy.typing import NDArray

from runtime.media.image import read_image
from runtime.ops.image import Image

SourceId = Union[int, str]


class MadeSplit(NamedTuple):
    """Says how a dataset without validation images was divided into `train` and `val`.

    Attributes:
        share: of the images that go to `val`, between 0 and 1.
        seed: of the choice.
        sha256: of the names on each side; empty where any is taken.
    """

    share: float = 0.2
    seed: int = 0
    sha256: str = ""


@dataclass(frozen=True, eq=False)
class LabeledImage:
    """One image and its labeled objects.

    Attributes:
        image_id: counts the images of the split from 1, in the order of their source ids.
        path: the image file.
        width: in pixels, as annotated.
        height: in pixels, as annotated.
        boxes: float32 `[N, 4]` xyxy in pixels, inside the image, each with a positive area.
        class_ids: int64 `[N]`, indices into `Dataset.class_names`.
        crowd: bool `[N]`; crowds (COCO) and difficult objects (VOC) are left out of training and ignored in evaluation.
        source_id: the id in the source annotations; None where the layout has none.
    """

    image_id: int
    path: Path
    width: int
    height: int
    boxes: NDArray[np.float32]
    class_ids: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    source_id: Optional[SourceId] = None

    def read(self) -> Image:
        """Reads the image, uint8 BGR `[height, width, 3]`, in the frame its boxes were drawn in.

        Raises:
            InputError: it cannot be read, or is of another size than annotated.
        """
        return read_image(self.path, (self.width, self.height))


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """All objects of a split as evaluation needs them: as annotated, crowds included.

    Attributes:
        image_ids: int64 `[N]`, see `LabeledImage`.
        class_ids: int64 `[N]`, indices into `Dataset.class_names`.
        boxes: float64 `[N, 4]`, left, top, width and height in pixels; may reach out of the image.
        areas: float64 `[N]`, in square pixels; of the object's outline where the annotations have one.
        crowd: bool `[N]`.
    """

    image_ids: NDArray[np.int64]
    class_ids: NDArray[np.int64]
    boxes: NDArray[np.float64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.image_ids)

    def where(self, chosen: NDArray[np.bool_]) -> GroundTruth:
        """Returns some of the objects; `chosen` is bool `[N]`."""
        return GroundTruth(
            self.image_ids[chosen], self.class_ids[chosen], self.boxes[chosen], self.areas[chosen], self.crowd[chosen]
        )


@dataclass(frozen=True, eq=False)
class Dataset:
    """A split of a labeled set.

    Ids count from 1 inside; those of the source stay in `LabeledImage.source_id` and `source_category_ids`.

    Attributes:
        root: the folder it was read from.
        split: its name there.
        class_names: in the order of the class ids.
        images: every image of the split, those without annotations included; they may be made anew at every access.
        truth: the objects as evaluation needs them.
        source_category_ids: category id of each class in the source; empty where the layout has none.
        notes: what reading changed without loss, one line each.
        losses: what it left out of the data, one line each.
        made_split: how the split was made, if the dataset has no validation images of its own.
    """

    root: Path
    split: str
    class_names: tuple[str, ...]
    images: Sequence[LabeledImage]
    truth: GroundTruth
    source_category_ids: tuple[SourceId, ...] = ()
    notes: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()
    made_split: Optional[MadeSplit] = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Category id of each class in `annotations` and in results, counted from 1."""
        return tuple(range(1, len(self.class_names) + 1))

    @functools.cached_property
    def annotations(self) -> tuple[dict[str, Any], ...]:
        """The ground truth as COCO annotation records, as pycocotools expects them; an id of 0 means `not matched` to it."""
        truth = self.truth
        columns = (truth.image_ids, truth.class_ids + 1, truth.boxes, truth.areas, truth.crowd.astype(int))
        rows = zip(*(column.tolist() for column in columns))
        return tuple(
            {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": crowd}
            for number, (image, category, box, area, crowd) in enumerate(rows, 1)
        )

    def only(self, images: Sequence[LabeledImage]) -> Dataset:
        """Returns the part of the split that holds these of its images."""
        ids = np.array([image.image_id for image in images], np.int64)
        return replace(self, images=tuple(images), truth=self.truth.where(np.isin(self.truth.image_ids, ids)))

    def to_source(self, results: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Gives COCO result records the ids that the source annotations use."""
        images = {image.image_id: image.image_id if image.source_id is None else image.source_id for image in self.images}
        categories = dict(zip(self.category_ids, self.source_category_ids or self.category_ids))
        return [
            {**item, "image_id": images[item["image_id"]], "category_id": categories[item["category_id"]]} for item in results
        ]
