"""The exception tree: libraries raise from it, and command lines turn it into exit codes.

DetectorError               every error that this project raises on purpose; exit code 2
├── InputError              input or usage that cannot be used as given; exit code 2
│   └── ModelError          a model file that is damaged, foreign or unfit; exit code 2
├── OutputError             a file or folder that cannot be written; exit code 2
│   └── ItemError           one output of many that cannot be written for reasons of its own; exit code 2
├── CheckFailed             a check that ran and did not pass; exit code 1
└── MissingComponentError   a package, GPU or driver that this machine lacks; exit code 3

Any other exception that reaches a command line is a fault of this project's own; exit code 4.
"""

from __future__ import annotations

UNEXPECTED = 4
"""Exit code of a command that ended with an exception which no code expected."""


class DetectorError(Exception):
    """Base of every error that this project raises on purpose.

    Attributes:
        exit_code: of a command that ends with this error.
    """

    exit_code = 2


class InputError(DetectorError):
    """Bad input or usage: a file, folder, argument or annotation that cannot be used as given."""


class ModelError(InputError):
    """A checkpoint, ONNX file or engine that is damaged, foreign, or does not fit what was asked of it."""


class OutputError(DetectorError):
    """A file or folder that cannot be written: no permission, no space, no such folder.

    It is no InputError: where unusable inputs are skipped, an output that fails still ends the work, since the next would fail
    too.
    """


class ItemError(OutputError):
    """An output that cannot be written for reasons of its own: its name, its size, or a folder in its place.

    Where there are many, it is skipped and counted: the next may well be written.
    """


class CheckFailed(DetectorError):
    """A check that ran and did not pass: parity, an accuracy budget, a finite loss."""

    exit_code = 1


class MissingComponentError(DetectorError):
    """A component that this machine lacks, with the remedy: a package, a GPU, a driver."""

    exit_code = 3
