"""Measures every recipe's size, cost, speed, and the difference between its ONNX file and PyTorch.

Models have random weights, full width and 80 classes. Parity is the largest difference of any output relative to the output's
scale, at two sizes and batches of 1 and 3. Where it is above 1e-4, PyTorch's own difference from float64 follows in brackets.

Example: `python -m benchmarks.recipes yolov3-asff yolov3-asff-star`
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.models import settle
from benchmarks.timing import alternate
from export.onnx_export import parity
from export.onnx_export.export import check_parity, parity_images, prepare
from export.onnx_export.tracer import exact_outputs, write_onnx
from runtime import cli
from runtime.backends.ort import OrtBackend
from train.model import build_model
from train.model.complexity import complexity
from train.recipes import RECIPES, recipe
from train.spec import model_spec
from train.torch_backend import TorchBackend

_CLASSES = 80


def distinct(names: list[str]) -> list[str]:
    """Keeps the first of the recipes that train the same network."""
    seen: dict[Any, str] = {}
    for name in names:
        seen.setdefault(recipe(name).model, name)
    return list(seen.values())


def measure(name: str, sizes: tuple[int, ...], repeats: int) -> dict[str, Any]:
    """Measures a recipe: parity at every size, and PyTorch's and ONNX Runtime's milliseconds an image at the first, in turn."""
    config = recipe(name)
    torch.manual_seed(0)
    model = settle(build_model(config.model, _CLASSES, config.loss), side=256)
    cost = complexity(config.model, _CLASSES, sizes)
    row: dict[str, Any] = {
        "recipe": name,
        "parameters": cost.parameters,
        "operations": cost.operations,
        "parity": {},
        "own_rounding": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            spec = model_spec(config, tuple(map(str, range(_CLASSES)))).replace(input_size=(size, size))
            path = Path(folder) / f"{size}.onnx"
            write_onnx(model, spec, path)
            images = parity_images(spec, None, 3)
            inputs = prepare(images, spec)
            ours = TorchBackend(model, spec)
            with OrtBackend(path) as exported:
                row["parity"][size] = check_parity(ours, exported, images).relative
                if row["parity"][size] > parity.LIMITS["fp32"]:  # these weights magnify rounding, PyTorch's own too
                    exact = exact_outputs(model, inputs, inspect=False)
                    own = parity.worst(parity.compare(spec.map_names, exact, ours.infer(inputs))).relative
                    row["own_rounding"][size] = own
                if size == sizes[0]:
                    one: np.ndarray[Any, np.dtype[np.float32]] = inputs[:1]
                    ways = {"pytorch": lambda: ours.infer(one), "onnxruntime": lambda: exported.infer(one)}  # noqa: B023
                    row["milliseconds"] = alternate(ways, repeats)
            path.unlink()
    return row


def table(rows: Iterator[dict[str, Any]], sizes: tuple[int, ...]) -> Iterator[str]:
    """Formats the rows as a Markdown table, line by line."""
    yield "| recipe | parameters | " + " | ".join(f"GFLOPs at {size}, parity" for size in sizes) + " | PyTorch | ONNX Runtime |"
    yield "|" + "---|" * (len(sizes) + 4)
    for row in rows:
        own = {size: f" ({value:.1e})" for size, value in row["own_rounding"].items()}
        costs = " | ".join(
            f"{row['operations'][size] / 1e9:.1f}, {row['parity'][size]:.1e}{own.get(size, '')}" for size in sizes
        )
        times = " | ".join(f"{row['milliseconds'][name]:.0f} ms" for name in ("pytorch", "onnxruntime"))
        yield f"| `{row['recipe']}` | {row['parameters'] / 1e6:.1f} M | {costs} | {times} |"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(
        "benchmarks.recipes",
        "Measure size, cost, ONNX parity and speed of every recipe with random weights (about a minute each).",
        "python -m benchmarks.recipes yolov3-asff yolov3-asff-star",
    )
    parser.add_argument("recipes", nargs="*", help="default: all, each network once")
    parser.add_argument("--sizes", type=cli.image_side, nargs="+", default=[416, 608], help="input sides (default: 416 608)")
    parser.add_argument("--repeats", type=cli.positive, default=5, help="of the timing (default: 5)")
    parser.add_argument("--json", action="store_true", help="metrics as JSON on stdout")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    sizes = tuple(options.sizes)
    rows = (measure(name, sizes, options.repeats) for name in options.recipes or distinct(list(RECIPES)))
    if options.json:
        print(json.dumps(list(rows), indent=1))
    else:
        for line in table(rows, sizes):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    cli.run(main)
