"""What can be chosen about a model and its training. Frozen, validated, and stored in every checkpoint."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from runtime.errors import InputError, ModelError
from runtime.spec import RESIZE_MODES, freeze
from train.data.augment import AugmentConfig

BACKBONES = ("darknet53", "mobilenetv2")
FUSIONS = ("none", "sum", "concat", "asff")
OPTIMIZERS = ("sgd", "adamw")

DARKNET_ANCHORS = ((10, 13), (16, 30), (33, 23), (30, 61), (62, 45), (42, 119), (116, 90), (156, 198), (121, 240))
"""Of the published DarkNet checkpoints, (width, height) in pixels, small to large."""
MOBILENET_ANCHORS = (*DARKNET_ANCHORS[:-1], (373, 326))
"""Of the published MobileNetV2 checkpoints."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(f"configuration: {message}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which detector to build."""

    backbone: str = "darknet53"
    """`darknet53` or `mobilenetv2`."""
    width: float = 1.0
    """Multiplies the channels of backbone, neck and heads."""
    depth: float = 1.0
    """Multiplies DarkNet's residual units per stage, rounded up."""
    fusion: str = "asff"
    """`none`, `sum`, `concat` or `asff` (paper section 3)."""
    guided: bool = True
    """Guided anchors, one of them anchor-free."""
    adaption: bool = True
    """Deformable feature adaption by the guided anchors (DarkNet variants)."""
    compress: int = 16
    """Channels each feature is brought to before ASFF weighs it."""
    anchors: tuple[tuple[float, float], ...] = DARKNET_ANCHORS
    """Base anchors (width, height) in pixels, small to large, 3 per level."""

    def __post_init__(self) -> None:
        _require(self.backbone in BACKBONES, f"backbone {self.backbone!r}, expected one of {', '.join(BACKBONES)}")
        _require(self.fusion in FUSIONS, f"fusion {self.fusion!r}, expected one of {', '.join(FUSIONS)}")
        _require(0 < self.width <= 4 and 0 < self.depth <= 4, "width and depth must be above 0 and at most 4")
        _require(not (self.backbone == "mobilenetv2" and self.adaption), "feature adaption is for DarkNet; set adaption=False")
        _require(self.compress >= 1, "compress must be at least 1")
        _require(len(self.anchors) > 0 and len(self.anchors) % 3 == 0, "the number of anchors must be a multiple of 3")
        _require(not self.guided or len(self.anchors) == 9, "guided anchors need 9 base anchors, 3 per level")
        _require(all(len(a) == 2 and min(a) > 0 for a in self.anchors), "anchors must be pairs of positive numbers")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """How a prediction is measured (paper section 2)."""

    ignore_iou: float = 0.7
    """Background that overlaps a label by more than this is left out of the objectness loss."""
    iou_loss: bool = True
    """Whether the box IoU loss is in."""
    label_smoothing: bool = True
    """Smooth the class targets to 1 - 1/C and 1/C."""

    def __post_init__(self) -> None:
        _require(0 < self.ignore_iou < 1, "ignore_iou must be between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole training run; the defaults are the paper's recipe (training recipe, section 4.1)."""

    recipe: str
    """Name of the recipe this came from."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The detector."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Its loss."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """What is done to training pictures."""
    resize: str = "letterbox"
    """How pictures are brought to the input: `letterbox` or `stretch`."""
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
    """First epochs in which the learning rate rises with the 4th power of time."""
    mixup: bool = True
    """Blend two pictures until the plain epochs."""
    batch: int = 64
    """Pictures a step."""
    bfloat16: bool = True
    """Compute in bfloat16 on devices that are made for it."""
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
    weight_decay: float = 5e-4
    """On convolution weights; not on biases and batch norm."""
    clip_gradient: float = 0.0
    """Largest norm of the whole gradient; 0 for no limit."""
    evaluate_every: int = 5
    """Epochs between evaluations; the last epoch always has one."""
    seed: int = 0
    """Of everything random."""

    def __post_init__(self) -> None:
        _require(
            bool(self.sizes) and all(s > 0 and s % 32 == 0 for s in (self.size, *self.sizes)), "sizes must be multiples of 32"
        )
        _require(self.resize in RESIZE_MODES, f"resize {self.resize!r}, expected one of {', '.join(RESIZE_MODES)}")
        _require(
            self.epochs >= 1 and self.batch >= 1 and self.evaluate_every >= 1,
            "epochs, batch and evaluate_every must be at least 1",
        )
        _require(self.optimizer in OPTIMIZERS, f"optimizer {self.optimizer!r}, expected one of {', '.join(OPTIMIZERS)}")
        _require(0 <= self.seed < 2**63, "seed must be at least 0 and below 2^63")
        _require(self.batch > 1 or min(self.sizes) > 32, "a batch of 1 at 32 pixels leaves batch norm a single value")
        spans = (self.fixed_epochs, self.plain_epochs, self.tail_epochs, self.warmup_epochs)
        _require(min(spans) >= 0, "spans of epochs must not be negative")
        _require(self.learning_rate > 0 and self.final_learning_rate >= 0, "learning rates must be positive")
        _require(
            0 <= self.momentum < 1 and self.weight_decay >= 0 and self.clip_gradient >= 0,
            "momentum, weight_decay or clip_gradient out of range",
        )

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
            parts: dict[str, Callable[..., Any]] = {"model": ModelConfig, "loss": LossConfig, "augment": AugmentConfig}
            fields: dict[str, Any] = {k: _build(parts[k], v) if k in parts else freeze(v) for k, v in values.items()}
            return cls(**fields)
        except (TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ModelError(f"its configuration cannot be read ({error})") from error


def _build(kind: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    return kind(**{key: freeze(value) for key, value in values.items()})
