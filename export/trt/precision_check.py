"""Checks the precision that a network or an engine really has against the one that its spec claims."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.backends.tensorrt.library import TensorRT
from runtime.errors import CheckFailed

_TYPE_NAMES = {"fp32": ("fp32", "float"), "fp16": ("fp16", "half"), "int8": ("int8",)}
"""Words by which the engine inspector of any version names a tensor type, as in "Row major linear FP16 format", "Half" or
"Thirty-two wide channel vectorized row major Int8 format". Whole words: UInt8 is the type of an image, not Int8."""


_WEIGHTS = {"float32": "FLOAT", "float16": "HALF", "int8": "INT8"}
"""TensorRT's names of numpy's types."""


@dataclass(frozen=True)
class NetworkPrecision:
    """Precisions in a parsed network.

    A convolution is int8 if it takes data and weights through Quantize/Dequantize layers; otherwise the types of its input and
    output decide.

    Attributes:
        fp32: names of the float32 convolutions.
        fp16: names of the FP16 convolutions.
        int8: names of the int8 convolutions.
        fp16_tensors: number of FP16 tensors.
        int8_tensors: number of int8 tensors.
        other_types: names of unexpected tensor types.
    """

    fp32: tuple[str, ...]
    fp16: tuple[str, ...]
    int8: tuple[str, ...]
    fp16_tensors: int
    int8_tensors: int
    other_types: tuple[str, ...]

    @property
    def convolutions(self) -> int:
        return len(self.fp32) + len(self.fp16) + len(self.int8)

    def problem(self, claimed: str, left_out: int = 0) -> str:
        """Says why the network is not of the precision `claimed`; empty if it is.

        Args:
            claimed: fp32, fp16 or int8.
            left_out: number of convolutions that are not int8 by the file's own manifest.
        """
        if self.other_types:
            return f"it has tensors of {', '.join(self.other_types)}"
        if claimed == "fp32":
            reduced = self.fp16_tensors + self.int8_tensors
            return f"it has {self.fp16_tensors} fp16 and {self.int8_tensors} int8 tensors" if reduced else ""
        if claimed == "fp16" and self.int8_tensors:
            return f"it has {self.int8_tensors} int8 tensors"
        count = len(self.fp16 if claimed == "fp16" else self.int8)
        expected = self.convolutions - (left_out if claimed == "int8" else 0)
        return "" if _are_enough(count, self.convolutions, expected) else f"{count} of its {self.convolutions} convolutions are"

    def summary(self) -> dict[str, Any]:
        """Returns counts for the manifest, and the names of convolutions that a reduced network keeps in float32."""
        counts = {kind: len(getattr(self, kind)) for kind in ("fp32", "fp16", "int8")}
        kept = self.fp32 if self.fp16 or self.int8 else ()
        return {"convolutions": self.convolutions, **counts, "kept_in_fp32": list(kept)}


def _are_enough(count: int, total: int, expected: int) -> bool:
    """Tells whether more than half are of a precision, or as many as expected where that is fewer; one at least.

    Not all need be: sensitive convolutions may stay in a higher precision.
    """
    return count >= max(1, min(total // 2 + 1, expected))


def network_layers(network: Any) -> Iterator[Any]:
    """Iterates over the layers of a network, in order."""
    return (network.get_layer(index) for index in range(network.num_layers))


def layer_inputs(layer: Any) -> list[Any]:
    """Lists a layer's input tensors; a missing optional one is None."""
    return [layer.get_input(index) for index in range(layer.num_inputs)]


def layer_outputs(layer: Any) -> list[Any]:
    return [layer.get_output(index) for index in range(layer.num_outputs)]


def tensor_types(trt: TensorRT, network: Any) -> dict[str, str]:
    """Returns the type of every tensor of a parsed network by the tensor's name: FLOAT, HALF, INT8, ...

    TensorRT 8.6 calls every floating-point tensor of a network FLOAT, FP16 and int8 ones too. There the types follow from those
    of the inputs, as in the ONNX file: Cast and Quantize layers change them, and constants have that of their weights.
    """
    types = {tensor.name: tensor.dtype.name for tensor in map(network.get_input, range(network.num_inputs))}
    for layer in network_layers(network):
        for tensor in layer_outputs(layer):
            hidden = tensor.dtype.name == "FLOAT" and not trt.is_typed
            types[tensor.name] = _untyped_output(trt.api, layer, types) if hidden else tensor.dtype.name
    return types


def _untyped_output(api: Any, layer: Any, types: Mapping[str, str]) -> str:
    """Returns the floating-point or int8 type that a layer of TensorRT 8.6 gives out, by the types of its inputs."""
    kinds = api.LayerType
    if layer.type == kinds.CAST:
        layer.__class__ = api.ICastLayer  # a network gives every layer as ILayer, without the members of its own class
        return str(layer.to_type.name)
    if layer.type == kinds.CONSTANT:
        layer.__class__ = api.IConstantLayer
        return _WEIGHTS[str(layer.weights.dtype)]
    if layer.type == kinds.QUANTIZE:
        return "INT8"
    return "HALF" if any(types.get(tensor.name) == "HALF" for tensor in layer_inputs(layer) if tensor is not None) else "FLOAT"


def network_precision(trt: TensorRT, network: Any) -> NetworkPrecision:
    """Sorts the convolutions of a parsed network by precision, and counts its tensors by type."""
    kinds = trt.api.LayerType
    type_of = tensor_types(trt, network)
    types = Counter(type_of.values())
    makers = {tensor.name: layer for layer in network_layers(network) for tensor in layer_outputs(layer)}
    found: dict[str, list[str]] = {"fp32": [], "fp16": [], "int8": []}
    for layer in network_layers(network):
        if layer.type == kinds.CONVOLUTION:
            quantized = _is_quantized(kinds, makers, layer)
            in_fp16 = {type_of[tensor.name] for tensor in (layer.get_input(0), layer.get_output(0))} == {"HALF"}
            found["int8" if quantized else "fp16" if in_fp16 else "fp32"].append(layer.name)
    usual = ("FLOAT", "HALF", "INT8", "INT32", "INT64", "BOOL", "UINT8")
    return NetworkPrecision(
        fp32=tuple(found["fp32"]),
        fp16=tuple(found["fp16"]),
        int8=tuple(found["int8"]),
        fp16_tensors=types["HALF"],
        int8_tensors=types["INT8"],
        other_types=tuple(sorted(set(types) - set(usual))),
    )


def _is_quantized(kinds: Any, makers: dict[str, Any], convolution: Any) -> bool:
    """Tells whether data and weights come from Dequantize layers, and the data from a Quantize layer before that."""
    makes: list[Any] = [makers.get(tensor.name) for tensor in layer_inputs(convolution)[:2] if tensor is not None]
    if len(makes) < 2 or any(maker is None or maker.type != kinds.DEQUANTIZE for maker in makes):
        return False
    quantize = makers.get(makes[0].get_input(0).name)
    return quantize is not None and bool(quantize.type == kinds.QUANTIZE)


def check_network(source: object, found: NetworkPrecision, claimed: str, left_out: int = 0) -> None:
    """Checks that a network has the precision that its spec claims.

    Args:
        source: the ONNX file, for messages.
        found: the network's precisions.
        claimed: see `NetworkPrecision.problem`.
        left_out: see `NetworkPrecision.problem`.

    Raises:
        CheckFailed: it has another.
    """
    problem = found.problem(claimed, left_out)
    if problem:
        raise CheckFailed(f"{source}: says that it is {claimed}, but {problem}; no engine was written, export the file again")


def inspected_types(layers: Sequence[Any]) -> dict[str, int]:
    """Counts the convolutions of an engine by the type of their data input; all its layers where none is called a convolution.

    Args:
        layers: the engine's layers, as the inspector gives them.
    """
    found = [layer for layer in layers if isinstance(layer, dict)]
    counts = Counter(_data_type(layer) for layer in ([layer for layer in found if _is_convolution(layer)] or found))
    return {kind: counts[kind] for kind in _TYPE_NAMES}


def _is_convolution(layer: Mapping[str, Any]) -> bool:
    kinds = (str(layer.get(key, "")).lower() for key in ("LayerType", "ParameterType"))
    return any("conv" in kind for kind in kinds) or "conv" in str(layer.get("Name", "")).lower()


def _data_type(layer: Mapping[str, Any]) -> str:
    """Returns the type of a layer's first input, one of `_TYPE_NAMES`; empty if it is none of them.

    TensorRT 8.6 gives "N/A due to dynamic shapes" instead. There the weights, which have the type the layer computes in, tell.
    """
    inputs, weights = layer.get("Inputs") or [{}], layer.get("Weights")
    first = inputs[0] if isinstance(inputs[0], dict) else {}
    data = first.get("Format/Datatype", first.get("Datatype", ""))
    return _type_name(data) or _type_name(weights.get("Type", "") if isinstance(weights, dict) else "")


def _type_name(text: Any) -> str:
    """Returns which of `_TYPE_NAMES` a text of the inspector names; empty if none."""
    words = re.findall(r"\w+", str(text).lower())
    return next((kind for kind, names in _TYPE_NAMES.items() if any(name in words for name in names)), "")


def check_inspected(trt: TensorRT, counts: dict[str, int], claimed: str, expected: int | None = None) -> None:
    """Checks the precision of an engine as its inspector shows it: more than half of the convolutions must have it.

    Where the network has it in fewer (`expected`), so many must.

    An inspector that names no types proves nothing. That is accepted only of a library that is bound to the network's types.

    Args:
        trt: the library that built the engine.
        counts: see `inspected_types`.
        claimed: the precision that the spec claims.
        expected: number of the network's convolutions of that precision; None for all.

    Raises:
        CheckFailed: the engine has another precision, or nothing proves the one that is claimed.
    """
    total = sum(counts.values())
    if not total:
        if not trt.is_typed:
            raise CheckFailed(f"the inspector of {trt.title} names no types, so {claimed} is not proven; no engine was written")
        return
    least = total if expected is None else expected
    enough = counts[claimed] == total if claimed == "fp32" else _are_enough(counts[claimed], total, least)
    if not enough:
        seen = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        raise CheckFailed(
            f"the engine is not {claimed}: {trt.title} built convolutions with data in {seen}; no engine was written"
        )
