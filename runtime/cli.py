"""Error handling, parsers and argument types that all command lines share.

An error becomes one line on stderr and an exit code. Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import cv2

from runtime.backends.open import BACKENDS
from runtime.errors import DetectorError, InputError

INTERRUPTED = 130  # as shells report a program that Ctrl-C ended
_BREAKS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # characters that break a line or control a terminal


def run(main: Callable[[], int]) -> NoReturn:
    """Runs a command and ends the process with its exit code.

    The codes: 0 done, 1 a check failed, 2 bad input or output, 3 a missing component, 130 Ctrl-C.

    Args:
        main: the command; returns its exit code.
    """
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # a bad image or video is reported once, by us
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # FFmpeg's AV_LOG_QUIET
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        code = main()
        sys.stdout.flush()
    except DetectorError as error:
        print(f"error: {_line(error)}", file=sys.stderr)
        code = error.exit_code
    except BrokenPipeError:  # the reader of our output is gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except MemoryError:
        print("error: out of memory; try a smaller --batch or --size", file=sys.stderr)
        code = InputError.exit_code
    except OSError as error:
        print(f"error: {_line(error)}", file=sys.stderr)
        code = InputError.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    sys.exit(code)


def _line(message: object) -> str:
    """Returns a message as one line, with control characters escaped: it may quote file names and file content."""
    return _BREAKS.sub(lambda found: repr(found.group())[1:-1], str(message))


class _Parser(argparse.ArgumentParser):
    """Parser that reports wrong usage in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(InputError.exit_code, f"error: {_line(message)}; see {self.prog} --help\n")


def parser(module: str, description: str, example: str) -> argparse.ArgumentParser:
    """Creates a parser whose `--help` ends with an example."""
    return _Parser(
        prog=f"python -m {module}",
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_model(parser: argparse.ArgumentParser, made_with: str = "python -m export.onnx") -> None:
    """Adds `--engine` and `--backend`, the arguments of `open_backend`, to a command that runs an exported model."""
    parser.add_argument("--engine", required=True, help=f"the model: an .onnx file made by {made_with}")
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="library that runs it (default: ONNX Runtime if installed, on an NVIDIA GPU if it can; else OpenVINO)",
    )


def add_conf(parser: argparse.ArgumentParser) -> None:
    """Adds `--conf`, the score threshold of a `Detector`, to a command that shows detections."""
    parser.add_argument(
        "--conf",
        type=probability,
        help="lowest score shown (default: the model's operating threshold, see the option --store of runtime.evaluate; 0.25"
        " if it has none)",
    )


def check_suffix(output: Path, suffix: str, option: str = "--output") -> None:
    """Raises InputError unless the file that an option names ends in `suffix`."""
    if output.suffix != suffix:
        raise InputError(f"{option} {output}: expected a name ending in {suffix}")


def probability(text: str) -> float:
    """Parses an argument in 0-1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number in 0-1, got {text}")
    return value


def positive_number(text: str) -> float:
    """Parses a finite number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return value


def share(text: str) -> float:
    """Parses an argument above 0 and at most 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and at most 1, got {text}")
    return value


def positive(text: str) -> int:
    """Parses a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text}")
    return value


def count(text: str) -> int:
    """Parses a whole number of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, got {text}")
    return value


def image_side(text: str) -> int:
    """Parses an input side in pixels: a positive multiple of 32, the coarsest stride."""
    value = positive(text)
    if value % 32:
        raise argparse.ArgumentTypeError(f"expected a multiple of 32, got {text}; nearest: {max(round(value / 32), 1) * 32}")
    return value


def image_size(text: str) -> tuple[int, int]:
    """Parses an input size to (height, width): `416` is square, `320x608` is height x width; multiples of 32."""
    sides = [image_side(part) for part in text.lower().split("x")]
    if len(sides) > 2:
        raise argparse.ArgumentTypeError(f"expected a side or HEIGHTxWIDTH, got {text}")
    return sides[0], sides[-1]
