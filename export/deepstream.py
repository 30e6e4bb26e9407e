"""`python -m export.deepstream`: writes what NVIDIA DeepStream needs to run a model: configuration, labels and a parser."""

from __future__ import annotations

import argparse
import logging
import shutil
from pathlib import Path

from export.accuracy.consumers import common_std
from export.model_folder import copy_model, new_folder
from runtime import cli
from runtime.backends.open import open_backend
from runtime.detector import default_score_threshold
from runtime.errors import InputError
from runtime.files import sha256
from runtime.spec import CANDIDATES_NAME, ModelSpec

log = logging.getLogger("deepstream")

_PARSER = Path(__file__).parent / "deepstream_parser"
_MOST_DETECTIONS = 100  # as `Detector`
_NETWORK_MODES = {"fp32": 0, "int8": 1, "fp16": 2}
_MODEL, _ENGINE = "model.onnx", "model.engine"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(
        "export.deepstream",
        "Write a folder for DeepStream's nvinfer: config_infer_primary.txt, labels.txt, the model, and the source of a parser"
        " for its output. It says what DeepStream's preprocessing differs in from the model's.",
        "python -m export.deepstream --engine model.onnx --output deepstream --batch 4",
    )
    parser.add_argument(
        "--engine",
        type=cli.model_file,
        required=True,
        help="an .onnx file made by python -m export.onnx with --topk and no --uint8-input",
    )
    parser.add_argument("--output", type=Path, required=True, help="the folder, which must not exist")
    parser.add_argument("--batch", type=cli.positive, default=1, help="frames run together, one a stream (default: 1)")
    cli.add_conf(parser)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    spec = read_model(options.engine, options.batch)
    conf = default_score_threshold(spec) if options.conf is None else options.conf
    losses = differences(spec)
    config = build_config(spec, options.batch, conf, [f"made from {sha256(options.engine)}", *losses])
    with new_folder(options.output) as folder:
        copy_model(options.engine, spec, folder / _MODEL, options.output / _MODEL)
        (folder / "config_infer_primary.txt").write_text(config, encoding="utf-8")
        (folder / "labels.txt").write_text("".join(f"{label(name)}\n" for name in spec.class_names), encoding="utf-8")
        (folder / "asff_model.h").write_text(model_header(spec), encoding="utf-8")
        for name in ("asff_parser.cpp", "Makefile"):
            shutil.copyfile(_PARSER / name, folder / name)
    for loss in losses:
        log.warning("DeepStream: %s", loss)
    print(options.output)
    return 0


def read_model(path: Path, batch: int) -> ModelSpec:
    """Reads the spec of an ONNX file, and checks that DeepStream can run it.

    Raises:
        InputError: no such file, not an ONNX file, or made with options that DeepStream cannot use.
        ModelError: damaged, or without a spec.
    """
    if path.suffix != ".onnx":
        raise InputError(f"--engine {path}: expected an .onnx file; the engine is built where DeepStream runs")
    with open_backend(path) as backend:
        spec, fixed = backend.spec, backend.batch_size
    if not spec.top_k:
        raise InputError(f"{path}: has raw maps, the parser reads decoded rows; export it again with --topk 300")
    if spec.input_type == "uint8":
        raise InputError(f"{path}: takes bytes, DeepStream gives floats; export it again without --uint8-input")
    if fixed is not None and (fixed > 1 or batch > 1):
        raise InputError(
            f"{path}: takes batches of {fixed} alone, DeepStream sends up to --batch {batch}; export it again without --batch"
        )
    return spec


def scale_factor(spec: ModelSpec) -> float:
    """Returns nvinfer's one factor for all channels: the mean of the three `1 / (255 * std)`."""
    return 1 / (255 * common_std(spec))


def differences(spec: ModelSpec) -> list[str]:
    """Says where nvinfer's preprocessing differs from the model's, a line each."""
    found = []
    errors = [scale_factor(spec) * 255 * deviation - 1 for deviation in spec.std]
    if max(map(abs, errors)) > 1e-6:
        each = ", ".join(f"{error:+.1%}" for error in errors)
        found.append(f"it scales all channels by one factor; the contrast of {', '.join(spec.color)} is off by {each}")
    if spec.resize == "letterbox" and spec.pad_value != 0:
        found.append(f"it pads with black; the model was trained with gray {spec.pad_value:g}")
    return [*found, "it resizes on the GPU, with another rounding than OpenCV's"]


def build_config(spec: ModelSpec, batch: int, conf: float, comments: list[str]) -> str:
    """Returns the text of nvinfer's configuration; paths in it are relative to its folder."""
    height, width = spec.input_size
    letterbox = int(spec.resize == "letterbox")
    onnx = [] if spec.precision == "int8" else [("onnx-file", _MODEL)]
    values = [
        ("gie-unique-id", 1),
        ("process-mode", 1),
        ("network-type", 0),
        *onnx,  # from which nvinfer builds an engine by itself; an INT8 one it builds from calibration tables alone
        ("model-engine-file", _ENGINE),
        ("network-mode", _NETWORK_MODES[spec.precision]),
        ("batch-size", batch),
        ("interval", 0),
        ("infer-dims", f"3;{height};{width}"),
        ("network-input-order", 0),
        ("model-color-format", ("rgb", "bgr").index(spec.color)),
        ("net-scale-factor", f"{scale_factor(spec):.9g}"),
        ("offsets", ";".join(f"{255 * mean:.9g}" for mean in spec.mean)),
        ("maintain-aspect-ratio", letterbox),
        ("symmetric-padding", letterbox),
        ("scaling-filter", 1),
        ("labelfile-path", "labels.txt"),
        ("num-detected-classes", spec.num_classes),
        ("output-blob-names", CANDIDATES_NAME),
        ("custom-lib-path", "libasff_parser.so"),
        ("parse-bbox-func-name", "AsffParse"),
        ("cluster-mode", 4),
    ]
    lines = [f"# {comment}" for comment in comments]
    lines += ["", "[property]", *(f"{key}={value}" for key, value in values)]
    return "\n".join([*lines, "", "[class-attrs-all]", f"pre-cluster-threshold={conf:.9g}", ""])


def model_header(spec: ModelSpec) -> str:
    """Returns the constants of a model that the parser is compiled with."""
    counts = {
        "kRows": spec.top_k,
        "kClasses": spec.num_classes,
        "kAnchors": sum(spec.boxes_per_level()),
        "kMostDetections": _MOST_DETECTIONS,
    }
    lines = [f"constexpr unsigned {name} = {value};" for name, value in counts.items()]
    lines.append(f"constexpr float kIouThreshold = static_cast<float>({float(spec.nms_threshold)!r});")
    return "\n".join(["#pragma once", "", "namespace asff {", *lines, "}", ""])


def label(name: str) -> str:
    """Returns a class name as a line of nvinfer's labels, where a semicolon would end it."""
    return name.replace(";", ",")


if __name__ == "__main__":
    cli.run(main)
