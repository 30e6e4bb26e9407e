"""The ranking of layers, and the search for those to take back."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.detection_error import DetectionError, Outputs
from calibration.graph import Graph
from calibration.placement import place
from calibration.ranges import Range
from calibration.sensitivity import choose_layers, rank_layers, smallest_set
from runtime.spec import ModelSpec
from tests.support.small_models import noise


def run(model: onnx.ModelProto) -> list[Outputs]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [session.run(None, {"images": noise(seed, count=1)}) for seed in (0, 1)]


def error_from(model: onnx.ModelProto) -> Callable[[onnx.ModelProto], float]:
    spec = ModelSpec.from_metadata({item.key: item.value for item in model.metadata_props})
    distance = DetectionError(spec, run(model))
    return lambda other: distance(run(other))


@pytest.mark.parametrize("target", ["tensorrt", "cpu"])
def test_the_ranking_names_a_layer_whose_scale_is_wrong(
    target: str, plain_model: Path, ranges_of: Callable[[Path, str], dict[str, Range]]
) -> None:
    model, ranges = onnx.load(plain_model), ranges_of(plain_model, target)
    graph = Graph(model)
    layer = "/backbone/stages.1/stages.1.0/conv/Conv"
    layers = [*place(graph, target).layers[::6], layer]  # enough to be told apart from
    tensor = next(node.input[0] for node in graph.nodes if node.name == layer)
    error = error_from(model)
    sane = {item.layer: item.error for item in rank_layers(model, ranges, target, layers, error)}
    wrong = ranges[tensor]
    for factor in (8, 1 / 8):
        damaged = ranges | {tensor: Range(wrong.low * factor, wrong.high * factor)}
        ranking = rank_layers(model, damaged, target, layers, error)
        assert ranking[0].layer == layer, (factor, ranking[:3])
        found = {item.layer: item.error for item in ranking}
        assert found[layer] > 2 * sane[layer]
        assert [item.error for item in ranking] == sorted(found.values(), reverse=True)
    weight = graph.constant(next(node.input[1] for node in graph.nodes if node.name == layer))
    assert weight is not None and next(item.bytes for item in ranking if item.layer == layer) == weight.size


def test_what_an_interrupted_ranking_knew_is_not_measured_again(
    tiny_model: Path, ranges_of: Callable[[Path, str], dict[str, Range]]
) -> None:
    model, ranges = onnx.load(tiny_model), ranges_of(tiny_model, "tensorrt")
    layers, saved = place(Graph(model), "tensorrt").layers[:3], []
    errors = iter([0.5, math.inf])
    ranking = rank_layers(
        model, ranges, "tensorrt", layers, lambda _: next(errors), {layers[0]: 2e6}, lambda d: saved.append(dict(d))
    )
    assert next(errors, None) is None  # two layers were measured
    assert [set(found) for found in saved] == [set(layers[:2]), set(layers)]
    assert [(item.layer, item.error) for item in ranking] == [(layers[0], 2e6), (layers[2], 1e6), (layers[1], 0.5)]


LAYERS = [f"layer{i}" for i in range(6)]
costs = st.lists(st.integers(0, 5), min_size=6, max_size=6)


@settings(max_examples=300)
@given(costs, st.permutations(LAYERS), st.integers(0, 12))
def test_what_is_guaranteed_where_every_layer_helps(cost: list[int], ranking: list[str], budget: int) -> None:
    prices, calls = dict(zip(LAYERS, cost)), []

    def drop(fp16: frozenset[str]) -> float:
        calls.append(fp16)
        return sum(price for layer, price in prices.items() if layer not in fp16)

    if drop(frozenset()) <= budget:
        return  # never asked then
    found = smallest_set(ranking, lambda fp16: drop(fp16) <= budget)
    assert found is not None and drop(found) <= budget
    start = next(n for n in range(7) if drop(frozenset(ranking[:n])) <= budget)
    assert found <= set(ranking[:start])  # of the shortest sufficient start
    assert all(drop(found - {layer}) > budget for layer in found)  # and none of it can be left out
    if [prices[layer] for layer in ranking] == sorted(cost, reverse=True):  # the ranking told the truth
        fewest = min(n for n in range(7) for some in itertools.combinations(LAYERS, n) if drop(frozenset(some)) <= budget)
        assert len(found) == fewest


@settings(max_examples=300)
@given(st.dictionaries(st.frozensets(st.sampled_from(LAYERS)), st.integers(0, 3)), st.integers(0, 2))
def test_what_is_guaranteed_whatever_happens(table: dict[frozenset[str], int], budget: int) -> None:
    def drop(fp16: frozenset[str]) -> float:
        return table.get(fp16, 3)

    found = smallest_set(LAYERS, lambda fp16: drop(fp16) <= budget)
    if found is None:
        assert drop(frozenset(LAYERS)) > budget
    else:
        assert drop(found) <= budget


@pytest.mark.parametrize(
    ("left", "expected"), [((0.9, 0.4, 0.1), 2), ((0.9, 0.2, 0.2), 1), ((0.9, 0.4, 0.3), 1), ((0.9, 0.9, 0.9), None)]
)
def test_layers_are_chosen_with_a_margin(left: tuple[float, ...], expected: int | None) -> None:
    """Half of the budget is kept where that can be, else the budget."""
    found = choose_layers(["a", "b"], lambda most, layers: left[len(layers)] <= most, 0.5)
    assert (found and len(found)) == expected


def test_a_long_ranking_takes_few_measurements() -> None:
    layers, calls = [f"layer{i}" for i in range(100)], []

    def drop(fp16: frozenset[str]) -> float:
        calls.append(fp16)
        return 100 - len(fp16)

    found = smallest_set(layers, lambda fp16: drop(fp16) <= 40)
    assert found == frozenset(layers[:60])
    assert len(calls) < 20
