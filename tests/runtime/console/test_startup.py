"""A command that is stopped while it imports its modules ends with one line, whatever stops it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runtime.console import signals, startup

ROOT = Path(__file__).parents[3]
COMMANDS = ("runtime.detect", "train", "calibration", "export.onnx")


def start(module: str, numpy: str, folder: Path) -> subprocess.Popen[str]:
    """Run a command with another numpy, which every command imports."""
    (folder / "numpy.py").write_text(numpy)
    return subprocess.Popen(
        [sys.executable, "-m", module, "--help"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("module", COMMANDS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals(module: str, number: signal.Signals, tmp_path: Path) -> None:
    with start(module, "import time\nprint('importing', flush=True)\ntime.sleep(60)", tmp_path) as process:
        assert process.stdout and process.stdout.readline() == "importing\n"
        process.send_signal(number)
        assert process.communicate(timeout=30) == ("", "interrupted\n")
    assert process.returncode == 128 + number


@pytest.mark.parametrize(
    ("numpy", "exit_code", "line"),
    [
        ("import absent.part", 3, "error: absent is not installed; run `pip install absent`, or `make setup` for all\n"),
        (
            "raise ImportError('libx.so: \\n')",
            4,
            "unexpected: ImportError: libx.so: \\n; please report it, details with --debug\n",
        ),
    ],
    ids=["missing", "broken"],
)
def test_imports_that_fail(numpy: str, exit_code: int, line: str, tmp_path: Path) -> None:
    with start("runtime.detect", numpy, tmp_path) as process:
        assert process.communicate(timeout=30) == ("", line)
    assert process.returncode == exit_code


def test_newer_python_than_there_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(startup, "_NEWER_PYTHON", (3, 99))
    for error, code in ((TypeError("unexpected keyword argument 'kw_only'"), 3), (OSError("broken"), 4)):
        with pytest.raises(SystemExit) as ended:
            startup._reporter()(type(error), error, None)
        assert ended.value.code == code
    assert capsys.readouterr().err.startswith("error: this command needs Python 3.10 or newer, this is 3.")


@pytest.mark.skipif(sys.version_info >= (3, 10), reason="this Python is new enough")
def test_training_on_an_old_python() -> None:
    found = subprocess.run([sys.executable, "-m", "train", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert found.returncode == 3 and found.stderr.startswith("error: ") and found.stderr.count("\n") == 1


def test_a_library_leaves_the_signals_alone() -> None:
    code = "import signal, sys\nhook, old = sys.excepthook, signal.getsignal(signal.SIGINT)\nimport runtime\n"
    code += "assert signal.getsignal(signal.SIGINT) is old and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL\n"
    code += "assert sys.excepthook is hook and sys.unraisablehook is sys.__unraisablehook__"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


class Destroyed:
    """Raises as it is freed; Python cannot pass that on, and calls the hook."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __del__(self) -> None:
        raise self._error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), signals.Terminated()])
@pytest.mark.parametrize("by", ["callback", "destructor"])
def test_a_signal_that_c_code_swallowed_comes_again(error: KeyboardInterrupt, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "unraisablehook", startup._report_ignored)
    with signals.raised() as received:
        if by == "callback":  # C code prints what it raised, by this hook
            startup._reporter()(type(error), error, None)
        else:
            Destroyed(error)
        with pytest.raises(type(error)):
            time.sleep(10)
    assert received == [signal.SIGINT if type(error) is KeyboardInterrupt else signal.SIGTERM]


def test_other_errors_of_destructors_are_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "unraisablehook", startup._report_ignored)
    Destroyed(ValueError("broken"))
    assert capsys.readouterr().err.endswith("ValueError: broken\n")
