"""`python -m export.onnx`: exports a checkpoint to an ONNX file that is proven to compute the same."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from export.onnx_export import parity
from export.onnx_export.export import ExportRequest, export_onnx
from export.onnx_export.exporters import DEFAULT_EXPORTER, EXPORTERS, choose_opset
from runtime import cli
from runtime.spec import MOST_CANDIDATES
from train.weights import WEIGHTS_HELP
from train.weights.names import read_names


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(
        "export.onnx",
        "Export a checkpoint to ONNX and compare its outputs with PyTorch's; a file that differs is not written.",
        "python -m export.onnx --weights runs/train/best.pt --output model.onnx --size 416",
    )
    parser.add_argument("--weights", type=Path, required=True, help=WEIGHTS_HELP)
    parser.add_argument("--output", type=Path, required=True, help="the .onnx file to write")
    parser.add_argument("--size", type=cli.image_size, help="side or HEIGHTxWIDTH, multiples of 32 (default: the checkpoint's)")
    parser.add_argument("--batch", type=_batch, default=None, help="a fixed batch size, or `dynamic` (default)")
    parser.add_argument(
        "--exporter",
        choices=tuple(EXPORTERS),
        default=DEFAULT_EXPORTER,
        help=f"of torch: the older one, or the newer one, which needs onnxscript (default: {DEFAULT_EXPORTER})",
    )
    opsets = "; ".join(f"{name}: {', '.join(map(str, sorted(written)))}" for name, written in EXPORTERS.items())
    defaults = ", ".join(str(choose_opset(name, None)) for name in EXPORTERS)
    parser.add_argument("--opset", type=int, help=f"ONNX operator set ({opsets}; default: {defaults}); TensorRT 8.6 needs 17")
    parser.add_argument("--precision", choices=("fp32", "fp16"), default="fp32", help="of the tensors inside (default: fp32)")
    parser.add_argument("--uint8-input", action="store_true", help="take pixels as bytes, and normalize them in the graph")
    parser.add_argument(
        "--topk",
        type=top_k,
        default=0,
        metavar="K",
        help=f"decode in the graph, give out the K <= {MOST_CANDIDATES} best boxes",
    )
    parser.add_argument("--inspect", action="store_true", help="add what python -m runtime.visualize draws, how ASFF fuses")
    parser.add_argument(
        "--classes", type=Path, metavar="FILE", help="class names, one per line (default: those of the weights)"
    )
    parser.add_argument("--images", help="images to compare on, and to check the range of FP16 (default: seeded noise)")
    parser.add_argument(
        "--allow-rounding",
        action="store_true",
        help="for FP32 files of never-trained weights, which magnify rounding: accept an output that differs by more than"
        f" {parity.LIMITS['fp32']:.0e} of its scale, if that is at most {parity.ROUNDING} times what PyTorch itself differs"
        f" from float64, and at most {parity.MOST_ROUNDING:.0e} (default: refuse it)",
    )
    return parser.parse_args(arguments)


def top_k(text: str) -> int:
    """Reads the value of `--topk`.

    Raises:
        argparse.ArgumentTypeError: more than TensorRT can select.
    """
    value = cli.positive(text)
    if value > MOST_CANDIDATES:
        raise argparse.ArgumentTypeError(f"expected at most {MOST_CANDIDATES}, the most that TensorRT selects, got {value}")
    return value


def _batch(text: str) -> int | None:
    return None if text == "dynamic" else cli.positive(text)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    cli.check_suffix(options.output, ".onnx")
    cli.check_keeps(options.output, options.weights, *([options.classes] if options.classes else []))
    request = ExportRequest(
        weights=options.weights,
        output=options.output,
        size=options.size,
        batch=options.batch,
        precision=options.precision,
        exporter=options.exporter,
        opset=options.opset,
        images=options.images,
        uint8_input=options.uint8_input,
        top_k=options.topk,
        inspect=options.inspect,
        classes=read_names(options.classes) if options.classes else None,
        allow_rounding=options.allow_rounding,
    )
    heading = "compared with PyTorch (/ plain: with the plain file)"
    print(f"{heading:54}max absolute  max relative  rms relative", file=sys.stderr)
    for comparison, difference in export_onnx(request):
        metrics = f"{difference.absolute:12.2e}  {difference.relative:12.2e}  {difference.rms:12.2e}"
        print(f"{comparison:54} {metrics}", file=sys.stderr)
    print(options.output)
    return 0


if __name__ == "__main__":
    cli.run(main)
