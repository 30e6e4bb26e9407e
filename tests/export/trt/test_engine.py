"""Builds engines with TensorRT-RTX where that is installed (it needs no GPU), and checks every refusal."""

from __future__ import annotations

import importlib.util
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from benchmarks.engine_files import write_precisions
from export import engine
from export.onnx_export.tracer import write_onnx
from export.trt import engine as engine_module
from export.trt.engine import engine_name, read_spec
from runtime.backends import gpu
from runtime.backends.tensorrt import library as tensorrt_adapter
from runtime.errors import CheckFailed, InputError, MissingComponentError, ModelError, OutputError
from runtime.files import sha256
from runtime.manifest import find_changes, manifest_path, read_manifest, write_manifest
from tests.support.engine_models import MINI_SPEC, mini
from tests.support.small_models import CLASSES, settled, tiny
from train.recipes import recipe
from train.spec import model_spec

ROOT = Path(__file__).parents[3]
needs_rtx = pytest.mark.skipif(
    not importlib.util.find_spec("tensorrt_rtx"), reason="tensorrt-rtx is not installed (pip install tensorrt-rtx)"
)


def build(onnx: Path, *arguments: str) -> int:
    return engine.main(["--onnx", str(onnx), "--flavor", "rtx", *arguments])


def details(path: Path) -> dict[str, object]:
    found = read_manifest(manifest_path(path)).details["engine"]
    assert isinstance(found, dict)
    return found


@needs_rtx
@pytest.mark.parametrize("variant", [{}, {"rfb": True, "compress": 8}], ids=["asff", "asff-star"])
def test_small_detectors_build_in_every_precision(variant: dict[str, object], tmp_path: Path) -> None:
    config = tiny(**variant)
    files = write_precisions(settled(config), model_spec(config, CLASSES), tmp_path)
    for precision, file in files.items():
        before = sha256(file)
        assert build(file, "--optimization-level", "0") == 0
        path = tmp_path / f"tiny-64-{precision}.engine"
        network = details(path)["network"]
        assert isinstance(network, dict)
        assert network[precision] > 0.6 * network["convolutions"] > 30
        assert network["kept_in_fp32"] == []
        assert (network["fp32"] == 0) == (precision != "fp32")  # what is not quantized is FP16
        assert sha256(file) == before
        assert find_changes(manifest_path(path)) == []
    sizes = [(tmp_path / f"tiny-64-{precision}.engine").stat().st_size for precision in ("fp32", "fp16")]
    assert sizes[1] < 0.8 * sizes[0]


@needs_rtx
@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolov3-asff", "yolov3-asff-star"])
def test_full_detectors_build_in_every_precision(name: str, tmp_path: Path) -> None:
    config = recipe(name)
    spec = model_spec(config, CLASSES).replace(input_size=(416, 416))
    for precision, file in write_precisions(settled(config), spec, tmp_path).items():
        assert build(file) == 0
        path = tmp_path / f"{name}-416-{precision}.engine"
        print(name, precision, details(path)["build_seconds"], "s", path.stat().st_size / 1e6, "MB")


@needs_rtx
def test_the_manifest_says_what_was_built(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, output = mini(tmp_path / "m.onnx"), tmp_path / "out" / "m.engine"
    assert build(file, "--output", str(output), "--batch", "1,2,4", "--workspace", "0.5", "--optimization-level", "1") == 0
    assert capsys.readouterr().out == f"{output}\n"
    manifest, found = read_manifest(manifest_path(output)), details(output)
    assert manifest.spec == MINI_SPEC
    assert [(item.role, item.sha256) for item in manifest.made_from] == [("onnx", sha256(file))]
    assert found["flavour"] == "rtx"
    assert str(found["version"]).count(".") >= 2
    assert found["batch"] == {"min": 1, "opt": 2, "max": 4}
    assert (found["optimization_level"], found["workspace_gib"]) == (1, 0.5)
    assert found["network"] == {"convolutions": 3, "fp32": 3, "fp16": 0, "int8": 0, "kept_in_fp32": []}
    has_gpu = gpu.find_gpu() is not None
    assert all((found[key] is not None) == has_gpu for key in ("gpu", "compute_capability", "inspector"))
    assert output.read_bytes()[:4] != b"{\n"  # only the plan, as NVIDIA's tools load it
    assert sorted(path.name for path in output.parent.iterdir()) == ["m.engine", "m.engine.json"]


@needs_rtx
def test_a_fixed_batch_needs_no_profile_and_takes_no_other(tmp_path: Path) -> None:
    file, output = mini(tmp_path / "m.onnx", batch=2), tmp_path / "m.engine"
    with pytest.raises(InputError, match="fixed batch of 2"):
        build(file, "--output", str(output), "--batch", "1,2,4")
    assert not output.exists()
    assert build(file, "--output", str(output), "--batch", "2") == 0
    assert details(output)["batch"] == {"min": 2, "opt": 2, "max": 2}


@needs_rtx
@pytest.mark.parametrize(
    ("precision", "claim", "reason"),
    [
        ("fp32", "fp16", "0 of its 3 convolutions are"),
        ("fp32", "int8", "0 of its 3 convolutions are"),
        ("fp16", "int8", "0 of its 3 convolutions are"),
        ("int8", "fp16", "4 int8 tensors"),
        ("fp16", "fp32", "fp16 and 0 int8 tensors"),
        ("int8", "fp32", "0 fp16 and 4 int8 tensors"),
    ],
)
def test_a_false_claim_of_precision_is_refused(precision: str, claim: str, reason: str, tmp_path: Path) -> None:
    file = mini(tmp_path / "m.onnx", precision, claim=claim)
    with pytest.raises(CheckFailed, match=f"says that it is {claim}, but .*{reason}"):
        build(file)
    assert list(tmp_path.iterdir()) == [file]


@needs_rtx
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_true_claim_is_proved(precision: str, tmp_path: Path) -> None:
    file = mini(tmp_path / "m.onnx", precision)
    assert build(file) == 0
    network = details(tmp_path / f"mini-64-{precision}.engine")["network"]
    assert isinstance(network, dict)
    assert network[precision] == network["convolutions"] == 3


DEFORM = [helper.make_node("DeformConv", ["p5", "p5", "p5"], ["bent"], "bend_it")]
SUPPRESS = [
    helper.make_node("Constant", [], ["corners"], value_floats=[0.0] * 40),
    helper.make_node("Constant", [], ["shape"], value_ints=[1, 10, 4]),
    helper.make_node("Reshape", ["corners", "shape"], ["boxes"]),
    helper.make_node("Constant", [], ["flat"], value_ints=[1, 1, -1]),
    helper.make_node("Constant", [], ["ten"], value_ints=[10]),
    helper.make_node("Reshape", ["p5", "flat"], ["every"]),
    helper.make_node("Constant", [], ["from"], value_ints=[0]),
    helper.make_node("Constant", [], ["axis"], value_ints=[2]),
    helper.make_node("Slice", ["every", "from", "ten", "axis"], ["scores"]),
    helper.make_node("NonMaxSuppression", ["boxes", "scores", "ten"], ["kept"], "suppress_it"),
    helper.make_node("Cast", ["kept"], ["kept_float"], to=TensorProto.FLOAT),
]


@needs_rtx
@pytest.mark.parametrize(
    ("nodes", "name"), [(DEFORM, "bend_it' .DeformConv"), (SUPPRESS, "suppress_it")], ids=["parse", "build"]
)
def test_an_unsupported_operator_is_named(nodes: list[object], name: str, tmp_path: Path) -> None:
    """TensorRT-RTX refuses DeformConv when it reads it, and NonMaxSuppression only when it builds."""
    file = mini(tmp_path / "m.onnx", batch=1, extra=nodes)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=name) as caught:
        build(file)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [file]


@needs_rtx
def test_files_that_are_no_exported_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such ONNX file"):
        build(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="no model spec"):
        build(mini(tmp_path / "m.onnx", described=False))
    (tmp_path / "m.onnx").write_bytes(b"not ONNX at all " * 10)
    with pytest.raises(ModelError, match="not an ONNX file"):
        build(tmp_path / "m.onnx")
    other = mini(tmp_path / "other.onnx")
    content = other.read_bytes().replace(b"[64, 64]", b"[64, 96]")
    other.write_bytes(content)
    with pytest.raises(ModelError, match=r"input images is float32 \[N, 3, 64, 64\], its spec says .*96\]; export it"):
        build(other)


@needs_rtx
def test_what_rtx_cannot_do_is_refused_or_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = mini(tmp_path / "m.onnx")
    for flag in ("--version-compatible", "--hardware-compatible", "--same-compute-capability", "--dla 0"):
        with pytest.raises(InputError, match=f"{flag.split()[0]}: .*leave it out"):
            build(file, *flag.split())
    with caplog.at_level("INFO"):
        assert build(file, "--timing-cache", str(tmp_path / "timing")) == 0
    assert "has no timing cache" in caplog.text
    assert not (tmp_path / "timing").exists()


@needs_rtx
def test_names_do_not_collide(tmp_path: Path) -> None:
    file, output = mini(tmp_path / "m.onnx"), tmp_path / "mini-64-fp32.engine"
    assert build(file) == 0
    mini(file, batch=1)
    assert build(file) == 0  # the same file, exported again, replaces its engine
    kept = sha256(output)
    with pytest.raises(InputError, match="made from another file"):
        build(mini(tmp_path / "other.onnx"))
    assert sha256(output) == kept
    for name in ("m.onnx", "m.plan"):
        with pytest.raises(InputError, match=r"name ending in \.engine"):
            build(file, "--output", str(tmp_path / name))
    same = file.rename(tmp_path / "same.engine")
    with pytest.raises(InputError, match=r"would replace .*, which it is made from"):
        build(same, "--output", str(same))
    with pytest.raises(InputError, match="that is the model"):
        build(same, "--output", str(tmp_path / "new.engine"), "--timing-cache", str(same))


@needs_rtx
def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    file, output = mini(tmp_path / "m.onnx"), tmp_path / "mini-64-fp32.engine"
    assert build(file) == 0
    kept = {path: path.read_bytes() for path in tmp_path.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OutputError, match=r"cannot write .*free some space"):
            build(file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == kept
    assert output in kept


@needs_rtx
def test_ctrl_c_cancels_and_leaves_nothing(tmp_path: Path) -> None:
    config, file = tiny(), tmp_path / "m.onnx"
    write_onnx(settled(config), model_spec(config, CLASSES), file)
    # The command says when its build begins, so that the signal meets the builder and not Python's imports.
    code = (
        "import sys; from runtime import cli; from export import engine; from export.trt import engine as library\n"
        "start = library.build_plan\n"
        "library.build_plan = lambda *a: (print('building', flush=True), start(*a))[1]\n"
        "cli.run(lambda: engine.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "--onnx", str(file), "--flavor", "rtx"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "building\n"
        time.sleep(0.15)
        process.send_signal(signal.SIGINT)
        talk = process.stderr.read()
    assert (process.returncode, talk) == (130, "interrupted\n")
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("flavor", "remedy"),
    [
        ("tensorrt", "pip install tensorrt` on a machine with"),
        ("rtx", "pip install tensorrt-rtx"),
        ("auto", "pip install tensorrt`.*; or .*pip install tensorrt-rtx"),
    ],
)
def test_without_the_library_the_remedy_is_given(
    flavor: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setattr(
        tensorrt_adapter, "load_tensorrt", tensorrt_adapter.load_tensorrt.__wrapped__
    )  # the cache stays for other tests
    with pytest.raises(MissingComponentError, match=remedy) as caught:
        engine.main(["--onnx", str(mini(tmp_path / "m.onnx")), "--flavor", flavor])
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "arguments",
    [["--batch", "0"], ["--batch", "4,2,1"], ["--batch", "1,2"], ["--workspace", "0"], ["--workspace", "nan"]]
    + [["--optimization-level", "6"], ["--flavor", "trt"], ["--batch", "1,x,2"]],
)
def test_wrong_arguments_are_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        engine.main(["--onnx", "m.onnx", *arguments])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_engine_names() -> None:
    spec = MINI_SPEC.replace(name="yolov3-asff", input_size=(608, 608), precision="fp16")
    assert engine_name(spec) == "yolov3-asff-608-fp16.engine"
    assert engine_name(spec.replace(input_size=(320, 608))) == "yolov3-asff-320x608-fp16.engine"
    assert engine_name(spec.replace(name="../my model/7")) == "my-model-7-608-fp16.engine"
    assert engine_name(spec.replace(name="..")) == "model-608-fp16.engine"


def test_without_onnx_the_manifest_describes_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = mini(tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingComponentError, match=r"onnx is not installed; .* or put m.onnx.json beside"):
        read_spec(model)
    spec = MINI_SPEC.replace(precision="fp32")
    write_manifest(model, spec, [], {})
    assert read_spec(model) == spec
    model.write_bytes(model.read_bytes() + b" ")
    with pytest.raises(ModelError, match=r"is not the file that m.onnx.json describes"):
        read_spec(model)


def test_the_manifest_tells_how_many_convolutions_stay_float(tmp_path: Path) -> None:
    file = mini(tmp_path / "m.onnx", "int8")
    assert engine_module._left_out(file, sha256(file)) == 0
    write_manifest(file, MINI_SPEC, [], {"calibration": {"float_layers": ["a"], "half_layers": ["b", "c"]}})
    assert engine_module._left_out(file, sha256(file)) == 3
    file.write_bytes(file.read_bytes() + b" ")
    assert engine_module._left_out(file, sha256(file)) == 0
