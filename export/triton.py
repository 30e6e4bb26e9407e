"""`python -m export.triton`: writes a model repository for NVIDIA's Triton Inference Server from an ONNX file or an engine."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.model_folder import copy_model, new_folder
from runtime import cli
from runtime.backends.open import open_backend
from runtime.backends.signature import INPUT_NAME
from runtime.backends.tensorrt.engine_info import read_engine_info
from runtime.backends.triton import SPEC_PARAMETER
from runtime.errors import InputError
from runtime.files import sha256
from runtime.spec import ModelSpec

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LABELS = "labels.txt"
_TYPES = {"float32": "TYPE_FP32", "uint8": "TYPE_UINT8"}
_KINDS = {"auto": "KIND_AUTO", "cpu": "KIND_CPU", "gpu": "KIND_GPU"}


@dataclass(frozen=True)
class Served:
    """A model file as Triton is to serve it.

    Attributes:
        path: of the file.
        spec: of the model.
        batch_size: that it is fixed to; None for any.
        max_batch: largest batch that it takes; None where the file has no limit.
        platform: Triton's name of what runs it.
        file_name: that Triton expects.
    """

    path: Path
    spec: ModelSpec
    batch_size: int | None
    max_batch: int | None
    platform: str
    file_name: str


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(
        "export.triton",
        "Write a model repository for Triton: config.pbtxt with dynamic batching, the model, its labels and its manifest.",
        "python -m export.triton --engine model.onnx --output repository/ --max-batch 8",
    )
    parser.add_argument(
        "--engine", type=cli.model_file, required=True, help="the model: .onnx, or .engine with its manifest beside it"
    )
    parser.add_argument("--output", type=Path, required=True, help="the repository; the model becomes a folder in it")
    parser.add_argument("--name", help="of the model in the repository (default: that of its file)")
    parser.add_argument(
        "--max-batch",
        type=cli.positive,
        help="most images that Triton runs together (default: 8; of an engine: its largest batch)",
    )
    parser.add_argument(
        "--queue-delay", type=cli.count, default=2000, metavar="US", help="microseconds that it waits for more (default: 2000)"
    )
    parser.add_argument("--instances", type=cli.positive, default=1, help="copies of the model on each device (default: 1)")
    parser.add_argument("--kind", choices=tuple(_KINDS), help="of the devices (default: gpu for engines, else auto)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    served = read_model(options.engine)
    name = options.engine.stem if options.name is None else options.name
    if not _NAME.fullmatch(name):
        raise InputError(f"--name {name}: expected letters, digits, dots, dashes and underscores")
    if options.kind == "cpu" and served.file_name == "model.plan":
        raise InputError("--kind cpu: an engine runs on GPUs alone")
    kind = options.kind or ("gpu" if served.file_name == "model.plan" else "auto")
    config = build_config(
        served,
        name,
        max_batch=choose_max_batch(served, options.max_batch),
        queue_delay=options.queue_delay,
        instances=options.instances,
        kind=_KINDS[kind],
    )
    print(write_repository(served, options.output, name, config))
    return 0


def read_model(path: Path) -> Served:
    """Reads what Triton must know of a model file.

    Raises:
        InputError: no such file, or another kind.
        ModelError: damaged, or without a spec.
    """
    if path.suffix == ".engine" and path.is_file():
        info = read_engine_info(path)
        smallest, _, largest = info.batch
        if info.flavor == "rtx":
            raise InputError(f"{path}: Triton has no backend for engines of TensorRT-RTX; build it with --flavor tensorrt")
        if 1 < smallest < largest:
            raise InputError(
                f"{path}: takes no single image, which Triton may send; build it with --batch 1,{info.batch[1]},{largest}"
            )
        fixed = largest if smallest == largest else None
        return Served(path, info.spec, fixed, largest, "tensorrt_plan", "model.plan")
    with open_backend(path) as backend:
        return Served(path, backend.spec, backend.batch_size, None, "onnxruntime_onnx", "model.onnx")


def choose_max_batch(served: Served, wanted: int | None) -> int:
    """Returns Triton's `max_batch_size`: 0 for a model of a fixed batch size.

    Raises:
        InputError: the model does not take that many.
    """
    if served.batch_size is not None:
        if wanted not in (None, served.batch_size):
            raise InputError(f"--max-batch {wanted}: {served.path} takes batches of {served.batch_size} alone; leave it out")
        return 0
    if wanted is not None and served.max_batch is not None and wanted > served.max_batch:
        raise InputError(f"--max-batch {wanted}: {served.path} takes at most {served.max_batch}")
    return wanted or served.max_batch or 8


def build_config(served: Served, name: str, *, max_batch: int, queue_delay: int, instances: int, kind: str) -> dict[str, Any]:
    """Returns the fields of Triton's `ModelConfig`; names of enumerations are `Word`s."""
    spec = served.spec
    batch = [served.batch_size] if served.batch_size is not None else []  # part of the shape where Triton batches nothing
    config: dict[str, Any] = {
        "name": name,
        "platform": served.platform,
        "max_batch_size": max_batch,
        "default_model_filename": served.file_name,
        "input": [{"name": INPUT_NAME, "data_type": Word(_TYPES[spec.input_type]), "dims": [*batch, *spec.input_shape]}],
        "output": [
            {"name": output, "data_type": Word("TYPE_FP32"), "dims": [*batch, *shape], "label_filename": _LABELS}
            for output, shape in spec.outputs.items()
        ],
        "instance_group": [{"count": instances, "kind": Word(kind)}],
    }
    if max_batch > 1:
        config["dynamic_batching"] = {"max_queue_delay_microseconds": queue_delay}
    described = {SPEC_PARAMETER: json.dumps(spec.to_metadata()), "model_sha256": sha256(served.path)}
    config["parameters"] = [{"key": key, "value": {"string_value": value}} for key, value in described.items()]
    return config


class Word(str):
    """A name in protobuf's text format that is written without quotes."""

    __slots__ = ()


def to_pbtxt(message: Mapping[str, Any], indent: str = "") -> str:
    """Returns a message in protobuf's text format; lists are repeated fields."""
    return "".join(line for name, value in message.items() for line in _field(name, value, indent))


def _field(name: str, value: Any, indent: str) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _field(name, item, indent)
    elif isinstance(value, Mapping):
        yield f"{indent}{name} {{\n{to_pbtxt(value, indent + '  ')}{indent}}}\n"
    elif isinstance(value, str) and not isinstance(value, Word):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        yield f'{indent}{name}: "{escaped}"\n'
    else:
        yield f"{indent}{name}: {value}\n"


def write_repository(served: Served, repository: Path, name: str, config: Mapping[str, Any]) -> Path:
    """Writes the model's folder, whole or not at all; returns its path.

    Raises:
        InputError: the repository has a model of that name.
        OutputError: it cannot be written.
    """
    target = repository / name
    with new_folder(target) as folder:
        (folder / "1").mkdir()
        (folder / "config.pbtxt").write_text(to_pbtxt(config), encoding="utf-8")
        (folder / _LABELS).write_text("".join(f"{label}\n" for label in served.spec.class_names), encoding="utf-8")
        model = Path("1") / served.file_name
        copy_model(served.path, served.spec, folder / model, target / model)
    return target


if __name__ == "__main__":
    cli.run(main)
