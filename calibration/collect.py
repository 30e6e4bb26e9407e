"""Collects the peaks of channels, and a histogram of every activation, over the calibration images."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from calibration.activations import ActivationRunner
from calibration.cache import read_states, write_states
from calibration.images import CalibrationImage, digest
from calibration.ranges import Histogram
from runtime.errors import InputError
from runtime.files import PathLike, sha256
from runtime.spec import ModelSpec

_VERSION = 2  # of the histograms' definition; raise it to make every cache stale
_SAVE_EVERY = 32  # images


def cache_key(model: PathLike, spec: ModelSpec, images: Sequence[CalibrationImage], tensors: Sequence[str]) -> str:
    """Hashes all that peaks and histograms depend on: the model's bytes, the images, their preprocessing, the tensors."""
    preprocessing = (spec.input_size, spec.resize, spec.pad_value, spec.mean, spec.std, spec.color)
    text = json.dumps([_VERSION, sha256(model), digest(images), preprocessing, list(tensors)])
    return hashlib.sha256(text.encode()).hexdigest()


def find_peaks(
    model: PathLike, spec: ModelSpec, images: Sequence[CalibrationImage], tensors: Sequence[str], cache: PathLike, key: str
) -> dict[str, NDArray[np.float64]]:
    """Finds the largest magnitude of each channel `[C]` of every tensor `[N, C, H, W]`; other tensors have none.

    Args:
        model: the FP32 .onnx file.
        spec: its spec.
        images: to find them on.
        tensors: names of the activations.
        cache: file for the peaks.
        key: of the arguments above, see `cache_key`; a cache with another key is ignored.

    Raises:
        InputError: as `collect`.
    """
    known = read_states(Path(cache), key)
    if known is not None and len(known[1]) == len(tensors):
        return {name: row[~np.isnan(row)] for name, row in zip(tensors, known[1])}
    peaks = {name: np.empty(0) for name in tensors}
    with ActivationRunner(model, tensors) as runner:
        for image in tqdm(images, desc="equalize", unit="image", disable=None, leave=False):
            for name, value in _activations(runner, model, spec, image):
                if value.ndim == 4:
                    found = np.abs(value).max(axis=(0, 2, 3)).astype(np.float64)
                    peaks[name] = np.maximum(peaks[name], found) if len(peaks[name]) else found
    rows = np.full((len(tensors), max(map(len, peaks.values()))), np.nan)
    for row, values in zip(rows, peaks.values()):
        row[: len(values)] = values
    write_states(Path(cache), key, len(images), rows)
    return peaks


def collect(
    model: PathLike,
    spec: ModelSpec,
    images: Sequence[CalibrationImage],
    tensors: Sequence[str],
    factors: Mapping[str, NDArray[np.float64]],
    cache: PathLike,
    key: str,
) -> dict[str, Histogram]:
    """Collects a histogram of each tensor over all images; progress is saved in `cache` and resumed from there.

    Args:
        model: the FP32 .onnx file.
        spec: its spec.
        images: the calibration images.
        tensors: names of the activations.
        factors: by which the channels of some of them are multiplied, `[C]`; see `calibration.equalize`.
        cache: file for the histograms.
        key: of the arguments above, see `cache_key`; a cache with another key is ignored.

    Raises:
        InputError: an image cannot be read, or the model gives NaN or infinite values; the message names the layer.
    """
    done, histograms = _read_cache(Path(cache), key, tensors)
    if done == len(images):
        return histograms
    with ActivationRunner(model, tensors) as runner:
        bar = tqdm(images[done:], desc="calibrate", unit="image", initial=done, total=len(images), disable=None, leave=False)
        for image in bar:
            for name, value in _activations(runner, model, spec, image):
                if name in factors:
                    value = (value * factors[name].reshape(-1, 1, 1)).astype(np.float32)
                histograms[name].add(value)
            done += 1
            if done % _SAVE_EVERY == 0 or done == len(images):
                _write_cache(Path(cache), key, done, tensors, histograms)
    return histograms


def _activations(
    runner: ActivationRunner, model: PathLike, spec: ModelSpec, image: CalibrationImage
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Runs a model on an image; yields the tensors and refuses values that are not finite."""
    values = runner.run(image.load(spec, runner.batch_size))
    for name in runner.names:
        value = np.asarray(values[name], np.float32)
        if not np.isfinite(value).all():
            layer, kind = runner.producers.get(name, (name, "input"))
            raise InputError(f"{model}: {layer} ({kind}) gives values that are not finite on {image.entry.path.name}")
        yield name, value


def _read_cache(path: Path, key: str, tensors: Sequence[str]) -> tuple[int, dict[str, Histogram]]:
    """Reads the number of images done and the histograms; none if there is no such cache."""
    found = read_states(path, key)
    if found is not None and len(found[1]) == len(tensors):
        with contextlib.suppress(ValueError):
            return found[0], {name: Histogram.from_state(state) for name, state in zip(tensors, found[1])}
    return 0, {name: Histogram() for name in tensors}


def _write_cache(path: Path, key: str, done: int, tensors: Sequence[str], histograms: dict[str, Histogram]) -> None:
    write_states(path, key, done, np.stack([histograms[name].state() for name in tensors]))
