"""Searches the range of each activation by what quantizing it alone does to the detections."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from tqdm import tqdm

from calibration.detection_error import DetectionError
from calibration.graph import Graph
from calibration.placement import Placement, place
from calibration.quantize import activation_scale, quantize_activations, shared_ranges
from calibration.ranges import Range
from runtime.backends.ort import open_session, run_session
from runtime.backends.signature import INPUT_NAME
from runtime.spec import ModelSpec

SHARES = tuple(2 ** (-step / 2) for step in range(7))
"""Shares of the largest magnitude that are tried as the threshold, in this order."""

Arrays = Sequence[NDArray[Any]]


def search_ranges(
    model: onnx.ModelProto,
    spec: ModelSpec,
    widest: Mapping[str, Range],
    target: str,
    images: Arrays,
    known: Mapping[str, float] | None = None,
    save: Callable[[dict[str, float]], None] = lambda _: None,
) -> dict[str, Range]:
    """Finds for each activation the threshold with which the detections change least.

    Activations are quantized one at a time, those that share a scale together, with all else in FP32. The threshold is
    lowered from the largest magnitude until the error grows. A range that is chosen by the values alone is not as good: which
    values matter to the detections cannot be seen in a histogram.

    Args:
        model: the FP32 model, with raw maps as outputs.
        spec: its spec.
        widest: range of all values of each activation that the placement names.
        target: see `calibration.placement`.
        images: inputs of the model, one image each, to judge by.
        known: shares found by an interrupted run, by activation.
        save: is given all shares so far after each activation.
    """
    placement = place(Graph(model), target)
    whole = shared_ranges(placement, widest)
    error = DetectionError(spec, _Trial(model).run(images))
    found = dict(known or {})
    for group in tqdm(dict.fromkeys(placement.tensors.values()), desc="ranges", unit="tensor", disable=None, leave=False):
        if group not in found:
            tensors = [name for name, shared in placement.tensors.items() if shared == group]
            found[group] = _best_share(model, placement, whole[tensors[0]], tensors, error, images)
            save(found)
    return {name: _cut(whole[name], found[group]) for name, group in placement.tensors.items()}


def _best_share(
    model: onnx.ModelProto, placement: Placement, span: Range, tensors: Sequence[str], error: DetectionError, images: Arrays
) -> float:
    """Lowers the share of the threshold of some activations until the error grows; returns the best."""
    signed = placement.target == "tensorrt"
    trial = _Trial(quantize_activations(model, placement, dict.fromkeys(tensors, span), tensors), tensors)
    best, least = SHARES[0], float("inf")
    for share in SHARES:
        scale, zero = activation_scale(_cut(span, share), signed)
        changed = error(trial.run(images, scale, zero), least)
        if changed >= least:
            break
        best, least = share, changed
    return best


def _cut(span: Range, share: float) -> Range:
    return span.limited(span.threshold * share)


class _Trial:
    """Session of a model in which the scales of some quantized activations can be set for each run."""

    def __init__(self, model: onnx.ModelProto, tensors: Sequence[str] = ()) -> None:
        self._scales = [f"{name}/scale" for name in tensors]
        self._zeros = [f"{name}/zero_point" for name in tensors]
        settable = onnx.ModelProto()
        settable.CopyFrom(model)
        constants = {item.name: item for item in settable.graph.initializer}
        for name in (*self._scales, *self._zeros):  # an initializer that is an input too is a default that a run may replace
            settable.graph.input.append(onnx.helper.make_tensor_value_info(name, constants[name].data_type, []))
        self._session = open_session("the quantized model", settable.SerializeToString())
        self._outputs = [item.name for item in model.graph.output]

    def run(self, images: Arrays, scale: Any = None, zero: Any = None) -> Iterator[list[NDArray[np.float32]]]:
        """Yields the outputs of each image, with all scales and zero points set to these."""
        fixed = {**dict.fromkeys(self._scales, scale), **dict.fromkeys(self._zeros, zero)}
        for image in images:
            yield run_session(self._session, self._outputs, {INPUT_NAME: image, **fixed})
