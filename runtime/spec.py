"""Model spec: classes, input, anchors and thresholds of a model.

It is kept in checkpoints, in ONNX metadata and in the manifest beside an engine, so that no consumer guesses.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

from runtime.errors import ModelError

FORMAT_VERSION = 3
HEADS = ("yolo", "retinanet")
RESIZE_MODES = ("letterbox", "stretch")
COLORS = ("rgb", "bgr")
PRECISIONS = ("fp32", "fp16", "int8")
INPUT_TYPES = ("float32", "uint8")
MOST_CANDIDATES = 3840
"""Largest `top_k`: TensorRT selects no more."""
CANDIDATES_NAME = "candidates"
CANDIDATE_COLUMNS = ("x", "y", "width", "height", "score", "class", "anchor_index")
"""Columns of the output `candidates`; see docs/contract.md."""
_LARGEST_STEP = 32  # that input sizes need be multiples of: RetinaNet's levels beyond stride 32 round their maps up
# Bounds far above any real model: a damaged spec must not ask for more memory than there is, nor for numbers beyond float32.
_LARGEST_SIDE = 8192  # of inputs and cells, in pixels
_MOST_VALUES = 1 << 30  # in the raw maps of one image: 4 GB
_LARGEST_NUMBER = 1e6  # of anchors, means and deviations
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, and halves of characters

# By format version: the fields that were added after it, with the values that all models had until then.
_ADDED: dict[str, dict[str, Any]] = {"1": {"head": "yolo"}, "2": {"input_type": "float32", "top_k": 0}}
# Fields that any file may lack, with their values then. Code that does not know them runs the model rightly all the same, so
# they came without a new format.
_PREFERENCES: dict[str, Any] = {"operating_threshold": None, "made_split": None}

Anchors = tuple[tuple[tuple[float, float], ...], ...]


def level_name(prefix: str, stride: int) -> str:
    """Returns the name of a level's output, numbered by the power of 2 of its stride: `p5` for stride 32."""
    return f"{prefix}{int(math.log2(stride))}"


@dataclass(frozen=True)
class ModelSpec:
    """What pre- and postprocessing need to know of a model, and where it came from.

    Attributes:
        name: the recipe or model name.
        class_names: in the order of the class ids.
        input_size: (height, width) in pixels, multiples of the largest stride, or of 32 where that is larger.
        resize: `letterbox` (aspect ratio kept, centered, padded with `pad_value`) or `stretch`.
        pad_value: gray level of the letterbox border, 0-255 (114; Darknet's weights: 127.5).
        mean: per channel in `color` order, of pixel values in 0-1; the network gets `(pixel / 255 - mean) / std`.
        std: as `mean`.
        color: channel order of the network's input, `rgb` or `bgr`.
        anchors: per output level, (width, height) in pixels of each anchor, in channel order.
        strides: pixels per cell of each output level; outputs are ordered like this (p5, p4, p3 for 32, 16, 8).
        head: layout of the maps: `yolo` (box, objectness, classes) or `retinanet` (box, classes); see docs/contract.md.
        score_threshold: detections of lower scores are left out of evaluation (0.01 in the paper).
        nms_threshold: IoU above which NMS removes the lower-scored of two boxes of one class (0.6 in the paper).
        operating_threshold: lowest score that detection shows where the user names none, in (0, 1]; None for none chosen. A
            preference that was measured (see `runtime.evaluation.operating_point`); evaluation does not use it.
        made_split: (share, seed, SHA-256 of the names) of the validation images that were held back from training data without
            any; None for data that has its own, see `runtime.datasets.split`.
        precision: of the graph's convolutions: `fp32`, `fp16` or `int8`.
        input_type: `float32` (planes `[N, 3, H, W]`, normalized) or `uint8` (pixels `[N, H, W, 3]` in `color` order, which the
            graph normalizes).
        top_k: 0 for raw maps; otherwise the graph decodes them and returns the K boxes of the highest score.
        source_sha256: of the checkpoint the model was made from, empty if there is none.
        made_with: versions of the tools that made it.
        format_version: of the spec itself.
    """

    name: str
    class_names: tuple[str, ...]
    input_size: tuple[int, int]
    anchors: Anchors
    strides: tuple[int, ...] = (32, 16, 8)
    head: str = "yolo"
    resize: str = "letterbox"
    pad_value: float = 114.0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    color: str = "rgb"
    score_threshold: float = 0.01
    nms_threshold: float = 0.6
    operating_threshold: Optional[float] = None
    made_split: Optional[tuple[float, int, str]] = None
    precision: str = "fp32"
    input_type: str = "float32"
    top_k: int = 0
    source_sha256: str = ""
    made_with: tuple[str, ...] = ()
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        for problem in _problems(self):
            raise ModelError(f"model spec of {reprlib.repr(self.name)}: {problem}")

    @property
    def num_classes(self) -> int:
        """Number of classes, C."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one image as the model takes it: (3, height, width), or (height, width, 3) if `input_type` is `uint8`."""
        height, width = self.input_size
        return (height, width, 3) if self.input_type == "uint8" else (3, height, width)

    @property
    def outputs(self) -> dict[str, tuple[int, ...]]:
        """Shape for one image by output name, in order: the raw maps, or the best candidates."""
        if self.top_k:
            return {CANDIDATES_NAME: (self.top_k, len(CANDIDATE_COLUMNS))}
        return {name: self.map_shape(level) for level, name in enumerate(self.map_names)}

    @property
    def map_names(self) -> tuple[str, ...]:
        """Names of the raw maps, coarsest level first: p5, p4, p3."""
        return tuple(level_name("p", stride) for stride in self.strides)

    @property
    def class_channel(self) -> int:
        """Index of the first class among an anchor's channels: 5 after box and objectness, 4 without objectness."""
        return 5 if self.head == "yolo" else 4

    def map_shape(self, level: int) -> tuple[int, int, int]:
        """Returns (channels, height, width) of a level's raw map: anchors * (5 + C) (RetinaNet: 4 + C), sides rounded up."""
        height, width = self.input_size
        stride = self.strides[level]
        channels = len(self.anchors[level]) * (self.class_channel + self.num_classes)
        return channels, math.ceil(height / stride), math.ceil(width / stride)

    def boxes_per_level(self) -> tuple[int, ...]:
        """Returns the number of boxes of each level: anchors * height * width."""
        shapes = (self.map_shape(level) for level in range(len(self.strides)))
        return tuple(len(anchors) * height * width for anchors, (_, height, width) in zip(self.anchors, shapes))

    def replace(self, **changes: Any) -> ModelSpec:
        """Returns a copy with some fields changed, validated again."""
        return dataclasses.replace(self, **changes)

    def plain(self) -> ModelSpec:
        """Returns the spec of the same model without options: normalized floats in, raw maps out."""
        return self.replace(input_type="float32", top_k=0)

    def to_metadata(self) -> dict[str, str]:
        """Returns a JSON text per field, for ONNX `metadata_props` and checkpoints."""
        return {field.name: json.dumps(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> ModelSpec:
        """Reads what `to_metadata` wrote; ignores unknown keys and updates older formats.

        Raises:
            ModelError: a field is missing, not JSON or of a wrong type, or the format is newer than this code.
        """
        metadata = {**{name: json.dumps(value) for name, value in _PREFERENCES.items()}, **_up_to_date(metadata)}
        names = [field.name for field in dataclasses.fields(cls)]
        missing = [name for name in names if name not in metadata]
        if "format_version" in missing:
            raise ModelError("no model spec in its metadata; export it with `python -m export.onnx`")
        if missing:
            raise ModelError(f"its model spec lacks {', '.join(missing)}; export it again with `python -m export.onnx`")
        try:
            values = {name: freeze(json.loads(metadata[name])) for name in names}
        except (TypeError, ValueError, RecursionError) as error:
            raise ModelError(f"its model spec is not valid JSON ({error}); export it again") from error
        version = values["format_version"]
        if not _is_count(version) or version > FORMAT_VERSION:
            raise ModelError(
                f"its model spec has format {reprlib.repr(version)}, this code reads up to {FORMAT_VERSION}; update the code"
            )
        return cls(**values)


def _up_to_date(metadata: Mapping[str, str]) -> Mapping[str, str]:
    """Adds to metadata of an older format the fields that came later."""
    version = metadata.get("format_version")
    if version not in _ADDED:
        return metadata
    added = {name: value for since, fields in _ADDED.items() if since >= version for name, value in fields.items()}
    return {**metadata, **{name: json.dumps(value) for name, value in {**added, "format_version": FORMAT_VERSION}.items()}}


def freeze(value: Any) -> Any:
    """Converts JSON lists to tuples, at any depth."""
    return tuple(freeze(item) for item in value) if isinstance(value, list) else value


def _is_number(value: Any) -> bool:
    # The comparison is False for NaN.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST_NUMBER


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not _UNPRINTABLE.search(value)


def _is_tuple_of(value: Any, check: Any, length: int = 0) -> bool:
    return isinstance(value, tuple) and (len(value) == length or not length) and len(value) > 0 and all(map(check, value))


def _is_anchor(value: Any) -> bool:
    return _is_tuple_of(value, lambda side: _is_number(side) and side > 0, 2)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_count(value: Any) -> bool:
    return _is_whole(value) and value > 0


def _is_made_split(value: Any) -> bool:
    if not isinstance(value, tuple) or len(value) != 3:
        return False
    share, seed, digest = value
    is_hash = isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) is not None
    return _is_number(share) and 0 < share < 1 and _is_whole(seed) and seed < 1 << 63 and is_hash


def _is_side(value: Any) -> bool:
    return _is_count(value) and value <= _LARGEST_SIDE


def _problems(spec: ModelSpec) -> list[str]:
    """Lists what is wrong with a spec. It may come from a file, so types are checked as well as values."""
    texts = (spec.name, spec.source_sha256, spec.head, spec.resize, spec.color, spec.precision, spec.input_type)
    checks = [
        (
            all(map(_is_text, texts)),
            "name, source_sha256, head, resize, color, precision and input_type must be texts that can be printed",
        ),
        (_is_tuple_of(spec.class_names, _is_text), "class_names must be a list of texts that can be printed"),
        (
            _is_tuple_of(spec.strides, lambda stride: _is_side(stride) and stride & (stride - 1) == 0)
            and len(set(spec.strides)) == len(spec.strides),
            f"strides must be different powers of 2, at most {_LARGEST_SIDE}",
        ),
        (_is_tuple_of(spec.input_size, _is_side, 2), f"input_size must be (height, width) in pixels, at most {_LARGEST_SIDE}"),
        (
            _is_tuple_of(spec.anchors, lambda level: _is_tuple_of(level, _is_anchor)),
            f"anchors must list (width, height) pairs of positive numbers, at most {_LARGEST_NUMBER:g}, for each level",
        ),
        (spec.head in HEADS, f"head is {reprlib.repr(spec.head)}, expected one of {', '.join(HEADS)}"),
        (spec.resize in RESIZE_MODES, f"resize is {reprlib.repr(spec.resize)}, expected one of {', '.join(RESIZE_MODES)}"),
        (spec.color in COLORS, f"color is {reprlib.repr(spec.color)}, expected one of {', '.join(COLORS)}"),
        (spec.precision in PRECISIONS, f"precision is {reprlib.repr(spec.precision)}, expected one of {', '.join(PRECISIONS)}"),
        (_is_tuple_of(spec.mean, _is_number, 3), f"mean must be 3 numbers of at most {_LARGEST_NUMBER:g}"),
        (
            _is_tuple_of(spec.std, lambda value: _is_number(value) and value >= 1 / _LARGEST_NUMBER, 3),
            f"std must be 3 numbers from {1 / _LARGEST_NUMBER:g} to {_LARGEST_NUMBER:g}",
        ),
        (
            spec.input_type in INPUT_TYPES,
            f"input_type is {reprlib.repr(spec.input_type)}, expected one of {', '.join(INPUT_TYPES)}",
        ),
        (_is_whole(spec.top_k) and spec.top_k <= MOST_CANDIDATES, f"top_k must be in 0-{MOST_CANDIDATES}"),
        (_is_number(spec.pad_value) and 0 <= spec.pad_value <= 255, "pad_value must be in 0-255"),
        (_is_number(spec.score_threshold) and 0 <= spec.score_threshold <= 1, "score_threshold must be in 0-1"),
        (_is_number(spec.nms_threshold) and 0 < spec.nms_threshold <= 1, "nms_threshold must be above 0 and at most 1"),
        (
            spec.operating_threshold is None or (_is_number(spec.operating_threshold) and 0 < spec.operating_threshold <= 1),
            "operating_threshold must be above 0 and at most 1, or null",
        ),
        (
            spec.made_split is None or _is_made_split(spec.made_split),
            "made_split must be a share between 0 and 1, a seed and a SHA-256, or null",
        ),
        (isinstance(spec.made_with, tuple) and all(map(_is_text, spec.made_with)), "made_with must list texts"),
    ]
    problems = [message for passed, message in checks if not passed]
    if not problems and len(spec.anchors) != len(spec.strides):
        problems.append(f"{len(spec.anchors)} anchor levels for {len(spec.strides)} strides")
    if not problems:
        (height, width), step = spec.input_size, min(max(spec.strides), _LARGEST_STEP)
        if height % step or width % step:
            problems.append(f"input size {height}x{width} is not a multiple of {step} in both directions")
    if not problems:
        values = sum(math.prod(spec.map_shape(level)) for level in range(len(spec.strides)))
        if values > _MOST_VALUES:
            problems.append(f"its maps would hold {values} values an image, at most {_MOST_VALUES} are taken")
        elif spec.top_k > sum(spec.boxes_per_level()):
            problems.append(f"top_k is {spec.top_k}, more than its {sum(spec.boxes_per_level())} boxes")
    return problems
