"""The tensors inside an ONNX file, made visible: ONNX Runtime runs it unoptimised, so that every name survives."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from runtime.errors import InputError, MissingComponentError, ModelError
from runtime.files import PathLike

_FLOATS = ("tensor(float)", "tensor(float16)")


class ActivationRunner:
    """Runs an ONNX file and returns what flows between its layers, not only what comes out at the end.

    Args:
        path: an ONNX file with one float32 input, ours or not.
        tensors: names of the tensors to return, or None for every float tensor that depends on the input (weights do not).

    Attributes:
        names: the tensors that `run` returns, in graph order.
        producers: (node name, operator) that makes each of them; a node without a name goes by its first output.

    Raises:
        InputError: no such file, or it has no such float tensor.
        ModelError: not an ONNX file, damaged, or with more than one input.
        MissingComponentError: onnxruntime is not installed.
    """

    def __init__(self, path: PathLike, tensors: Sequence[str] | None = None) -> None:
        model = read_onnx(path)
        inputs = _inputs(model.graph)
        if len(inputs) != 1:
            raise ModelError(f"{path}: expected a model with one input, found {', '.join(inputs) or 'none'}")
        self._path, self._input = path, inputs[0]
        activations = _activations(model.graph)
        wanted = list(activations) if tensors is None else [name for name in activations if name in set(tensors)]
        _make_outputs(model.graph, wanted)
        self._session: Any = _open(path, model)
        floats = {item.name for item in self._session.get_outputs() if item.type in _FLOATS}
        self.names: tuple[str, ...] = tuple(name for name in wanted if name in floats)
        self.producers: dict[str, tuple[str, str]] = {name: activations[name] for name in self.names}
        missing = sorted(set(tensors or ()) - floats)
        if missing or not self.names:
            raise InputError(f"{path}: has no float activation {', '.join(missing[:5]) or 'at all'}; is it the right file?")

    def run(self, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """float32 `[N, 3, H, W]`, normalised as the model expects, to a float32 array per name (float16 ones are widened).

        Raises:
            ModelError: the file does not take these images, or the runner was closed.
        """
        if self._session is None:
            raise ModelError(f"{self._path}: was closed; open it again")
        try:
            found = self._session.run(list(self.names), {self._input: images})
        except Exception as error:  # onnxruntime raises a different type for every way a run can fail
            raise ModelError(f"{self._path}: failed to run on {list(images.shape)} ({_first_line(error)})") from error
        return {name: np.asarray(value, np.float32) for name, value in zip(self.names, found)}

    def close(self) -> None:
        """Free the session; closing twice is fine."""
        self._session = None

    def __enter__(self) -> ActivationRunner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def read_onnx(path: PathLike) -> onnx.ModelProto:
    """Read an ONNX file.

    Raises:
        InputError: no such file.
        ModelError: not an ONNX file, or damaged.
    """
    try:
        model = onnx.load(str(path))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except Exception as error:  # protobuf raises a different type for every way a file can be wrong
        raise ModelError(f"{path}: not an ONNX file that can be read ({_first_line(error)})") from error
    if not model.graph.node:
        raise ModelError(f"{path}: not an ONNX file with a graph in it; expected one made by python -m export.onnx")
    return model


def _inputs(graph: onnx.GraphProto) -> list[str]:
    constants = {item.name for item in graph.initializer}
    return [item.name for item in graph.input if item.name not in constants]


def _activations(graph: onnx.GraphProto) -> dict[str, tuple[str, str]]:
    """Every tensor that depends on an input, in graph order (ONNX demands a topological one), with its producer."""
    live = set(_inputs(graph))
    found: dict[str, tuple[str, str]] = {}
    for node in graph.node:
        outputs = [name for name in node.output if name]
        if outputs and not live.isdisjoint(node.input):
            live.update(outputs)
            found.update(dict.fromkeys(outputs, (node.name or outputs[0], node.op_type)))
    return found


def _make_outputs(graph: onnx.GraphProto, names: Sequence[str]) -> None:
    """Make outputs of these tensors, if there are any; ONNX Runtime infers their types, so those are left out."""
    declared = {output.name: output for output in graph.output}
    if names:
        del graph.output[:]
        graph.output.extend(declared.get(name, onnx.ValueInfoProto(name=name)) for name in names)


def _open(path: PathLike, model: onnx.ModelProto) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingComponentError("onnxruntime is not installed; run `pip install onnxruntime`") from error
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a different type for every way a file can be wrong
        raise ModelError(f"{path}: not a usable ONNX model ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
