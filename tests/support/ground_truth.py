"""Makes the ground truth of a data set from annotation records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runtime.datasets.dataset import GroundTruth


def truth_of(records: Sequence[Mapping[str, Any]]) -> GroundTruth:
    """Reads annotation records as `Dataset.annotations` has them."""
    boxes = np.array([item["bbox"] for item in records], np.float64).reshape(-1, 4)
    return GroundTruth(
        np.array([item["image_id"] for item in records], np.int64),
        np.array([item["category_id"] for item in records], np.int64) - 1,
        boxes,
        np.array([item.get("area", item["bbox"][2] * item["bbox"][3]) for item in records], np.float64),
        np.array([item.get("iscrowd", 0) for item in records], np.bool_),
    )
