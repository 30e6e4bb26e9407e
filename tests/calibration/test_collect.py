"""Histograms over images: right, kept, taken up, and never taken from anything else."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from calibration import collect as module
from calibration.activations import ActivationRunner
from calibration.collect import cache_key, collect, find_peaks
from calibration.images import CalibrationImage, choose_images
from calibration.ranges import Histogram
from runtime.backends.ort import OrtBackend
from runtime.datasets.open import open_dataset
from runtime.errors import InputError
from runtime.spec import ModelSpec

TENSORS = ("images", "/backbone/stem/conv/Conv_output_0", "p4")


class Bench:
    """A model, images and a cache; counts how many images are really run."""

    def __init__(self, model: Path, data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model, self.cache, self.runs = model, folder / "cache.npz", 0
        self.factors: dict[str, Any] = {}
        self.fail_at: int | None = None
        with OrtBackend(model) as backend:
            self.spec = backend.spec
        self.images = choose_images(open_dataset(data, "train"), None, 0)
        plain = ActivationRunner.run

        def counted(runner: ActivationRunner, images: Any) -> Any:
            if self.runs == self.fail_at:
                raise KeyboardInterrupt
            self.runs += 1
            return plain(runner, images)

        monkeypatch.setattr(ActivationRunner, "run", counted)
        monkeypatch.setattr(module, "_SAVE_EVERY", 2)

    def collect(self, tensors: tuple[str, ...] = TENSORS) -> dict[str, Histogram]:
        source = self.model, self.spec, self.images, tensors
        return collect(*source, self.factors, self.cache, f"{cache_key(*source)}{self.factors}")


@pytest.fixture
def bench(tiny_model: Path, own_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tiny_model, own_set, tmp_path, monkeypatch)


def states(histograms: dict[str, Histogram]) -> np.ndarray:
    return np.stack([histogram.state() for histogram in histograms.values()])


def test_the_histograms_are_of_what_the_model_computes(bench: Bench) -> None:
    found = bench.collect()
    with ActivationRunner(bench.model, TENSORS) as runner:
        every = [runner.run(image.load(bench.spec)) for image in bench.images]
    assert list(found) == list(TENSORS)
    for name in TENSORS:
        values = np.concatenate([run[name].ravel() for run in every])
        assert found[name].counts.sum() == values.size
        assert found[name].low == min(values.min(), 0) and found[name].high == max(values.max(), 0)


def test_histograms_of_scaled_channels(bench: Bench) -> None:
    name, plain = TENSORS[1], bench.collect()
    with ActivationRunner(bench.model, [name]) as runner:
        every = np.concatenate([runner.run(image.load(bench.spec))[name] for image in bench.images])
    bench.factors = {name: np.linspace(1, 4, every.shape[1])}
    found, scaled = bench.collect(), every * bench.factors[name].reshape(-1, 1, 1).astype(np.float32)
    assert found[name].high == pytest.approx(scaled.max(), rel=1e-6) and found[name].high != plain[name].high
    assert np.array_equal(found["p4"].state(), plain["p4"].state())


def test_peaks_of_channels(bench: Bench) -> None:
    source = bench.model, bench.spec, bench.images, TENSORS
    found = find_peaks(*source, bench.cache, cache_key(*source))
    assert list(found) == list(TENSORS) and bench.runs == len(bench.images)
    again = find_peaks(*source, bench.cache, cache_key(*source))
    assert all(np.array_equal(found[name], again[name]) for name in TENSORS) and bench.runs == len(bench.images)
    with ActivationRunner(bench.model, TENSORS) as runner:
        every = [runner.run(image.load(bench.spec)) for image in bench.images]
    for name in TENSORS:
        values = np.concatenate([run[name] for run in every])
        assert found[name].tolist() == [np.abs(values[:, channel]).max() for channel in range(values.shape[1])]


def test_a_second_time_nothing_is_run(bench: Bench) -> None:
    first = bench.collect()
    assert bench.runs == len(bench.images) == 6
    assert np.array_equal(states(bench.collect()), states(first))
    assert bench.runs == 6


def test_an_interrupted_run_goes_on_and_ends_alike(bench: Bench, tmp_path: Path) -> None:
    whole = states(bench.collect())
    bench.cache, bench.runs, bench.fail_at = tmp_path / "other.npz", 0, 5
    with pytest.raises(KeyboardInterrupt):
        bench.collect()
    bench.runs, bench.fail_at = 0, None
    assert np.array_equal(states(bench.collect()), whole)  # to the bit
    assert bench.runs == 2  # four of six were kept


def change_image(bench: Bench) -> None:
    bench.images[0] = replace(bench.images[0], sha256="0" * 64)


def change_order(bench: Bench) -> None:
    bench.images.reverse()


def change_preprocessing(bench: Bench) -> None:
    bench.spec = bench.spec.replace(resize="stretch")


def change_weights(bench: Bench) -> None:
    model = onnx.load(bench.model)
    weight = model.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.001), weight.name))
    bench.model = bench.cache.parent / "other.onnx"
    onnx.save(model, bench.model)


@pytest.mark.parametrize("change", [change_image, change_order, change_preprocessing, change_weights])
def test_a_cache_of_anything_else_is_not_used(change: Callable[[Bench], None], bench: Bench) -> None:
    bench.collect()
    change(bench)
    bench.collect()
    assert bench.runs == 12


def test_a_cache_of_other_tensors_is_not_used(bench: Bench) -> None:
    bench.collect()
    assert list(bench.collect(TENSORS[:2])) == list(TENSORS[:2])
    assert bench.runs == 12


def test_every_part_of_the_preprocessing_is_in_the_key(bench: Bench) -> None:
    def key(spec: ModelSpec, images: list[CalibrationImage] = bench.images) -> str:
        return cache_key(bench.model, spec, images, TENSORS)

    changes: list[dict[str, object]] = [
        {"pad_value": 0.0},
        {"mean": (0.0, 0.0, 0.0)},
        {"std": (1.0, 1.0, 1.0)},
        {"color": "bgr"},
        {"input_size": (96, 64)},
    ]
    keys = [key(bench.spec), *(key(bench.spec.replace(**change)) for change in changes), key(bench.spec, bench.images[:3])]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "flipped", "zeroed"])
def test_a_damaged_cache_is_made_again(damage: str, bench: Bench) -> None:
    whole = states(bench.collect())
    content = bench.cache.read_bytes()
    with np.load(bench.cache) as stored:
        zeroed = io.BytesIO()
        np.savez_compressed(zeroed, **{**stored, "states": np.zeros_like(stored["states"])})  # with the right key, and whole
    middle = len(content) // 2
    bench.cache.write_bytes(
        {
            "empty": b"",
            "cut": content[:middle],
            "text": b"not a cache",
            "zeroed": zeroed.getvalue(),
            "flipped": content[:middle] + bytes(255 - byte for byte in content[middle : middle + 64]) + content[middle + 64 :],
        }[damage]
    )
    assert np.array_equal(states(bench.collect()), whole)
    assert bench.runs == 12


def test_values_that_are_not_finite_name_their_layer(bench: Bench, tmp_path: Path) -> None:
    model = onnx.load(bench.model)
    names = {weight.name: weight for weight in model.graph.initializer}
    stem = next(node for node in model.graph.node if node.name == "/backbone/stem/conv/Conv")
    weight = names[stem.input[1]]
    weight.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(weight), np.nan), weight.name))
    bench.model = tmp_path / "nan.onnx"
    onnx.save(model, bench.model)
    with pytest.raises(InputError, match=r"nan\.onnx: /backbone/stem/conv/Conv \(Conv\) gives values that are not finite on"):
        bench.collect()
    assert not bench.cache.exists()


def test_the_choice_of_images(own_set: Path) -> None:
    dataset = open_dataset(own_set, "train")
    chosen = {seed: [image.entry.image_id for image in choose_images(dataset, 3, seed)] for seed in range(6)}
    assert all(len(set(ids)) == 3 and ids == sorted(ids) for ids in chosen.values())
    assert len({tuple(ids) for ids in chosen.values()}) > 1
    assert [image.entry.image_id for image in choose_images(dataset, 3, 0)] == chosen[0]
    with pytest.raises(InputError, match="has 6 images, 7 were asked for"):
        choose_images(dataset, 7, 0)
    with pytest.raises(InputError, match="has no image to calibrate on"):
        choose_images(replace(dataset, images=()), None, 0)


def test_a_fixed_batch_repeats_the_image(bench: Bench) -> None:
    single, four = bench.images[0].load(bench.spec), bench.images[0].load(bench.spec, 4)
    assert single.shape == (1, 3, 64, 64)
    assert np.array_equal(four, np.concatenate([single] * 4))
