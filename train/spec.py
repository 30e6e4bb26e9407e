"""Makes the spec that travels with a model from its configuration."""

from __future__ import annotations

from runtime.spec import ModelSpec
from train.config import TrainConfig
from train.model.build import level_anchors


def model_spec(config: TrainConfig, class_names: tuple[str, ...]) -> ModelSpec:
    """Makes the spec of a model of this configuration."""
    strides, anchors = level_anchors(config.model)
    return ModelSpec(
        name=config.recipe,
        class_names=class_names,
        input_size=(config.size, config.size),
        anchors=anchors,
        strides=strides,
        head="retinanet" if config.model.detector == "retinanet" else "yolo",
        resize=config.resize,
        pad_value=config.pad_value,
        mean=config.mean,
        std=config.std,
    )
