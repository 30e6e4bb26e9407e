"""Holds a labeled set of images in the form that training, calibration and evaluation share, whatever its layout."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

import numpy as np
from numpy.typing import NDArray

from runtime.media.image import read_image
from runtime.ops import boxes as box_ops
from runtime.ops.image import Image

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LabeledImage:
    """One image and its labeled objects.

    Attributes:
        image_id: the id in the source annotations (COCO) or the position in the split (VOC).
        path: the image file.
        width: in pixels, as annotated.
        height: in pixels, as annotated.
        boxes: float32 `[N, 4]` xyxy in pixels, inside the image, each with a positive area.
        class_ids: int64 `[N]`, indices into `Dataset.class_names`.
        crowd: bool `[N]`; crowds (COCO) and difficult objects (VOC) are left out of training and ignored in evaluation.
    """

    image_id: int
    path: Path
    width: int
    height: int
    boxes: NDArray[np.float32]
    class_ids: NDArray[np.int64]
    crowd: NDArray[np.bool_]

    def read(self) -> Image:
        """Reads the image, uint8 BGR `[height, width, 3]`, in the frame its boxes were drawn in.

        Raises:
            InputError: it cannot be read, or is of another size than annotated.
        """
        return read_image(self.path, (self.width, self.height))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A split of a labeled set.

    Attributes:
        root: the folder it was read from.
        split: its name there.
        class_names: in the order of the class ids.
        category_ids: the original (COCO: sparse) category id of each class.
        images: every image of the split, those without annotations included.
        annotations: the ground truth as COCO annotation records with original image and category ids, unclipped and with
            crowds, as pycocotools expects them.
    """

    root: Path
    split: str
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    images: tuple[LabeledImage, ...]
    annotations: tuple[dict[str, Any], ...]

    def __len__(self) -> int:
        return len(self.images)

    def only(self, images: Sequence[LabeledImage]) -> Dataset:
        """Returns the part of the split that holds these of its images."""
        ids = {image.image_id for image in images}
        annotations = tuple(item for item in self.annotations if item["image_id"] in ids)
        return replace(self, images=tuple(images), annotations=annotations)


def labeled_image(image_id: int, path: Path, size: tuple[int, int], boxes: Any, class_ids: Any, crowd: Any) -> LabeledImage:
    """Builds a `LabeledImage` from raw annotations: clips boxes to the image, drops those left without area.

    Args:
        image_id: see `LabeledImage`.
        path: of the image file.
        size: (width, height) in pixels.
        boxes: anything of shape `[N, 4]`, xyxy in pixels; may reach out of the image or be degenerate.
        class_ids: anything of shape `[N]`.
        crowd: anything of shape `[N]`.
    """
    raw = np.asarray(boxes, np.float32).reshape(-1, 4)
    inside = box_ops.clip(raw, *size).astype(np.float32)
    keep = (inside[:, 2] > inside[:, 0]) & (inside[:, 3] > inside[:, 1])
    return LabeledImage(
        image_id=image_id,
        path=path,
        width=size[0],
        height=size[1],
        boxes=inside[keep],
        class_ids=np.asarray(class_ids, np.int64).reshape(-1)[keep],
        crowd=np.asarray(crowd, np.bool_).reshape(-1)[keep],
    )


def report_dropped(source: Path, annotated: int, kept: int) -> None:
    """Logs how many annotated boxes have no area inside their image, if any."""
    if kept < annotated:
        log.warning("%s: %d of %d boxes have no area inside their image and are left out", source, annotated - kept, annotated)


def find_image(folders: Sequence[Path], name: str) -> Optional[Path]:
    """Returns the first existing `folder / name`, else None."""
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    return None
