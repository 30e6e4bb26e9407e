"""Reads and writes checkpoints, which hold tensors and plain values only, never code."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import pickle
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from runtime.errors import InputError, ModelError
from runtime.files import LARGEST_MODEL, PathLike, atomic_write, open_file
from runtime.spec import ModelSpec
from train.config import TrainConfig
from train.memory import memory_limit
from train.model import DetectorModel, build_model

KIND = "yolov3-asff-checkpoint"
_VERSION = 1
_WORKING_MEMORY = 1 << 30  # bytes that reading may take beside the tensors

# What torch raises for the many ways in which a file can be damaged or foreign.
_UNREADABLE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    RuntimeError,
    EOFError,
    OSError,
    LookupError,
    AttributeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Progress:
    """How far a run has come, beyond its completed epochs.

    Attributes:
        step: batches done of the epoch that follows the completed ones.
        sums: of the losses over these batches, by name.
        rows: of `metrics.csv`, one a completed epoch.
        data: hashes of the data, see `train.run.identity`.
    """

    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    rows: tuple[dict[str, str], ...] = ()
    data: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """Content of a checkpoint file.

    Attributes:
        config: of the run.
        spec: of the model.
        weights: the model's state dict.
        optimizer: state dict, or None in a file that is made for use alone.
        epoch: epochs completed.
        best_ap: the best AP so far, -1 before the first evaluation.
        average: state of the moving average of the weights; empty where there is none.
        scaler: state of the loss scaling; empty where there is none.
        stopping: state of early stopping; empty where there is none.
        progress: None in a file that is made for use alone.
    """

    config: TrainConfig
    spec: ModelSpec
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, Any] | None
    epoch: int
    best_ap: float
    average: dict[str, torch.Tensor] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    stopping: dict[str, torch.Tensor] = field(default_factory=dict)
    progress: Progress | None = None


def save(path: PathLike, checkpoint: Checkpoint, keep: int = 1) -> None:
    """Writes a checkpoint, whole or not at all, so that it outlives a power failure.

    Args:
        path: the file.
        checkpoint: its content.
        keep: files kept: this one and the earlier ones, see `earlier`.
    """
    content = {
        "kind": KIND,
        "version": _VERSION,
        "config": checkpoint.config.to_json(),
        "spec": checkpoint.spec.to_metadata(),
        "weights": checkpoint.weights,
        "optimizer": checkpoint.optimizer,
        "epoch": checkpoint.epoch,
        "best_ap": checkpoint.best_ap,
        "average": checkpoint.average,
        "scaler": checkpoint.scaler,
        "stopping": checkpoint.stopping,
    }
    if checkpoint.progress:
        content["progress"] = {**dataclasses.asdict(checkpoint.progress), "rows": list(checkpoint.progress.rows)}
    write(path, content, keep)


def write(path: PathLike, content: dict[str, Any], keep: int = 1) -> None:
    """Writes tensors and plain values as a PyTorch file; see `save`."""
    # Through memory: given a path, torch writes the (temporary) name into the file, and hides the reason when the disk is full.
    stream = io.BytesIO()
    torch.save(content, stream)
    with atomic_write(path, durable=True) as temporary:
        temporary.write_bytes(stream.getbuffer())
        _shift(Path(path), keep)


def earlier(path: PathLike, number: int) -> Path:
    """Returns the name of the version of a file from `number` saves before: `last-1.pt` of `last.pt`."""
    return Path(path).with_stem(f"{Path(path).stem}-{number}")


def _shift(path: Path, keep: int) -> None:
    """Gives the earlier versions of a file their next names; `path` itself stays until it is replaced."""
    if keep < 2 or not path.exists():
        return
    for number in range(keep - 1, 1, -1):
        with contextlib.suppress(FileNotFoundError):
            os.replace(earlier(path, number - 1), earlier(path, number))
    first = earlier(path, 1)
    first.unlink(missing_ok=True)
    try:
        os.link(path, first)
    except OSError:  # a file system without links
        os.replace(path, first)


def load(path: PathLike) -> Checkpoint:
    """Reads one of this project's checkpoints onto the CPU.

    Raises:
        InputError: no such file.
        ModelError: damaged, or not one of ours. No code in the file is ever run.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such checkpoint")
    content = read(path)
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise ModelError(f"{path}: not a checkpoint of this project; expected one written by python -m train")
    return parse(path, content)


def read(path: PathLike) -> Any:
    """Reads any PyTorch file, zip or legacy format, onto the CPU: tensors and plain values.

    Raises:
        ModelError: damaged, or it holds more than that. No code in the file is ever run.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > LARGEST_MODEL:
            raise ModelError(f"{path}: {size >> 30} GB, at most {LARGEST_MODEL >> 30} GB are read of a checkpoint")
        _check_entries(path, file, size)
    try:
        with warnings.catch_warnings(), memory_limit(2 * size + _WORKING_MEMORY):
            warnings.simplefilter("ignore")  # torch muses about foreign pickles; they are refused below in one line
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError as error:
        raise ModelError(f"{path}: asks for far more memory than its size; it is damaged, or made to do harm") from error
    except _UNREADABLE as error:
        raise ModelError(f"{path}: not a checkpoint that can be read; it is damaged, or holds more than tensors") from error


def _check_entries(path: PathLike, file: BinaryIO, size: int) -> None:
    """Raises ModelError for a zip file whose entries are larger than the file, as only compression or overlap makes them."""
    try:
        if not zipfile.is_zipfile(file):
            return  # of the legacy format
        with zipfile.ZipFile(file) as archive:
            claimed = sum(entry.file_size for entry in archive.infolist())
    except _UNREADABLE as error:
        raise ModelError(f"{path}: not a checkpoint that can be read; it is damaged") from error
    if claimed > size:
        raise ModelError(
            f"{path}: its {claimed} bytes are compressed to {size}, which PyTorch never does; save it with torch.save"
        )


def parse(path: PathLike, content: dict[str, Any]) -> Checkpoint:
    """Parses the content of a file of our `KIND`.

    Raises:
        ModelError: another version, or a field that is missing or wrong.
    """
    if content.get("version") != _VERSION:
        raise ModelError(f"{path}: checkpoint version {content.get('version')!r}, this code reads {_VERSION}")
    weights = content.get("weights")
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ModelError(f"{path}: its weights are not tensors by name; the file is damaged")
    try:
        return Checkpoint(
            TrainConfig.from_json(content["config"]),
            ModelSpec.from_metadata(content["spec"]),
            weights,
            content["optimizer"],
            int(content["epoch"]),
            float(content["best_ap"]),
            dict(content.get("average", {})),
            dict(content.get("scaler", {})),
            dict(content.get("stopping", {})),
            _progress(content.get("progress")),
        )
    except InputError as error:
        raise ModelError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: the checkpoint lacks or misstates {error}") from error


def _progress(saved: Any) -> Progress | None:
    """Parses a `Progress`; None where there is none, as in files made for use and by earlier versions."""
    if saved is None:
        return None
    rows = tuple({str(name): str(value) for name, value in dict(row).items()} for row in saved["rows"])
    sums = {str(name): float(value) for name, value in dict(saved["sums"]).items()}
    return Progress(int(saved["step"]), sums, rows, {str(name): str(value) for name, value in dict(saved["data"]).items()})


def store_threshold(path: PathLike, threshold: float) -> None:
    """Stores an operating threshold, in (0, 1], in the spec of a checkpoint; all else in it stays.

    Raises:
        InputError: see `load`.
        OutputError: it cannot be written.
    """
    found = load(path)
    save(path, dataclasses.replace(found, spec=found.spec.replace(operating_threshold=threshold)))


def restore(path: PathLike, checkpoint: Checkpoint) -> DetectorModel:
    """Builds the checkpoint's model in evaluation mode, on the CPU.

    Raises:
        ModelError: the weights are not those of the model in its config, or not finite.
    """
    try:
        model = build_model(checkpoint.config.model, checkpoint.spec.num_classes, checkpoint.config.loss)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path}: its configuration describes no model ({_first_line(error)})") from error
    load_weights(path, model, checkpoint.weights)
    return model.eval()


def load_weights(path: PathLike, model: nn.Module, weights: Any) -> None:
    """Loads a state dict; raises ModelError unless all keys and shapes are equal and all values finite."""
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: its weights do not fit the model it describes ({_first_line(error)})") from error
    broken = [name for name, value in model.state_dict().items() if not torch.isfinite(value).all()]
    if broken:
        raise ModelError(f"{path}: {len(broken)} weights hold values that are not finite, the first is {broken[0]}")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:200] if lines else type(error).__name__
