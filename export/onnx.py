"""`python -m export.onnx`: a checkpoint as an ONNX file that is proven to compute the same. The only torch importer here."""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export import parity
from export.parity import Difference
from runtime import cli
from runtime.backend import Backend
from runtime.errors import CheckFailed, InputError
from runtime.files import replacing, sha256
from runtime.manifest import manifest_path, source, write_manifest
from runtime.ort_backend import INPUT_NAME, OrtBackend
from runtime.preprocess import normalise, preprocess
from runtime.sources import find_sources, read_picture
from runtime.spec import ModelSpec
from train import checkpoint
from train.backend import TorchBackend
from train.model import DetectorModel
from train.model.blocks import ConvBlock

OPSET = 17
_OPSETS = (16, 17)  # GridSample came with 16; TensorRT 8.6 reads up to 17
_BATCHES = (1, 3)  # batch sizes that a dynamic model is compared at
_SECOND_SIZE = 64  # the second size a model is compared at is larger by this much


class _Maps(nn.Module):
    """The model as the contract has it: images in, raw maps out."""

    def __init__(self, model: DetectorModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.maps(images))


def fold_batch_norm(model: DetectorModel) -> DetectorModel:
    """A copy whose convolutions have absorbed their batch norms; it computes the same in evaluation mode."""
    folded = copy.deepcopy(model).eval()
    for block in folded.modules():
        if isinstance(block, ConvBlock):
            block.conv = _absorb(block.conv, block.norm)
            block.norm = nn.Identity()  # type: ignore[assignment]
    return folded


def _absorb(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """A convolution with bias equal to `norm(conv(x))`; the arithmetic is done in float64 and rounded once."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    conv.bias = nn.Parameter((norm.bias.double() - norm.running_mean.double() * scale).float())
    conv.weight = nn.Parameter((conv.weight.double() * scale.reshape(-1, 1, 1, 1)).float())
    return conv


def write_onnx(model: DetectorModel, spec: ModelSpec, path: Path, *, batch: int | None = None, opset: int = OPSET) -> None:
    """Trace a model into an ONNX file with its description, and check the file.

    The same weights and description give the same bytes.

    Args:
        batch: the fixed batch size, or None for a dynamic one.

    Raises:
        CheckFailed: the file is not valid ONNX, or not what the contract promises.
    """
    images = torch.zeros(batch or 2, 3, *spec.input_size)
    names = list(spec.output_names)
    axes = {} if batch else {name: {0: "N"} for name in (INPUT_NAME, *names)}
    with warnings.catch_warnings(), torch.no_grad():
        # The tracer warns that sizes become constants, which is the contract, and that it is the older of two exporters:
        # the newer one writes opset 18 and more.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Maps(fold_batch_norm(model)),
            (images,),
            str(path),
            dynamo=False,
            opset_version=opset,
            input_names=[INPUT_NAME],
            output_names=names,
            dynamic_axes=axes,
        )
    proto = onnx.load(str(path))
    _declare_shapes(proto, spec, batch)
    for key, value in sorted(spec.to_metadata().items()):
        proto.metadata_props.add(key=key, value=value)
    _check(proto, path)
    onnx.save(proto, str(path))


def _declare_shapes(proto: onnx.ModelProto, spec: ModelSpec, batch: int | None) -> None:
    """Write the outputs' shapes into the graph: the tracer loses them behind a dynamic batch."""
    for level, output in enumerate(proto.graph.output):
        shape = [batch or "N", *spec.output_shape(level)]
        output.CopyFrom(onnx.helper.make_tensor_value_info(output.name, onnx.TensorProto.FLOAT, shape))


def _check(proto: onnx.ModelProto, path: Path) -> None:
    foreign = sorted({f"{node.domain}.{node.op_type}" for node in proto.graph.node if node.domain not in ("", "ai.onnx")})
    if foreign:
        raise CheckFailed(f"{path.name}: uses operators that are not standard ONNX: {', '.join(foreign)}")
    try:
        onnx.checker.check_model(proto, full_check=True)
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CheckFailed(f"{path.name}: not valid ONNX ({str(error).splitlines()[0]})") from error


def check_parity(reference: Backend, exported: Backend, inputs: NDArray[np.float32]) -> Difference:
    """Run both on float32 `[B, 3, H, W]` images at each batch size the file takes; the worst difference of any output."""
    names = reference.spec.output_names
    found = []
    for size in (exported.batch_size,) if exported.batch_size else _BATCHES:
        batch = np.resize(inputs, (size, *inputs.shape[1:]))
        found += parity.compare(names, reference.infer(batch), exported.infer(batch))
    return parity.worst(found)


def parity_inputs(spec: ModelSpec, images: str | None) -> NDArray[np.float32]:
    """A few preprocessed pictures of `images` (anything `--source` takes), or seeded noise; float32 `[B, 3, H, W]`."""
    count = max(_BATCHES)
    if images:
        pictures = (read_picture(source) for source in find_sources(images)[:count])
        return np.stack([preprocess(picture, spec)[0] for picture in pictures])
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (count, *spec.input_size, 3), dtype=np.uint8)
    return np.stack([normalise(picture, spec) for picture in noise])


def export_onnx(
    weights: Path, output: Path, *, size: tuple[int, int] | None, batch: int | None, opset: int, images: str | None
) -> Iterator[tuple[str, Difference]]:
    """Export a checkpoint and prove it; yields (what was compared, worst difference) and writes `output` only if all pass.

    Its manifest is written after it; one that described an earlier file of the name is removed before.

    Raises:
        InputError: the checkpoint cannot be used, or the output cannot be written.
        CheckFailed: the file does not compute what the checkpoint does.
    """
    loaded = checkpoint.load(weights)
    model = checkpoint.restore(weights, loaded)
    tools = (f"torch {torch.__version__}", f"onnx {onnx.__version__}")
    spec = loaded.spec.replace(source_sha256=sha256(weights), made_with=tools)
    if size:
        spec = spec.replace(input_size=size)
    parities = {}
    larger = spec.replace(input_size=tuple(side + _SECOND_SIZE for side in spec.input_size))
    with replacing(output) as temporary, tempfile.TemporaryDirectory(dir=temporary.parent, prefix=".parity-") as folder:
        for described, path in ((spec, temporary), (larger, Path(folder) / "larger.onnx")):
            write_onnx(model, described, path, batch=batch, opset=opset)
            with OrtBackend(path) as exported:
                difference = check_parity(TorchBackend(model, described), exported, parity_inputs(described, images))
            height, width = described.input_size
            batches = str(batch) if batch else " and ".join(map(str, _BATCHES))
            what = f"{height}x{width}, batch {batches}, {difference.output}"
            parities[what] = difference.relative
            yield what, difference
            if not difference.within(parity.TOLERANCE):
                raise CheckFailed(
                    f"{output} was not written: at {height}x{width} its output {difference.output} differs from PyTorch by"
                    f" {difference.relative:.1e} of its scale, the limit is {parity.TOLERANCE:.0e}"
                    " (a model that was hardly trained yet can magnify mere rounding that much)"
                )
        manifest_path(output).unlink(missing_ok=True)
    write_manifest(output, spec, [source("weights", weights, output)], {"parity": parities, "opset": opset})


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command's arguments."""
    parser = cli.parser(
        "export.onnx",
        "Export a checkpoint to ONNX and compare its outputs with PyTorch's; a file that differs is not written.",
        "python -m export.onnx --weights runs/train/best.pt --output model.onnx --size 416",
    )
    parser.add_argument("--weights", type=Path, required=True, help="checkpoint (.pt) written by python -m train")
    parser.add_argument("--output", type=Path, required=True, help="the .onnx file to write")
    parser.add_argument("--size", type=cli.image_size, help="side or HEIGHTxWIDTH, multiples of 32 (default: the checkpoint's)")
    parser.add_argument("--batch", type=_batch, default=None, help="a fixed batch size, or `dynamic` (default)")
    parser.add_argument("--opset", type=int, choices=_OPSETS, default=OPSET, help=f"ONNX operator set (default: {OPSET})")
    parser.add_argument("--images", help="pictures to compare on (default: seeded noise)")
    return parser.parse_args(arguments)


def _batch(text: str) -> int | None:
    return None if text == "dynamic" else cli.positive(text)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parse(arguments)
    if options.output.suffix != ".onnx":
        raise InputError(f"--output {options.output}: expected a name ending in .onnx")
    print("compared with PyTorch             max absolute  max relative", file=sys.stderr)
    steps = export_onnx(
        options.weights, options.output, size=options.size, batch=options.batch, opset=options.opset, images=options.images
    )
    for what, difference in steps:
        print(f"{what:33} {difference.absolute:12.2e}  {difference.relative:12.2e}", file=sys.stderr)
    print(options.output)
    return 0


if __name__ == "__main__":
    cli.run(main)
