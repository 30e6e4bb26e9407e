"""The console command finds its own packages anywhere, and explains every command where the libraries of extras are missing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from asff import __main__ as asff

ROOT = Path(__file__).parents[2]

_WITHOUT_EXTRAS = """
import contextlib, io, json, os, sys
from importlib.machinery import PathFinder
BLOCKED = ("torch", "onnx", "onnxruntime", "jinja2", "tensorboard", "fastapi", "uvicorn", "prometheus_client", "ray", "pyarrow")
real = PathFinder.find_spec
def find_spec(cls, name, path=None, target=None):
    return None if name.partition(".")[0] in BLOCKED else real(name, path, target)
PathFinder.find_spec = classmethod(find_spec)
from asff import __main__ as asff
sys.argv[0] = "-m"
import runtime.cli
for name, arguments in json.load(sys.stdin):
    reading, writing = os.pipe()
    if not os.fork():  # each in a process of its own, without importing the runtime again
        sys.argv = ["asff", name, *arguments]
        out, err, code = io.StringIO(), io.StringIO(), None
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                asff.main()
            except SystemExit as leaving:
                code = leaving.code
        with os.fdopen(writing, "w") as pipe:
            json.dump([code, out.getvalue(), err.getvalue()], pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        print(pipe.read(), flush=True)
    os.wait()
"""

RUNS = {
    "serve": ["--engine", "absent.onnx"],
    "bulk": ["--engine", "absent.onnx", "--source", "absent", "--output", "absent"],
    "data": ["--data", "absent"],
    "train": ["--data", "absent"],
    "anchors": ["--data", "absent", "--size", "64"],
    "validate": ["--weights", "absent.pt", "--data", "absent"],
    "visualize-weights": ["--weights", "absent.pt", "--source", "absent"],
    "weights": ["absent.weights", "--output", "absent.pt"],
    "export": ["--weights", "absent.pt", "--output", "absent.onnx"],
    "calibrate": ["--onnx", "absent.onnx", "--data", "absent", "--output", "absent.int8.onnx"],
    "verify": ["--weights", "absent.pt", "--data", "absent", "absent.onnx"],
    "chain": ["--weights", "absent.pt", "--data", "absent"],
    "demo": [],
}
"""Arguments of each command that needs an extra."""


@pytest.fixture(scope="module")
def without_extras() -> Callable[[str, bool], tuple[int, str, str]]:
    """Runs every command with --help, and those of RUNS with arguments, all in one child interpreter."""
    calls = [(name, ["--help"]) for name in asff.COMMANDS] + list(RUNS.items())
    command = [sys.executable, "-c", _WITHOUT_EXTRAS]
    done = subprocess.run(command, input=json.dumps(calls), cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(calls), done.stderr
    found = {(name, arguments == ["--help"]): answer for (name, arguments), answer in zip(calls, answers, strict=True)}
    return lambda name, helps: found[name, helps]


@pytest.mark.parametrize("name", asff.COMMANDS)
def test_help_works_without_the_extras(name: str, without_extras: Callable[[str, bool], tuple[int, str, str]]) -> None:
    code, out, err = without_extras(name, True)
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: asff {name} [-h]") and "example:" in out
    assert not any(text in out for text in ("Absent", "extras.", "python -m"))
    assert not re.search(r"\b(runtime|train|calibration|export)\.[a-z]+\b", out), "a module; say `python -m` before its name"


@pytest.mark.parametrize("name", RUNS)
def test_running_without_an_extra_names_it(name: str, without_extras: Callable[[str, bool], tuple[int, str, str]]) -> None:
    code, out, err = without_extras(name, False)
    assert (code, out) == (3, "")
    extra = name if name in ("serve", "bulk") else "train"
    assert err.endswith(f" is not installed; run `pip install 'yolov3-asff-tensorrt[{extra}]'`\n") and err.count("\n") == 1


def test_every_command_of_the_packages_is_in_the_table() -> None:
    files = (file for package in ("runtime", "calibration", "train", "export") for file in (ROOT / package).rglob("*.py"))
    run = {file.relative_to(ROOT) for file in files if "\n    cli.run(main)\n" in file.read_text(encoding="utf-8")}
    modules = {".".join(file.with_suffix("").parts).removesuffix(".__main__") for file in run}
    assert modules <= {module for module, _ in asff.COMMANDS.values()}


@pytest.mark.parametrize(
    ("arguments", "code", "out", "err"),
    [
        ([], 2, "", "error: no command given; see asff --help\n"),
        (["trian"], 2, "", "error: 'trian' is no command; did you mean train?; see asff --help\n"),
        (["xyzzy"], 2, "", "error: 'xyzzy' is no command; see asff --help\n"),
        (["\x1b[31m"], 2, "", "error: '\\x1b[31m' is no command; see asff --help\n"),
        (["--help"], 0, asff.usage() + "\n", ""),
    ],
)
def test_the_first_argument(
    arguments: list[str], code: int, out: str, err: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["asff", *arguments])
    with pytest.raises(SystemExit) as ended:
        asff.main()
    assert ended.value.code == code and tuple(capsys.readouterr()) == (out, err)


_SCRIPT = """
import sys
from asff.__main__ import main
if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("options", [(), ("-P",)], ids=["plain", "safe path"])
def test_modules_of_the_user_do_not_shadow_ours(options: tuple[str, ...], tmp_path: Path) -> None:
    """As pip installs it, from a folder of decoys that PYTHONPATH names too."""
    installed, work = tmp_path / "site", tmp_path / "work"
    installed.mkdir()
    for package in ("asff", "runtime", "calibration", "train", "export"):
        (installed / package).symlink_to(ROOT / package)
        (work / package).mkdir(parents=True)
        (work / package / "__init__.py").write_text("raise SystemExit('decoy')")
        (work / f"{package}.py").write_text("raise SystemExit('decoy')")
    for decoy in (work / "asff", work / "asff.py"):  # the one name that is ours alone
        (decoy / "__init__.py" if decoy.is_dir() else decoy).unlink()
    (work / "asff").rmdir()
    script = tmp_path / "bin" / "asff"
    script.parent.mkdir()
    script.write_text(_SCRIPT)
    command = [sys.executable, *options, str(script), "detect", "--help"]
    environment = {"PYTHONPATH": f"{work}:{installed}", "PATH": ""}
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: asff detect")
