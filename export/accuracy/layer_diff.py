"""Which layer a conversion went wrong at: the same image through two ONNX files, every tensor of the same name compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calibration.activations import ActivationRunner
from export.onnx_export import parity
from runtime.backends.open import open_backend
from runtime.errors import InputError
from runtime.media.image import Image
from runtime.ops.preprocess import preprocess

THRESHOLD = 0.05
"""Relative difference beyond which a layer has departed: rounding to FP16 stays well below, a wrong weight well above."""
_SHOWN = 8


@dataclass(frozen=True)
class Layer:
    """How far one layer's output is apart in two files.

    Attributes:
        tensor: the output's name. node, operator: what makes it in the first file.
        difference: max |a - b| / max |a|, a being the first file's; infinite where a value is no number.
    """

    tensor: str
    node: str
    operator: str
    difference: float


def compare_layers(first: Path, second: Path, image: Image) -> list[Layer]:
    """Every float tensor up to the maps that both files have, in the first one's graph order.

    Args:
        image: uint8 BGR `[H, W, 3]`, prepared as each file describes.

    Raises:
        InputError: a file cannot be used, or they have no tensor in common but the input.
    """
    with open_backend(first) as one, open_backend(second) as other:
        spec = one.spec
        if spec.input_size != other.spec.input_size:
            raise InputError(f"{first} and {second} differ in input size; export both at one size")
        if one.batch_size != other.batch_size:
            raise InputError(f"{first} and {second} differ in batch size; export both with the same --batch")
        images, theirs = (
            np.repeat(preprocess(image, backend.spec)[0][None], one.batch_size or 1, axis=0) for backend in (one, other)
        )
    with ActivationRunner(first) as reference, ActivationRunner(second) as changed:
        names = [name for name in reference.names if name in changed.names]
        maps = [index for index, name in enumerate(names) if name in spec.map_names]
        names = names[: max(maps, default=-1) + 1]  # what selects the best boxes jumps where nothing went wrong
        if not set(names) - set(spec.map_names):
            raise InputError(
                f"{first} and {second} share no tensor between input and outputs; bisect files made from one another"
            )
        producers = reference.producers
        expected, found = reference.run(images), changed.run(theirs)
    # A name may count its node, and mean another one where nodes were added; the shapes tell.
    names = [name for name in names if expected[name].shape == found[name].shape]
    differences = parity.compare(names, [expected[name] for name in names], [found[name] for name in names])
    return [Layer(item.output, *producers[item.output], item.relative) for item in differences]


def first_departure(layers: Sequence[Layer], threshold: float) -> Layer | None:
    """The first layer, in graph order, that differs by more than the threshold."""
    return next((layer for layer in layers if layer.difference > threshold), None)


def table(layers: Sequence[Layer], threshold: float) -> str:
    """For reading: the first layer that departs, and the few that differ most."""
    first = first_departure(layers, threshold)
    verdict = f"no layer differs by more than {threshold:g}"
    if first:
        verdict = f"first to differ by more than {threshold:g}: {first.node} ({first.operator}), its output {first.tensor}"
    worst = sorted(layers, key=lambda layer: -layer.difference)[:_SHOWN]
    lines = [f"{layer.difference:10.2e}  {layer.operator:18}  {layer.node}" for layer in worst]
    return "\n".join([f"{len(layers)} layers compared; {verdict}", "", f"{'difference':10}  {'operator':18}  layer", *lines])
