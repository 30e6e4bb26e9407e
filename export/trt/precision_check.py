"""The precision a network or an engine really has, against what its description claims."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.backends.tensorrt.library import TensorRT
from runtime.errors import CheckFailed

_MAJORITY = 0.5
"""A file is fp16 or int8 if more than this share of its convolutions is: precision-sensitive ones may be kept in float."""

# How the engine inspector writes a tensor's type, in any version: "Half", "Row major linear FP16 format", "Int8 NC/32HW32".
_INSPECTED = {"fp16": re.compile(r"half|fp16", re.I), "int8": re.compile("int8", re.I), "fp32": re.compile(r"float|fp32", re.I)}


@dataclass(frozen=True)
class NetworkPrecision:
    """What a parsed network computes in.

    Attributes:
        fp32, fp16, int8: names of the convolutions of each kind; int8 ones take data and weights through
            Quantize/Dequantize layers, the others are what their input and output tensors are.
        half_tensors, int8_tensors: number of tensors of these types. other_types: any floating-point types besides.
    """

    fp32: tuple[str, ...]
    fp16: tuple[str, ...]
    int8: tuple[str, ...]
    half_tensors: int
    int8_tensors: int
    other_types: tuple[str, ...]

    @property
    def convolutions(self) -> int:
        """Number of convolutions."""
        return len(self.fp32) + len(self.fp16) + len(self.int8)

    def problem(self, claimed: str) -> str:
        """Why the network is not of the precision `claimed`, in words; empty if it is."""
        if self.other_types:
            return f"it has tensors of {', '.join(self.other_types)}"
        if claimed == "fp32":
            reduced = self.half_tensors + self.int8_tensors
            return f"it has {self.half_tensors} half and {self.int8_tensors} int8 tensors" if reduced else ""
        if claimed == "fp16" and self.int8_tensors:
            return f"it has {self.int8_tensors} int8 tensors"
        count = len(self.fp16 if claimed == "fp16" else self.int8)
        return "" if count > self.convolutions * _MAJORITY else f"{count} of its {self.convolutions} convolutions are"

    def summary(self) -> dict[str, Any]:
        """For the manifest: counts, and by name the convolutions kept in float of a network that has others."""
        counts = {kind: len(getattr(self, kind)) for kind in ("fp32", "fp16", "int8")}
        kept = self.fp32 if self.fp16 or self.int8 else ()
        return {"convolutions": self.convolutions, **counts, "kept_in_fp32": list(kept)}


def network_layers(network: Any) -> Iterator[Any]:
    """The layers of a network, in order."""
    return (network.get_layer(index) for index in range(network.num_layers))


def layer_inputs(layer: Any) -> list[Any]:
    """A layer's input tensors; a missing optional one is None."""
    return [layer.get_input(index) for index in range(layer.num_inputs)]


def layer_outputs(layer: Any) -> list[Any]:
    """A layer's output tensors."""
    return [layer.get_output(index) for index in range(layer.num_outputs)]


def network_precision(trt: TensorRT, network: Any) -> NetworkPrecision:
    """Walk a parsed network and sort its convolutions by what they compute in."""
    kinds = trt.api.LayerType
    makers: dict[str, Any] = {}
    types: Counter[str] = Counter()
    for index in range(network.num_inputs):
        types[network.get_input(index).dtype.name] += 1
    for layer in network_layers(network):
        for tensor in layer_outputs(layer):
            makers[tensor.name] = layer
            types[tensor.dtype.name] += 1
    found: dict[str, list[str]] = {"fp32": [], "fp16": [], "int8": []}
    for layer in network_layers(network):
        if layer.type == kinds.CONVOLUTION:
            quantized = _is_quantized(kinds, makers, layer)
            halves = {tensor.dtype.name for tensor in (layer.get_input(0), layer.get_output(0))} == {"HALF"}
            found["int8" if quantized else "fp16" if halves else "fp32"].append(layer.name)
    usual = ("FLOAT", "HALF", "INT8", "INT32", "INT64", "BOOL", "UINT8")
    return NetworkPrecision(
        fp32=tuple(found["fp32"]),
        fp16=tuple(found["fp16"]),
        int8=tuple(found["int8"]),
        half_tensors=types["HALF"],
        int8_tensors=types["INT8"],
        other_types=tuple(sorted(set(types) - set(usual))),
    )


def _is_quantized(kinds: Any, makers: dict[str, Any], convolution: Any) -> bool:
    """Whether both data and weights come out of Dequantize layers, and the data went through a Quantize before that."""
    makes: list[Any] = [makers.get(tensor.name) for tensor in layer_inputs(convolution)[:2] if tensor is not None]
    if len(makes) < 2 or any(maker is None or maker.type != kinds.DEQUANTIZE for maker in makes):
        return False
    quantize = makers.get(makes[0].get_input(0).name)
    return quantize is not None and bool(quantize.type == kinds.QUANTIZE)


def check_network(source: object, found: NetworkPrecision, claimed: str) -> None:
    """Refuse a network that is not of the precision its description claims.

    Raises:
        CheckFailed: it is not.
    """
    problem = found.problem(claimed)
    if problem:
        raise CheckFailed(f"{source}: says that it is {claimed}, but {problem}; no engine was written, export the file again")


def inspected_types(layers: Sequence[Any]) -> dict[str, int]:
    """How many of an engine's layers take an input of each precision, by the inspector; a layer may count more than once."""
    counts = dict.fromkeys(_INSPECTED, 0)
    for layer in layers:
        inputs = layer.get("Inputs", []) if isinstance(layer, dict) else []
        formats = " ".join(str(item.get("Format/Datatype", item.get("Datatype", ""))) for item in inputs)
        for kind, pattern in _INSPECTED.items():
            counts[kind] += bool(pattern.search(formats))
    return counts


def check_inspected(trt: TensorRT, counts: dict[str, int], claimed: str) -> None:
    """Refuse an engine in which the inspector sees another precision than was claimed.

    An inspector that names no types at all proves nothing either way; that is enough only where the builder was bound to the
    network's types.

    Raises:
        CheckFailed: it contradicts, or it is silent about a library that chooses types itself.
    """
    if not any(counts.values()):
        if not trt.is_typed:
            raise CheckFailed(f"the inspector of {trt.title} names no types, so {claimed} is not proved; no engine was written")
        return
    wrong = counts["fp16"] + counts["int8"] if claimed == "fp32" else not counts[claimed]
    if wrong:
        seen = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        raise CheckFailed(f"the engine is not {claimed}: {trt.title} built layers with inputs of {seen}; no engine was written")
