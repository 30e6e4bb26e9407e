"""Reads and changes ONNX files without the onnx package, which a machine that runs models need not have.

Field numbers are those of onnx.proto (ONNX 1.x): a message is a sequence of fields, each with a key of
8 * number + wire type.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping

from runtime.files import PathLike, open_file

_METADATA_PROPS = 14  # of ModelProto: StringStringEntryProto
_KEY, _VALUE = 1, 2  # of StringStringEntryProto
_GRAPH, _INITIALIZER, _DATA_LOCATION = 7, 5, 14  # of ModelProto, GraphProto, TensorProto
_EXTERNAL = b"\1"  # TensorProto.DataLocation
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_WIDTHS = {_FIXED64: 8, _FIXED32: 4}


def replace_metadata(model: bytes, changes: Mapping[str, str]) -> bytes:
    """Returns a serialized ModelProto with some entries of `metadata_props` replaced, or added behind everything else.

    Every other byte stays.

    Raises:
        ValueError: not a sequence of fields, so no ONNX file.
    """
    left, parts = dict(changes), []
    whole = memoryview(model)
    for number, content, field in _fields(whole):
        key = _entry_key(content) if number == _METADATA_PROPS else None
        if key not in changes:
            parts.append(bytes(field))
        elif key in left:  # a second entry of this key goes
            parts.append(_entry(key, left.pop(key)))
    return b"".join([*parts, *(_entry(key, value) for key, value in left.items())])


def has_external_data(path: PathLike) -> bool:
    """Tells whether an ONNX file keeps weights in other files; False for what is no ONNX file."""
    with open_file(path) as file:
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as model:
                return any(_is_external(graph) for number, graph, _ in _fields(model) if number == _GRAPH)
        except ValueError:  # empty, or not a sequence of fields
            return False


def _is_external(graph: memoryview) -> bool:
    tensors = (tensor for number, tensor, _ in _fields(graph) if number == _INITIALIZER)
    return any(
        number == _DATA_LOCATION and content == _EXTERNAL for tensor in tensors for number, content, _ in _fields(tensor)
    )


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Yields the number, the content and all bytes of each field."""
    position = 0
    while position < len(message):
        start = position
        key, position = _read_varint(message, position)
        kind = key & 7
        if kind == _VARINT:
            first = position
            _, position = _read_varint(message, position)
        elif kind == _BYTES:
            length, first = _read_varint(message, position)
            position = first + length
        elif kind in _WIDTHS:
            first, position = position, position + _WIDTHS[kind]
        else:
            raise ValueError(f"a field of wire type {kind}")
        if position > len(message):
            raise ValueError("a field beyond the end")
        yield key >> 3, message[first:position], message[start:position]


def _entry_key(entry: memoryview) -> str:
    keys = [bytes(content).decode() for number, content, _ in _fields(entry) if number == _KEY]
    return keys[-1] if keys else ""


def _entry(key: str, value: str) -> bytes:
    return _bytes_field(_METADATA_PROPS, _bytes_field(_KEY, key.encode()) + _bytes_field(_VALUE, value.encode()))


def _bytes_field(number: int, content: bytes) -> bytes:
    return _varint(number * 8 + _BYTES) + _varint(len(content)) + content


def _read_varint(message: memoryview, position: int) -> tuple[int, int]:
    """Returns the value and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            break
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError("a number without end")


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
