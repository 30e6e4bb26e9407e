"""Trains the weights of an INT8 file on with its rounding, and writes the file anew."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.detection_error import DetectionError
from calibration.equalize import note_steps, noted_steps
from calibration.images import CalibrationImage, check_apart, choose_images, digest, named
from calibration.quantize import quantize
from calibration.ranges import Range
from calibration.writer import write_int8
from export.onnx_export.tracer import TOOLS, write_onnx
from export.recovery.quant_plan import read_quant_plan
from runtime.backends.ort import OrtBackend
from runtime.datasets.dataset import MadeSplit
from runtime.datasets.open import open_dataset
from runtime.errors import InputError, ModelError
from runtime.files import sha256
from runtime.manifest import manifest_path, read_manifest
from runtime.spec import ModelSpec
from train import checkpoint
from train.model import YOLOv3
from train.qat.finetune import Finetuned, FinetuneOptions, finetune
from train.weights import open_weights

log = logging.getLogger(__name__)

_HELD = 8  # one image in so many is held back


@dataclass(frozen=True, kw_only=True)
class RecoverRequest:
    """Input, output and settings of one recovery.

    Attributes:
        weights: of which the INT8 file was made.
        model: the INT8 .onnx file, with the manifest that `python -m calibration` wrote.
        output: the INT8 .onnx file to write.
        data: dataset folder.
        images: how many images of `train_split` to train on; None for the default.
        train_split: split to train on; labels are not needed.
        split: split that the gate scores; none of its images is trained on.
        options: of the training.
        made_split: how the data is divided if it has no validation images; None for the default.
        follow_links: read files to which symbolic links lead out of the folder.
    """

    weights: Path
    model: Path
    output: Path
    data: Path
    images: int | None = None
    train_split: str = "train"
    split: str = "val"
    options: FinetuneOptions = field(default_factory=FinetuneOptions)
    made_split: MadeSplit | None = None
    follow_links: bool = False

    def settings(self) -> dict[str, Any]:
        """Returns the settings that the output depends on, for its manifest; the device is none of them."""
        own = {name: getattr(self, name) for name in ("images", "train_split", "split")}
        return {**own, **{name: value for name, value in vars(self.options).items() if name != "device"}}


def choose(request: RecoverRequest) -> list[CalibrationImage]:
    """Chooses the images to train on.

    Raises:
        InputError: a split cannot be used, or an image is in the split that the gate scores too, by its content.
    """
    if request.train_split == request.split:
        raise InputError(f"--train-split and --split are both {request.split!r}; the gate must score other images")
    train, judged = (
        open_dataset(request.data, name, request.made_split, request.follow_links)
        for name in (request.train_split, request.split)
    )
    images = choose_images(train, request.images, request.options.seed)
    check_apart([image.entry for image in images], judged, "trained on", "--split")
    return images


def inputs(request: RecoverRequest, images: Sequence[CalibrationImage]) -> dict[str, Any]:
    """Returns what the output depends on besides the two files, for its manifest."""
    return {"recovery": {"settings": request.settings(), "data": digest(images)}}


def recover(request: RecoverRequest) -> Finetuned:
    """Writes an INT8 file that computes more of what the float weights do than the given one, and its manifest.

    Where no epoch does so on the images held back, that is a copy of the given one.

    Layers, their precisions and the kind of scales stay those of the given file; weights and ranges are new. Its spec names
    the original weights as its source, so the gate compares it with them.

    Raises:
        InputError: the weights or the data cannot be used.
        ModelError: not an INT8 file of these weights, or one that cannot be imitated.
        CheckFailed: the training diverged.
    """
    loaded = open_weights(request.weights)
    details, spec, batch = _read_source(request)
    model = checkpoint.restore(request.weights, loaded)
    if not isinstance(model, YOLOv3):
        raise ModelError(f"{request.weights}: holds {loaded.config.recipe}; only YOLOv3 can be trained with rounding so far")
    plan = read_quant_plan(request.model)
    images = choose(request)
    trained, held = _hold_back(images, request)
    plain = spec.plain()
    loaders = _loaders(trained, plain), _loaders(held, plain)
    learned = finetune(model, plan, *loaders, partial(DetectionError, plain), plain, request.options)
    if learned.epoch:
        factors = {name: learned.scales[scale] / scale.scale for name, scale in plan.scales.items()}
        ranges = {name: _scaled(details["ranges"], name, factor) for name, factor in factors.items()}
        details = {**details, "ranges": {name: asdict(span) for name, span in ranges.items()}}
        checkpoint.load_weights(request.weights, model.cpu(), learned.weights)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "fp32.onnx"
            write_onnx(model, spec.replace(precision="fp32"), file, batch=batch)
            exported = onnx.load(str(file))
        note_steps(exported, noted_steps(onnx.load(str(request.model))))  # the trained weights are scaled already
        result = quantize(exported, ranges, details["target"], fp16=details["half_layers"], rest=details["rest"])
    else:
        log.warning("no epoch brought the file nearer to the float model on the images held back; it stays as it was")
        result = onnx.load(str(request.model))
    spec = spec.replace(made_with=(*spec.made_with, f"recovery with {', '.join(TOOLS)}"))
    own = inputs(request, images)
    own["calibration"] = details
    own["recovery"] |= {
        "images": named(trained),
        "held back": named(held),
        "distances": learned.distances,
        "errors": learned.errors,
    }
    write_int8(result, spec, request.output, {"weights": request.weights, "onnx": request.model}, own)
    return learned


def _read_source(request: RecoverRequest) -> tuple[Mapping[str, Any], ModelSpec, int | None]:
    """Reads how the INT8 file was calibrated, its spec, and its batch size if that is fixed."""
    with OrtBackend(request.model) as backend:
        spec, batch = backend.spec, backend.batch_size
    if spec.precision != "int8":
        raise ModelError(f"{request.model}: is of precision {spec.precision}; give an INT8 file of python -m calibration")
    if spec.source_sha256 != sha256(request.weights):
        raise ModelError(f"{request.model}: was not made from {request.weights}; give the weights that it was made from")
    manifest = read_manifest(manifest_path(request.model))
    details = manifest.details.get("calibration")
    if manifest.sha256 != sha256(request.model) or not isinstance(details, Mapping):
        raise ModelError(f"{manifest_path(request.model)}: is not what python -m calibration wrote with {request.model}")
    return details, spec, batch


def _hold_back(
    images: Sequence[CalibrationImage], request: RecoverRequest
) -> tuple[list[CalibrationImage], list[CalibrationImage]]:
    """Divides the images into those to train on and every eighth, to choose the epoch by; copies stay together."""
    contents = list(dict.fromkeys(image.sha256 for image in images))
    held = set(contents[::_HELD])
    if len(held) == len(contents):
        raise InputError(
            f"{request.data}: all images have the same content ({len(images)} of {request.train_split!r}), expected 2 different"
            " ones at least, to train on and to choose the epoch by; raise --images, or choose another --train-split"
        )
    return [image for image in images if image.sha256 not in held], [image for image in images if image.sha256 in held]


def _loaders(images: list[CalibrationImage], spec: ModelSpec) -> list[Callable[[], NDArray[np.float32]]]:
    return [partial(image.load, spec) for image in images]


def _scaled(ranges: Mapping[str, Mapping[str, float]], name: str, factor: float) -> Range:
    return Range(ranges[name]["low"] * factor, ranges[name]["high"] * factor)
