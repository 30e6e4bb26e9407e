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
from calibration.placement import place
from calibration.quantize import activation_scale, quantize_activations, shared_ranges
from calibration.ranges import Range
from runtime.backends.ort import open_session, run_session
from runtime.backends.signature import INPUT_NAME
from runtime.spec import ModelSpec

SHARES = tuple(2 ** (-step / 2) for step in range(17))
"""Shares of the largest magnitude that may be the threshold; a few positions can have a hundred times what all others have."""
VERSION = 2
"""Of the search; raise it to make what was found before stale."""

_TINY = 1e-12  # of an activation that is always zero

Arrays = Sequence[NDArray[Any]]


def search_ranges(
    model: onnx.ModelProto,
    spec: ModelSpec,
    widest: Mapping[str, Range],
    starts: Mapping[str, Range],
    target: str,
    images: Arrays,
    known: Mapping[str, float] | None = None,
    save: Callable[[dict[str, float]], None] = lambda _: None,
) -> dict[str, Range]:
    """Finds for each activation the threshold with which the detections change least.

    Activations are quantized one at a time, those that share a scale together, with all else in FP32. The threshold is
    lowered from where it starts until the error grows; where lowering it once does not pay, it is raised likewise. A range
    that is chosen by the values alone is not as good: which values matter to the detections cannot be seen in a histogram.

    Args:
        model: the FP32 model, with raw maps as outputs.
        spec: its spec.
        widest: range of all values of each activation that the placement names.
        starts: range of each to start from, such as that of nearly all values.
        target: see `calibration.placement`.
        images: inputs of the model, one image each, to judge by.
        known: shares found by an interrupted run, by activation.
        save: is given all shares so far after each activation.
    """
    placement = place(Graph(model), target)
    whole, first = shared_ranges(placement, widest), shared_ranges(placement, starts)
    error = DetectionError(spec, _Trial(model).run(images))
    found = dict(known or {})
    for group in tqdm(dict.fromkeys(placement.tensors.values()), desc="ranges", unit="tensor", disable=None, leave=False):
        if group not in found:
            tensors = [name for name, shared in placement.tensors.items() if shared == group]
            trial = _Trial(quantize_activations(model, placement, whole, tensors), tensors)
            span, start = whole[tensors[0]], first[tensors[0]]

            def measure(share: float, limit: float, trial: _Trial = trial, span: Range = span) -> float:
                return error(trial.run(images, *activation_scale(_cut(span, share), target == "tensorrt")), limit)

            found[group] = _best_share(measure, start.threshold / max(span.threshold, start.threshold, _TINY))
            save(found)
    return {name: _cut(whole[name], found[group]) for name, group in placement.tensors.items()}


def _best_share(measure: Callable[[float, float], float], start: float) -> float:
    """Finds a share of the threshold on both sides of which the error is not less.

    Args:
        measure: the error with a share; what it returns beyond the limit, its second argument, need not be exact.
        start: where to begin, in [0, 1].
    """
    begin = min(range(len(SHARES)), key=lambda step: abs(SHARES[step] - start))
    best, least = begin, measure(SHARES[begin], float("inf"))
    for direction in (1, -1):
        for step in range(begin + direction, len(SHARES) if direction > 0 else -1, direction):
            changed = measure(SHARES[step], least)
            if changed >= least:
                break
            best, least = step, changed
        if best != begin:
            break
    return SHARES[best]


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
