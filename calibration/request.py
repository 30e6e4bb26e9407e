"""Settings of a calibration, and the images that they choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibration.budget import BUDGETS
from calibration.images import CalibrationImage, check_apart, choose_apart, choose_images, dataset_sha256, digest
from calibration.ranges import DETECTIONS
from runtime.datasets.dataset import Dataset, MadeSplit
from runtime.datasets.open import open_dataset


@dataclass(frozen=True)
class Request:
    """Input, output and settings of one calibration.

    Attributes:
        model: the FP32 .onnx file.
        output: the file to write.
        data: dataset folder.
        method: how to find ranges, one of `METHODS`; `auto` takes the one with the best AP.
        target: whose kernels to suit, see `calibration.placement`.
        rest: precision of what is not quantized, `fp32` or `fp16`; None for what suits the target.
        images: how many images to calibrate on; None for the default.
        seed: of the choice of images.
        max_ap_drop: budget in points of AP; None for any loss (then AP is measured for `auto` alone).
        calibration_split: split to calibrate on.
        search_split: split to choose methods and layers by; None for images of the calibration split that are not calibrated
            on.
        split: split that the gate scores; none of its images is used here.
        sensitivity: rank all layers even if the budget is met.
        made_split: how the data is divided if it has no validation images; None for the default.
        follow_links: read files to which symbolic links lead out of the folder.
    """

    model: Path
    output: Path
    data: Path
    method: str = DETECTIONS
    target: str = "tensorrt"
    rest: str | None = None
    images: int | None = None
    seed: int = 0
    max_ap_drop: float | None = BUDGETS["int8"]
    calibration_split: str = "train"
    search_split: str | None = None
    split: str = "val"
    sensitivity: bool = False
    made_split: MadeSplit | None = None
    follow_links: bool = False

    @property
    def float_precision(self) -> str:
        """Precision of what is not quantized: FP16 for TensorRT, and FP32 for CPUs, where FP16 is slow."""
        return self.rest or {"tensorrt": "fp16", "cpu": "fp32"}[self.target]

    def settings(self) -> dict[str, Any]:
        """Returns the settings that the output depends on, for its manifest."""
        names = (
            "method",
            "target",
            "rest",
            "images",
            "seed",
            "max_ap_drop",
            "calibration_split",
            "search_split",
            "split",
            "sensitivity",
        )
        return {name: getattr(self, name) for name in names}

    def open_split(self, split: str) -> Dataset:
        """Opens a split of the data; see `open_dataset` for errors."""
        return open_dataset(self.data, split, self.made_split, self.follow_links)


def open_data(request: Request) -> tuple[list[CalibrationImage], Dataset | None]:
    """Chooses the images to calibrate on and those to search on; None for the latter if nothing has to be measured.

    Raises:
        InputError: a split cannot be used, or an image is in two of the parts (by its content): calibration, search, and the
            split that the gate scores.
    """
    train = request.open_split(request.calibration_split)
    if request.max_ap_drop is None and request.method != "auto":
        return choose_images(train, request.images, request.seed), None
    if request.search_split is None:
        images, search = choose_apart(train, request.images, request.seed)
    else:
        images = choose_images(train, request.images, request.seed)
        search = request.open_split(request.search_split)
        check_apart([image.entry for image in images], search, "calibrated on", "--search-split")
    judged = request.open_split(request.split)
    check_apart([image.entry for image in images], judged, "calibrated on", "--split")
    check_apart(search.images, judged, "searched on", "--split")
    return images, search


def inputs(request: Request, images: Sequence[CalibrationImage], search: Dataset | None) -> dict[str, Any]:
    """Returns what the output depends on besides the model, for its manifest: settings, and hashes of the data.

    Args:
        request: the request.
        images: the calibration images, see `open_data`.
        search: the images to search on, see `open_data`.
    """
    data = {"calibration images": digest(images), "search images": dataset_sha256(search) if search else None}
    return {"settings": request.settings(), "data": data}
