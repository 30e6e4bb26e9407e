"""The gate: lets a true export through, and refuses what was broken on purpose."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export import verify
from export.accuracy import gate
from export.onnx_export.export import ExportRequest, export_onnx
from runtime.errors import CheckFailed, InputError, MissingComponentError, ModelError, OutputError
from runtime.files import sha256
from runtime.manifest import manifest_path, read_manifest
from tests.support.small_models import CLASSES
from tests.support.small_sets import IMAGES, known_labels, write_labels

ROOT = Path(__file__).parents[2]
LAYER = "/neck/p4/p4.1/conv/Conv"
HARMLESS = 1.0001  # a factor for its weights that costs little AP

Exported = Any
Alter = Callable[..., Path]


@pytest.fixture
def run(
    exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, dict[str, Any]]]:
    """Verify files against the shared weights and set: exit code, stdout, report.json."""

    def call(*files: Path, arguments: tuple[str, ...] = ()) -> tuple[int, str, dict[str, Any]]:
        folder = tmp_path / "report"
        given = ["--weights", exported.weights, "--data", exported.data, "--split", "val2017", "--output", folder, *arguments]
        code = verify.main([str(item) for item in (*given, *files)])
        return code, capsys.readouterr().out, json.loads((folder / "report.json").read_text())

    return call


def test_a_true_export_passes(exported: Exported, run: Callable[..., Any]) -> None:
    code, out, report = run(exported.model)
    assert code == 0
    assert "best.onnx: passed; ΔAP is above " in out and "with 95% confidence, the budget is 0.05" in out
    assert report["passed"]
    assert report["reference"]["figures"]["AP"] == pytest.approx(1, abs=0.005)
    (file,) = report["files"]
    assert (file["status"], file["precision"], file["budget"]) == ("passed", "fp32", 0.05)
    assert abs(file["measured"]["change"]) <= 0.05
    assert 0 < file["measured"]["difference"] < 1e-4
    assert file["notes"] == []
    assert (file["measured"]["changed_detections"]["vanished"], file["measured"]["changed_detections"]["appeared"]) == (0, 0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"color": "bgr"}, "its spec says color is bgr, that of the weights rgb"),
        ({"resize": "stretch"}, "its spec says resize is stretch, that of the weights letterbox"),
        ({"mean": [0, 0, 0]}, "its spec says mean is"),
        ({"layer": LAYER, "factor": 1.5}, "the budget is 0.05"),
        ({"layer": LAYER, "factor": 1.5, "precision": "int8"}, "the budget is 0.5"),
    ],
)
def test_a_broken_export_is_refused(change: dict[str, Any], reason: str, altered: Alter, run: Callable[..., Any]) -> None:
    code, out, report = run(altered(**change))
    assert code == 1
    assert "altered.onnx: failed; lost" in out
    assert reason in out
    (file,) = report["files"]
    assert not report["passed"]
    assert file["measured"]["change"] < -0.5  # the measurement alone finds it, whatever the spec admits
    assert file["measured"]["worst_class"]["change"] <= file["measured"]["change"]
    assert file["measured"]["difference"] > 1e-2
    assert sum(file["measured"]["changed_detections"][kind] for kind in ("rescored", "appeared", "vanished")) > 0


def test_the_verdict_as_markdown(exported: Exported, altered: Alter, run: Callable[..., Any], tmp_path: Path) -> None:
    code, out, report = run(altered(layer=LAYER, factor=3), arguments=("--markdown",))
    assert code == 1
    assert out.startswith("### ✗ failed: ") and "| altered.onnx | ✗ failed | " in out
    assert report["training"]["recipe"] and report["spec"]["class_names"] == list(CLASSES)
    assert (tmp_path / "report" / "model_card.md").read_text().startswith("# Model card: ")


def test_one_bad_file_fails_the_run_and_the_others_are_still_judged(
    exported: Exported, altered: Alter, run: Callable[..., Any]
) -> None:
    code, out, report = run(altered(layer=LAYER, factor=3), exported.model)
    assert code == 1
    assert [file["status"] for file in report["files"]] == ["failed", "passed"]
    assert out.index("altered.onnx: failed") < out.index("best.onnx: passed")


def test_budgets_of_classes_and_sizes(altered: Alter, run: Callable[..., Any]) -> None:
    broken = altered(layer=LAYER, factor=HARMLESS)
    code, out, report = run(broken, arguments=("--max-ap-drop", "fp32=9,cat=0.1,small=9,each-class=9"))
    assert code == 1
    named = {item["name"]: item["status"] for item in report["files"][0]["criteria"]}
    assert named["AP"] == "passed" and named["AP of cat"] in ("failed", "undecided")
    assert set(named) == {"AP", "AP of cat", "AP of small objects", "AP of each class"}
    assert "AP of cat" in out


def test_a_budget_can_be_widened(altered: Alter, run: Callable[..., Any]) -> None:
    broken = altered(layer=LAYER, factor=HARMLESS)
    assert run(broken, arguments=("--max-ap-drop", "fp32=9"))[0] == 0
    assert run(broken, arguments=("--max-ap-drop", "fp16=9,int8=9"))[0] == 1
    assert run(broken, arguments=("--max-ap-drop", "9"))[0] == 0


def test_a_file_that_computes_nan_is_refused_without_metrics(altered: Alter, run: Callable[..., Any]) -> None:
    code, out, report = run(altered(layer="/heads.1/predict/Conv", factor=float("nan")))
    assert code == 1
    assert "holds NaN" in out
    assert report["files"][0]["measured"] is None


def test_a_file_of_other_weights_is_refused_unless_that_is_accepted(altered: Alter, run: Callable[..., Any]) -> None:
    foreign = altered(source_sha256="0" * 64)
    code, out, report = run(foreign)
    assert code == 1
    assert "altered.onnx: failed; its spec names other weights as its source (000000000000...)" in out
    code, out, report = run(foreign, arguments=("--allow-foreign",))
    assert code == 0
    assert "note: its spec names other weights as its source" in out
    assert report["limits"]["allow_foreign"]
    assert len(report["files"][0]["notes"]) == 2  # and that it has no manifest


@pytest.mark.parametrize(("content", "reason"), [(None, "changed since it was made"), ("{}", "not a manifest of this project")])
def test_a_manifest_that_does_not_fit_is_refused(
    content: str | None, reason: str, exported: Exported, tmp_path: Path, run: Callable[..., Any]
) -> None:
    model = tmp_path / "best.onnx"
    model.write_bytes(exported.model.read_bytes())
    text = manifest_path(exported.model).read_text().replace('"sha256": "', '"sha256": "0') if content is None else content
    manifest_path(model).write_text(text)
    code, out, report = run(model)
    assert code == 1
    assert report["files"][0]["status"] == "failed"
    assert reason in out and reason in " ".join(report["files"][0]["reasons"])


@pytest.mark.parametrize("part", ["images", "search"])
def test_a_split_that_made_the_file_cannot_judge_it(
    part: str, exported: Exported, tmp_path: Path, run: Callable[..., Any]
) -> None:
    model = tmp_path / "best.onnx"
    model.write_bytes(exported.model.read_bytes())
    content = json.loads(manifest_path(exported.model).read_text())
    used = [{"name": "x.png", "sha256": sha256(exported.data / "val2017" / "3.png")}]
    content["details"]["calibration"] = {"images": used} if part == "images" else {"images": [], "search": {"images": used}}
    manifest_path(model).write_text(json.dumps(content))
    code, out, _ = run(model)
    assert code == 1
    assert "1 images of the split were used to make it (such as 3.png)" in out


def test_copies_of_an_image_count_once(exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    shutil.copytree(exported.data, data)
    first, second, *_ = sorted((data / "val2017").iterdir())
    second.write_bytes(first.read_bytes())
    arguments = ["--weights", str(exported.weights), "--data", str(data), "--split", "val2017", "--output", str(tmp_path / "r")]
    verify.main([*arguments, str(exported.model)])
    assert f"note: 1 of the {IMAGES} images are copies of others" in capsys.readouterr().out


def test_too_few_images_decide_nothing(exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "few"
    data.mkdir()
    shutil.copytree(exported.data / "val2017", data / "val2017")
    write_labels(data, known_labels(exported, range(5)), images=5)
    given = ["--weights", exported.weights, "--data", data, "--output", tmp_path / "out", exported.model]
    assert verify.main([str(item) for item in given]) == 1
    out = capsys.readouterr().out
    assert "? best.onnx: undecided; AP: " in out and "are needed for a verdict" in out
    assert verify.main([str(item) for item in (*given, "--accept-undecided")]) == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text())["limits"]["accept_undecided"]


def test_a_reference_that_finds_hardly_anything_decides_nothing(
    exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "poor"
    data.mkdir()
    shutil.copytree(exported.data / "val2017", data / "val2017")
    labels = known_labels(exported, range(IMAGES))
    for item in labels[1:]:  # but one of them where nothing is found
        item["bbox"] = [*np.array(item["bbox"][:2]) * 0.3, 3, 2]
    write_labels(data, labels)
    given = ["--weights", exported.weights, "--data", data, "--output", tmp_path / "out", "--max-ap-drop", "9", exported.model]
    assert verify.main([str(item) for item in given]) == 1
    assert "less than ten times the budget of 9" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": CLASSES[::-1]}, "its class names are bird, dog, cat, those of the weights cat, dog, bird"),
        ({"anchors": [[[9, 9]] * 4] * 3}, "its anchors are"),
    ],
)
def test_an_export_of_another_model_is_bad_input(
    change: dict[str, Any], message: str, altered: Alter, run: Callable[..., Any]
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        run(altered(**change))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_pytorch_runs_at_the_files_size_and_files_of_two_sizes_are_refused(
    exported: Exported, tmp_path: Path, run: Callable[..., Any]
) -> None:
    larger = tmp_path / "larger.onnx"
    for _ in export_onnx(ExportRequest(weights=exported.weights, output=larger, size=(96, 128), batch=2)):
        pass
    code, _, report = run(larger)  # a fixed batch, too
    assert code == 0
    assert report["input_size"] == [96, 128]
    assert 0 < report["reference"]["figures"]["AP"] < 0.9  # not the size that the ground truth was found at
    with pytest.raises(InputError, match=r"differ in input size \(best.onnx 64x64, larger.onnx 96x128\)"):
        run(exported.model, larger)


@pytest.fixture
def no_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a GPU, whatever this one has."""
    real = gate.open_backend

    def opened(file: Path) -> Any:
        if file.suffix == ".engine":
            raise MissingComponentError(f"{file}: no GPU here; run the .onnx file it was built from")
        return real(file)

    monkeypatch.setattr(gate, "open_backend", opened)


@pytest.mark.usefixtures("no_engines")
def test_an_engine_that_cannot_run_is_never_called_passed(
    exported: Exported, altered: Alter, tmp_path: Path, run: Callable[..., Any]
) -> None:
    engine = tmp_path / "best.engine"
    engine.write_bytes(b"plan")
    code, out, report = run(exported.model, engine)
    assert code == 0
    assert "best.engine: built, not run; no GPU here" in out
    assert [file["status"] for file in report["files"]] == ["passed", "built, not run"]
    assert run(altered(layer=LAYER, factor=3), engine)[0] == 1


def test_an_engine_without_its_manifest_is_an_error_even_where_none_can_run(
    exported: Exported, tmp_path: Path, run: Callable[..., Any]
) -> None:
    engine = tmp_path / "best.engine"
    engine.write_bytes(b"plan")
    with pytest.raises(ModelError, match=r"without its manifest best.engine.json"):
        run(exported.model, engine)


@pytest.mark.usefixtures("no_engines")
def test_nothing_but_engines_that_cannot_run_is_no_pass(tmp_path: Path, run: Callable[..., Any]) -> None:
    engine = tmp_path / "best.engine"
    engine.write_bytes(b"plan")
    with pytest.raises(MissingComponentError, match="nothing was verified") as caught:
        run(engine)
    assert caught.value.exit_code == 3
    assert not (tmp_path / "report" / "report.json").exists()


def test_a_set_on_which_nothing_could_be_lost_proves_nothing(exported: Exported, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    shutil.copytree(exported.data / "val2017", data / "val2017")
    write_labels(data, [{"image_id": 0, "category_id": 0, "bbox": [1, 1, 1, 1]}])
    with pytest.raises(CheckFailed, match="reaches an AP of 0"):
        verify.main(["--weights", str(exported.weights), "--data", str(data), "--output", str(tmp_path), str(exported.model)])


@pytest.mark.parametrize("option", ["--max-ap-drop=nan", "--max-ap-drop=-1", "--confidence=1", "--confidence=x"])
def test_a_limit_that_is_none_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        verify.parse([option])
    assert caught.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_budget_of_an_unknown_class_is_refused_before_the_work(exported: Exported, run: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="fp8"):
        run(exported.model, arguments=("--max-ap-drop", "fp8=1"))


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["a.onnx"],
        ["--weights", "w.pt", "--data", "d"],
        ["--bisect", "a.onnx"],
        ["--bisect", "a.onnx", "b.onnx"],
        ["--bisect", "--image", "i.png", "--threshold", "nan", "a.onnx", "b.onnx"],
        ["--weights", "w.pt", "--data", "d", "a.onnx", "./a.onnx"],
        ["--manifest", "absent.json"],
    ],
)
def test_wrong_usage_is_bad_input(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        verify.main(arguments)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_a_manifest_tells_whether_its_file_or_sources_changed(
    exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, model = tmp_path / "best.pt", tmp_path / "best.onnx"
    weights.write_bytes(exported.weights.read_bytes())
    for _ in export_onnx(ExportRequest(weights=weights, output=model)):
        pass
    manifest = manifest_path(model)
    assert [(item.role, item.name) for item in read_manifest(manifest).made_from] == [("weights", "best.pt")]
    assert read_manifest(manifest).details["settings"]["opset"] == 17
    assert verify.main(["--manifest", str(manifest)]) == 0
    assert capsys.readouterr().out == f"{manifest}: unchanged\n"
    model.write_bytes(model.read_bytes() + b"\0")
    weights.write_bytes(weights.read_bytes() + b"\0")
    assert verify.main(["--manifest", str(manifest)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "best.onnx: changed since it was made" in lines[0]
    assert "best.pt (weights): changed since" in lines[1]


def test_a_manifest_that_cannot_be_written_leaves_what_was_there(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "m.onnx"
    manifest_path(model).write_text("of an earlier file")

    def full(*_: object) -> None:
        raise OutputError("the disk is full")

    monkeypatch.setattr("export.onnx_export.export.write_manifest", full)
    with pytest.raises(OutputError):
        list(export_onnx(ExportRequest(weights=exported.weights, output=model)))
    assert not model.exists() and manifest_path(model).read_text() == "of an earlier file"  # as before


def test_bisection_names_the_layer_that_was_altered(
    exported: Exported, altered: Alter, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(exported.data / "val2017" / "0.png")
    broken = altered(layer=LAYER, factor=8)
    assert verify.main(["--bisect", "--image", image, str(exported.model), str(broken)]) == 1
    out = capsys.readouterr().out
    assert f"first to differ by more than 0.05: {LAYER} (Conv)" in out.splitlines()[0]
    assert verify.main(["--bisect", "--image", image, str(exported.model), str(exported.model)]) == 0
    assert "no layer differs by more than 0.05" in capsys.readouterr().out
    # A threshold above the damage lets the first layer pass, and with it the rest of its kind.
    assert verify.main(["--bisect", "--image", image, "--threshold", "1e9", str(exported.model), str(broken)]) == 0


def test_the_command_exits_as_it_should(exported: Exported, altered: Alter, tmp_path: Path) -> None:
    given = ["--weights", str(exported.weights), "--data", str(exported.data), "--output", str(tmp_path / "out"), "--json"]
    command = [sys.executable, "-m", "export.verify", *given, str(altered(color="bgr"))]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert json.loads(result.stdout)["files"][0]["status"] == "failed"
    assert "report.html" in result.stderr
