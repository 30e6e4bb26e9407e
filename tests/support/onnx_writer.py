"""Writes small ONNX files without the onnx package, so that the runtime can be tested without it.

Field numbers are those of onnx.proto (ONNX 1.x): a message is a sequence of (key, value), key = field number * 8 + wire type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Union

import numpy as np
from numpy.typing import NDArray

FLOAT, FLOAT16 = 1, 10
"""TensorProto.DataType."""
_INT = 2
"""AttributeProto.AttributeType."""

Shape = Sequence[Union[int, str]]


def node(kind: str, inputs: Sequence[str], output: str, **integers: int) -> bytes:
    """A NodeProto with one output, and integers as its attributes."""
    attributes = (_text(1, name) + _number(3, value) + _number(20, _INT) for name, value in integers.items())
    return (
        b"".join(_text(1, name) for name in inputs)
        + _text(2, output)
        + _text(4, kind)
        + b"".join(_field(5, attribute) for attribute in attributes)
    )


def tensor(name: str, value: NDArray[np.float32]) -> bytes:
    """A TensorProto of float32 values."""
    data = np.ascontiguousarray(value, "<f4").tobytes()
    return b"".join(_number(1, side) for side in value.shape) + _number(2, FLOAT) + _text(8, name) + _field(9, data)


def port(name: str, kind: int, shape: Shape) -> bytes:
    """A ValueInfoProto; a text in `shape` is the name of a dynamic dimension."""
    sides = (_text(2, side) if isinstance(side, str) else _number(1, side) for side in shape)
    dimensions = b"".join(_field(1, side) for side in sides)
    return _text(1, name) + _field(2, _field(1, _number(1, kind) + _field(2, dimensions)))


def write_model(
    path: Path,
    nodes: Sequence[bytes],
    inputs: Sequence[bytes],
    outputs: Sequence[bytes],
    weights: Sequence[bytes],
    metadata: Mapping[str, str],
) -> None:
    """Write a ModelProto of IR version 9 and opset 17."""
    parts = ((1, nodes), (5, weights), (11, inputs), (12, outputs))
    graph = _text(2, "small") + b"".join(_field(number, item) for number, items in parts for item in items)
    entries = b"".join(_field(14, _text(1, key) + _text(2, value)) for key, value in metadata.items())
    path.write_bytes(_number(1, 9) + _field(7, graph) + _field(8, _text(1, "") + _number(2, 17)) + entries)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field * 8) + _varint(value)


def _field(field: int, content: bytes) -> bytes:
    return _varint(field * 8 + 2) + _varint(len(content)) + content


def _text(field: int, value: str) -> bytes:
    return _field(field, value.encode())
