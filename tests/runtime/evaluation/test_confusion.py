"""The confusion matrix: by hand, and against loops over boxes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runtime.datasets.open import open_dataset
from runtime.evaluation.confusion import confusion_matrix
from tests.support.box_loops import IDS, Box, Record, detected, made_up, pairs

MakeCoco = Callable[..., Path]


@pytest.mark.parametrize("threshold", [0.01, 0.3, 0.55, 0.9])
@pytest.mark.parametrize("seed", range(4))
def test_the_confusion_matrix_is_that_of_loops(seed: int, threshold: float, make_coco: MakeCoco) -> None:
    rng = np.random.default_rng(seed)
    dataset = made_up(make_coco, rng)
    found = detected(dataset, rng)
    matrix = confusion_matrix(dataset, found, IDS, threshold)
    slow = np.zeros((4, 4))
    place = {**{category_id: i for i, category_id in enumerate(dataset.category_ids)}, None: 3}
    left_out = 0
    for image_id in IDS:
        labels, mine = ([item for item in items if item["image_id"] == image_id] for items in (dataset.annotations, found))
        matched, in_crowd = pairs(labels, [item for item in mine if item["score"] >= threshold])
        left_out += in_crowd
        for one, other in matched:
            slow[place[one and one["category_id"]], place[other and other["category_id"]]] += 1
    np.testing.assert_array_equal(matrix.ravel()[:-1], slow.ravel()[:-1])
    assert math.isnan(matrix[3, 3]) and slow[3, 3] == 0
    objects = sum(not item["iscrowd"] for item in dataset.annotations)
    assert matrix[:3].sum() == objects  # each object is in one cell of its row, each detection in one of its column
    assert matrix[:, :3].sum() + left_out == sum(item["score"] >= threshold for item in found)


def test_a_confusion_matrix_by_hand(make_coco: MakeCoco) -> None:
    one, other, crowd = (0, 0, 40, 40), (60, 60, 40, 40), (0, 80, 40, 40)
    labels = [(1, 3, one), (1, 9, other), (2, 3, one), (1, 9, crowd, {"iscrowd": 1})]
    dataset = open_dataset(make_coco([(1, 120, 120, 0), (2, 120, 120, 0)], labels), "val")

    def record(category_id: int, box: Box, score: float, image_id: int = 1) -> Record:
        return {"image_id": image_id, "category_id": category_id, "bbox": list(box), "score": score}

    found = [
        record(2, one, 0.9),  # a dot taken for a ring: it comes first, and takes the dot
        record(1, one, 0.8),  # so this has no object left
        record(2, (60, 60, 40, 20), 0.7),  # half of the ring: an IoU of 0.5 is enough
        record(1, (0, 80, 10, 10), 0.6),  # in the crowd: left out
        record(1, (60, 0, 10, 10), 0.5),  # nothing there
        record(1, one, 0.2, image_id=2),  # below the threshold: its dot is missed
    ]
    np.testing.assert_array_equal(confusion_matrix(dataset, found, [1, 2], 0.3), [[0, 1, 1], [0, 1, 0], [2, 0, np.nan]])
    np.testing.assert_array_equal(confusion_matrix(dataset, found, [1, 2], 0.1), [[1, 1, 0], [0, 1, 0], [2, 0, np.nan]])
    np.testing.assert_array_equal(confusion_matrix(dataset, found, [2], 0.3), [[0, 0, 1], [0, 0, 0], [0, 0, np.nan]])
    np.testing.assert_array_equal(confusion_matrix(dataset, [], [], 0.3), [[0, 0, 0], [0, 0, 0], [0, 0, np.nan]])
