"""Every way in which a command can end is one line and an exit code."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime import cli
from runtime.errors import CheckFailed, DetectorError, InputError, MissingComponentError, ModelError, OutputError


class OutOfMemoryError(RuntimeError):
    """As PyTorch calls its own."""


def end(main: Callable[[], object]) -> object:
    with pytest.raises(SystemExit) as caught:
        cli.run(main)  # type: ignore[arg-type]
    return caught.value.code


def raising(error: BaseException) -> Callable[[], int]:
    def main() -> int:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "exit_code", "line"),
    [
        (DetectorError("bad"), 2, "error: bad"),
        (InputError("a.png: bad\nname \x1b[2J\u202e"), 2, r"error: a.png: bad\nname \x1b[2J\u202e"),
        (ModelError("bad"), 2, "error: bad"),
        (OutputError("bad"), 2, "error: bad"),
        (CheckFailed("bad"), 1, "error: bad"),
        (MissingComponentError("bad"), 3, "error: bad"),
        (OSError(errno.EIO, "Input/output error", "a\nb"), 2, r"error: [Errno 5] Input/output error: 'a\nb'"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            2,
            "error: [Errno 28] No space left on device; free some space, or set TMPDIR to another folder",
        ),
        (MemoryError(), 2, "error: out of memory; try a smaller --batch or --size"),
        (OutOfMemoryError("CUDA out of memory"), 2, "error: out of memory; try a smaller --batch or --size"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (SystemExit(2), 2, ""),
        (SystemExit(0), 0, ""),
        (KeyError("x\ny"), 4, r"unexpected: KeyError: 'x\ny'; please report it, details with --debug"),
        (AssertionError(), 4, "unexpected: AssertionError: ; please report it, details with --debug"),
        (ImportError("no\nlib"), 4, r"unexpected: ImportError: no\nlib; please report it, details with --debug"),
        (GeneratorExit(), 4, "unexpected: GeneratorExit: ; please report it, details with --debug"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    error: BaseException, exit_code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end(raising(error)) == exit_code
    assert capsys.readouterr().err == (f"{line}\n" if line else "")


def test_a_long_message_keeps_its_ends(capsys: pytest.CaptureFixture[str]) -> None:
    assert end(raising(InputError("name " + "x" * 100_000 + "; choose another"))) == 2
    found = capsys.readouterr().err
    assert len(found) < 2100 and found.startswith("error: name xx") and found.endswith("xx; choose another\n")


def test_debug_shows_the_traceback(caplog: pytest.LogCaptureFixture) -> None:
    def main(*arguments: str) -> int:
        cli.parser("x", "does", "x").parse_args(arguments)
        raise KeyError("x")

    assert end(main) == 4 and not caplog.records
    try:
        assert end(lambda: main("--debug")) == 4
        assert "KeyError: 'x'" in caplog.text and "Traceback" in caplog.text
    finally:
        cli.log.setLevel("NOTSET")


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("turned", [False, True], ids=["as it is", "turned into another error"])
def test_signals_clean_up(number: signal.Signals, exit_code: int, turned: bool, capsys: pytest.CaptureFixture[str]) -> None:
    before, cleaned = signal.getsignal(number), []

    def main() -> int:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt as error:
            if turned:
                raise ImportError("numpy.core.multiarray failed to import") from error
            raise
        finally:
            cleaned.append(number)
        return 0

    assert end(main) == exit_code and cleaned == [number]
    assert capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(number) == before


def test_a_signal_that_the_caller_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert end(lambda: signal.raise_signal(signal.SIGTERM) or 0) == 0
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("output", ["reader gone", "full", "none"])
def test_stdout_that_takes_nothing(output: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    full = os.open("/dev/full", os.O_WRONLY)
    with open({"reader gone": write, "full": full, "none": os.dup(write)}[output], "w", closefd=False) as stream:
        monkeypatch.setattr(sys, "stdout", None if output == "none" else stream)
        code = end(lambda: print("x" * 100_000) or 0)
        assert (code, capsys.readouterr().err.count("\n")) == {"reader gone": (0, 0), "full": (2, 1), "none": (0, 0)}[output]
    os.close(write)
    os.close(full)


def test_a_broken_pipe_that_is_not_our_output_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert end(raising(BrokenPipeError(errno.EPIPE, "Broken pipe"))) == 2
    assert "Broken pipe" in capsys.readouterr().err


def test_what_skips_bad_input_does_not_skip_failed_output() -> None:
    assert not issubclass(OutputError, InputError)


@pytest.mark.parametrize(
    ("output", "is_input"),
    [
        ("w.pt", True),
        ("below/../w.pt", True),
        ("hard link.pt", True),
        ("soft link.pt", True),
        ("names.txt", True),
        ("other", True),  # its manifest would be other.json
        ("w.pt.onnx", False),
        ("none", False),
    ],
)
def test_an_output_never_replaces_an_input(output: str, is_input: bool, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    inputs = [tmp_path / name for name in ("w.pt", "names.txt", "other.json")]
    for path in inputs:
        path.write_text("kept")
    os.link(inputs[0], tmp_path / "hard link.pt")
    (tmp_path / "soft link.pt").symlink_to(inputs[0])
    expected = pytest.raises(InputError, match=r"--output .*: would replace .*, which it is made from")
    with expected if is_input else contextlib.nullcontext():
        cli.check_keeps(tmp_path / output, *inputs)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("make one with `python -m export.onnx`", "make one with `asff export`"),
        ("python  -m train.data.", "asff data."),
        ("python -m train.database", "python -m train.database"),
        ("torchrun --nproc-per-node 8 -m train.data", "torchrun --nproc-per-node 8 -m train.data"),
    ],
)
def test_messages_name_commands_as_the_user_calls_them(
    text: str, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "PROGRAMS", {"export.onnx": "asff export", "train.data": "asff data"})
    assert end(raising(InputError(text))) == 2
    assert capsys.readouterr().err == f"error: {shown}\n"
    assert cli._Formatter("%(message)s").format(logging.makeLogRecord({"msg": text})) == shown


def test_a_long_command_is_logged_whole(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(cli, "PROGRAMS", {"export.verify": "asff verify"})
    names = [f"{index}/{'a' * 200}" for index in range(9)]
    cli.log_command(logging.getLogger(), logging.WARNING, "+", ["python", "-m", "export.verify", "a file\n", *names])
    shown = cli._Formatter("%(message)s").format(caplog.records[0])
    assert shown == f"+ asff verify 'a file\\n' {' '.join(names)}"
