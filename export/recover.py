"""`python -m export.recover`: trains the weights of an INT8 file on with its rounding, to win back accuracy."""

from __future__ import annotations

import argparse
from pathlib import Path

from calibration.images import DEFAULT_IMAGES
from export.recovery.recover import RecoverRequest, recover
from runtime import cli
from runtime.datasets.options import add_data_options, made_split
from runtime.files import check_writable
from runtime.manifest import manifest_path
from train.qat.finetune import FinetuneOptions
from train.weights import WEIGHTS_HELP, open_weights


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(
        "export.recover",
        "Train the weights of an INT8 file on with its rounding (QAT), and write the file anew. The float model is the\n"
        "teacher; labels are not needed. Weights and ranges change, layers and precisions stay.",
        "python -m export.recover --weights best.pt --onnx int8.onnx --data datasets/mine --output recovered.int8.onnx",
    )
    parser.add_argument("--weights", type=Path, required=True, help=WEIGHTS_HELP)
    parser.add_argument(
        "--onnx", type=cli.model_file, required=True, help="INT8 file that python -m calibration made from them"
    )
    add_data_options(parser)
    parser.add_argument("--output", type=Path, required=True, help="the .onnx file to write")
    parser.add_argument("--images", type=cli.positive, help=f"images to train on (default: {DEFAULT_IMAGES}, or all)")
    parser.add_argument("--train-split", default=RecoverRequest.train_split, help="split to train on (default: train)")
    parser.add_argument(
        "--split", default=RecoverRequest.split, help="split that is verified later; not used here (default: val)"
    )
    defaults = FinetuneOptions()
    for name, kind, what in (
        ("epochs", cli.positive, "over the images"),
        ("batch", cli.positive, "images a step"),
        ("learning_rate", cli.positive_number, "of the weights"),
        ("scale_rate", cli.positive_number, "of the scales of activations, relative"),
        ("seed", cli.count, "of the choice and the order of the images"),
    ):
        value = getattr(defaults, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=value, help=f"{what} (default: {value:g})")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    cli.check_suffix(given.output, ".onnx")
    cli.check_keeps(given.output, given.onnx, given.weights)
    for path in (given.output, manifest_path(given.output)):
        check_writable(path)
    options = {name: getattr(given, name) for name in FinetuneOptions.__dataclass_fields__}
    recover(
        RecoverRequest(
            weights=given.weights,
            model=given.onnx,
            output=given.output,
            data=given.data,
            images=given.images,
            train_split=given.train_split,
            split=given.split,
            options=FinetuneOptions(**options),
            made_split=made_split(given, open_weights(given.weights).spec),
            follow_links=given.follow_links,
        )
    )
    print(given.output)
    return 0


if __name__ == "__main__":
    cli.run(main)
