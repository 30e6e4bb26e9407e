"""Optional libraries are named with their remedy, keep Ctrl-C, and are imported with their telemetry off."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.components import is_installed, load
from runtime.errors import MissingComponentError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a library `fake_library`."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "fake_library", raising=False)
    return tmp_path / "fake_library.py"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"fake_library is not installed; run `pip install fake_library`"),
        (
            "import absent",
            r"installed but does not load \(No module named 'absent'\); run `pip install --force-reinstall fake_l",
        ),
        ("raise ImportError('libx.so: no such\\nfile')", r"does not load \(libx.so: no such\); run `pip install --force"),
        ("raise OSError", r"does not load \(OSError\)"),
        ("raise RuntimeError('CPU too old')", r"does not load \(CPU too old\)"),
    ],
)
def test_what_does_not_load_is_named(library: Path, content: str | None, message: str) -> None:
    if content is not None:
        library.write_text(content)
    assert is_installed("fake_library") == (content is not None)
    with pytest.raises(MissingComponentError, match=message):
        load("fake_library")


@pytest.mark.parametrize("then", ["pass", "raise ImportError('broken')"])
def test_no_import_swallows_ctrl_c(library: Path, then: str) -> None:
    library.write_text(f"import signal\ntry:\n    signal.raise_signal(signal.SIGINT)\nexcept BaseException:\n    pass\n{then}")
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        load("fake_library")
    assert signal.getsignal(signal.SIGINT) is before


def test_onnx_runtime_is_imported_with_its_telemetry_off(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("import os\nprint(os.environ['ORT_DISABLE_TELEMETRY'])\nraise SystemExit")
    clean = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    code = "from runtime.backends.open import open_backend\nopen_backend('m.onnx')"
    (tmp_path / "m.onnx").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**clean, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_openvino_is_imported_without_what_reports_its_use(library: Path) -> None:
    """With the module of that name it sends an event whenever it is imported; without it, it does not."""
    (library.parent / "openvino_telemetry.py").write_text("")
    library.write_text("try:\n    import openvino_telemetry\n    reports = True\nexcept ImportError:\n    reports = False\n")
    assert load("fake_library").reports is False


def test_libraries_that_report_have_one_way_in() -> None:
    """A module that imports one by itself could be the first, before its reports are off."""
    for folder in ("runtime", "calibration", "train", "export", "benchmarks"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
                assert not {name.split(".")[0] for name in names} & {"onnxruntime", "openvino"}, file
