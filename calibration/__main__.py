"""`python -m calibration`: quantizes an FP32 ONNX file to INT8, within an AP budget."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from calibration.budget import ap_points
from calibration.images import DEFAULT_IMAGES
from calibration.pipeline import Result, calibrate, read_model
from calibration.placement import TARGETS
from calibration.ranges import METHODS
from calibration.request import Request
from runtime import cli
from runtime.datasets.options import add_data_options, made_split
from runtime.files import check_writable
from runtime.manifest import manifest_path


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(
        "calibration",
        "Quantize an exported FP32 model to INT8 (explicit Q/DQ). Layers that cost accuracy go back to FP16 until the\n"
        "budget is met; nothing is written if it cannot be met.",
        "python -m calibration --onnx model.onnx --data datasets/coco --output model.int8.onnx",
    )
    parser.add_argument("--onnx", type=cli.model_file, required=True, help="FP32 model made by python -m export.onnx")
    add_data_options(parser)
    parser.add_argument("--output", type=Path, required=True, help="the .onnx file to write")
    parser.add_argument(
        "--method",
        choices=(*METHODS, "auto"),
        default=Request.method,
        help="how to find ranges: by the values alone (entropy, minmax, percentile) or by what changes in the detections;"
        f" auto: the best by AP (default: {Request.method})",
    )
    parser.add_argument("--images", type=cli.positive, help=f"images to calibrate on (default: {DEFAULT_IMAGES}, or all)")
    parser.add_argument("--target", choices=TARGETS, default=Request.target, help="whose kernels to suit (default: tensorrt)")
    parser.add_argument(
        "--rest",
        choices=("fp32", "fp16"),
        help="precision of what is not quantized (default: fp16 for tensorrt, fp32 for cpu, where FP16 is slow)",
    )
    parser.add_argument("--seed", type=cli.count, default=Request.seed, help="of the choice of images (default: 0)")
    parser.add_argument(
        "--max-ap-drop",
        type=_budget,
        default=Request.max_ap_drop,
        metavar="POINTS",
        help=f"budget (default: {Request.max_ap_drop}), or none",
    )
    parser.add_argument("--calibration-split", default=Request.calibration_split, help="split to calibrate on (default: train)")
    parser.add_argument("--search-split", help="split to choose methods and layers by (default: train, other images)")
    parser.add_argument("--split", default=Request.split, help="split that is verified later; not used here (default: val)")
    parser.add_argument("--sensitivity", action="store_true", help="rank the layers even if the budget is met (for the report)")
    parser.add_argument("--json", action="store_true", help="metrics as JSON on stdout")
    return parser.parse_args(arguments)


def _budget(text: str) -> float | None:
    return None if text == "none" else ap_points(text)


def format_result(result: Result, output: Path, original: Path) -> str:
    """Formats the result as text, with a table of AP."""
    sizes = output.stat().st_size / 1e6, original.stat().st_size / 1e6
    lines = [f"{result.layers} layers in INT8, ranges by {result.method}; {sizes[0]:.2f} MB, before {sizes[1]:.2f} MB"]
    if result.fp16_layers:
        lines.append(f"{len(result.fp16_layers)} of them went back to FP16, which costs {result.fp16_bytes / 1e6:.2f} MB:")
        lines += [f"  {item}" for item in result.ranking if item.layer in result.fp16_layers]
    if result.before is not None and result.after is not None:
        width = max(map(len, (*result.after.per_class, "AP")))
        before = {"AP": result.before.ap, "AP50": result.before.ap50, **result.before.per_class}
        after = {"AP": result.after.ap, "AP50": result.after.ap50, **result.after.per_class}
        lines += ["", f"on {result.before.images} images of the search:", f"{'':{width}}     fp32     int8      ΔAP"]
        for name in before:
            if before[name] >= 0:
                values = before[name] * 100, after[name] * 100, (after[name] - before[name]) * 100
                lines.append(f"{name:{width}}  {values[0]:7.2f}  {values[1]:7.2f}  {values[2]:+7.2f}")
    return "\n".join(lines)


def summary(result: Result, output: Path) -> dict[str, Any]:
    """Returns the result as JSON values."""
    return {
        "output": str(output),
        "method": result.method,
        "layers": result.layers,
        "half_layers": sorted(result.fp16_layers),
        "before": result.before.to_dict() if result.before else None,
        "after": result.after.to_dict() if result.after else None,
        "delta_ap": vars(result.delta_ap) if result.delta_ap else None,
    }


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    cli.check_suffix(options.output, ".onnx")
    cli.check_keeps(options.output, options.onnx)
    for path in (options.output, manifest_path(options.output)):
        check_writable(path)
    request = Request(
        model=options.onnx,
        output=options.output,
        data=options.data,
        method=options.method,
        target=options.target,
        rest=options.rest,
        images=options.images,
        seed=options.seed,
        max_ap_drop=options.max_ap_drop,
        calibration_split=options.calibration_split,
        search_split=options.search_split,
        split=options.split,
        sensitivity=options.sensitivity,
        made_split=made_split(options, read_model(options.onnx)[1]),
        follow_links=options.follow_links,
    )
    result = calibrate(request)
    if options.json:
        print(json.dumps(summary(result, options.output), indent=1))
    else:
        print(format_result(result, options.output, options.onnx))
        print(f"wrote {options.output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    cli.run(main)
