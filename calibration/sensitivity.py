"""Which layers 8 bits hurt, and the fewest of them that have to go back to 16 so that accuracy stays within its budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from tqdm import tqdm

from calibration.graph import Graph
from calibration.quantize import quantize
from calibration.ranges import Range

Outputs = Sequence[NDArray[np.float32]]
Run = Callable[[onnx.ModelProto], list[Outputs]]
"""Runs a model on a few fixed images: for each, its raw outputs."""

_MOST_DB = 300.0
_PRUNED = 8  # sets up to this size are searched for members that are not needed


@dataclass(frozen=True)
class LayerSensitivity:
    """What quantizing one layer alone does.

    Attributes:
        layer: name of the convolution. snr_db: signal to noise at the raw outputs in dB, the lower the worse.
        bytes: what the file grows by if the layer goes back to float16. ap_drop: points of AP lost, None if not measured.
    """

    layer: str
    snr_db: float
    bytes: int
    ap_drop: float | None = None

    def __str__(self) -> str:
        cost = "" if self.ap_drop is None else f", {self.ap_drop:.2f} AP"
        return f"{self.layer} ({self.snr_db:.1f} dB{cost})"


def signal_to_noise(reference: Sequence[Outputs], other: Sequence[Outputs]) -> float:
    """Power of the raw outputs over that of their error in dB, in [-300, 300]; each output counts alike, the images
    together. Outputs that are not finite give -300."""
    ratios = []
    for index in range(len(reference[0])):
        signal = sum(float(np.square(outputs[index], dtype=np.float64).sum()) for outputs in reference)
        noise = sum(float(np.square(np.subtract(a[index], b[index], dtype=np.float64)).sum()) for a, b in zip(reference, other))
        ratios.append(noise / max(signal, 1e-300))
    mean = float(np.mean(ratios))
    return -_MOST_DB if not np.isfinite(mean) else float(np.clip(-10 * np.log10(max(mean, 1e-300)), -_MOST_DB, _MOST_DB))


def rank_layers(
    model: onnx.ModelProto,
    ranges: Mapping[str, Range],
    target: str,
    layers: Sequence[str],
    run: Run,
    known: dict[str, float] | None = None,
    save: Callable[[dict[str, float]], None] = lambda _: None,
) -> list[LayerSensitivity]:
    """Quantize each layer alone and see what it does to the raw outputs; the worst first.

    Args:
        known: results of an interrupted run, by layer; `save` is handed all results after each layer.
    """
    graph = Graph(model)
    found = dict(known or {})
    reference = run(model)
    for layer in tqdm(layers, desc="sensitivity", unit="layer", disable=None, leave=False):
        if layer not in found:
            found[layer] = signal_to_noise(reference, run(quantize(model, ranges, target, only=[layer])))
            save(found)
    sizes = {node.name: _elements(graph, node.input[1]) for node in graph.nodes if node.op_type == "Conv"}
    # 16 bits a weight instead of 8.
    return sorted((LayerSensitivity(name, found[name], sizes[name]) for name in layers), key=lambda item: item.snr_db)


def _elements(graph: Graph, weight: str) -> int:
    value = graph.constant(weight)
    return 0 if value is None else value.size


def smallest_set(ranking: Sequence[str], drop: Callable[[frozenset[str]], float], budget: float) -> frozenset[str] | None:
    """Few layers of a ranking (worst first) whose return to 16 bits keeps the drop within the budget.

    The ranking says in which order layers are tried, the measured drop decides: prefixes of doubling length until one is good
    enough, the shortest such by bisection, then every member of a small set is tried without. That takes a logarithmic number
    of measurements. What is returned was measured to meet the budget; where no further layer ever makes things worse, it is
    the shortest sufficient start of the ranking, and of a small set no member could be left out.

    Args:
        drop: measured AP drop in points with these layers in 16 bits.

    Returns:
        None if not even all of them suffice. The empty set, known not to suffice, is not tried.
    """
    low, high = 0, 1  # the first `low` are known not to suffice
    while drop(frozenset(ranking[:high])) > budget:
        if high >= len(ranking):
            return None
        low, high = high, min(high * 2, len(ranking))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if drop(frozenset(ranking[:middle])) <= budget else (middle, high)
    chosen = frozenset(ranking[:high])
    if len(chosen) <= _PRUNED:
        for layer in reversed(ranking[: high - 1]):  # the last of the prefix is needed, or a shorter one had sufficed
            if drop(chosen - {layer}) <= budget:
                chosen -= {layer}
    return chosen
