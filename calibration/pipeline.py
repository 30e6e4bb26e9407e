"""Quantizes an FP32 ONNX file to INT8 within an AP budget: ranges, placement, measurement, repair."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from calibration import range_search
from calibration.budget import CONFIDENCE, PASSED, judge
from calibration.cache import read_values, write_values
from calibration.collect import cache_key, collect, find_peaks
from calibration.detection_error import DetectionError, Outputs
from calibration.equalize import activation_factors, equalize, noted_steps
from calibration.graph import Graph
from calibration.images import named, range_image_count
from calibration.placement import place
from calibration.quantize import quantize
from calibration.ranges import DETECTIONS, METHODS, Histogram, Range, find_range
from calibration.request import Request, inputs, open_data
from calibration.sensitivity import LayerSensitivity, choose_layers, cut_at_maps, rank_layers
from calibration.writer import write_int8
from runtime.backends.ort import OrtBackend
from runtime.datasets.dataset import Dataset
from runtime.detector import Detector
from runtime.errors import CheckFailed, InputError, ModelError
from runtime.evaluation.bootstrap import Bounds, compare
from runtime.evaluation.coco import Evaluation, evaluate, match_classes
from runtime.files import sha256
from runtime.spec import ModelSpec

log = logging.getLogger(__name__)

_EQUALIZED = 32  # images by which channels are scaled
_SCORED = 5  # the worst layers, whose AP drop is measured too


@dataclass
class Result:
    """Outcome of one calibration.

    Attributes:
        method: the method of finding ranges that was used.
        before: accuracy of the FP32 file on the search images; None if it was not measured.
        after: accuracy of the INT8 file on them; None if it was not measured.
        delta_ap: ΔAP between them in points, with its bounds; None if it was not measured.
        layers: number of layers quantized at first.
        fp16_layers: names of the layers returned to FP16.
        ranking: layers by sensitivity, the worst first; empty if it was not needed.
    """

    method: str
    before: Evaluation | None
    after: Evaluation | None
    layers: int
    delta_ap: Bounds | None = None
    fp16_layers: frozenset[str] = frozenset()
    ranking: list[LayerSensitivity] = field(default_factory=list)

    @property
    def fp16_bytes(self) -> int:
        """Bytes that the layers returned to FP16 add to the file."""
        return sum(item.bytes for item in self.ranking if item.layer in self.fp16_layers)


def calibrate(request: Request) -> Result:
    """Quantizes a model; writes the output and its manifest only if the search images show that the budget is met.

    That makes it likely to pass the gate, which judges by other images.

    Raises:
        InputError: the model or the data cannot be used.
        CheckFailed: the budget is not met even with every layer in FP16; the message names the most sensitive layers.
    """
    work = _Work(request)
    method = request.method
    if method == "auto":
        method = work.best_method()
    ranges = work.ranges(method)
    result = Result(method, work.before, None, len(work.layers))
    if request.max_ap_drop is not None and not work.keeps(ranges, request.max_ap_drop):
        _repair(work, ranges, result, request.max_ap_drop)
    if request.sensitivity and not result.ranking:
        result.ranking = work.rank(ranges)
    if work.before is not None:
        result.after = work.accuracy(ranges, fp16=result.fp16_layers)
        result.delta_ap = work.delta(ranges, fp16=result.fp16_layers)
    work.write(ranges, result)
    return result


def _repair(work: _Work, ranges: dict[str, Range], result: Result, budget: float) -> None:
    """Returns a small set of layers to FP16, so that the budget is met; records them in `result`."""
    bounds = work.delta(ranges)
    log.info(
        "INT8 is not shown to keep within %.2f points of AP (ΔAP %+.2f, above %+.2f): measuring the sensitivity of each layer",
        *(budget, bounds.estimate, bounds.lower),
    )
    ranking = work.rank(ranges)
    worst = [replace(item, ap_drop=-work.delta(ranges, only=[item.layer]).estimate) for item in ranking[:_SCORED]]
    result.ranking = [*worst, *ranking[_SCORED:]]
    chosen = choose_layers([item.layer for item in ranking], partial(work.keeps, ranges), budget)
    if chosen is None:
        log.info("layers, the most sensitive first:")
        for item in result.ranking:
            log.info("%s", item)
        left = work.delta(ranges, fp16=frozenset(work.layers))
        raise CheckFailed(
            f"{work.request.output} was not written: even with every layer in FP16 ΔAP is {left.estimate:+.2f} points (above"
            f" {left.lower:+.2f}), the budget is {budget:.2f}; most sensitive layers: {', '.join(map(str, worst))}"
        )
    result.fp16_layers = chosen


class _Work:
    """The model, its images and the measurements so far; slow results are cached beside the output, keyed by their inputs."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.model, self.spec = read_model(request.model)
        graph = Graph(self.model)
        placement = place(graph, request.target)
        self.layers = placement.layers
        if not self.layers:
            raise InputError(f"{request.model}: has no layer that could be quantized")
        self.images, self.search = open_data(request)
        self.inputs = inputs(request, self.images, self.search)
        if self.search is not None:
            match_classes(self.spec.class_names, self.search)  # fail before the long work
        self.before: Evaluation | None = None
        self._evaluations: dict[str, Evaluation] = {}
        self.tensors = list(placement.tensors)
        key = cache_key(request.model, self.spec, self.images, self.tensors)
        source = request.model, self.spec, self.images[:_EQUALIZED], self.tensors
        self.model = equalize(self.model, find_peaks(*source, self._beside("peaks.npz"), key))
        self.key = hashlib.sha256(f"{key}{noted_steps(self.model)}".encode()).hexdigest()
        factors, cache = activation_factors(self.model), self._beside("ranges.npz")
        self.histograms = collect(request.model, self.spec, self.images, self.tensors, factors, cache, self.key)
        if self.search is not None:
            with OrtBackend(request.model) as backend:
                self.before = self._evaluate(backend, "fp32")
            _check_measurable(self.before, self.search)

    def _beside(self, suffix: str) -> Path:
        return self.request.output.with_name(f"{self.request.output.name}.{suffix}")

    def ranges(self, method: str) -> dict[str, Range]:
        """Returns the range of every quantized activation."""
        if method == DETECTIONS:
            return self._searched_ranges()
        return {name: find_range(histogram, method) for name, histogram in self.histograms.items()}

    def _searched_ranges(self) -> dict[str, Range]:
        """Searches the ranges by their effect on the detections; resumes an interrupted search."""
        key = hashlib.sha256(f"{range_search.VERSION}{self.key}{self.request.target}{self._judged}".encode()).hexdigest()
        path = self._beside("search.json")
        return range_search.search_ranges(
            cut_at_maps(self.model, self.spec),
            self.spec.replace(top_k=0),
            self.ranges("minmax"),
            self.ranges("percentile"),
            self.request.target,
            self._batches(),
            read_values(path, key),
            lambda found: write_values(path, key, found),
        )

    @property
    def _judged(self) -> int:
        """Number of calibration images by whose detections ranges and layers are judged."""
        return range_image_count(len(self.images) + len(self.search.images if self.search else ()))

    def _batches(self) -> list[NDArray[Any]]:
        """Returns the model's input for each of the images to judge by."""
        with OrtBackend(self.request.model) as original:
            return [image.load(self.spec, original.batch_size) for image in self.images[: self._judged]]

    def best_method(self) -> str:
        """Returns the method whose file has the highest AP; the first of equals."""
        deltas = {method: self.delta(self.ranges(method)).estimate for method in METHODS}
        for method, delta in deltas.items():
            log.info("%-10s %+.2f points of AP", method, delta)
        return max(deltas, key=lambda method: deltas[method])

    def delta(self, ranges: dict[str, Range], fp16: Collection[str] = (), only: Sequence[str] | None = None) -> Bounds:
        """Returns ΔAP against the FP32 file in points, with its bounds; see `accuracy`."""
        assert self.before is not None
        return compare(self.before.matches, self.accuracy(ranges, fp16, only).matches).bounds(CONFIDENCE)

    def keeps(self, ranges: dict[str, Range], budget: float, fp16: Collection[str] = ()) -> bool:
        """Tells whether the search images show that the budget is met, by the rule of the gate."""
        return judge(self.delta(ranges, fp16), budget) == PASSED

    def accuracy(self, ranges: dict[str, Range], fp16: Collection[str] = (), only: Sequence[str] | None = None) -> Evaluation:
        """Scores the model with these ranges and the layers `fp16` in FP16, or with none but the layers `only` in INT8."""
        rest = "fp32" if only else self.request.float_precision
        model = quantize(self.model, ranges, self.request.target, fp16=fp16, only=only, rest=rest)
        key = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
        if key not in self._evaluations:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "candidate.onnx"
                onnx.save(model, str(path))
                with OrtBackend(path) as backend:
                    what = f"int8 in {only[0]} alone" if only else f"int8, {len(fp16)} in fp16" if fp16 else "int8"
                    found = self._evaluate(backend, what)
            self._evaluations[key] = found
        return self._evaluations[key]

    def _evaluate(self, backend: OrtBackend, what: str) -> Evaluation:
        assert self.search is not None
        detector = Detector(backend, score_threshold=backend.spec.score_threshold)
        result = evaluate(detector, self.search, backend.spec.class_names)
        ap, ap50 = (f"{value * 100:.2f}" if value >= 0 else "–" for value in (result.ap, result.ap50))
        log.info("%-16s AP %s  AP50 %s", what, ap, ap50)
        return result

    def rank(self, ranges: dict[str, Range]) -> list[LayerSensitivity]:
        """Ranks every layer by what quantizing it alone does to the detections; resumes an interrupted ranking."""
        spans = json.dumps(sorted((name, span.low, span.high) for name, span in ranges.items()))
        key = hashlib.sha256(f"{self.key}{self.request.target}{self._judged}{spans}".encode()).hexdigest()
        path, batches = self._beside("sensitivity.json"), self._batches()
        model_to_maps = cut_at_maps(self.model, self.spec)

        def run(model: onnx.ModelProto) -> Iterator[Outputs]:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "candidate.onnx"
                onnx.save(model, str(file))
                with OrtBackend(file) as backend:
                    for batch in batches:
                        yield backend.infer(batch)

        distance = DetectionError(self.spec.replace(top_k=0), run(model_to_maps))

        def error(model: onnx.ModelProto) -> float:
            return distance(run(model))

        def save(found: dict[str, float]) -> None:
            write_values(path, key, found)

        return rank_layers(model_to_maps, ranges, self.request.target, self.layers, error, read_values(path, key), save)

    def write(self, ranges: dict[str, Range], result: Result) -> None:
        """Writes the INT8 file and its manifest."""
        request = self.request
        model = quantize(self.model, ranges, request.target, fp16=result.fp16_layers, rest=request.float_precision)
        spec = self.spec.replace(
            precision="int8", made_with=(*self.spec.made_with, f"calibration with onnx {onnx.__version__}")
        )
        details = {
            **self.inputs,
            "calibration": self._details(ranges, result),
            "accuracy": _accuracy(result),
        }
        write_int8(model, spec, request.output, {"onnx": request.model}, details)

    def _details(self, ranges: dict[str, Range], result: Result) -> dict[str, Any]:
        placement = place(Graph(self.model), self.request.target, without=result.fp16_layers)
        used = {name: ranges[name] for name in placement.tensors}
        return {
            "method": result.method,
            "target": self.request.target,
            "rest": self.request.float_precision,
            "seed": self.request.seed,
            "split": self.request.calibration_split,
            "images": named(self.images),
            "search": _named(self.search) if self.search else None,
            "ranges": {name: asdict(span) for name, span in used.items()},
            "histograms": {name: _summary(self.histograms[name], used[name]) for name in used},
            "float_layers": list(placement.float_layers),
            "half_layers": sorted(result.fp16_layers),
            "sensitivity": [asdict(item) for item in result.ranking],
        }


def _summary(histogram: Histogram, span: Range) -> dict[str, Any]:
    edges, counts = histogram.summary()
    return {"edges": edges, "counts": counts, "threshold": span.threshold}


def _named(search: Dataset) -> dict[str, Any]:
    images = [{"name": entry.path.name, "sha256": sha256(entry.path)} for entry in search.images if entry.path.is_file()]
    return {"split": search.split, "images": images}


def _accuracy(result: Result) -> dict[str, Any]:
    named = {"float32": result.before, "int8": result.after}
    return {name: found.to_dict() for name, found in named.items() if found is not None}


def _check_measurable(before: Evaluation, search: Dataset) -> None:
    if before.ap < 0:
        raise InputError(f"{search.root}: the search images of {search.split!r} have no object; choose another --search-split")
    if before.ap == 0:
        log.warning("the FP32 model finds nothing (AP 0), so no loss can be seen")


def read_model(path: Path) -> tuple[onnx.ModelProto, ModelSpec]:
    """Reads an exported FP32 ONNX file and its spec.

    Raises:
        InputError: no such file.
        ModelError: damaged, foreign, or not FP32.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such model file")
    with OrtBackend(path) as backend:  # it reports whatever is wrong with a file
        spec = backend.spec
    if spec.precision != "fp32":
        raise ModelError(f"{path}: is of precision {spec.precision}; calibration starts from an FP32 file")
    return onnx.load(str(path)), spec
