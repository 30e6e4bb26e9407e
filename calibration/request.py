"""Settings of a calibration, and the images that they choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibration.budget import BUDGETS
from calibration.images import CalibrationImage, choose_images, dataset_sha256, digest
from runtime.datasets.dataset import Dataset
from runtime.datasets.open import open_dataset
from runtime.errors import InputError


@dataclass(frozen=True)
class Request:
    """Input, output and settings of one calibration.

    Attributes:
        model: the FP32 .onnx file.
        output: the file to write.
        data: dataset folder.
        method: how to find ranges, one of `METHODS`; `auto` takes the one with the best AP.
        target: whose kernels to suit, see `calibration.placement`.
        images: how many images to calibrate on; None for the default.
        seed: of the choice of images.
        max_ap_drop: budget in points of AP; None for any loss (then AP is measured for `auto` alone).
        calibration_split: split to calibrate on.
        split: split to score on.
        sensitivity: rank all layers even if the budget is met.
    """

    model: Path
    output: Path
    data: Path
    method: str = "auto"
    target: str = "tensorrt"
    images: int | None = None
    seed: int = 0
    max_ap_drop: float | None = BUDGETS["int8"]
    calibration_split: str = "train"
    split: str = "val"
    sensitivity: bool = False

    def settings(self) -> dict[str, Any]:
        """Returns the settings that the output depends on, for its manifest."""
        names = ("method", "target", "images", "seed", "max_ap_drop", "calibration_split", "split", "sensitivity")
        return {name: getattr(self, name) for name in names}


def open_data(request: Request) -> tuple[list[CalibrationImage], Dataset | None]:
    """Chooses the calibration images, and opens the split to score on; None if nothing has to be scored.

    Raises:
        InputError: a split cannot be used, or the two have images in common.
    """
    images = choose_images(open_dataset(request.data, request.calibration_split), request.images, request.seed)
    if request.max_ap_drop is None and request.method != "auto":
        return images, None
    scored = open_dataset(request.data, request.split)
    _check_apart(images, scored)
    return images, scored


def inputs(request: Request, images: Sequence[CalibrationImage], scored: Dataset | None) -> dict[str, Any]:
    """Returns what the output depends on besides the model, for its manifest: settings, and hashes of the data.

    Args:
        request: the request.
        images: the calibration images, see `open_data`.
        scored: the split to score on, see `open_data`.
    """
    data = {"calibration images": digest(images), "scored split": dataset_sha256(scored) if scored else None}
    return {"settings": request.settings(), "data": data}


def _check_apart(images: Sequence[CalibrationImage], scored: Dataset) -> None:
    shared = {image.entry.path for image in images} & {entry.path for entry in scored.images}
    if shared:
        raise InputError(
            f"{len(shared)} calibration images are in the split that is scored ({scored.split}), which would flatter the"
            " result; choose another --calibration-split or --split"
        )
