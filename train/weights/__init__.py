"""Opens every kind of weights file; the kind is recognized by content, never by name."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from runtime.errors import InputError, ModelError
from runtime.files import PathLike, open_file
from train import checkpoint
from train.checkpoint import Checkpoint
from train.model import DetectorModel
from train.spec import model_spec
from train.weights.backbone import KIND as BACKBONE_KIND
from train.weights.backbone import Backbone, parse_backbone
from train.weights.class_rows import class_names
from train.weights.darknet import is_darknet, read_darknet
from train.weights.mapping import Published, listed
from train.weights.names import COCO_CLASSES
from train.weights.official import ALIASES, is_official, read_official
from train.weights.torchvision import find_torchvision, read_torchvision

log = logging.getLogger(__name__)

ACCEPTED = (
    "expected a checkpoint of this project, one that the paper's authors published, Darknet's yolov3.weights,"
    " yolov3-spp.weights or darknet53.conv.74, or torchvision's mobilenet_v2, resnet50 or resnet101"
)

WEIGHTS_HELP = "checkpoint written by python -m train, or published weights (.pth, .weights)"
"""Help text of --weights in every command."""


def open_weights(path: PathLike, model: str | None = None, classes: tuple[str, ...] | None = None) -> Checkpoint:
    """Opens the detector in a file of any kind: ours, the authors', or Darknet's.

    Names and shapes of its weights are checked here, finite values by `train.checkpoint.restore`.

    Args:
        path: the file.
        model: the recipe (or published variant, such as `asff_star`) that it must be of; None for any.
        classes: names of its classes in the order of their ids; None for those in the file, for COCO's where a published
            file has 80, else for `class 0`, `class 1`, ...

    Raises:
        InputError: no such file, or `classes` are not as many as the file's.
        ModelError: damaged, foreign, not the `model` asked for, or a backbone alone.
    """
    found = read_weights(path, model, classes)
    if isinstance(found, Backbone):
        raise ModelError(
            f"{path}: a {found.name} backbone alone, which detects nothing; start a training from it with"
            f" python -m train --init {path}"
        )
    return found


def read_weights(
    path: PathLike, model: str | None = None, classes: tuple[str, ...] | None = None, cfg: PathLike | None = None
) -> Checkpoint | Backbone:
    """Reads what `open_weights` does, and backbones alone (`model` may be a backbone's name); `cfg` goes with Darknet's."""
    found = recognize(path, cfg)
    if isinstance(found, Published):
        found = _as_checkpoint(found)
        if classes is None and found.spec.num_classes != len(COCO_CLASSES):
            log.warning(
                "%s: does not name its %d classes; --classes FILE of python -m train.weights does", path, found.spec.num_classes
            )
    name = found.name if isinstance(found, Backbone) else found.config.recipe
    if model is not None and ALIASES.get(model, model) != name:
        raise ModelError(f"{path}: holds {name}, not {model}; leave out --model or choose another file")
    if classes is None:
        return found
    if isinstance(found, Backbone):
        raise InputError(f"{path}: a {name} backbone has no classes to name; leave out --classes")
    if len(classes) != found.spec.num_classes:
        raise InputError(f"{path}: has {found.spec.num_classes} classes, but {len(classes)} names were given")
    return dataclasses.replace(found, spec=found.spec.replace(class_names=classes))


def load_model(path: PathLike) -> DetectorModel:
    """Loads the detector of a file of any kind, in evaluation mode on the CPU; see `open_weights` for errors."""
    return checkpoint.restore(path, open_weights(path))


def _as_checkpoint(found: Published) -> Checkpoint:
    return Checkpoint(found.config, model_spec(found.config, class_names(found)), found.weights, None, 0, -1.0)


def recognize(path: PathLike, cfg: PathLike | None = None) -> Checkpoint | Backbone | Published:
    """Recognizes a file by its first bytes and then by the names of its tensors; see `open_weights` for errors."""
    file = Path(path)
    if file.is_dir():
        raise InputError(f"{path}: a folder; {ACCEPTED}")
    if not file.is_file():
        raise InputError(f"{path}: no such checkpoint")
    if is_darknet(path):
        return read_darknet(path, cfg)
    if cfg is not None:
        raise InputError(f"{path}: not Darknet weights, which alone have a cfg; leave out --cfg")
    content = _read(file)
    if not isinstance(content, dict):
        raise ModelError(f"{path}: holds a {type(content).__name__}; {ACCEPTED}")
    if content.get("kind") == checkpoint.KIND:
        return checkpoint.parse(path, content)
    if content.get("kind") == BACKBONE_KIND:
        return parse_backbone(path, content)
    tensors = state_dict(content)
    if is_official(tensors):
        return read_official(path, tensors)
    backbone = find_torchvision(tensors)
    if backbone:
        return read_torchvision(path, backbone, tensors)
    entries = f"{len(content)} entries ({listed(map(str, content), 3)})" if content else "nothing"
    raise ModelError(f"{path}: a PyTorch file with {entries}, a layout not known here; {ACCEPTED}")


def _read(file: Path) -> Any:
    """Reads a PyTorch file, or raises ModelError that says what was found instead."""
    with open_file(file) as stream:
        start = stream.read(2)
    if not start:
        raise ModelError(f"{file}: an empty file; {ACCEPTED}")
    if start != b"PK" and start[:1] != b"\x80":  # a zip archive, or a pickle as PyTorch wrote before 1.6
        raise ModelError(f"{file}: neither a PyTorch file nor Darknet weights; {ACCEPTED}")
    try:
        return checkpoint.read(file)
    except ModelError as error:
        raise ModelError(f"{error}; {ACCEPTED}") from error


def state_dict(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Returns the tensors by name of a foreign file: plain or under `state_dict` or `model`, with or without `module.`.

    Entries that are no named tensor are left out; a file that is not a state dict gives nothing that is recognized.
    """
    for key in ("state_dict", "model"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    prefix = "module."
    if all(name.startswith(prefix) for name in tensors):
        return {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors
