"""Command line `python -m runtime.visualize`: draws how an exported model with ASFF fused its levels, image by image."""

from __future__ import annotations

import argparse
from typing import Optional

from runtime import cli
from runtime.backends.inspection import InspectableBackend
from runtime.backends.open import open_backend
from runtime.detector import Detector
from runtime.errors import InputError
from runtime.files import output_folder
from runtime.media.image import write_image
from runtime.media.sources import SkippedSources, Source, find_sources, read_each, read_source
from runtime.ops.image import Image
from runtime.results.paths import result_paths
from runtime.streaming.prefetch import close_generator
from runtime.viz.fusion_figure import figure
from runtime.viz.fusion_view import look

DEFAULT_OUTPUT = "runs/visualize"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that every visualizing command takes."""
    parser.add_argument("--source", required=True, help="image, folder or glob pattern (quoted)")
    parser.add_argument("--output", default=DEFAULT_OUTPUT, help=f"folder for the figures (default: {DEFAULT_OUTPUT})")
    cli.add_conf(parser)
    parser.add_argument("--strict", action="store_true", help="stop at the first image that cannot be read")


def parse(arguments: Optional[list[str]] = None) -> argparse.Namespace:
    parser = cli.parser(
        "runtime.visualize",
        "Draw how a model with ASFF fuses its levels: weight maps, activations, and which level detected what.",
        "python -m runtime.visualize --engine model.onnx --source photos/ --output seen/",
    )
    cli.add_model(parser, "python -m export.onnx --inspect")
    add_arguments(parser)
    return parser.parse_args(arguments)


def show(backend: InspectableBackend, options: argparse.Namespace) -> None:
    """Writes a figure of each image that the options name, and prints its path.

    Raises:
        InputError: nothing to read, a model that cannot be inspected, or none of the images could be used.
        OutputError: the figures cannot be written.
    """
    backend.check_inspectable()
    sources, folder = find_sources(options.source), output_folder(options.output)
    detector, targets = Detector(backend, score_threshold=options.conf), result_paths(sources, folder)

    with SkippedSources(len(sources), strict=options.strict) as skipped:
        images = read_each(sources, _read, skipped, label="visualize")
        with close_generator(images):
            for source, image in images:
                with skipped.skip_unusable():
                    write_image(targets[source], figure(look(detector, backend, image), backend.spec))
                    print(targets[source])


def _read(source: Source) -> Image:
    if source.is_video:
        raise InputError(f"{source.path}: expected an image, got a video; save the frames of interest as images")
    return read_source(source)


def main(arguments: Optional[list[str]] = None) -> int:
    options = parse(arguments)
    with open_backend(options.engine, options.backend) as backend:
        if not isinstance(backend, InspectableBackend):
            raise InputError(f"{options.engine}: only .onnx files tell how levels were fused; give the one it was built from")
        show(backend, options)
    return 0


if __name__ == "__main__":
    cli.run(main)
