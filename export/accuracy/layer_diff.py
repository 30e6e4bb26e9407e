"""Finds the layer at which two ONNX files part: runs one image through both and compares tensors of the same name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.activations import ActivationRunner
from calibration.equalize import activation_factors
from export.onnx_export import parity
from runtime.backends.open import open_backend
from runtime.errors import InputError
from runtime.ops.image import Image
from runtime.ops.preprocess import preprocess

THRESHOLD = 0.05
"""Relative difference above which a layer counts as different: FP16 rounding stays well below, a wrong weight well above."""
_SHOWN = 8  # lines of the table


@dataclass(frozen=True)
class Layer:
    """Difference of one layer's output between two files.

    Attributes:
        tensor: name of the output.
        node: name of the node that makes it in the first file.
        operator: type of that node.
        difference: max |a - b| / max |a|, a being the first file's; infinite where a value is NaN.
    """

    tensor: str
    node: str
    operator: str
    difference: float


def compare_layers(first: Path, second: Path, image: Image) -> list[Layer]:
    """Compares every float tensor that both files have, up to the raw maps, in the first file's graph order.

    Args:
        first: the reference .onnx file.
        second: the .onnx file made from it.
        image: uint8 BGR `[H, W, 3]`, preprocessed by each file's own spec.

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
        names = names[: max(maps, default=-1) + 1]  # behind them a tiny difference can swap the selected boxes
        if not set(names) - set(spec.map_names):
            raise InputError(
                f"{first} and {second} share no tensor between input and outputs; compare files made from one another"
            )
        producers = reference.producers
        expected, found = _unscaled(first, reference.run(images)), _unscaled(second, changed.run(theirs))
    # Numbered names can mean another node where nodes were added: a shape that differs gives that away.
    names = [name for name in names if expected[name].shape == found[name].shape]
    differences = parity.compare(names, [expected[name] for name in names], [found[name] for name in names])
    return [Layer(item.output, *producers[item.output], item.relative) for item in differences]


def _unscaled(path: Path, values: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Undoes the scaling of channels that calibration notes in a file, so that its activations can be compared."""
    factors = activation_factors(onnx.load(str(path)))
    return {name: value / factors[name].reshape(-1, 1, 1) if name in factors else value for name, value in values.items()}


def first_departure(layers: Sequence[Layer], threshold: float) -> Layer | None:
    """Returns the first layer, in graph order, that differs by more than the threshold; None if none does."""
    return next((layer for layer in layers if layer.difference > threshold), None)


def table(layers: Sequence[Layer], threshold: float) -> str:
    """Formats the first layer above the threshold, and the few that differ most."""
    first = first_departure(layers, threshold)
    verdict = f"no layer differs by more than {threshold:g}"
    if first:
        verdict = f"first to differ by more than {threshold:g}: {first.node} ({first.operator}), its output {first.tensor}"
    worst = sorted(layers, key=lambda layer: -layer.difference)[:_SHOWN]
    lines = [f"{layer.difference:10.2e}  {layer.operator:18}  {layer.node}" for layer in worst]
    return "\n".join([f"{len(layers)} layers compared; {verdict}", "", f"{'difference':10}  {'operator':18}  layer", *lines])
