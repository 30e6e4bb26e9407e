"""Lists COCO's class names and reads class names from a file."""

from __future__ import annotations

from pathlib import Path

from runtime.errors import InputError
from runtime.files import PathLike

COCO_CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich"),
    *("orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed"),
    *("dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven"),
    *("toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)
"""COCO's 80 classes in the order of their category ids, which is the order of the published heads' channels."""


def read_names(path: PathLike) -> tuple[str, ...]:
    """Reads class names from a text file, one per line in the order of the class ids; blank lines are left out.

    Raises:
        InputError: the file cannot be read, is no UTF-8 text, or holds no name.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as class names ({error}); expected UTF-8 text, one name per line") from error
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not names:
        raise InputError(f"{path}: holds no class names; expected one per line")
    return names


def placeholder_names(count: int) -> tuple[str, ...]:
    """Returns `class 0`, `class 1`, ... for a model whose file does not name its classes."""
    return tuple(f"class {index}" for index in range(count))
