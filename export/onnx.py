"""`python -m export.onnx`: a checkpoint as an ONNX file that is proven to compute the same."""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.onnx_export import parity
from export.onnx_export.fp16_range import HALF_MAX, check_range
from export.onnx_export.parity import Difference
from export.onnx_export.tracer import OPSET, TOOLS, exact_outputs, output_shapes, write_onnx
from runtime import cli
from runtime.backends.base import Backend
from runtime.backends.inspection import InspectableBackend, Inspection, inspection_shapes
from runtime.backends.ort import OrtBackend
from runtime.errors import CheckFailed
from runtime.files import atomic_write, sha256
from runtime.manifest import Origin, manifest_path, write_manifest
from runtime.media.image import Image
from runtime.media.sources import find_sources, read_source
from runtime.ops.preprocess import preprocess
from runtime.spec import MOST_CANDIDATES, ModelSpec
from train import checkpoint
from train.model import DetectorModel
from train.torch_backend import TorchBackend
from train.weights import WEIGHTS_HELP, open_weights
from train.weights.names import read_names

_OPSETS = (16, 17)  # GridSample came with 16; TensorRT 8.6 reads up to 17
_BATCHES = (1, 3)  # batch sizes that a dynamic model is compared at
_SECOND_SIZE = 64  # the second size a model is compared at is larger by this much
_SCANNED = 32  # images on which the range of half precision is checked

log = logging.getLogger(__name__)


def check_parity(reference: Backend, exported: Backend, images: Sequence[Image], *, inspect: bool = False) -> Difference:
    """Run both on images, prepared as each describes, at each batch size the file takes; the worst difference of any output.

    Args:
        reference: one that gives out raw maps.
    """
    found = []
    for size in (exported.batch_size,) if exported.batch_size else _BATCHES:
        chosen = list(itertools.islice(itertools.cycle(images), size))
        one, other = (_outputs(backend, prepare(chosen, backend.spec), inspect) for backend in (reference, exported))
        found += parity.compare_outputs(reference.spec, one.outputs, exported.spec, other.outputs)
        further = list(inspection_shapes(reference.spec.input_size))
        found += parity.compare(further, one.fusion(), other.fusion())
    return parity.worst(found)


def _outputs(backend: Backend, images: NDArray[Any], inspect: bool) -> Inspection:
    if inspect:
        assert isinstance(backend, InspectableBackend)
        return backend.inspect(images)
    return Inspection(backend.infer(images), [], [])


def parity_images(spec: ModelSpec, images: str | None, count: int) -> list[Image]:
    """The first `count` images of `images` (anything `--source` takes), or seeded noise of the input's size; uint8 BGR."""
    if images:
        return [read_source(source) for source in find_sources(images)[:count]]
    noise = np.random.default_rng(0).integers(0, 256, (count, *spec.input_size, 3), dtype=np.uint8)
    return list(noise)


def prepare(images: Sequence[Image], spec: ModelSpec) -> NDArray[Any]:
    """A batch as a model of this description takes it."""
    return np.stack([preprocess(image, spec)[0] for image in images])


@dataclass(frozen=True, kw_only=True)
class Export:
    """What is to be exported, and how.

    Attributes:
        weights: anything `train.weights.open_weights` takes. output: the file to write.
        size: (height, width) in pixels, None for the checkpoint's. batch: fixed, or None for a dynamic one.
        precision: `fp32` or `fp16`. opset: of ONNX.
        images: what to compare on (anything `--source` takes), None for seeded noise.
        uint8_input: take pixels, and normalize them in the graph. top_k: decode in the graph and give out so many boxes, or 0.
        inspect: also give out how ASFF fuses. classes: names for its classes, None for those it has.
    """

    weights: Path
    output: Path
    size: tuple[int, int] | None = None
    batch: int | None = None
    precision: str = "fp32"
    opset: int = OPSET
    images: str | None = None
    uint8_input: bool = False
    top_k: int = 0
    inspect: bool = False
    classes: tuple[str, ...] | None = None

    def settings(self) -> dict[str, Any]:
        """What the file depends on besides the weights, for its manifest."""
        names = ("size", "batch", "precision", "opset", "uint8_input", "top_k", "inspect", "classes")
        values = {name: getattr(self, name) for name in names}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def export_onnx(job: Export) -> Iterator[tuple[str, Difference]]:
    """Export a checkpoint and prove it; yields (what was compared, worst difference) and writes the file only if all pass.

    Its manifest (see `runtime.manifest`) goes beside it.

    Raises:
        InputError: the checkpoint cannot be used, or the output cannot be written.
        CheckFailed: the file does not compute what the checkpoint does, or half precision does not hold it.
    """
    loaded = open_weights(job.weights, classes=job.classes)
    model = checkpoint.restore(job.weights, loaded)
    if job.inspect:
        model.check_inspectable()
    spec = loaded.spec.replace(
        input_size=job.size or loaded.spec.input_size,
        precision=job.precision,
        input_type="uint8" if job.uint8_input else "float32",
        top_k=job.top_k,
        source_sha256=sha256(job.weights),
        made_with=TOOLS,
    )
    found: dict[str, Any] = {}
    larger = spec.replace(input_size=tuple(side + _SECOND_SIZE for side in spec.input_size))
    with atomic_write(job.output) as temporary, tempfile.TemporaryDirectory(dir=temporary.parent, prefix=".parity-") as folder:
        for described, path in ((spec, temporary), (larger, Path(folder) / "larger.onnx")):
            for what, difference in _write_proven(model, described, path, Path(folder) / "plain.onnx", job):
                found[what] = vars(difference)
                yield f"{what}, {difference.output}", difference
        if job.precision == "fp16":
            _check_range(temporary, spec, job)
        manifest_path(job.output).unlink(missing_ok=True)  # it described an earlier file of the name
    origin = Origin.of("weights", job.weights, job.output)
    write_manifest(job.output, spec, [origin], {"settings": job.settings(), "parity": found})


def _write_proven(
    model: DetectorModel, spec: ModelSpec, path: Path, scratch: Path, job: Export
) -> Iterator[tuple[str, Difference]]:
    """Write a file and compare it with PyTorch; one with options (written after one without, at `scratch`) with the latter.

    Raises:
        CheckFailed: they differ too much.
    """
    plain = spec.plain()
    size = "{}x{}".format(*spec.input_size)
    batches = str(job.batch) if job.batch else " and ".join(map(str, _BATCHES))
    images = parity_images(plain, job.images, max(_BATCHES))
    first = path if spec == plain else scratch
    write_onnx(model, plain, first, batch=job.batch, opset=job.opset, inspect=job.inspect)
    with OrtBackend(first) as exported:
        reference = TorchBackend(model, plain)
        difference = check_parity(reference, exported, images, inspect=job.inspect)
        yield f"{size}, batch {batches}", difference
        if not difference.agrees(job.precision) and not _is_rounding(difference, model, plain, prepare(images, plain), job):
            raise CheckFailed(f"{job.output} was not written: at {size} {_disagreement(difference, job.precision)}")
        if spec == plain:
            return
        write_onnx(model, spec, path, batch=job.batch, opset=job.opset, inspect=job.inspect)
        with OrtBackend(path) as optioned:
            difference = check_parity(exported, optioned, images, inspect=job.inspect)
    options = " ".join(_options(spec))
    yield f"{size}, {options} / plain", difference
    if not difference.relative <= parity.OPTIONS_LIMIT:
        raise CheckFailed(
            f"{job.output} was not written: at {size} with {options} its {difference.output} differ by"
            f" {difference.relative:.1e} of their scale from those without, the limit is {parity.OPTIONS_LIMIT:.0e}"
        )


def _options(spec: ModelSpec) -> list[str]:
    """As they are given to the command."""
    topk = [f"--topk {spec.top_k}"] if spec.top_k else []
    return (["--uint8-input"] if spec.input_type == "uint8" else []) + topk


def _is_rounding(
    difference: Difference, model: DetectorModel, spec: ModelSpec, inputs: NDArray[np.float32], job: Export
) -> bool:
    """Whether a float32 file is about as far from PyTorch as PyTorch is from exact arithmetic: the model magnifies rounding."""
    if job.precision != "fp32":
        return False
    names, mine = list(output_shapes(spec, job.inspect)), _outputs(TorchBackend(model, spec), inputs, job.inspect)
    exact = exact_outputs(model, inputs, job.inspect)
    own = parity.worst(parity.compare(names, exact, [*mine.outputs, *mine.fusion()])).relative
    if difference.relative > min(parity.ROUNDING * own, parity.MOST_ROUNDING):
        return False
    log.warning(
        "this model magnifies rounding: in float32 PyTorch itself is %.1e from exact arithmetic (%s is %.1e from PyTorch);"
        " a model that was hardly trained yet does",
        *(own, job.output.name, difference.relative),
    )
    return True


def _disagreement(difference: Difference, precision: str) -> str:
    return (
        f"its output {difference.output} differs from PyTorch by {difference.measure(precision):.1e} of its scale, the limit is"
        f" {parity.LIMITS[precision]:.0e} (a model that was hardly trained yet can magnify mere rounding that much)"
    )


def _check_range(path: Path, spec: ModelSpec, job: Export) -> None:
    """Look for activations that half precision cannot hold, on more images than parity needs."""
    if not job.images:
        log.warning("the range of half precision was checked on noise alone; --images checks it on images")
    inputs = prepare(parity_images(spec, job.images, _SCANNED), spec)
    step = job.batch or 1
    batches = (np.resize(inputs[i : i + step], (step, *inputs.shape[1:])) for i in range(0, len(inputs), step))
    peak = check_range(path, batches)
    what = f"largest activation on {len(inputs)} images: {peak.peak:.4g} in {peak.layer}"
    log.info("%s, %.2g of half precision's range", what, peak.peak / HALF_MAX)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command's arguments."""
    parser = cli.parser(
        "export.onnx",
        "Export a checkpoint to ONNX and compare its outputs with PyTorch's; a file that differs is not written.",
        "python -m export.onnx --weights runs/train/best.pt --output model.onnx --size 416",
    )
    parser.add_argument("--weights", type=Path, required=True, help=WEIGHTS_HELP)
    parser.add_argument("--output", type=Path, required=True, help="the .onnx file to write")
    parser.add_argument("--size", type=cli.image_size, help="side or HEIGHTxWIDTH, multiples of 32 (default: the checkpoint's)")
    parser.add_argument("--batch", type=_batch, default=None, help="a fixed batch size, or `dynamic` (default)")
    parser.add_argument("--opset", type=int, choices=_OPSETS, default=OPSET, help=f"ONNX operator set (default: {OPSET})")
    parser.add_argument("--precision", choices=("fp32", "fp16"), default="fp32", help="of the tensors inside (default: fp32)")
    parser.add_argument("--uint8-input", action="store_true", help="take pixels as bytes, and normalize them in the graph")
    parser.add_argument(
        "--topk",
        type=top_k,
        default=0,
        metavar="K",
        help=f"decode in the graph, give out the K <= {MOST_CANDIDATES} best boxes",
    )
    parser.add_argument("--inspect", action="store_true", help="add outputs that show how ASFF fuses (for runtime.visualize)")
    parser.add_argument(
        "--classes", type=Path, metavar="FILE", help="class names, one per line (default: those of the weights)"
    )
    parser.add_argument("--images", help="images to compare on, and to check the range of fp16 (default: seeded noise)")
    return parser.parse_args(arguments)


def top_k(text: str) -> int:
    value = cli.positive(text)
    if value > MOST_CANDIDATES:
        raise argparse.ArgumentTypeError(f"expected at most {MOST_CANDIDATES}, which is what TensorRT selects, got {value}")
    return value


def _batch(text: str) -> int | None:
    return None if text == "dynamic" else cli.positive(text)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parse(arguments)
    cli.check_suffix(options.output, ".onnx")
    job = Export(
        weights=options.weights,
        output=options.output,
        size=options.size,
        batch=options.batch,
        precision=options.precision,
        opset=options.opset,
        images=options.images,
        uint8_input=options.uint8_input,
        top_k=options.topk,
        inspect=options.inspect,
        classes=read_names(options.classes) if options.classes else None,
    )
    heading = "compared with PyTorch (/ plain: with the plain file)"
    print(f"{heading:54}max absolute  max relative  rms relative", file=sys.stderr)
    for what, difference in export_onnx(job):
        print(f"{what:54} {difference.absolute:12.2e}  {difference.relative:12.2e}  {difference.rms:12.2e}", file=sys.stderr)
    print(options.output)
    return 0


if __name__ == "__main__":
    cli.run(main)
