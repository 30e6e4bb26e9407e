"""TrtBackend on a fake GPU: engines that it refuses, before or just after loading them."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.backends.gpu import platform_name
from runtime.backends.open import open_backend
from runtime.backends.tensorrt import cuda
from runtime.backends.tensorrt.backend import TrtBackend
from runtime.errors import MissingComponentError, ModelError
from runtime.manifest import Origin, manifest_path, write_manifest
from tests.support.trt_machine import FACTS, RTX, SPEC, MakeMachine, check, edit, numbered, swap


def remove(path: Path) -> None:
    manifest_path(path).unlink()


def damage(path: Path) -> None:
    manifest_path(path).write_text("{")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def update(path: Path) -> None:
    content = json.loads(manifest_path(path).read_text())
    manifest_path(path).write_text(json.dumps({**content, "version": 2}))


def forget(path: Path) -> None:
    content = json.loads(manifest_path(path).read_text())
    manifest_path(path).write_text(json.dumps({**content, "details": {}}))


def batch(*sizes: Any) -> dict[str, Any]:
    return dict(zip(("min", "opt", "max"), sizes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove, "tiny.engine: without its manifest tiny.engine.json; put that beside it, or build it again"),
        (damage, "tiny.engine.json: not a manifest that can be read .*; build the engine again"),
        (swap, "tiny.engine: is not the file that tiny.engine.json describes; copy both again, or build it again"),
        (cut, "tiny.engine: is not the file that tiny.engine.json describes; copy both again, or build it again"),
        (update, "tiny.engine.json: manifest version 2, this code reads 1; update the code; build the engine again"),
        (forget, r"tiny.engine.json: does not describe an engine \(KeyError: 'engine'\); build it again"),
        *(
            (edit(**changes), "tiny.engine.json: does not describe an engine")
            for changes in (
                {"flavour": "other"},
                {"flavour": ["tensorrt"]},
                {"version": None},
                {"version": [10, 12, 0]},
                {"version": "new"},
                {"compute_capability": "new"},
                {"compute_capability": 8.6},
                {"batch": None},
                {"batch": {"min": 1, "max": 8}},
                {"batch": batch(0, 1, 8)},
                {"batch": batch(1, 9, 8)},
                {"batch": batch(1, 2, "8")},
                {"batch": batch(1, 2, 10**9)},
                {"batch": batch(True, 1, 8)},
            )
        ),
    ],
)
def test_an_engine_without_its_own_manifest_is_refused(
    change: Callable[[Path], None], message: str, machine: MakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = machine()
    change(here.path)
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # the manifest is asked first
    with pytest.raises(ModelError, match=message) as caught:
        open_backend(here.path)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    assert here.gpu.log == []


@pytest.mark.parametrize(
    ("built", "installed", "compatible", "loads"),
    [
        ("10.12.0", "10.12.0", False, True),
        ("10.12.0", "10.13.0", False, False),
        ("10.12.0", "10.13.0", True, True),
        ("10.12.0", "11.4.0", True, True),
        ("10.12.0", "10.9.0", True, False),  # compatible with later ones only
        ("11.4.0", "10.12.0", True, False),
        ("8.6.1", "10.12.0", True, True),
        ("8.6.1", "11.4.0", True, False),  # two major versions on
    ],
)
def test_another_version_loads_it_only_if_built_for_that(
    built: str, installed: str, compatible: bool, loads: bool, machine: MakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = machine(installed, version=built, version_compatible=compatible)
    if loads:
        with TrtBackend(here.path):
            return
    monkeypatch.setattr(cuda, "find_gpu", lambda: None)  # the library is asked before the GPU
    flag = " --version-compatible" if compatible else ""
    with pytest.raises(ModelError) as caught:
        TrtBackend(here.path)
    assert str(caught.value) == (
        f"{here.path}: built by version {built}, installed is TensorRT {installed}; build it again here with `python -m"
        f" export.engine --onnx {here.path.parent / 'tiny.onnx'} --output {here.path} --flavor tensorrt --batch 1,2,8{flag}`"
    )


@pytest.mark.parametrize(("platform", "loads"), [(None, True), (platform_name(), True), ("Windows AMD64", False)])
def test_an_engine_of_another_platform_is_refused(platform: str | None, loads: bool, machine: MakeMachine) -> None:
    here = machine(platform=platform)
    if loads:
        TrtBackend(here.path).close()
        return
    with pytest.raises(ModelError, match=r"built on 'Windows AMD64', this is .*; build it again here"):
        TrtBackend(here.path)


@pytest.mark.parametrize(
    ("name", "multiprocessors", "warning"),
    [
        ("Fake GPU", 28, ""),
        ("Fake GPU", None, ""),  # an older manifest
        ("Fake GPU", 56, "built for Fake GPU (56 multiprocessors); on Fake GPU (28 multiprocessors) it may be slower"),
        ("Other GPU", None, "built for Other GPU; on Fake GPU (28 multiprocessors) it may be slower"),
    ],
)
def test_another_gpu_of_the_same_kind_is_a_warning(
    name: str, multiprocessors: int | None, warning: str, machine: MakeMachine, caplog: pytest.LogCaptureFixture
) -> None:
    here = machine(gpu=name, multiprocessors=multiprocessors, compute_capability="8.6", hardware_compatible=False)
    with caplog.at_level(logging.WARNING), TrtBackend(here.path):
        assert warning in caplog.text and bool(warning) == bool(caplog.text)


def test_it_is_none_for_an_engine_built_for_that(machine: MakeMachine, caplog: pytest.LogCaptureFixture) -> None:
    here = machine(gpu="Other GPU", compute_capability="8.6", same_compute_capability=True)
    with caplog.at_level(logging.WARNING), TrtBackend(here.path):
        assert caplog.text == ""


def test_the_command_that_is_advised_has_every_option(machine: MakeMachine) -> None:
    here = machine("10.13.0", same_compute_capability=True, dla_core=0)
    with pytest.raises(ModelError, match=r"--batch 1,2,8 --same-compute-capability --dla 0`"):
        TrtBackend(here.path)


def test_the_command_that_is_advised_is_safe_to_copy(machine: MakeMachine) -> None:
    here = machine("10.13.0")
    write_manifest(here.path, SPEC, [Origin("onnx", "/a b/x.onnx; reboot", "0")], {"engine": FACTS})
    with pytest.raises(ModelError, match=r"--onnx '/a b/x\.onnx; reboot' --output"):
        TrtBackend(here.path)


@pytest.mark.parametrize(("facts", "package"), [({}, "tensorrt"), (RTX, "tensorrt-rtx")])
def test_without_the_library_its_package_is_named(
    facts: dict[str, Any], package: str, machine: MakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = machine(**facts)
    monkeypatch.setitem(sys.modules, package.replace("-", "_"), None)
    with pytest.raises(MissingComponentError, match=f"run `pip install {package}") as caught:
        open_backend(here.path)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("built", "installed", "compatible", "message"),
    [
        ("10.12.0", "10.12.0", True, None),
        ("8.6.1", "10.12.0", True, None),
        ("10.12.0", "11.4.0", True, None),
        ("11.4.0", "10.12.0", True, "built by version 11.4.0, installed is TensorRT lean runtime 10.12.0"),
        (
            "10.12.0",
            "10.12.0",
            False,
            "run `pip install tensorrt` .*, or build the engine with --version-compatible for the lean",
        ),
    ],
)
def test_the_lean_runtime_runs_version_compatible_engines_where_the_library_is_absent(
    built: str, installed: str, compatible: bool, message: str | None, machine: MakeMachine
) -> None:
    here = machine(installed, version=built, version_compatible=compatible, is_lean=True)
    if message:
        with pytest.raises((ModelError, MissingComponentError), match=message):
            TrtBackend(here.path)
        return
    with TrtBackend(here.path) as backend:
        assert backend.title == f"TensorRT lean runtime {installed}, Fake GPU"
        check(backend.infer(numbered(2)), 2)
    assert here.gpu.live == []


@pytest.mark.parametrize("compatible", [True, False])
def test_the_remedy_names_the_lean_runtime_where_it_is_enough(
    compatible: bool, machine: MakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = machine(version_compatible=compatible)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingComponentError, match="run `pip install tensorrt`") as caught:
        TrtBackend(here.path)
    assert ("`pip install tensorrt-lean`" in str(caught.value)) == compatible


@pytest.mark.parametrize(
    ("built", "capability", "compatible", "loads"),
    [
        ("8.6", "8.6", False, True),
        ("8.6", "8.9", False, False),
        ("8.6", "8.9", True, True),
        ("8.6", "7.5", True, False),  # compatible from Ampere on
        ("8.6", "12.0", True, True),
        (None, "8.9", False, True),  # nothing is known of the machine that built it
    ],
)
def test_another_kind_of_gpu_runs_it_only_if_built_for_that(
    built: str | None, capability: str, compatible: bool, loads: bool, machine: MakeMachine
) -> None:
    here = machine(capability=capability, compute_capability=built, hardware_compatible=compatible)
    if loads:
        with TrtBackend(here.path):
            return
    message = (
        rf"built for Fake GPU \(compute capability {built}\), this machine has Fake GPU \({capability}\); build it again here"
    )
    with pytest.raises(ModelError, match=message):
        TrtBackend(here.path)
    assert here.gpu.log == []


@pytest.mark.parametrize(
    ("capability", "listed"),
    [("7.5", False), ("8.0", True), ("8.6", True), ("8.9", True), ("9.0", False), ("12.0", True), ("12.1", True)],
)
@pytest.mark.parametrize("built", [None, "8.6"])
def test_rtx_engines_only_warn_of_gpus_that_are_not_listed(
    built: str | None, capability: str, listed: bool, machine: MakeMachine, caplog: pytest.LogCaptureFixture
) -> None:
    here = machine(capability=capability, **{**RTX, "compute_capability": built})
    with caplog.at_level(logging.WARNING), TrtBackend(here.path):
        assert ("does not list Fake GPU" in caplog.text) == (not listed)


def test_a_plan_that_does_not_load_says_why_and_what_to_do(machine: MakeMachine) -> None:
    here = machine()
    here.engine.is_loadable = False
    with pytest.raises(
        ModelError, match=r"tiny.engine: not an engine for TensorRT 10.12.0 here: made-up reason; build it again"
    ):
        TrtBackend(here.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"images": (-1, 3, 64, 64)},
            r"input images is float32 \[N, 3, 64, 64\], its spec says .* \[N, 3, 32, 32\]; build",
        ),
        ({"images": (4, 3, 32, 32)}, "takes 4 to 4 images, its manifest says 1 to 8; build"),
        ({"images2": (-1, 3, 32, 32)}, "expected one input 'images', found images, images2; build"),
        ({"p4": (-1, 5, 2, 2)}, r"output p4 is float32 \[N, 5, 2, 2\], its spec says float32 \[N, 6, 2, 2\]; build"),
    ],
)
def test_an_engine_that_is_not_as_its_manifest_promises_is_refused(
    change: dict[str, tuple[int, ...]], message: str, machine: MakeMachine
) -> None:
    here = machine()
    here.engine.shapes.update(change)
    here.engine.types = dict.fromkeys(here.engine.shapes, "FLOAT")
    here.engine.num_io_tensors = len(here.engine.shapes)
    with pytest.raises(ModelError, match=message):
        TrtBackend(here.path)
    assert here.gpu.log == []


@pytest.mark.parametrize("profile", [(1, 4), (2, 8), (1, 16)])
def test_an_engine_of_other_batch_sizes_is_refused(profile: tuple[int, int], machine: MakeMachine) -> None:
    here = machine()
    here.engine.profile = profile
    with pytest.raises(ModelError, match=rf"takes {profile[0]} to {profile[1]} images, its manifest says 1 to 8; build it"):
        TrtBackend(here.path)
    assert here.gpu.log == []


def test_an_engine_that_makes_more_rows_than_images_is_refused(machine: MakeMachine) -> None:
    here = machine()
    here.engine.rows_per_image = 2
    with pytest.raises(ModelError, match=r"for 2 images the engine makes p5 \[4, 6, 1, 1\], not one row each; it is damaged"):
        TrtBackend(here.path)
    assert "execute" not in here.gpu.log
    del here.engine
    assert here.gpu.live == []


def test_an_engine_of_other_types_is_refused(machine: MakeMachine) -> None:
    here = machine()
    here.engine.types["p4"] = "HALF"
    with pytest.raises(
        ModelError,
        match=r"tiny.engine: output p4 is float16 .*, its spec says float32 .*; build it again",
    ):
        TrtBackend(here.path)
