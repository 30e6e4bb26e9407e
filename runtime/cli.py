"""Error handling, parsers and argument types that all command lines share.

An error becomes one line on stderr and an exit code. Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import cv2

from runtime.backends.gpu import show_only
from runtime.backends.open import BACKENDS
from runtime.backends.triton import SCHEME, served_address
from runtime.console import extras, signals, terminal
from runtime.console.startup import exit_code
from runtime.console.terminal import printable, unexpected
from runtime.errors import UNEXPECTED, DetectorError, InputError, MissingComponentError

log = logging.getLogger(__name__)

_LARGEST_NUMBER = 1e9  # of seconds, megabytes or pixels: libraries overflow beyond

PROGRAMS: dict[str, str] = {}
"""How the user calls a command, by its module, where that is not `python -m`; the console command fills it."""


def _as_called(text: str) -> str:
    """Names commands in a text as the user calls them."""
    return re.sub(r"python\s+-m\s+([\w.]*\w)", lambda found: PROGRAMS.get(found[1], found[0]), text)


class _Formatter(terminal.LineFormatter):
    """Formatter of log lines, which often name the command to run next."""

    def format(self, record: logging.LogRecord) -> str:
        return _as_called(super().format(record))


def log_command(logger: logging.Logger, level: int, text: str, command: Sequence[str]) -> None:
    """Logs a command for people to type; each word is an argument of its own, so that the formatter does not cut the whole."""
    logger.log(level, text + " %s" * len(command), *map(shlex.quote, command))


def run(main: Callable[[], int]) -> NoReturn:
    """Runs a command and ends the process with its exit code.

    The codes: 0 done, 1 a check failed, 2 bad input or output, 3 a missing component, 4 an unexpected error, 130 Ctrl-C,
    143 SIGTERM.

    Args:
        main: the command; returns its exit code.
    """
    _silence_opencv()  # a bad image or video is reported once, by us
    with signals.raised() as received, terminal.guarded_streams():
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Formatter("%(message)s"))
        logging.basicConfig(level=logging.INFO, handlers=[handler])
        try:
            code = _run(main)
        except BaseException as error:
            code = _report(error, received)
    sys.exit(code)


def _silence_opencv() -> None:
    if hasattr(cv2, "setLogLevel"):  # until OpenCV 4.11
        cv2.setLogLevel(0)
    else:
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def _run(main: Callable[[], int]) -> Any:
    try:
        code: Any = main()
    except SystemExit as leaving:  # of argparse
        code = leaving.code
    if sys.stdout is not None:
        sys.stdout.flush()
    return code


def _report(error: BaseException, received: list[int]) -> int:
    """Says in one line on stderr why a command ended; returns its exit code.

    Args:
        error: that ended it.
        received: signals that it received: they are the reason of whatever else went wrong after them.
    """
    log.debug("details:", exc_info=error)
    if received or isinstance(error, KeyboardInterrupt):
        line, code = "interrupted", exit_code(received[0] if received else signals.number_of(error))
    elif isinstance(error, BrokenPipeError) and terminal.reader_is_gone():
        line, code = "", 0  # as with `| head`
    elif isinstance(error, DetectorError):
        line, code = f"error: {printable(error)}", error.exit_code
    elif isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # PyTorch's has no other common base
        line, code = "error: out of memory; try a smaller --batch or --size", InputError.exit_code
    elif isinstance(error, ModuleNotFoundError) and error.name:  # of a library that is imported late
        line, code = f"error: {extras.missing(error.name.partition('.')[0])}", MissingComponentError.exit_code
    elif isinstance(error, OSError):
        remedy = "; free some space, or set TMPDIR to another folder" if error.errno == errno.ENOSPC else ""
        line, code = f"error: {printable(error)}{remedy}", InputError.exit_code
    else:
        line, code = unexpected(error), UNEXPECTED
    try:
        if line:
            print(_as_called(line), file=sys.stderr)
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):  # stdout or stderr is what failed
        terminal.discard_output()
    return code


class _Debug(argparse.Action):
    """Option that logs the traceback of the error that ends the command."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        log.setLevel(logging.DEBUG)


class _Device(argparse.Action):
    """Option that shows this process one GPU alone, before anything uses it."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, number: Any, *_: object) -> None:
        show_only(number)


class _Parser(argparse.ArgumentParser):
    """Parser that reports wrong usage in one line, and ends a command whose libraries are missing once it is to run."""

    def parse_args(self, *given: Any) -> argparse.Namespace:  # type: ignore[override]
        options: argparse.Namespace = super().parse_args(*given)
        missed = extras.stand_aside()
        if missed:
            raise MissingComponentError(extras.missing(missed[0]))
        return options

    def format_help(self) -> str:
        return _as_called(super().format_help())

    def error(self, message: str) -> NoReturn:
        self.exit(InputError.exit_code, f"error: {_as_called(printable(message))}; see {self.prog} --help\n")


def parser(module: str, description: str, example: str) -> argparse.ArgumentParser:
    """Creates a parser whose `--help` ends with an example."""
    made = _Parser(
        prog=PROGRAMS.get(module, f"python -m {module}"),
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--debug", action=_Debug, nargs=0, default=argparse.SUPPRESS, help="show the traceback of an error")
    return made


def add_model(parser: argparse.ArgumentParser, made_with: str = "python -m export.onnx", *, served: bool = True) -> None:
    """Adds `--engine` and `--backend`, the arguments of `open_backend`, to a command that runs an exported model.

    Args:
        parser: of the command.
        made_with: the command that makes the model.
        served: whether the model may run on a Triton server.
    """
    text = f"the model: an .onnx file made by {made_with}, or an .engine"
    if served:
        parser.add_argument("--engine", required=True, help=f"{text}, or {SCHEME}host:port/model of a Triton server")
    else:
        parser.add_argument("--engine", required=True, type=model_file, help=text)
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="library that runs it (default: ONNX Runtime if installed, on an NVIDIA GPU if it can; else OpenVINO)",
    )
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds `--device`, the GPU that a command uses."""
    text = "number of the NVIDIA GPU, as nvidia-smi shows it (default: 0)"
    parser.add_argument("--device", action=_Device, type=count, metavar="N", default=argparse.SUPPRESS, help=text)


def add_conf(parser: argparse.ArgumentParser) -> None:
    """Adds `--conf`, the score threshold of a `Detector`, to a command that shows detections."""
    parser.add_argument(
        "--conf",
        type=probability,
        help="lowest score shown (default: the model's operating threshold, see the option --store of"
        " python -m runtime.evaluate; 0.25 if it has none)",
    )


def model_file(text: str) -> Path:
    """Parses the path of a model file, for a command that needs the file itself."""
    if served_address(text) is not None:
        raise argparse.ArgumentTypeError(f"expected a model's file, got {text}; give the file that is served there")
    return Path(text)


def check_suffix(output: Path, suffix: str, option: str = "--output") -> None:
    """Raises InputError unless the file that an option names ends in `suffix`."""
    if output.suffix != suffix:
        raise InputError(f"{option} {output}: expected a name ending in {suffix}")


def check_keeps(output: Path, *inputs: Path, option: str = "--output") -> None:
    """Raises InputError if writing an exported file and its manifest would replace one of the files it is made from."""
    for written in (output, Path(f"{output}.json")):
        for path in inputs:
            if written.exists() and path.exists() and os.path.samefile(written, path):
                raise InputError(f"{option} {output}: would replace {path}, which it is made from; choose another name")


def probability(text: str) -> float:
    """Parses an argument in 0-1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number in 0-1, got {text}")
    return value


def positive_number(text: str) -> float:
    """Parses a number above 0, of seconds or bytes that can still be computed with."""
    value = float(text)
    if not 0 < value <= _LARGEST_NUMBER:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and at most {_LARGEST_NUMBER:g}, got {text}")
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
