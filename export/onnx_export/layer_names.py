"""Names the layers of an ONNX graph after the modules they come from, as `/backbone/stages.0/stages.0.0/conv/Conv`."""

from __future__ import annotations

import ast
import itertools
from collections import Counter
from collections.abc import Sequence

import onnx
from onnx import NodeProto

_SCOPES = "pkg.torch.onnx.name_scopes"  # torch writes here the modules that enclose a node, outermost first


def name_by_module(model: onnx.ModelProto) -> None:
    """Gives nodes and their results the names that the tracer gives them, in place, and drops torch's notes on them.

    The notes hold file names of the machine that exported. Inputs, outputs and constants keep their names.

    Args:
        model: as torch's newer exporter returns it.
    """
    graph = model.graph
    kept = {item.name for item in (*graph.input, *graph.output, *graph.initializer)}
    renamed: dict[str, str] = {}
    folders: dict[str, str] = {}  # tensor -> the name of the module that makes it
    counts: Counter[str] = Counter()
    for node in graph.node:
        folder = _folder(node)
        if folder is None:  # a node that simplifying made, such as Split
            folder = next((folders[name] for name in node.input if name in folders), "")
        plain = f"{folder}/{node.op_type}"
        node.name = f"{plain}_{counts[plain]}" if counts[plain] else plain
        counts[plain] += 1
        folders.update(dict.fromkeys(node.output, folder))
        renamed |= {name: f"{node.name}_output_{index}" for index, name in enumerate(node.output) if name and name not in kept}
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for item in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        del item.metadata_props[:]
    del graph.value_info[:]
    # torch writes the newest, which older runtimes refuse.
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)


def _folder(node: NodeProto) -> str | None:
    """Returns the modules that enclose a node, each after a slash; None where torch does not say."""
    notes = {item.key: item.value for item in node.metadata_props}
    if _SCOPES not in notes:
        return None
    scopes = [scope for scope in ast.literal_eval(notes[_SCOPES])[:-1] if scope]
    return "".join(f"/{_own_name(scope)}" for scope in scopes)


def _own_name(scope: str) -> str:
    """Shortens the path of a module to its last name and the numbers behind it: `a.body.0.1` to `body.0.1`."""
    parts: Sequence[str] = scope.split(".")
    numbers = len(list(itertools.takewhile(str.isdigit, reversed(parts))))
    return ".".join(parts[-numbers - 1 :])
