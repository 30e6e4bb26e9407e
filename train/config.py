"""Defines the options of a model and its training: frozen, validated, and stored in every checkpoint."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from runtime.errors import InputError, ModelError
from runtime.spec import RESIZE_MODES, freeze
from train.data.augment import AugmentConfig

DETECTORS = ("yolov3", "retinanet")
BACKBONES = {"yolov3": ("darknet53", "mobilenetv2"), "retinanet": ("resnet50", "resnet101")}
"""Backbones each detector can stand on."""
FUSIONS = ("none", "sum", "concat", "asff")
OPTIMIZERS = ("sgd", "adamw")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
ANCHOR_SOURCES = ("recipe", "given", "auto", "weights")
PARTS = ("backbone", "neck", "fusion", "heads")
"""Parts of every detector, in the order that an image passes them."""

DARKNET_ANCHORS = ((10, 13), (16, 30), (33, 23), (30, 61), (62, 45), (42, 119), (116, 90), (156, 198), (121, 240))
"""Of the published DarkNet checkpoints, (width, height) in pixels, small to large."""
MOBILENET_ANCHORS = (*DARKNET_ANCHORS[:-1], (373, 326))
"""Of the published MobileNetV2 checkpoints."""
PLAIN_ANCHORS = ((10, 13), (16, 30), (33, 23), (30, 61), (62, 45), (59, 119), (116, 90), (156, 198), (373, 326))
"""Of Darknet's own `yolov3.weights`."""
RETINANET_ANCHORS = tuple(
    (32 * 2 ** (octave / 3) / ratio**0.5, 32 * 2 ** (octave / 3) * ratio**0.5)
    for octave in range(3)
    for ratio in (0.5, 1.0, 2.0)
)
"""Of RetinaNet's finest level: three octave scales of 4 strides, three ratios height / width (arXiv 1708.02002, section 4)."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(f"configuration: {message}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture of a detector."""

    detector: str = "yolov3"
    """`yolov3` or `retinanet`."""
    backbone: str = "darknet53"
    """`darknet53` or `mobilenetv2`; RetinaNet: `resnet50` or `resnet101`."""
    width: float = 1.0
    """Multiplies the channels of backbone, neck and heads."""
    depth: float = 1.0
    """Multiplies the residual units per stage of DarkNet and ResNet, rounded up."""
    spp: bool = True
    """Spatial pyramid pooling in the neck."""
    fusion: str = "asff"
    """`none`, `sum`, `concat` or `asff` (paper section 3)."""
    guided: bool = True
    """Guided anchors, one of them anchor-free."""
    adaption: bool = True
    """Deformable feature adaption by the guided anchors (DarkNet variants)."""
    rfb: bool = False
    """A receptive field block before the feature adaption (ASFF*)."""
    compress: int = 16
    """Channels each feature is brought to before ASFF weighs it."""
    anchors: tuple[tuple[float, float], ...] = DARKNET_ANCHORS
    """Base anchors (width, height) in pixels, small to large, 3 per level; RetinaNet: those of the finest level, doubled
    from level to level."""

    def __post_init__(self) -> None:
        _require(self.detector in DETECTORS, f"detector {self.detector!r}, expected one of {', '.join(DETECTORS)}")
        backbones = BACKBONES[self.detector]
        _require(
            self.backbone in backbones, f"backbone {self.backbone!r} for {self.detector}, expected {' or '.join(backbones)}"
        )
        _require(self.fusion in FUSIONS, f"fusion {self.fusion!r}, expected one of {', '.join(FUSIONS)}")
        _require(0 < self.width <= 4 and 0 < self.depth <= 4, "width and depth must be above 0 and at most 4")
        _require(not (self.backbone == "mobilenetv2" and self.adaption), "feature adaption is for DarkNet; set adaption=False")
        _require(self.adaption or not self.rfb, "the receptive field block is part of the feature adaption; set adaption=True")
        _require(self.compress >= 1, "compress must be at least 1")
        _require(len(self.anchors) > 0 and len(self.anchors) % 3 == 0, "the number of anchors must be a multiple of 3")
        _require(
            self.detector == "yolov3" or not (self.guided or self.adaption), "RetinaNet has no guided anchors and no adaption"
        )
        _require(not self.guided or len(self.anchors) == 9, "guided anchors need 9 base anchors, 3 per level")
        _require(all(len(a) == 2 and min(a) > 0 for a in self.anchors), "anchors must be pairs of positive numbers")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Options of YOLOv3's loss (paper section 2); RetinaNet's has none."""

    ignore_iou: float = 0.7
    """Background that overlaps a label by more than this is left out of the objectness loss."""
    iou_loss: bool = True
    """Use the box IoU loss."""
    label_smoothing: bool = True
    """Smooth the class targets to 1 - 1/C and 1/C."""
    ignore_area: float | None = None
    """Share of a label's width and height in which the levels next to its own are left out of the objectness loss; 0 for the
    cell with its center alone, None for nothing (paper, Table 2: 0, 0.2, 0.5)."""

    def __post_init__(self) -> None:
        _require(self.ignore_area is None or 0 <= self.ignore_area <= 1, "ignore_area must be in 0-1, or None")
        _require(0 < self.ignore_iou < 1, "ignore_iou must be between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole training run; the defaults are the paper's recipe (training recipe, section 4.1)."""

    recipe: str
    """Name of the recipe this came from."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The detector."""
    anchor_source: str = "recipe"
    """Where the anchors come from: the `recipe`, the command line (`given`), the training boxes (`auto`), or the `weights` that
    the run starts from; `auto` puts its own in place of those in `model` when the run starts."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Its loss."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation of training images."""
    resize: str = "letterbox"
    """Resize mode: `letterbox` or `stretch`."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Per RGB channel in 0-1, subtracted from `pixel / 255`."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Per RGB channel, what that is divided by."""
    pad_value: float = 114.0
    """Grey level of the letterbox border, 0-255."""
    size: int = 608
    """Input side in pixels for evaluation, the last epochs and the saved model."""
    sizes: tuple[int, ...] = tuple(range(320, 609, 32))
    """Sides drawn from during training."""
    epochs: int = 300
    """Passes over the training set."""
    fixed_epochs: int = 10
    """Last epochs that stay at `size`."""
    plain_epochs: int = 30
    """Last epochs without mixup."""
    tail_epochs: int = 30
    """Last epochs at the final learning rate."""
    warmup_epochs: int = 4
    """First epochs in which the learning rate rises with the 4th power of time; at most a third of all."""
    warmup_steps: int = 100
    """Steps that the warm-up takes at least, if there is one, up to a third of all epochs."""
    mixup: bool = True
    """Blend two images until the plain epochs."""
    dropblock: tuple[tuple[int, tuple[int, int, int]], ...] = ()
    """DropBlock's schedule: (first epoch, block sizes at P5, P4, P3), in order of time; nothing is dropped before the first."""
    batch: int = 64
    """Images a step."""
    precision: str = "auto"
    """`auto` (bf16 on devices that compute in it, else fp32), `fp32`, `bf16`, or `fp16` with loss scaling."""
    ema: float = 0.0
    """Decay of the moving average of the weights that is evaluated and kept in `best.pt`; 0 for none."""
    train_split: str = "train"
    """Split to train on: a name, or the role `train`."""
    val_split: str = "val"
    """Split to evaluate on: a name, or the role `val`."""
    optimizer: str = "sgd"
    """`sgd` as in the paper, or `adamw`, which gets small models further in few steps."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    final_learning_rate: float = 1e-5
    """Learning rate that the cosine ends in."""
    momentum: float = 0.9
    """Of SGD."""
    part_rates: tuple[tuple[str, float], ...] = ()
    """(part, factor on the learning rate of its weights); see `PARTS`."""
    freeze: tuple[tuple[str, int], ...] = ()
    """(part, epochs) whose weights and batch norm statistics stay as they are for the first epochs, 0 for the whole run."""
    weight_decay: float = 5e-4
    """On convolution weights; on biases and batch norm only with `decay_all`."""
    decay_all: bool = False
    """Weight decay on biases and batch norm too."""
    norm_momentum: float = 0.1
    """Share of each batch in batch norm's running statistics, which evaluation uses. Small batches need less: the statistics of
    the last few images are too noisy to evaluate with."""
    clip_gradient: float = 0.0
    """Largest norm of the whole gradient; 0 for no limit."""
    evaluate_every: int = 5
    """Epochs between evaluations; the last epoch always has one."""
    patience: int = 0
    """Evaluations in a row without a gain worth having that end the run early, see `train.run.early_stopping`; 0 for none."""
    seed: int = 0
    """Of everything random."""

    def __post_init__(self) -> None:
        _require(
            bool(self.sizes) and all(s > 0 and s % 32 == 0 for s in (self.size, *self.sizes)), "sizes must be multiples of 32"
        )
        # On a P6 of a single cell torch computes a gradient of P7 in bfloat16 that is not even finite (seen in 2.13, on a CPU).
        _require(
            self.model.detector != "retinanet" or min(self.size, *self.sizes) >= 96, "RetinaNet trains at 96 pixels or more"
        )
        _require(self.anchor_source in ANCHOR_SOURCES, f"anchor_source {self.anchor_source!r}, not of {ANCHOR_SOURCES}")
        _require(
            self.anchor_source == "recipe" or self.model.detector == "yolov3", "RetinaNet's anchors follow from its strides"
        )
        self._check_parts()
        _require(self.resize in RESIZE_MODES, f"resize {self.resize!r}, expected one of {', '.join(RESIZE_MODES)}")
        _require(
            self.epochs >= 1 and self.batch >= 1 and self.evaluate_every >= 1,
            "epochs, batch and evaluate_every must be at least 1",
        )
        _require(self.optimizer in OPTIMIZERS, f"optimizer {self.optimizer!r}, expected one of {', '.join(OPTIMIZERS)}")
        _require(self.precision in PRECISIONS, f"precision {self.precision!r}, expected one of {', '.join(PRECISIONS)}")
        _require(0 <= self.ema < 1, "ema must be at least 0 and below 1")
        _require(self.patience >= 0, "patience must be at least 0")
        _require(0 <= self.seed < 2**63, "seed must be at least 0 and below 2^63")
        _require(self.batch > 1 or min(self.sizes) > 32, "a batch of 1 at 32 pixels leaves batch norm a single value")
        _require(
            len(self.mean) == len(self.std) == 3 and min(self.std) > 0 and 0 <= self.pad_value <= 255,
            "mean and std must be 3 numbers each, std positive, pad_value in 0-255",
        )
        starts = [start for start, _ in self.dropblock]
        blocks_fit = all(len(sizes) == 3 and all(size > 0 and size % 2 for size in sizes) for _, sizes in self.dropblock)
        _require(starts == sorted(set(starts)) and blocks_fit, "dropblock must list (first epoch, 3 odd sizes), in order")
        spans = (self.fixed_epochs, self.plain_epochs, self.tail_epochs, self.warmup_epochs)
        _require(min(spans) >= 0 and self.warmup_steps >= 0, "spans of epochs and warmup_steps must not be negative")
        _require(0 < self.norm_momentum <= 1, "norm_momentum must be above 0 and at most 1")
        _require(self.learning_rate > 0 and self.final_learning_rate >= 0, "learning rates must be positive")
        _require(
            0 <= self.momentum < 1 and self.weight_decay >= 0 and self.clip_gradient >= 0,
            "momentum, weight_decay or clip_gradient out of range",
        )

    def _check_parts(self) -> None:
        for option, pairs in (("part_rates", self.part_rates), ("freeze", self.freeze)):
            names = [name for name, _ in pairs]
            known = len(set(names)) == len(names) and set(names) <= set(PARTS)
            _require(known, f"{option} {', '.join(names)}: expected each of {', '.join(PARTS)} at most once")
        _require(all(math.isfinite(rate) and rate > 0 for _, rate in self.part_rates), "part_rates must be above 0")
        _require(all(epochs >= 0 for _, epochs in self.freeze), "freeze: epochs must be at least 0")
        _require(len(self.freeze) < len(PARTS), "freeze leaves nothing to train; leave out a part")

    def replace(self, **changes: Any) -> TrainConfig:
        """A copy with some fields changed, validated again."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> str:
        """Everything as JSON text."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> TrainConfig:
        """The inverse of `to_json`.

        Raises:
            ModelError: not JSON, or a field that does not belong.
        """
        try:
            values = json.loads(text)
            if not values.pop("bfloat16", True):  # of earlier versions
                values["precision"] = "fp32"
            parts: dict[str, Callable[..., Any]] = {"model": ModelConfig, "loss": LossConfig, "augment": AugmentConfig}
            fields: dict[str, Any] = {k: _build(parts[k], v) if k in parts else freeze(v) for k, v in values.items()}
            return cls(**fields)
        except (TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ModelError(f"its configuration cannot be read ({error})") from error


def _build(kind: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    return kind(**{key: freeze(value) for key, value in values.items()})
