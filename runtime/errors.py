"""The one exception tree. Libraries raise from it; only command lines turn it into an exit code."""

from __future__ import annotations


class DetectorError(Exception):
    """Base of every error this project raises on purpose. `exit_code` is what a command line returns for it."""

    exit_code = 2


class InputError(DetectorError):
    """Bad input or usage: a file, folder, argument or annotation that cannot be used as given (exit code 2)."""


class OutputError(InputError):
    """A file or folder that cannot be written: no permission, no space, no such place (exit code 2)."""


class ModelError(InputError):
    """A checkpoint, ONNX file or engine that is damaged, foreign, or does not fit what was asked of it (exit code 2)."""


class CheckFailed(DetectorError):
    """A check ran and its answer is no: parity, an accuracy budget, a loss that is finite (exit code 1)."""

    exit_code = 1


class MissingComponentError(DetectorError):
    """Something this machine lacks, with the remedy: a package, a GPU, a driver (exit code 3)."""

    exit_code = 3
