"""Runs an ONNX file and returns its intermediate tensors."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import onnx
from numpy.typing import NDArray

from runtime.backends.ort import open_session, run_session
from runtime.backends.signature import INPUT_NAME
from runtime.errors import InputError, ModelError
from runtime.files import PathLike

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)


class ActivationRunner:
    """Session that returns activations, on the CPU and without graph optimization, so that every tensor exists.

    Args:
        path: an exported file.
        tensors: names of the activations to return; None for all floating-point ones.

    Attributes:
        names: of the tensors returned, in graph order; the input comes first if it was asked for.
        batch_size: fixed at export, or None.
        producers: (name, operator) of the node that makes a tensor, by the tensor's name.

    Raises:
        InputError: no such file, or no such tensor in it.
        ModelError: not a usable ONNX file.
        MissingComponentError: onnxruntime is not installed.
    """

    def __init__(self, path: PathLike, tensors: Sequence[str] | None = None) -> None:
        try:
            model = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such model file") from error
        except Exception as error:  # protobuf and onnx raise different types for every way a file can be wrong
            raise ModelError(f"{path}: not a usable ONNX model ({type(error).__name__})") from error
        graph = model.graph
        self.producers = {name: (node.name, node.op_type) for node in graph.node for name in node.output}
        types = {item.name: item.type.tensor_type.elem_type for item in (*graph.value_info, *graph.output)}
        activations = [name for name in _activations(graph) if types.get(name) in _FLOATS]
        if tensors is not None:
            wanted = set(tensors)
            missing = sorted(wanted - {*activations, INPUT_NAME})
            if missing:
                raise InputError(f"{path}: has no activation {missing[0]!r}")
            activations = [name for name in activations if name in wanted]
        self._made = activations
        self.batch_size: int | None = graph.input[0].type.tensor_type.shape.dim[0].dim_value or None
        self.names = (INPUT_NAME, *activations) if tensors is not None and INPUT_NAME in tensors else tuple(activations)
        present = {item.name for item in graph.output}
        graph.output.extend(onnx.helper.make_tensor_value_info(n, types[n], None) for n in activations if n not in present)
        self._session: Any = open_session(path, model.SerializeToString(), optimized=False)

    def run(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Runs a batch in the layout of the file's spec; returns the value of each tensor of `names`."""
        found = dict(zip(self._made, run_session(self._session, self._made, {INPUT_NAME: images}) if self._made else []))
        return {name: images if name == INPUT_NAME else found[name] for name in self.names}

    def close(self) -> None:
        """Frees the session."""
        self._session = None

    def __enter__(self) -> ActivationRunner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _activations(graph: onnx.GraphProto) -> list[str]:
    """Returns the tensors that depend on the input, in graph order."""
    depending = {item.name for item in graph.input}
    found = []
    for node in graph.node:
        if any(name in depending for name in node.input):
            depending.update(node.output)
            found += [name for name in node.output if name]
    return found
