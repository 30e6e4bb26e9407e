"""Finds the classes that a user names."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from runtime.errors import InputError

_SHOWN = 10  # names in an error


def parse_classes(text: str, class_names: Sequence[str]) -> list[int]:
    """Returns the ids of the classes that a text names, by name or by id, separated by commas; a name comes before an id.

    Raises:
        InputError: one is not a class of the model.

    Example:
        >>> parse_classes("ring, 0", ["dot", "ring"])
        [1, 0]
    """
    if text in class_names:  # a name may hold a comma
        return [class_names.index(text)]
    return list(dict.fromkeys(_class_id(part.strip(), class_names) for part in text.split(",")))


def _class_id(name: str, class_names: Sequence[str]) -> int:
    if name in class_names:
        return class_names.index(name)
    if name.isascii() and name.isdigit() and int(name) < len(class_names):
        return int(name)
    close = difflib.get_close_matches(name, class_names, n=3)
    if close:
        remedy = f"do you mean {', '.join(close)}"
    else:
        remedy = f"it has {', '.join(class_names[:_SHOWN])}{', …' if len(class_names) > _SHOWN else ''}"
    raise InputError(f"--classes: the model has no class {name!r}; {remedy}")
