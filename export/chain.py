"""`python -m export.chain`: makes the ONNX files and the TensorRT engine of one precision, and redoes only what changed."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from calibration import __main__ as calibration
from calibration.request import Request, inputs, open_data
from export import engine, onnx, recover, verify
from export.accuracy import limits
from export.onnx import top_k
from export.onnx_export.export import ExportRequest
from export.recovery.recover import RecoverRequest, choose
from export.recovery.recover import inputs as recovery_inputs
from export.trt.builder import BuildOptions
from export.trt.engine import engine_name
from runtime import cli
from runtime.backends.tensorrt.library import open_tensorrt
from runtime.datasets import options as data_options
from runtime.datasets.options import add_data_options, made_split, open_split
from runtime.errors import InputError, MissingComponentError
from runtime.files import output_folder, sha256
from runtime.manifest import manifest_path, read_manifest
from runtime.spec import PRECISIONS, ModelSpec
from train.weights import WEIGHTS_HELP, open_weights

log = logging.getLogger("chain")

Main = Callable[[list[str]], int]
TARGETS = ("auto", "tensorrt", "rtx", "cpu")
_REQUEST_OPTIONS = ("method", "target", "rest", "images", "seed", "max_ap_drop", "calibration_split", "search_split", "split")


@dataclass(frozen=True)
class Step:
    """One command and the file that it makes.

    Attributes:
        main: the command's entry point.
        arguments: its command line.
        output: the file it makes, with a manifest beside it.
        origins: files that the output is made from, by their role in the manifest.
        details: values that the manifest's details must hold: settings, and hashes of data sets.
    """

    main: Main
    arguments: tuple[str, ...]
    output: Path
    origins: Mapping[str, Path]
    details: Mapping[str, Any]

    def is_current(self) -> bool:
        """Tells by the manifest whether the output is there, unchanged, and made from these origins by these settings."""
        try:
            manifest = read_manifest(manifest_path(self.output))
            made_from = {item.role: item.sha256 for item in manifest.made_from}
            return (
                manifest.sha256 == sha256(self.output)
                and made_from == {role: sha256(path) for role, path in self.origins.items()}
                and _holds(manifest.details, self.details)
            )
        except (InputError, OSError):  # no file, or no manifest that can be read
            return False


def _holds(found: Any, expected: Any) -> bool:
    """Tells whether JSON values agree; objects may hold more than is expected of them."""
    if isinstance(expected, Mapping):
        return isinstance(found, Mapping) and all(key in found and _holds(found[key], value) for key, value in expected.items())
    return bool(found == expected)


def run_steps(steps: Sequence[Step]) -> None:
    """Runs the steps that are not current, in order; an error of one ends the chain."""
    for step in steps:
        if step.is_current():
            log.info("up to date: %s", step.output)
        else:
            run_command(step.main, step.arguments)


def run_command(main: Main, arguments: Sequence[str]) -> int:
    """Logs and runs one of this project's commands; returns its exit code."""
    cli.log_command(log, logging.INFO, "+", ["python", "-m", main.__module__.removesuffix(".__main__"), *arguments])
    return main(list(arguments))


def export_step(
    weights: Path,
    output: Path,
    precision: str,
    *,
    size: tuple[int, int] | None = None,
    images: str | None = None,
    uint8_input: bool = False,
    top_k: int = 0,
) -> Step:
    """Returns the step that exports weights to ONNX; the arguments are those of `ExportRequest`."""
    job = ExportRequest(
        weights=weights,
        output=output,
        precision=precision,
        size=size,
        images=images,
        uint8_input=uint8_input,
        top_k=top_k,
    )
    arguments = ["--weights", str(weights), "--output", str(output), "--precision", precision]
    arguments += ["--size", f"{size[0]}x{size[1]}"] if size else []
    arguments += ["--images", images] if images else []
    arguments += ["--uint8-input"] if uint8_input else []
    arguments += ["--topk", str(top_k)] if top_k else []
    return Step(onnx.main, tuple(arguments), output, {"weights": weights}, {"settings": job.settings()})


def calibration_step(request: Request, data: Sequence[str] = ()) -> Step:
    """Returns the step that quantizes an ONNX file.

    Args:
        request: what to make.
        data: arguments that name its data; by default `--data` alone.

    Raises:
        InputError: the data cannot be used.
    """
    named = data or ("--data", str(request.data))
    arguments = ["--onnx", str(request.model), *named, "--output", str(request.output)]
    for name in _REQUEST_OPTIONS:
        value = getattr(request, name)
        if value != getattr(Request, name):
            arguments += [f"--{name.replace('_', '-')}", "none" if value is None else str(value)]
    arguments += ["--sensitivity"] if request.sensitivity else []
    details = inputs(request, *open_data(request))
    return Step(calibration.main, tuple(arguments), request.output, {"onnx": request.model}, details)


def engine_step(model: Path, output: Path, flavor: str) -> Step:
    """Returns the step that builds the TensorRT engine of an ONNX file; `auto` accepts an engine of any flavor."""
    details: dict[str, Any] = {"settings": BuildOptions().settings()}
    if flavor != "auto":
        details["engine"] = {"flavour": flavor}
    arguments = ("--onnx", str(model), "--output", str(output), "--flavor", flavor)
    return Step(engine.main, arguments, output, {"onnx": model}, details)


def recover_step(options: argparse.Namespace, spec: ModelSpec, model: Path, output: Path) -> Step:
    """Returns the step that trains the weights of an INT8 file on with its rounding; the spec is that of the weights."""
    request = RecoverRequest(
        weights=options.weights,
        model=model,
        output=output,
        data=options.data,
        split=options.split,
        made_split=made_split(options, spec),
        follow_links=options.follow_links,
    )
    arguments = ["--weights", str(options.weights), "--onnx", str(model), *data_options.to_arguments(options)]
    arguments += ["--output", str(output), "--split", options.split]
    details = recovery_inputs(request, choose(request))
    return Step(recover.main, tuple(arguments), output, {"weights": options.weights, "onnx": model}, details)


def plan(options: argparse.Namespace, spec: ModelSpec, engines: Mapping[str, Path]) -> list[Step]:
    """Returns the steps from the weights to the ONNX file of one precision, which lies beside its engine.

    With `--recover` the last one calibrates without returning layers to FP16, to a file beside that of the precision.

    Args:
        options: of the command line.
        spec: of the weights, with the input size of the files.
        engines: by precision.
    """
    models = {name: path.with_suffix(".onnx") for name, path in engines.items()}

    def export(precision: str, images: str | None = None) -> Step:
        return export_step(
            *(options.weights, models[precision], precision),
            size=spec.input_size,
            images=images,
            uint8_input=options.uint8_input,
            top_k=options.topk or 0,
        )

    steps = [export("fp32")]
    if options.precision == "fp16":  # the range of FP16 is checked on real images
        steps.append(export("fp16", str(open_split(options, options.split, spec).images[0].path.parent)))
    if options.precision == "int8":
        request = Request(
            models["fp32"],
            models["int8"].with_suffix(".calibrated.onnx") if options.recover else models["int8"],
            options.data,
            max_ap_drop=None if options.recover else options.max_ap_drop.by_precision["int8"],
            target="cpu" if options.target == "cpu" else "tensorrt",
            rest=options.rest,
            search_split=options.search_split,
            split=options.split,
            made_split=made_split(options, spec),
            follow_links=options.follow_links,
        )
        steps.append(calibration_step(request, data_options.to_arguments(options)))
    return steps


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(
        "export.chain",
        "Make the ONNX files and the TensorRT engine of one precision from weights, redo only what has changed, then\n"
        "verify all of them: exit 1 unless every file is shown to keep within its budget of AP.",
        "python -m export.chain --weights runs/mine/best.pt --data datasets/mine --precision int8",
    )
    parser.add_argument("--weights", type=Path, required=True, help=WEIGHTS_HELP)
    add_data_options(parser, "calibrates on its train split, scores on val")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp16", help="of the engine (default: fp16)")
    parser.add_argument("--size", type=cli.image_size, help="side or HEIGHTxWIDTH, multiples of 32 (default: the weights')")
    parser.add_argument("--output", type=Path, help="folder for the files (default: that of the weights)")
    parser.add_argument("--rest", choices=("fp32", "fp16"), help="INT8: precision of the rest, see python -m calibration")
    parser.add_argument(
        "--recover",
        choices=("qat",),
        help="INT8: calibrate without returning layers to FP16, and where the budget is missed train on with the rounding, see"
        " python -m export.recover",
    )
    parser.add_argument("--split", default="val", help="split to score on (default: the one that plays `val`)")
    parser.add_argument("--search-split", help="split to choose INT8 methods and layers by (default: images of train)")
    limits.add_arguments(parser)
    parser.add_argument("--uint8-input", action="store_true", help="see python -m export.onnx")
    parser.add_argument("--topk", type=top_k, metavar="K", help="see python -m export.onnx")
    parser.add_argument(
        "--target",
        "--flavor",
        "--flavour",
        choices=TARGETS,
        default="auto",
        help="what runs the result: an engine of TensorRT or TensorRT-RTX, or (cpu) the ONNX file in ONNX Runtime or OpenVINO"
        " (default: auto, the TensorRT that is here)",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.recover and options.precision != "int8":
        raise InputError(f"--recover {options.recover}: for --precision int8 only, not {options.precision}; leave it out")
    folder = output_folder(options.output or options.weights.parent)
    spec = open_weights(options.weights).spec
    limits.check_classes(options.max_ap_drop, spec.class_names)
    spec = spec.replace(input_size=options.size or spec.input_size)
    engines = {name: folder / engine_name(spec.replace(precision=name)) for name in PRECISIONS}
    asked = limits.read_limits(options)
    if options.recover:  # two files may be judged by the same images: the error is shared between them
        asked = replace(asked, confidence=(1 + asked.confidence) / 2)
    if options.target != "cpu" and not engines[options.precision].exists():
        _check_tensorrt(options.target)
    judged = ["--weights", str(options.weights), *data_options.to_arguments(options), "--split", options.split]
    judged += ["--output", str(folder)]
    steps = plan(options, spec, engines)
    run_steps(steps)
    accuracy = limits.to_arguments(replace(asked, require_speedup=None))
    if options.recover and run_command(verify.main, [*judged, *accuracy, str(steps[-1].output)]):
        steps.append(recover_step(options, spec, steps.pop().output, engines["int8"].with_suffix(".onnx")))
        run_steps(steps[-1:])
    if options.target != "cpu":
        steps.append(engine_step(steps[-1].output, engines[options.precision], options.target))
        run_steps(steps[-1:])
    return run_command(verify.main, [*judged, *limits.to_arguments(asked), *(str(step.output) for step in steps)])


def _check_tensorrt(flavor: str) -> None:
    """Raises MissingComponentError where no engine can be built, before long work that would end in it."""
    try:
        open_tensorrt(flavor)
    except MissingComponentError as error:
        raise MissingComponentError(f"{error}; --target cpu needs none of it") from error


if __name__ == "__main__":
    cli.run(main)
