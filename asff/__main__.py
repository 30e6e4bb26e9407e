"""Console command `asff`: lists the commands of the project, and runs one of them.

Imports nothing of the project before it knows the command, so that a list or a mistyped name is answered at once.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any, NoReturn

COMMANDS = {
    "detect": ("runtime.detect", "detect objects in images, videos, cameras and streams"),
    "evaluate": ("runtime.evaluate", "measure the COCO accuracy of an exported model"),
    "benchmark": ("runtime.benchmark", "time each stage from an image file to detections"),
    "visualize": ("runtime.visualize", "draw how an exported model fuses its levels"),
    "serve": ("runtime.serve", "serve a model over HTTP"),
    "bulk": ("runtime.bulk", "detect in a million images, on several processes or machines"),
    "data": ("train.data", "examine a dataset before training on it"),
    "synthetic": ("train.data.synthetic", "write a small synthetic dataset"),
    "train": ("train", "train a detector"),
    "anchors": ("train.anchors", "fit anchors to a dataset"),
    "validate": ("train.validate", "measure the COCO accuracy of a checkpoint"),
    "visualize-weights": ("train.visualize", "draw how a checkpoint fuses its levels"),
    "weights": ("train.weights", "convert published weights to a checkpoint"),
    "export": ("export.onnx", "export a checkpoint to ONNX"),
    "calibrate": ("calibration", "quantize an ONNX file to INT8 within an AP budget"),
    "triton": ("export.triton", "write a model repository for Triton"),
    "deepstream": ("export.deepstream", "write a model, its configuration and a parser for DeepStream"),
    "engine": ("export.engine", "build a TensorRT engine from an ONNX file"),
    "recover": ("export.recover", "train an INT8 file on with its rounding, to win accuracy back"),
    "verify": ("export.verify", "prove that exported files have kept their accuracy"),
    "chain": ("export.chain", "weights to a verified engine in one command"),
    "demo": ("export.demo", "the same on a synthetic dataset, from training on"),
}
"""Module and one line of each command, by its name."""


class _OwnPackages:
    """Finder that takes the project's packages from where this file lies, whatever PYTHONPATH or the working folder hold."""

    root = str(Path(__file__).parents[1])
    names = frozenset(module.partition(".")[0] for module, _ in COMMANDS.values())

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [cls.root], target) if name in cls.names else None


# At import, so that a spawned process, which imports the module of its parent's command again, finds the same packages.
if _OwnPackages not in sys.meta_path:
    sys.meta_path.insert(0, _OwnPackages)


def usage() -> str:
    """Returns the list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        ["usage: asff COMMAND …", "", *lines, "", "asff COMMAND --help explains one; asff --version says what is here"]
    )


def main() -> NoReturn:
    """Runs the command that `sys.argv` names, and ends the process with its exit code."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in ("-h", "--help"):
        print(usage())
        sys.exit(0)
    if name == "--version":
        print(_version())
        sys.exit(0)
    if name not in COMMANDS:
        sys.exit(_unknown(name))
    del sys.argv[1]
    with _as_python_m():
        from runtime import cli

        cli.PROGRAMS.update({module: f"asff {command}" for command, (module, _) in COMMANDS.items()})
        module = importlib.import_module(_entry(COMMANDS[name][0]))
    cli.run(module.main)


def _version() -> str:
    from runtime.console.extras import DISTRIBUTION

    try:
        return f"{DISTRIBUTION} {importlib.metadata.version(DISTRIBUTION)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{DISTRIBUTION} of a checkout, {_OwnPackages.root}"


def _unknown(name: str) -> int:
    """Says that a command does not exist; returns the exit code of wrong usage."""
    near = difflib.get_close_matches(name, COMMANDS, 1, 0.5)
    problem = f"{name!r} is no command" if name else "no command given"
    print(f"error: {problem}{f'; did you mean {near[0]}?' if near else ''}; see asff --help", file=sys.stderr)
    return 2


def _entry(module: str) -> str:
    """Returns the module that holds the `main` of a command, which is `__main__` of a package."""
    return f"{module}.__main__" if getattr(importlib.import_module(module), "__path__", None) is not None else module


@contextmanager
def _as_python_m() -> Iterator[None]:
    """Imports as `python -m` does, which `runtime.console.startup` knows by the first argument."""
    called, sys.argv[0] = sys.argv[0], "-m"
    try:
        yield
    finally:
        sys.argv[0] = called


if __name__ == "__main__":
    main()
