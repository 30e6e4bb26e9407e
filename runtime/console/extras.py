"""Lets a command explain itself where libraries of an extra are missing, and names the extra when it is to run.

Imports next to nothing itself, as `startup` does, which uses it.
"""

from __future__ import annotations

import importlib.util
import sys
from abc import ABCMeta
from importlib.machinery import ModuleSpec
from types import ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Optional

DISTRIBUTION = "yolov3-asff-tensorrt"
"""Name by which pip knows this project."""

EXTRAS = {"torch": "train", "onnx": "train", "jinja2": "train", "tensorboard": "train"}
"""Extra that brings a library which commands import before they parse their arguments."""


def missing(package: str) -> str:
    """Returns the problem and the remedy where a package is not installed."""
    if package in EXTRAS:
        return f"{package} is not installed; run `pip install '{DISTRIBUTION}[{EXTRAS[package]}]'`"
    return f"{package} is not installed; run `pip install {package}`, or `make setup` for all"


class _Anything(ABCMeta):
    """Class of the names in a placeholder: whatever is done with one while modules are imported gives another one."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _name()

    def __call__(cls, *arguments: Any, **named: Any) -> Any:
        return arguments[0] if len(arguments) == 1 and callable(arguments[0]) else _name()  # as a decorator: what it decorates

    def __getitem__(cls, key: Any) -> Any:
        return cls

    def __or__(cls, other: Any) -> Any:
        return cls

    __ror__ = __or__


def _name() -> _Anything:
    return _Anything("Absent", (), {})


class _Placeholder(ModuleType):
    """Stands for a module that is not installed."""

    __version__ = "absent"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _name()


class _Finder:
    """Finds a placeholder for each module of absent libraries.

    Attributes:
        absent: names of the libraries.
        imported: those of them that were imported.
    """

    def __init__(self, absent: list[str]) -> None:
        self.absent = absent
        self.imported: list[str] = []

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Optional[ModuleSpec]:
        package = name.partition(".")[0]
        if package not in self.absent:
            return None
        if package not in self.imported:
            self.imported.append(package)
        return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Placeholder(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


_finder: Optional[_Finder] = None


def stand_in() -> None:
    """Puts placeholders in place of the libraries of `EXTRAS` that are not installed, until `stand_aside`."""
    global _finder
    absent = [name for name in EXTRAS if not _is_installed(name)]
    for name in absent:
        sys.modules.pop(name, None)
    _finder = _Finder(absent)
    sys.meta_path.insert(0, _finder)


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def stand_aside() -> list[str]:
    """Removes the placeholders; returns the libraries that were missed, which a command that goes on would need."""
    global _finder
    finder, _finder = _finder, None
    if finder is None:
        return []
    sys.meta_path.remove(finder)
    for name in [name for name, module in sys.modules.items() if isinstance(module, _Placeholder)]:
        del sys.modules[name]
    return finder.imported
