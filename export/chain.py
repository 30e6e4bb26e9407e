"""`python -m export.chain`: from weights to a TensorRT engine that kept its accuracy, doing again only what has to be."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibration.images import choose_images, digest
from export.onnx import top_k
from export.report.report_data import dataset_sha256
from export.trt.engine import engine_name
from runtime import cli
from runtime.datasets.open import open_dataset
from runtime.files import output_folder, sha256, write_json
from runtime.spec import PRECISIONS, ModelSpec
from train.weights import WEIGHTS_HELP, open_weights

log = logging.getLogger("chain")


@dataclass(frozen=True)
class Link:
    """One command of the chain.

    Attributes:
        module: the command. arguments: its command line. output: the file it makes.
        inputs: what the file depends on besides the command line, name to hash.
    """

    module: str
    arguments: tuple[str, ...]
    output: Path
    inputs: Callable[[], Mapping[str, str]]


class Record:
    """What each file of a folder was made by and from, so that nothing is made twice; kept in `chain.json` there."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "chain.json"
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            self._links: dict[str, Any] = content if isinstance(content, dict) else {}
        except (OSError, ValueError):
            self._links = {}

    def is_current(self, link: Link, inputs: Mapping[str, str]) -> bool:
        """Whether the file is there, unchanged, and was made by this command from these inputs."""
        known = self._links.get(link.output.name)
        return link.output.is_file() and known == self._entry(link, inputs)

    def add(self, link: Link, inputs: Mapping[str, str]) -> None:
        """Note a file that was just made."""
        self._links[link.output.name] = self._entry(link, inputs)
        write_json(self._path, self._links)

    @staticmethod
    def _entry(link: Link, inputs: Mapping[str, str]) -> dict[str, Any]:
        command = [link.module, *link.arguments]
        return {"command": command, "inputs": dict(inputs), "sha256": sha256(link.output)}


def run_links(links: Sequence[Link], record: Record) -> None:
    """Run what is not up to date, one command after the other; the first that fails ends it with its own error."""
    for link in links:
        inputs = link.inputs()
        if record.is_current(link, inputs):
            log.info("up to date: %s", link.output)
            continue
        run_command(link.module, link.arguments)
        record.add(link, inputs)


def run_command(module: str, arguments: Sequence[str]) -> int:
    """Say and run one of this project's commands; its exit code."""
    log.info("+ python -m %s %s", module, shlex.join(arguments))
    entry = importlib.import_module(f"{module}.__main__" if module == "calibration" else module)
    code: int = entry.main(list(arguments))
    return code


def plan(options: argparse.Namespace, spec: ModelSpec) -> list[Link]:
    """The commands that lead from the weights to the engine."""
    size = options.size or spec.input_size
    names = {
        precision: options.output / engine_name(spec.replace(precision=precision, input_size=size)) for precision in PRECISIONS
    }
    files = {precision: name.with_suffix(".onnx") for precision, name in names.items()}
    links = [_export(options, files["fp32"], "fp32", size)]
    if options.precision == "fp16":
        links.append(_export(options, files["fp16"], "fp16", size))
    if options.precision == "int8":
        links.append(_calibration(options, files["fp32"], files["int8"]))
    source, engine = files[options.precision], names[options.precision]
    arguments = ("--onnx", str(source), "--output", str(engine), "--flavor", options.flavor)
    links.append(Link("export.engine", arguments, engine, lambda: {"onnx": sha256(source)}))
    return links


def _export(options: argparse.Namespace, output: Path, precision: str, size: tuple[int, int]) -> Link:
    arguments = ["--weights", str(options.weights), "--output", str(output), "--size", f"{size[0]}x{size[1]}"]
    if precision != "fp32":  # what half precision has to hold are real activations
        images = open_dataset(options.data, options.split).images[0].path.parent
        arguments += ["--precision", precision, "--images", str(images)]
    if options.uint8_input:
        arguments.append("--uint8-input")
    if options.topk:
        arguments += ["--topk", str(options.topk)]
    return Link("export.onnx", tuple(arguments), output, lambda: {"weights": sha256(options.weights)})


def _calibration(options: argparse.Namespace, model: Path, output: Path) -> Link:
    arguments = ["--onnx", str(model), "--data", str(options.data), "--output", str(output), "--split", options.split]
    if options.max_ap_drop is not None:
        arguments += ["--max-ap-drop", str(options.max_ap_drop)]

    def inputs() -> dict[str, str]:
        training, scored = open_dataset(options.data, "train"), open_dataset(options.data, options.split)
        images = digest(choose_images(training, None, 0))
        return {"onnx": sha256(model), "calibration images": images, "scored": dataset_sha256(scored)}

    return Link("calibration", tuple(arguments), output, inputs)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command's arguments."""
    parser = cli.parser(
        "export.chain",
        "Make the ONNX files and the TensorRT engine of one precision from weights, doing again only what has changed, then\n"
        "verify all of them: fails if a step lost more accuracy than its budget.",
        "python -m export.chain --weights runs/mine/best.pt --data datasets/mine --precision int8",
    )
    parser.add_argument("--weights", type=Path, required=True, help=WEIGHTS_HELP)
    parser.add_argument("--data", type=Path, required=True, help="dataset folder: calibrates on its train split, scores on val")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp16", help="of the engine (default: fp16)")
    parser.add_argument("--size", type=cli.image_size, help="side or HEIGHTxWIDTH, multiples of 32 (default: the weights')")
    parser.add_argument("--output", type=Path, help="folder for the files (default: that of the weights)")
    parser.add_argument("--split", default="val", help="split to score on (default: the one that plays `val`)")
    parser.add_argument("--max-ap-drop", type=float, metavar="POINTS", help="budget of that precision (default: its own)")
    parser.add_argument("--uint8-input", action="store_true", help="see export.onnx")
    parser.add_argument("--topk", type=top_k, metavar="K", help="see export.onnx")
    parser.add_argument("--flavor", "--flavour", default="auto", help="of TensorRT, see export.engine (default: auto)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parse(arguments)
    options.output = output_folder(options.output or options.weights.parent)
    spec = open_weights(options.weights).spec
    links = plan(options, spec)
    run_links(links, Record(options.output))
    judged = ["--weights", str(options.weights), "--data", str(options.data), "--split", options.split]
    judged += ["--output", str(options.output)]
    if options.max_ap_drop is not None:
        judged += ["--max-ap-drop", f"{options.precision}={options.max_ap_drop}"]
    return run_command("export.verify", [*judged, *(str(link.output) for link in links)])


if __name__ == "__main__":
    cli.run(main)
