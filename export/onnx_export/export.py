"""Exports a checkpoint to an ONNX file that is proven to compute the same as PyTorch."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.onnx_export import parity
from export.onnx_export.exporters import DEFAULT_EXPORTER, choose_opset
from export.onnx_export.fp16_range import FP16_MAX, check_range
from export.onnx_export.parity import OutputDifference
from export.onnx_export.tracer import TOOLS, exact_outputs, output_shapes, write_onnx
from runtime.backends.base import Backend
from runtime.backends.inspection import InspectableBackend, Inspection, inspection_shapes
from runtime.backends.ort import OrtBackend
from runtime.errors import CheckFailed, InputError
from runtime.files import sha256
from runtime.manifest import Origin, atomic_pair, write_manifest
from runtime.media.sources import find_sources, read_source
from runtime.ops.image import Image
from runtime.ops.preprocess import preprocess
from runtime.spec import ModelSpec
from train import checkpoint
from train.model import DetectorModel
from train.torch_backend import TorchBackend
from train.weights import open_weights

_BATCHES = (1, 3)  # batch sizes at which a file with a dynamic batch is compared
_SECOND_SIZE = 64  # pixels added to each side for the second size that is compared
_SCANNED = 32  # images on which the range of FP16 is checked

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """Checkpoint to export, and the options of its ONNX file.

    Attributes:
        weights: anything that `train.weights.open_weights` takes.
        output: the file to write.
        size: (height, width) in pixels; None for the checkpoint's.
        batch: fixed batch size; None for a dynamic one.
        precision: `fp32` or `fp16`.
        exporter: of torch, one of `export.onnx_export.exporters.EXPORTERS`.
        opset: ONNX operator set; None for the exporter's default.
        images: images to compare on (anything `--source` takes); None for seeded noise.
        uint8_input: whether the file takes bytes and normalizes them itself.
        top_k: number of decoded boxes that the file gives out; 0 for the raw maps.
        inspect: whether the file also gives out how ASFF fuses the levels.
        classes: class names; None for those of the weights.
        allow_rounding: whether a difference of an FP32 file beyond the limit is accepted where rounding explains it, see
            `OutputDifference.is_rounding`.

    Raises:
        InputError: `allow_rounding` with FP16, or an opset that the exporter does not write.
    """

    weights: Path
    output: Path
    size: tuple[int, int] | None = None
    batch: int | None = None
    precision: str = "fp32"
    exporter: str = DEFAULT_EXPORTER
    opset: int | None = None
    images: str | None = None
    uint8_input: bool = False
    top_k: int = 0
    inspect: bool = False
    classes: tuple[str, ...] | None = None
    allow_rounding: bool = False

    def __post_init__(self) -> None:
        choose_opset(self.exporter, self.opset)
        if self.allow_rounding and self.precision != "fp32":
            raise InputError(f"--allow-rounding: for FP32 files only, not with --precision {self.precision}; leave it out")

    def settings(self) -> dict[str, Any]:
        """Returns everything that the file depends on besides the weights, for its manifest."""
        values = {name: value for name, value in vars(self).items() if name not in ("weights", "output")}
        values["opset"] = choose_opset(self.exporter, self.opset)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def export_onnx(request: ExportRequest) -> Iterator[tuple[str, OutputDifference]]:
    """Exports a checkpoint and proves the file at two sizes.

    The file and its manifest (see `runtime.manifest`) are written only if every comparison passes, and only when the iterator
    is used up.

    Yields:
        The name of a comparison, and the largest difference it found.

    Raises:
        InputError: the checkpoint cannot be used, or the output cannot be written.
        CheckFailed: the file does not compute what the checkpoint does, or exceeds the range of FP16.
    """
    loaded = open_weights(request.weights, classes=request.classes)
    model = checkpoint.restore(request.weights, loaded)
    if request.inspect:
        model.check_inspectable()
    spec = loaded.spec.replace(
        input_size=request.size or loaded.spec.input_size,
        precision=request.precision,
        input_type="uint8" if request.uint8_input else "float32",
        top_k=request.top_k,
        source_sha256=sha256(request.weights),
        made_with=TOOLS,
    )
    found: dict[str, Any] = {}
    larger = spec.replace(input_size=tuple(side + _SECOND_SIZE for side in spec.input_size))
    output = request.output
    with atomic_pair(output) as written, tempfile.TemporaryDirectory(dir=written.parent) as folder:
        for each, path in ((spec, written), (larger, Path(folder) / "larger.onnx")):
            for comparison, difference in _write_proven(model, each, path, Path(folder) / "plain.onnx", request):
                found[comparison] = vars(difference)
                yield f"{comparison}, {difference.output}", difference
        if request.precision == "fp16":
            _check_range(written, spec, request)
        origin = Origin.of("weights", request.weights, output)
        write_manifest(written, spec, [origin], {"settings": request.settings(), "parity": found})


def check_parity(reference: Backend, exported: Backend, images: Sequence[Image], *, inspect: bool = False) -> OutputDifference:
    """Runs two backends on the same images, at each batch size that `exported` takes.

    Args:
        reference: a backend that gives out raw maps.
        exported: the backend to compare with it; it may give out candidates.
        images: uint8 BGR images; each backend gets them preprocessed as its own spec says.
        inspect: whether to compare the fusion outputs too; both backends must have them.

    Returns:
        The largest difference of any output.
    """
    found = []
    for size in (exported.batch_size,) if exported.batch_size else _BATCHES:
        chosen = list(itertools.islice(itertools.cycle(images), size))
        one, other = (_outputs(backend, prepare(chosen, backend.spec), inspect) for backend in (reference, exported))
        found += parity.compare_outputs(reference.spec, one.outputs, exported.spec, other.outputs)
        fusion_names = list(inspection_shapes(reference.spec.input_size))
        found += parity.compare(fusion_names, one.fusion(), other.fusion())
    return parity.worst(found)


def _outputs(backend: Backend, images: NDArray[Any], inspect: bool) -> Inspection:
    if inspect:
        assert isinstance(backend, InspectableBackend)
        return backend.inspect(images)
    return Inspection(backend.infer(images), [], [])


def parity_images(spec: ModelSpec, images: str | None, count: int) -> list[Image]:
    """Reads the images to compare on, or makes them.

    Args:
        spec: gives the size of the noise.
        images: anything `--source` takes; None for seeded noise.
        count: number of images; fewer if `images` has fewer.

    Returns:
        uint8 BGR images.
    """
    if images:
        return [read_source(source) for source in find_sources(images)[:count]]
    noise = np.random.default_rng(0).integers(0, 256, (count, *spec.input_size, 3), dtype=np.uint8)
    return list(noise)


def prepare(images: Sequence[Image], spec: ModelSpec) -> NDArray[Any]:
    """Preprocesses images into one batch, as the spec says."""
    return np.stack([preprocess(image, spec)[0] for image in images])


def _write_proven(
    model: DetectorModel, spec: ModelSpec, path: Path, scratch: Path, request: ExportRequest
) -> Iterator[tuple[str, OutputDifference]]:
    """Writes a file and proves it.

    A plain file is compared with PyTorch. For a file with options, a plain one is written to `scratch` and compared with
    PyTorch, and then the two files with each other.

    Raises:
        CheckFailed: a difference is too large.
    """
    plain = spec.plain()
    size = "{}x{}".format(*spec.input_size)
    batches = str(request.batch) if request.batch else " and ".join(map(str, _BATCHES))
    images = parity_images(plain, request.images, max(_BATCHES))
    plain_path = path if spec == plain else scratch
    options: dict[str, Any] = {name: getattr(request, name) for name in ("batch", "opset", "inspect", "exporter")}
    write_onnx(model, plain, plain_path, **options)
    with OrtBackend(plain_path) as exported:
        difference = check_parity(TorchBackend(model, plain), exported, images, inspect=request.inspect)
        if request.allow_rounding and not difference.agrees(request.precision):
            difference = _with_rounding(difference, model, plain, prepare(images, plain), request)
        yield f"{size}, batch {batches}", difference
        if not (difference.agrees(request.precision) or difference.is_rounding()):
            raise CheckFailed(f"{request.output} was not written: at {size} {_disagreement(difference, request.precision)}")
        if spec == plain:
            return
        write_onnx(model, spec, path, **options)
        with OrtBackend(path) as optioned:
            difference = check_parity(exported, optioned, images, inspect=request.inspect)
    flags = " ".join(_option_flags(spec))
    yield f"{size}, {flags} / plain", difference
    if not difference.relative <= parity.OPTIONS_LIMIT:
        raise CheckFailed(
            f"{request.output} was not written: at {size} with {flags} its {difference.output} differ by"
            f" {difference.relative:.1e} of their scale from those without, the limit is {parity.OPTIONS_LIMIT:.0e}"
        )


def _option_flags(spec: ModelSpec) -> list[str]:
    topk = [f"--topk {spec.top_k}"] if spec.top_k else []
    return (["--uint8-input"] if spec.input_type == "uint8" else []) + topk


def _with_rounding(
    difference: OutputDifference, model: DetectorModel, spec: ModelSpec, inputs: NDArray[np.float32], request: ExportRequest
) -> OutputDifference:
    """Adds PyTorch's own distance from float64 on these inputs, and warns if that explains the difference."""
    names, float32 = list(output_shapes(spec, request.inspect)), _outputs(TorchBackend(model, spec), inputs, request.inspect)
    exact = exact_outputs(model, inputs, request.inspect)
    rounding = parity.worst(parity.compare(names, exact, [*float32.outputs, *float32.fusion()])).relative
    difference = dataclasses.replace(difference, pytorch_rounding=rounding)
    if difference.is_rounding():
        log.warning(
            "these weights magnify rounding: PyTorch itself is %.1e from float64 (%s is %.1e from PyTorch);"
            " accepted by --allow-rounding",
            *(rounding, request.output.name, difference.relative),
        )
    return difference


def _disagreement(difference: OutputDifference, precision: str) -> str:
    reason = "weights that were never trained magnify rounding"
    if difference.pytorch_rounding is not None:
        reason = f"rounding does not explain it: PyTorch itself is {difference.pytorch_rounding:.1e} from float64"
    elif precision == "fp32":
        reason += "; if yours are such, `python -m export.onnx --allow-rounding` accepts what rounding explains"
    return (
        f"its output {difference.output} differs from PyTorch by {difference.measure(precision):.1e} of its scale, the limit is"
        f" {parity.LIMITS[precision]:.0e} ({reason})"
    )


def _check_range(path: Path, spec: ModelSpec, request: ExportRequest) -> None:
    """Checks the activations of an FP16 file, on more images than parity needs.

    Raises:
        CheckFailed: a layer exceeds the range of FP16.
    """
    if not request.images:
        log.warning("the range of FP16 was checked on noise only; --images checks it on images")
    inputs = prepare(parity_images(spec, request.images, _SCANNED), spec)
    size = request.batch or 1
    batches = (np.resize(inputs[i : i + size], (size, *inputs.shape[1:])) for i in range(0, len(inputs), size))
    largest = check_range(path, batches)
    log.info(
        "largest activation on %d images: %.4g in %s, %.2g of the FP16 range",
        *(len(inputs), largest.peak, largest.layer, largest.peak / FP16_MAX),
    )
