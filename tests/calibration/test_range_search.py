"""The search of ranges by their effect on the detections: against plain references."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.detection_error import DetectionError
from calibration.graph import Graph
from calibration.placement import TARGETS, place
from calibration.quantize import quantize_activations, shared_ranges
from calibration.range_search import SHARES, _best_share, search_ranges
from calibration.ranges import Range
from runtime.backends.ort import OrtBackend
from runtime.ops.decode import decode
from runtime.spec import ModelSpec
from tests.support.small_models import noise


@given(
    st.lists(st.integers(1), min_size=len(SHARES), max_size=len(SHARES), unique=True),
    st.integers(0, len(SHARES) - 1),
    st.floats(0, 1),
)
def test_the_best_of_errors_that_fall_and_rise(errors: list[int], best: int, start: float) -> None:
    errors = [*sorted(errors[:best], reverse=True), 0, *sorted(errors[best + 1 :])]
    limits = []

    def measure(share: float, limit: float) -> float:
        limits.append(limit)
        return errors[SHARES.index(share)]

    assert _best_share(measure, start) == SHARES[best]
    begin = min(range(len(SHARES)), key=lambda step: abs(SHARES[step] - start))
    assert len(limits) <= abs(best - begin) + 3  # no share but those on the way, and one more on each side


RangesOf = Callable[[Path, str], dict[str, Range]]


def plain_error(spec: ModelSpec, first: list[Any], second: list[Any]) -> float:
    """The error by its definition, one candidate at a time."""
    changed = total = 0.0
    for mine, theirs in zip(first, second, strict=True):
        a, b = (decode([level[0] for level in maps], spec, 0.0) for maps in (mine, theirs))
        for i in range(len(a.scores)):
            larger = max(a.scores[i], b.scores[i])
            if larger < spec.score_threshold:
                continue
            (x1, y1, x2, y2), (u1, v1, u2, v2) = a.boxes[i].tolist(), b.boxes[i].tolist()
            shared = max(0.0, min(x2, u2) - max(x1, u1)) * max(0.0, min(y2, v2) - max(y1, v1))
            union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - shared
            iou = shared / union if union > 0 and a.class_ids[i] == b.class_ids[i] else 0.0
            changed += abs(a.scores[i] - b.scores[i]) + larger * (1 - iou)
            total += a.scores[i] if a.scores[i] >= spec.score_threshold else 0
    return changed / total


@pytest.fixture
def maps(plain_model: Path) -> tuple[ModelSpec, list[Any]]:
    with OrtBackend(plain_model) as backend:
        return backend.spec, [backend.infer(noise(seed)) for seed in range(2)]


def test_the_error_by_its_definition(maps: tuple[ModelSpec, list[Any]]) -> None:
    spec, reference = maps
    rng = np.random.default_rng(0)
    error = DetectionError(spec, reference)
    assert error(reference) == 0
    for scale in (0.01, 1.0):
        other = [[level + rng.normal(0, scale, level.shape).astype(np.float32) for level in image] for image in reference]
        assert error(other) == pytest.approx(plain_error(spec, reference, other), rel=1e-4)
        part = DetectionError(spec, reference)(other[:1])
        more = iter(other)
        assert part <= error(more, limit=part / 2) < error(other) and next(more) is other[1]  # the rest was not asked for
    other[0][1][0, 0, 0, 0] = np.nan
    assert error(other) == float("inf")


@pytest.mark.parametrize("target", TARGETS)
def test_the_search_goes_down_to_where_the_error_grows_on_both_sides(
    target: str, plain_model: Path, ranges_of: RangesOf, maps: tuple[ModelSpec, list[Any]], tmp_path: Path
) -> None:
    spec, _ = maps
    model, widest, images = onnx.load(plain_model), ranges_of(plain_model, target), [noise(seed) for seed in range(2)]
    placement = place(Graph(model), target)
    whole = shared_ranges(placement, widest)
    groups = list(dict.fromkeys(placement.tensors.values()))
    tried = groups[1::7]
    saved: list[dict[str, float]] = []
    known = {group: 1.0 for group in groups if group not in tried}

    def cut(tensor: str, share: float) -> Range:
        return whole[tensor].limited(whole[tensor].threshold * share)

    starts = {name: cut(name, 0.4) for name in widest}
    found = search_ranges(model, spec, widest, starts, target, images, known, lambda shares: saved.append(dict(shares)))
    with OrtBackend(plain_model) as backend:
        error = DetectionError(spec, [backend.infer(image) for image in images])
    for group in tried:
        tensors = [name for name, shared in placement.tensors.items() if shared == group]
        errors = []
        for share in SHARES:
            spans = {name: cut(name, share) for name in tensors}
            onnx.save(quantize_activations(model, placement, spans, tensors), tmp_path / "trial.onnx")
            with OrtBackend(tmp_path / "trial.onnx") as backend:
                errors.append(error([backend.infer(image) for image in images]))
        best, start = SHARES.index(saved[-1][group]), 3  # the share nearest to 0.4
        assert all(errors[best] <= errors[near] for near in (best - 1, best + 1) if 0 <= near < len(errors))
        way = errors[min(best, start) : max(best, start) + 1]
        assert way == sorted(way, reverse=best > start) and errors[best] == min(way)
        assert all(found[name] == cut(name, SHARES[best]) for name in tensors)
    untouched = [name for name, group in placement.tensors.items() if group not in tried]
    assert all(found[name] == whole[name] for name in untouched)
    assert len(saved) == len(tried)
