"""Checks the inputs and outputs of a model file against its spec, for every inference library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Optional

from runtime.errors import ModelError
from runtime.files import PathLike
from runtime.spec import ModelSpec

INPUT_NAME = "images"
"""Name of the only input of every exported model."""


class Port(NamedTuple):
    """An input or output of a model file.

    Attributes:
        name: as the file calls it.
        dtype: as numpy calls it; the library's own word where numpy has none.
        shape: batch first; None where the file leaves a side open.
    """

    name: str
    dtype: str
    shape: tuple[Optional[int], ...]

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join('N' if side is None else str(side) for side in self.shape)}]"


def check_signature(
    path: PathLike, inputs: Sequence[Port], outputs: Sequence[Port], spec: ModelSpec, remedy: str = "export it again"
) -> Optional[int]:
    """Checks names, dtypes and shapes; outputs beyond those of the spec may be of any kind.

    Args:
        path: of the file, for messages.
        inputs: all inputs of the file.
        outputs: all outputs of the file.
        spec: of the file.
        remedy: ends each message.

    Returns:
        The batch size that the input is fixed to, or None for any.

    Raises:
        ModelError: the file does not have what its spec promises.
    """
    if [port.name for port in inputs] != [INPUT_NAME]:
        raise ModelError(f"{path}: expected one input {INPUT_NAME!r}, found {_names(inputs)}; {remedy}")
    _check_port(path, "input", inputs[0], Port(INPUT_NAME, spec.input_type, (None, *spec.input_shape)), remedy)
    found = {port.name: port for port in outputs}
    for name, shape in spec.outputs.items():
        if name not in found:
            raise ModelError(f"{path}: has no output {name!r}; its outputs are {_names(outputs)}; {remedy}")
        _check_port(path, "output", found[name], Port(name, "float32", (None, *shape)), remedy)
    return inputs[0].shape[0]


def _check_port(path: PathLike, kind: str, port: Port, expected: Port, remedy: str) -> None:
    if port.dtype != expected.dtype or port.shape[1:] != expected.shape[1:]:
        raise ModelError(f"{path}: {kind} {port.name} is {port}, its spec says {expected}; {remedy}")


def _names(ports: Sequence[Port]) -> str:
    return ", ".join(port.name for port in ports) or "none"
