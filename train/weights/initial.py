"""Starts a training from existing weights: tensors that fit are taken over, the rest stays fresh."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from runtime.errors import InputError
from runtime.files import PathLike
from runtime.spec import ModelSpec
from train import checkpoint
from train.checkpoint import Checkpoint
from train.config import ModelConfig
from train.model import DetectorModel
from train.model.blocks import ConvBlock
from train.weights import recognize
from train.weights.backbone import Backbone
from train.weights.class_rows import class_names, with_class_rows
from train.weights.mapping import Published, listed

log = logging.getLogger(__name__)

_BACKBONE = "backbone."
_COUNTER = ".num_batches_tracked"
_LISTED = 4

Found = Checkpoint | Backbone | Published
"""What a file to start from can hold."""
Triple = tuple[float, float, float]


def detector_config(found: Found | None) -> ModelConfig | None:
    """Returns the architecture of a detector; None for a backbone alone."""
    return None if found is None or isinstance(found, Backbone) else found.config.model


def start_from(path: PathLike, model: DetectorModel, spec: ModelSpec, found: Found | None = None) -> None:
    """Loads the tensors of a file that fit `model` by name and shape, and logs how many.

    Rows of the heads that stand for a class go to the class of the same name; the other classes start fresh.
    Where the file's network was trained on differently normalized images, its first convolution is changed to see the same.

    Args:
        path: a checkpoint, published weights, or a backbone.
        model: changed in place.
        spec: of `model`, for its normalization and the names of its classes.
        found: what `recognize` read of the file; None to read it here.

    Raises:
        InputError: nothing fits, or a backbone does not fit as a whole.
        ModelError: see `train.weights.open_weights`.
    """
    found = found or recognize(path)
    fresh = model.state_dict()
    if isinstance(found, Backbone):
        weights = {f"{_BACKBONE}{name}": value for name, value in found.weights.items()}
        mean, std = found.mean, found.std
    else:
        weights, mean, std = found.weights, found.config.mean, found.config.std
        weights = with_class_rows(weights, fresh, class_names(found), spec.class_names, _box_values(found))
    taken = {name: value for name, value in weights.items() if _fits(name, weights, fresh)}
    left = [name for name in fresh if name not in taken]
    if isinstance(found, Backbone) and (len(taken) < len(weights) or any(name.startswith(_BACKBONE) for name in left)):
        raise InputError(f"{path}: a {found.name} backbone, which {spec.name} does not have; choose another --recipe or --init")
    if not taken:
        raise InputError(f"{path}: none of its {len(weights)} tensors fits {spec.name}; choose another --recipe or --init")
    first = next(name for name, module in model.named_modules() if isinstance(module, ConvBlock))
    if f"{first}.conv.weight" in taken:
        taken.update(_renormalize(first, taken, (mean, std), (spec.mean, spec.std)))
    checkpoint.load_weights(path, model, {**fresh, **taken})
    log.info("%s: took %d of %d tensors, first %s", path, len(taken), len(fresh), listed(taken, _LISTED))
    if left:
        log.info("%d tensors start fresh: %s", len(left), listed(left, _LISTED))


def _box_values(found: Checkpoint | Published) -> int:
    """Values before the classes of each anchor in the layers that predict them: YOLOv3's box and objectness."""
    return 5 if found.config.model.detector == "yolov3" else 0


def _fits(name: str, weights: Mapping[str, Tensor], fresh: Mapping[str, Tensor]) -> bool:
    """True if the model has a tensor of that name and shape; a batch norm's counter has no shape and goes with its mean."""
    if name.endswith(_COUNTER):
        mean = name.removesuffix(_COUNTER) + ".running_mean"
        return mean in weights and name in fresh and _fits(mean, weights, fresh)
    return name in fresh and weights[name].shape == fresh[name].shape


def _renormalize(
    first: str, weights: Mapping[str, Tensor], old: tuple[Triple, Triple], new: tuple[Triple, Triple]
) -> dict[str, Tensor]:
    """Changes the first convolution and its batch norm to compute on newly normalized images what they did on old ones.

    With `pixel / 255 = new * std' + mean'`, an old input is `new * std' / std + (mean' - mean) / std`: a factor that each
    input channel's weights take, and a constant that passes the convolution as one number per output channel and leaves with
    the running mean. Exact but at the image's border, where the padding's zero stands for another color.

    Args:
        first: name of the `ConvBlock`.
        weights: state dict of the file.
        old: (mean, std) per channel that the file was trained with.
        new: (mean, std) per channel of the model.
    """
    if old == new:
        return {}
    (old_mean, old_std), (new_mean, new_std) = (torch.tensor(values, dtype=torch.float64) for values in (old, new))
    weight = weights[f"{first}.conv.weight"].double()  # [outputs, 3, k, k]
    constant = (weight.sum(dim=(2, 3)) * (new_mean - old_mean) / old_std).sum(dim=1)
    mean = weights[f"{first}.norm.running_mean"].double()
    return {
        f"{first}.conv.weight": (weight * (new_std / old_std).reshape(1, -1, 1, 1)).float(),
        f"{first}.norm.running_mean": (mean - constant).float(),
    }
