"""The chain makes every file once, again only what changed, and no engine where accuracy fell."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.budget import FAILED, PASSED
from calibration.request import Request
from export import chain
from export.chain import Step, calibration_step, engine_step, export_step, run_steps
from export.onnx_export.export import ExportRequest
from runtime.errors import CheckFailed, InputError, MissingComponentError
from runtime.files import write_json
from runtime.manifest import Origin, find_changes, manifest_path, read_manifest, write_manifest
from runtime.media.image import read_image, write_image
from tests.support.small_models import CLASSES, tiny
from train.spec import model_spec

needs_tensorrt = pytest.mark.skipif(
    not importlib.util.find_spec("tensorrt_rtx"), reason="tensorrt-rtx is not installed (pip install tensorrt-rtx)"
)

Run = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def run(exported: object, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the chain on the model that finds everything in its own set, with splits to calibrate and search on; its exit code,
    and which files it made (True) or found up to date (False)."""
    data, weights = tmp_path / "data", tmp_path / "run" / "best.pt"
    shutil.copytree(exported.data, data)  # type: ignore[attr-defined]
    weights.parent.mkdir()
    shutil.copy(exported.weights, weights)  # type: ignore[attr-defined]
    rng = np.random.default_rng(5)
    for index in range(3):
        image = np.kron(rng.integers(0, 256, (6, 10, 3)), np.ones((12, 12, 1))).astype(np.uint8)
        write_image(data / "train2017" / f"{index}.png", image)
    names = [{"id": i, "name": name} for i, name in enumerate(CLASSES)]
    images = [{"id": i, "file_name": f"{i}.png", "width": 120, "height": 72} for i in range(3)]
    write_json(data / "annotations" / "instances_train2017.json", {"images": images, "categories": names, "annotations": []})
    for path in (data / "val2017").iterdir():  # the same images but for one pixel, to search on
        image = read_image(path)
        image[0, 0] ^= 1
        write_image(data / "search2017" / path.name, image)
    shutil.copy(data / "annotations" / "instances_val2017.json", data / "annotations" / "instances_search2017.json")
    caplog.set_level(logging.INFO)
    quick = {"method": "minmax"}  # ranges by the values alone need no search
    monkeypatch.setattr(
        chain, "calibration_step", lambda request, data: calibration_step(dataclasses.replace(request, **quick), data)
    )

    def call(*arguments: str) -> tuple[int, list[str]]:
        caplog.clear()
        given = ["--weights", str(weights), "--data", str(data), "--target", "rtx"]
        code = chain.main([*given, "--search-split", "search2017", *arguments])
        made = [line.split(" --")[0].removeprefix("+ python -m ") for line in caplog.messages if line.startswith("+ ")]
        return code, made

    return call


ALL = ["export.onnx", "calibration", "export.engine", "export.verify"]


@needs_tensorrt
def test_everything_is_made_once_and_again_only_if_it_changed(run: Run, tmp_path: Path) -> None:
    request = ("--precision", "int8", "--accept-undecided", "--max-ap-drop", "int8=100")
    assert run(*request) == (0, ALL)
    folder = tmp_path / "run"
    names = [f"tiny-64-{part}" for part in ("fp32.onnx", "int8.onnx", "int8.engine")]
    for name in names:
        assert find_changes(folder / f"{name}.json") == []
    report = json.loads((folder / "report.json").read_text())
    assert [file["status"] for file in report["files"]] == ["passed", "undecided", "built, not run"]

    assert run(*request) == (0, ["export.verify"])
    model = folder / names[0]
    original = model.read_bytes()
    model.write_bytes(original + b"\0")  # tampered with: made again, to the same bytes, so that nothing else is
    assert run(*request) == (0, ["export.onnx", "export.verify"])
    assert model.read_bytes() == original
    assert run(*request, "--size", "96") == (0, ALL)  # another size has files of its own
    assert run(*request) == (0, ["export.verify"])
    other = ("--split", "val2017")  # the same images by another name, so that the bytes and the engine stay
    assert run(*request, *other) == (0, ["calibration", "export.verify"])
    write_image(tmp_path / "data" / "train2017" / "0.png", np.full((72, 120, 3), 90, np.uint8))
    assert run(*request, *other) == (0, ["calibration", "export.engine", "export.verify"])


@needs_tensorrt
def test_no_engine_is_built_where_accuracy_fell(run: Run, tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match="was not written"):
        run("--precision", "int8", "--max-ap-drop", "0")
    folder = tmp_path / "run"
    assert (folder / "tiny-64-fp32.onnx").exists()
    assert not list(folder.glob("*int8.onnx")) and not list(folder.glob("*.engine"))


@needs_tensorrt
def test_the_gate_has_the_last_word(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.accuracy.verdict.judge", lambda *_: FAILED)
    code, made = run("--precision", "fp32")
    assert (code, made) == (1, ["export.onnx", "export.engine", "export.verify"])
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert not report["passed"]
    assert [file["status"] for file in report["files"]] == ["failed", "built, not run"]


@pytest.mark.parametrize(("judged", "code", "trained"), [(PASSED, 0, []), (FAILED, 1, ["export.recover"])])
def test_weights_are_trained_on_where_the_budget_is_missed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judged: str, code: int, trained: list[str]
) -> None:
    monkeypatch.setattr("export.accuracy.verdict.judge", lambda *_: judged)
    request = ("--precision", "int8", "--target", "cpu", "--recover", "qat", "--require-speedup", "0.001")
    verify, names = "export.verify", ["fp32.onnx", "int8.onnx" if trained else "int8.calibrated.onnx"]
    assert run(*request) == (code, ["export.onnx", "calibration", verify, *trained, verify])
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [file["name"] for file in report["files"]] == [f"tiny-64-{name}" for name in names]
    assert (report["limits"]["confidence"], report["limits"]["require_speedup"]) == (0.975, 0.001)
    if trained:
        assert run(*request) == (code, [verify, verify])  # what is made stays


def test_training_on_is_for_int8(run: Run) -> None:
    with pytest.raises(InputError, match="--recover qat: for --precision int8 only"):
        run("--recover", "qat")


def test_an_engine_that_cannot_be_built_is_said_before_the_work(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(flavor: str) -> None:
        raise MissingComponentError(f"{flavor} is not installed")

    monkeypatch.setattr(chain, "open_tensorrt", absent)
    with pytest.raises(MissingComponentError, match="rtx is not installed; --target cpu needs none of it"):
        run("--precision", "fp16")
    assert not list((tmp_path / "run").glob("*.onnx"))


def made(step: Step, details: Mapping[str, Any]) -> None:
    """Stands for a command: writes the step's output and its manifest."""
    step.output.write_bytes(b"file")
    origins = [Origin.of(role, path, step.output) for role, path in step.origins.items()]
    write_manifest(step.output, model_spec(tiny(), CLASSES), origins, details)


@pytest.fixture
def step(tmp_path: Path) -> Step:
    """A step whose output is current."""
    (tmp_path / "weights").write_bytes(b"weights")
    details = {"settings": {"top_k": 0, "size": [64, 64]}, "engine": {"flavour": "rtx"}}
    found = Step(chain.main, (), tmp_path / "m.onnx", {"weights": tmp_path / "weights"}, details)
    made(found, {**details, "engine": {"flavour": "rtx", "build_seconds": 3}, "more": 1})
    return found


def test_a_step_is_current_as_long_as_its_file_origins_and_settings_are_those_of_its_manifest(step: Step) -> None:
    assert step.is_current()


@pytest.mark.parametrize(
    "change",
    [
        lambda step: step.output.unlink(),
        lambda step: step.output.write_bytes(b"other"),
        lambda step: step.origins["weights"].write_bytes(b"other"),
        lambda step: step.origins["weights"].unlink(),
        lambda step: manifest_path(step.output).unlink(),
        lambda step: manifest_path(step.output).write_text("{"),
        lambda step: made(step, {}),  # by hand, by a command that kept no settings
        lambda step: made(step, {**step.details, "settings": {"top_k": 5, "size": [64, 64]}}),
        lambda step: made(step, {**step.details, "settings": {"top_k": 0}}),
        lambda step: made(step, {**step.details, "engine": None}),
    ],
)
def test_whatever_changes_makes_a_step_run_again(change: Callable[[Step], object], step: Step) -> None:
    change(step)
    assert not step.is_current()


def test_another_origin_or_role_makes_a_step_run_again(step: Step, tmp_path: Path) -> None:
    more = {**step.origins, "onnx": tmp_path / "weights"}
    assert not dataclasses.replace(step, origins=more).is_current()
    assert not dataclasses.replace(step, origins={"onnx": tmp_path / "weights"}).is_current()


def test_the_first_step_that_fails_ends_the_chain(step: Step, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    ran = []

    def fails(arguments: list[str]) -> int:
        ran.append(arguments)
        raise CheckFailed("no")

    todo = dataclasses.replace(step, main=fails, arguments=("--output", "a file"), output=step.output.with_name("other"))
    with pytest.raises(CheckFailed):
        run_steps([step, todo, dataclasses.replace(todo, arguments=())])
    assert ran == [["--output", "a file"]]
    assert caplog.messages == [f"up to date: {step.output}", f"+ python -m {__name__} --output 'a file'"]


def test_the_commands_that_are_logged_ask_for_what_the_steps_check(tmp_path: Path, exported: Any) -> None:
    """A step's command line, parsed by its command, gives the settings that the manifest is held against."""
    from calibration.__main__ import parse as parse_calibration
    from export.engine import parse as parse_engine
    from export.onnx import parse as parse_export

    weights, output = tmp_path / "w.pt", tmp_path / "m.onnx"
    exporting = export_step(weights, output, "fp16", size=(64, 96), images="photos", uint8_input=True, top_k=7)
    given = parse_export(list(exporting.arguments))
    expected = ExportRequest(
        weights=given.weights,
        output=given.output,
        size=given.size,
        batch=given.batch,
        precision=given.precision,
        opset=given.opset,
        images=given.images,
        uint8_input=given.uint8_input,
        top_k=given.topk,
        inspect=given.inspect,
        classes=given.classes,
    )
    assert exporting.details["settings"] == expected.settings()
    assert (given.size, given.images, given.uint8_input, given.topk) == ((64, 96), "photos", True, 7)

    plain = Request(output, tmp_path / "q.onnx", exported.data, calibration_split="val2017", method="minmax", max_ap_drop=None)
    full = dataclasses.replace(plain, target="cpu", images=2, seed=4, sensitivity=True)
    for request in (plain, full):
        options = parse_calibration(list(calibration_step(request).arguments))
        assert {name: getattr(options, name) for name in request.settings()} == request.settings()
        assert (options.onnx, options.output, options.data) == (request.model, request.output, request.data)

    building = engine_step(output, tmp_path / "m.engine", "rtx")
    options = parse_engine(list(building.arguments))
    assert (options.onnx, options.output, options.flavor) == (output, tmp_path / "m.engine", "rtx")
    assert building.details["engine"] == {"flavour": "rtx"} and "engine" not in engine_step(output, output, "auto").details


@pytest.mark.parametrize("option", ["--max-ap-drop=nan", "--max-ap-drop=zebra=1", "--confidence=2", "--target=tpu"])
def test_what_is_wrong_is_said_before_the_long_work(option: str, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises((SystemExit, InputError)) as caught:
        run(option)
    assert getattr(caught.value, "code", getattr(caught.value, "exit_code", None)) == 2
    assert not [line for line in caplog.messages if line.startswith("+ ")]


def test_for_the_cpu_the_onnx_file_is_the_result(run: Run, tmp_path: Path) -> None:
    request = ("--precision", "int8", "--target", "cpu", "--accept-undecided", "--max-ap-drop", "int8=100")
    assert run(*request) == (0, ["export.onnx", "calibration", "export.verify"])
    manifest = read_manifest(tmp_path / "run" / "tiny-64-int8.onnx.json")
    assert manifest.details["settings"]["target"] == "cpu"
    assert not list((tmp_path / "run").glob("*.engine"))
