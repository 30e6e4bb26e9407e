"""From a float32 ONNX file to an INT8 one that kept its accuracy: ranges, placement, measurement, repair."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx

from calibration.collect import cache_key, collect
from calibration.graph import Graph
from calibration.images import CalibrationImage, choose_images
from calibration.placement import place
from calibration.quantize import quantize
from calibration.ranges import METHODS, Histogram, Range, find_range
from calibration.sensitivity import LayerSensitivity, Outputs, rank_layers, smallest_set
from runtime.backends.ort import OrtBackend
from runtime.datasets.dataset import Dataset
from runtime.datasets.open import open_dataset
from runtime.detector import Detector
from runtime.errors import CheckFailed, InputError, ModelError, OutputError
from runtime.evaluation.coco import Evaluation, evaluate, match_classes
from runtime.files import atomic_write, write_json
from runtime.manifest import Origin, write_manifest
from runtime.spec import ModelSpec

log = logging.getLogger(__name__)

_JUDGED = 4  # images on which a layer's signal to noise is measured
_SCORED = 5  # worst layers whose cost in AP is measured too


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes:
        model: the float32 file. output: the file to write. data: dataset folder.
        method: of finding ranges, or `auto` for the one with the best AP. target: see `calibration.placement`.
        images: how many to calibrate on, None for the default. seed: of their choice.
        max_ap_drop: budget in points of AP, None for any loss (then only `auto` measures).
        calibration_split, split: where to calibrate and where to score.
        sensitivity: rank all layers even if the budget is met without.
    """

    model: Path
    output: Path
    data: Path
    method: str = "entropy"
    target: str = "tensorrt"
    images: int | None = None
    seed: int = 0
    max_ap_drop: float | None = 0.5
    calibration_split: str = "train"
    split: str = "val"
    sensitivity: bool = False


@dataclass
class Result:
    """What was done.

    Attributes:
        method: of finding ranges that was taken. before, after: accuracy of the float32 file and of the INT8 one, or None.
        half: layers returned to float16. ranking: layers by sensitivity, the worst first, empty if it was not needed.
        layers: how many layers were quantized at first. half_bytes: what `half` costs in size.
    """

    method: str
    before: Evaluation | None
    after: Evaluation | None
    layers: int
    half: frozenset[str] = frozenset()
    ranking: list[LayerSensitivity] = field(default_factory=list)

    @property
    def half_bytes(self) -> int:
        """Bytes that the layers returned to float16 add to the file."""
        return sum(item.bytes for item in self.ranking if item.layer in self.half)


def calibrate(request: Request) -> Result:
    """Carry out a request: the output and its manifest are written only if the budget is met.

    Raises:
        InputError: the model or the data cannot be used.
        CheckFailed: no set of layers in float16 meets the budget; the message holds the ranking's head.
    """
    work = _Work(request)
    method = request.method
    if method == "auto":
        method = work.best_method()
    ranges = work.ranges(method)
    result = Result(method, work.before, None, len(work.layers))
    if request.max_ap_drop is not None:
        lost = work.drop(ranges)
        if lost > request.max_ap_drop:
            _repair(work, ranges, result, lost, request.max_ap_drop)
    if request.sensitivity and not result.ranking:
        result.ranking = work.rank(ranges)
    if work.before is not None:
        result.after = work.accuracy(ranges, half=result.half)
    work.write(ranges, result)
    return result


def _repair(work: _Work, ranges: dict[str, Range], result: Result, lost: float, budget: float) -> None:
    log.info("INT8 loses %.2f points of AP, the budget is %.2f: measuring which layers cost it", lost, budget)
    ranking = work.rank(ranges)
    worst = [replace(item, ap_drop=work.drop(ranges, only=[item.layer])) for item in ranking[:_SCORED]]
    result.ranking = [*worst, *ranking[_SCORED:]]
    chosen = smallest_set([item.layer for item in ranking], lambda half: work.drop(ranges, half=half), budget)
    if chosen is None:
        log.info("layers, the most sensitive first:\n%s", "\n".join(map(str, result.ranking)))
        left = work.drop(ranges, half=frozenset(work.layers))
        raise CheckFailed(
            f"{work.request.output} was not written: even with every layer in float16 it loses {left:.2f} points of AP, the"
            f" budget is {budget:.2f}; most sensitive layers: {', '.join(map(str, worst))}"
        )
    result.half = chosen


class _Work:
    """The model, its data and what was measured so far; slow results are kept beside the output, keyed by what made them."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.model, self.spec = read_model(request.model)
        graph = Graph(self.model)
        placement = place(graph, request.target)
        self.layers = placement.layers
        if not self.layers:
            raise InputError(f"{request.model}: has no layer that could be quantized")
        training = open_dataset(request.data, request.calibration_split)
        self.images = choose_images(training, request.images, request.seed)
        self.scored: Dataset | None = None
        self.before: Evaluation | None = None
        self._evaluations: dict[str, Evaluation] = {}
        if request.max_ap_drop is not None or request.method == "auto":
            self.scored = open_dataset(request.data, request.split)
            match_classes(self.spec.class_names, self.scored)  # now rather than after the work
            _check_apart(self.images, self.scored)
        cache = request.output.with_name(f"{request.output.name}.ranges.npz")
        self.tensors = list(placement.tensors)
        self.key = cache_key(request.model, self.spec, self.images, self.tensors)
        self.histograms = collect(request.model, self.spec, self.images, self.tensors, cache, self.key)
        if self.scored is not None:
            with OrtBackend(request.model) as backend:
                self.before = self._evaluate(backend, "float32")
            _check_measurable(self.before, self.scored)

    def ranges(self, method: str) -> dict[str, Range]:
        """The range of every quantized activation."""
        return {name: find_range(histogram, method) for name, histogram in self.histograms.items()}

    def best_method(self) -> str:
        """The method whose file has the highest AP; the first of equals."""
        drops = {method: self.drop(self.ranges(method)) for method in METHODS}
        for method, drop in drops.items():
            log.info("%-10s %+.2f points of AP", method, -drop)
        return min(drops, key=lambda method: drops[method])

    def drop(self, ranges: dict[str, Range], half: Collection[str] = (), only: Sequence[str] | None = None) -> float:
        """Points of AP lost against the float32 file."""
        assert self.before is not None
        return (self.before.ap - self.accuracy(ranges, half, only).ap) * 100

    def accuracy(self, ranges: dict[str, Range], half: Collection[str] = (), only: Sequence[str] | None = None) -> Evaluation:
        """Accuracy with these ranges and `half` in float16, or nothing but `only` in 8 bits."""
        model = quantize(self.model, ranges, self.request.target, half=half, only=only)
        key = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
        if key not in self._evaluations:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "candidate.onnx"
                onnx.save(model, str(path))
                with OrtBackend(path) as backend:
                    what = f"int8 in {only[0]} alone" if only else f"int8, {len(half)} in float16" if half else "int8"
                    found = self._evaluate(backend, what)
            self._evaluations[key] = found
        return self._evaluations[key]

    def _evaluate(self, backend: OrtBackend, what: str) -> Evaluation:
        assert self.scored is not None
        detector = Detector(backend, score_threshold=backend.spec.score_threshold)
        result = evaluate(detector, self.scored, backend.spec.class_names)
        log.info("%-16s AP %.2f  AP50 %.2f", what, result.ap * 100, result.ap50 * 100)
        return result

    def rank(self, ranges: dict[str, Range]) -> list[LayerSensitivity]:
        """Every layer by what quantizing it alone does to the raw maps; taken up where an interrupted run stopped."""
        spans = json.dumps(sorted((name, span.low, span.high) for name, span in ranges.items()))
        key = hashlib.sha256(f"{self.key}{self.request.target}{spans}".encode()).hexdigest()
        path = self.request.output.with_name(f"{self.request.output.name}.sensitivity.json")
        with OrtBackend(self.request.model) as original:
            inputs = [image.load(self.spec, original.batch_size) for image in self.images[:_JUDGED]]

        whole = _giving_maps(self.model, self.spec)

        def run(model: onnx.ModelProto) -> list[Outputs]:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "candidate.onnx"
                onnx.save(model, str(file))
                with OrtBackend(file) as backend:
                    return [backend.infer(x) for x in inputs]

        def save(found: dict[str, float]) -> None:
            write_json(path, {"key": key, "snr_db": found})

        return rank_layers(whole, ranges, self.request.target, self.layers, run, _known(path, key), save)

    def write(self, ranges: dict[str, Range], result: Result) -> None:
        """The INT8 file, then its manifest."""
        request = self.request
        model = quantize(self.model, ranges, request.target, half=result.half)
        spec = self.spec.replace(
            precision="int8", made_with=(*self.spec.made_with, f"calibration with onnx {onnx.__version__}")
        )
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, dict(sorted(spec.to_metadata().items())))
        onnx.checker.check_model(model, full_check=True)
        with atomic_write(request.output) as temporary:
            onnx.save(model, str(temporary))
            with OrtBackend(temporary):
                pass  # it opens, and its signature is what its description says
        details = {"calibration": self._details(ranges, result), "accuracy": _figures(result)}
        try:
            write_manifest(request.output, spec, [Origin.of("onnx", request.model, request.output)], details)
        except OutputError:
            request.output.unlink()  # without its manifest it is half of what was asked for
            raise

    def _details(self, ranges: dict[str, Range], result: Result) -> dict[str, Any]:
        half = result.half
        placement = place(Graph(self.model), self.request.target, without=half)
        used = {name: ranges[name] for name in placement.tensors}
        return {
            "method": result.method,
            "target": self.request.target,
            "seed": self.request.seed,
            "split": self.request.calibration_split,
            "images": [{"name": image.entry.path.name, "sha256": image.sha256} for image in self.images],
            "ranges": {name: {"low": span.low, "high": span.high} for name, span in used.items()},
            "histograms": {name: _summary(self.histograms[name], used[name]) for name in used},
            "float_layers": list(placement.float_layers),
            "half_layers": sorted(half),
            "sensitivity": [asdict(item) for item in result.ranking],
        }


def _giving_maps(model: onnx.ModelProto, spec: ModelSpec) -> onnx.ModelProto:
    """The model, or one with `top_k` cut where its raw maps are: which boxes are the best is no measure of error."""
    if not spec.top_k:
        return model
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    batch = model.graph.output[0].type.tensor_type.shape.dim[0]
    del cut.graph.output[:], cut.metadata_props[:]
    for level, name in enumerate(spec.map_names):
        shape = [batch.dim_param or batch.dim_value, *spec.map_shape(level)]
        cut.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    onnx.helper.set_model_props(cut, spec.replace(top_k=0).to_metadata())
    return cut


def _summary(histogram: Histogram, span: Range) -> dict[str, Any]:
    edges, counts = histogram.summary()
    return {"edges": edges, "counts": counts, "threshold": span.threshold}


def _figures(result: Result) -> dict[str, Any]:
    named = {"float32": result.before, "int8": result.after}
    return {name: found.to_dict() for name, found in named.items() if found is not None}


def _known(path: Path, key: str) -> dict[str, float]:
    """Sensitivities that an interrupted run left, if they are of the same model, ranges and images."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): float(value) for name, value in content["snr_db"].items()} if content["key"] == key else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _check_measurable(before: Evaluation, scored: Dataset) -> None:
    if before.ap < 0:
        raise InputError(f"{scored.root}: split {scored.split!r} has no object to score on; choose another --split")
    if before.ap == 0:
        log.warning("the float32 model finds nothing (AP 0), so that no loss can be seen")


def _check_apart(images: Sequence[CalibrationImage], scored: Dataset) -> None:
    shared = {image.entry.path for image in images} & {entry.path for entry in scored.images}
    if shared:
        raise InputError(
            f"{len(shared)} calibration images are in the split that is scored ({scored.split}), which would flatter the"
            " result; choose another --calibration-split or --split"
        )


def read_model(path: Path) -> tuple[onnx.ModelProto, ModelSpec]:
    """A float32 ONNX file of ours, with its description.

    Raises:
        InputError: no such file. ModelError: damaged, foreign, or not of float32.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such model file")
    with OrtBackend(path) as backend:  # one place says what is wrong with a file
        spec = backend.spec
    if spec.precision != "fp32":
        raise ModelError(f"{path}: is of precision {spec.precision}; calibration starts from a float32 file")
    return onnx.load(str(path)), spec
