"""Files with `--uint8-input` and `--topk` compute what plain files compute, in every precision and backend."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from benchmarks.engine_files import write_int8
from calibration.graph import Graph
from calibration.pipeline import calibrate
from calibration.placement import place
from calibration.request import Request
from export import engine
from export import onnx as exporter
from export.accuracy import gate
from export.accuracy.layer_diff import compare_layers
from export.onnx_export import parity, tracer
from export.onnx_export.export import ExportRequest, export_onnx
from runtime.backends.base import Backend
from runtime.backends.open import open_backend
from runtime.backends.ort import OrtBackend
from runtime.datasets.open import open_dataset
from runtime.detector import Detector
from runtime.errors import CheckFailed, InputError, ModelError
from runtime.manifest import manifest_path
from runtime.ops.decode import decode
from runtime.ops.preprocess import preprocess
from runtime.spec import CANDIDATES_NAME, ModelSpec
from runtime.viz.fusion_view import look
from tests.support.small_models import CLASSES, settled, tiny
from tests.support.small_sets import Exported
from train.spec import model_spec

VARIANTS = (
    {},
    {"guided": False, "adaption": False, "fusion": "none", "spp": False},
    {"detector": "retinanet", "fusion": "none"},
)
OPTIONS = ({"input_type": "uint8"}, {"top_k": 50}, {"input_type": "uint8", "top_k": 50})
IMAGE = np.kron(np.random.default_rng(0).integers(0, 256, (6, 10, 3)), np.ones((12, 12, 1))).astype(np.uint8)


def open_with(path: Path, backend: str) -> Backend:
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    return open_backend(path, backend)


def outputs(backend: Backend, count: int = 2) -> list[np.ndarray]:
    return backend.infer(np.stack([preprocess(IMAGE, backend.spec)[0]] * count))


def best_of(maps: list[np.ndarray], spec: ModelSpec, count: int) -> dict[int, tuple[list[float], float, int]]:
    """Selects the best of all boxes of one image the slow way; the keys are anchor indices."""
    every = decode(maps, spec, 0)
    order = sorted(range(len(every.scores)), key=lambda i: (-every.scores[i], i))[:count]
    return {i: (every.boxes[i].tolist(), float(every.scores[i]), int(every.class_ids[i])) for i in order}


def write(variant: dict[str, object], precision: str, folder: Path, **options: object) -> Path:
    """Writes the ONNX file of a small detector."""
    config = tiny(**variant)
    torch.manual_seed(0)
    model, spec = settled(config), model_spec(config, CLASSES).replace(**options)
    path = folder / f"{precision}-{len(options)}.onnx"
    tracer.write_onnx(model, spec.replace(precision="fp16" if precision == "fp16" else "fp32"), path)
    if precision == "int8":
        write_int8(path, spec, path)
    return path


@pytest.mark.parametrize(
    ("variant", "precision", "options"),
    [
        *((VARIANTS[0], "fp32", options) for options in OPTIONS),
        *((variant, precision, OPTIONS[-1]) for variant in VARIANTS for precision in ("fp16", "int8")),
        *((variant, "fp32", OPTIONS[-1]) for variant in VARIANTS[1:]),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())) or "guided",
)
def test_options_change_nothing_but_the_form(
    variant: dict[str, object], precision: str, options: dict[str, object], tmp_path: Path
) -> None:
    plain, path = write(variant, precision, tmp_path), write(variant, precision, tmp_path, **options)
    with OrtBackend(plain) as one, OrtBackend(path) as other:
        assert other.spec == one.spec.replace(**options)
        maps, found = outputs(one), outputs(other)
    assert parity.worst(parity.compare_outputs(one.spec, maps, other.spec, found)).relative < parity.OPTIONS_LIMIT
    for index, rows in enumerate(found[0] if other.spec.top_k else []):
        expected = best_of([level[index] for level in maps], one.spec, other.spec.top_k)
        assert sorted(rows[:, 6]) == sorted(expected)
        assert (np.diff(rows[:, 4]) <= 0).all()  # best first
        boxes, scores, class_ids = zip(*(expected[anchor_index] for anchor_index in sorted(expected)))
        unpacked = decode([rows], other.spec, 0)
        np.testing.assert_allclose(unpacked.boxes, boxes, rtol=2e-5, atol=2e-4)
        np.testing.assert_allclose(unpacked.scores, scores, atol=5e-7)
        assert unpacked.class_ids.tolist() == list(class_ids)


@pytest.mark.parametrize("variant", VARIANTS[::2], ids=("guided", "retinanet"))
def test_openvino_takes_them_too(variant: dict[str, object], tmp_path: Path) -> None:
    with open_with(write(variant, "fp32", tmp_path), "openvino") as one:
        maps = outputs(one)
    with open_with(write(variant, "fp32", tmp_path, **OPTIONS[-1]), "openvino") as other:
        found = outputs(other)
    assert parity.worst(parity.compare_outputs(one.spec, maps, other.spec, found)).relative < 1e-4


def test_with_every_box_the_candidates_are_the_decoded_maps(tmp_path: Path) -> None:
    config = tiny()
    model, spec = settled(config), model_spec(config, CLASSES)
    every = sum(spec.boxes_per_level())
    tracer.write_onnx(model, spec, tmp_path / "plain.onnx")
    tracer.write_onnx(model, spec.replace(top_k=every), tmp_path / "every.onnx")
    with OrtBackend(tmp_path / "plain.onnx") as one, OrtBackend(tmp_path / "every.onnx") as other:
        mine, theirs = ([output[0] for output in outputs(backend, 1)] for backend in (one, other))
        for threshold in (0.0, 0.005, 0.02):
            a, b = decode(mine, one.spec, threshold), decode(theirs, other.spec, threshold)
            assert len(a.scores) == every if threshold == 0 else 0 < len(a.scores) < every
            np.testing.assert_array_equal(a.class_ids, b.class_ids)
            np.testing.assert_array_equal(a.levels, b.levels)
            np.testing.assert_allclose(a.scores, b.scores, atol=5e-7)
            np.testing.assert_allclose(a.boxes, b.boxes, rtol=2e-5, atol=2e-4)


def test_the_command_proves_both_files(
    make_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, output = make_checkpoint(), tmp_path / "m.onnx"
    arguments = ["--weights", str(weights), "--output", str(output), "--batch", "2", "--inspect"]
    assert exporter.main([*arguments, "--uint8-input", "--topk", "40"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line[: line.rindex(",")] for line in lines[1:]] == [
        "64x64, batch 2",
        "64x64, --uint8-input --topk 40 / plain",
        "128x128, batch 2",
        "128x128, --uint8-input --topk 40 / plain",
    ]
    graph = onnx.load(str(output)).graph
    assert [item.name for item in graph.output] == [CANDIDATES_NAME, "w5", "w4", "w3", "f5", "f4", "f3"]
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    details = json.loads(manifest_path(output).read_text())["details"]
    assert (details["settings"]["uint8_input"], details["settings"]["top_k"]) == (True, 40)
    assert set(details["parity"]) == {line[: line.rindex(",")] for line in lines[1:]}
    with OrtBackend(output) as backend:
        assert backend.spec.input_shape == (64, 64, 3) and backend.batch_size == 2
        view = look(Detector(backend, score_threshold=0.0), backend, IMAGE)
        assert len(view.found) == len(view.levels) > 0


def spoil_normalization(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracer, "_normalize", lambda pixels, spec: pixels.float().permute(0, 3, 1, 2) / 255)


def spoil(monkeypatch: pytest.MonkeyPatch, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    best = tracer._top_boxes
    monkeypatch.setattr(tracer, "_top_boxes", lambda model, maps, spec: change(best(model, maps, spec)))


@pytest.mark.parametrize(
    ("damage", "differing"),
    [
        (spoil_normalization, "p[345]"),
        (lambda patch: spoil(patch, lambda rows: rows + torch.tensor([0.05, 0, 0, 0, 0, 0, 0])), "boxes"),
        (lambda patch: spoil(patch, lambda rows: rows * torch.tensor([1, 1, 1, 1, 0.999, 1, 1])), "scores|selection"),
        (lambda patch: spoil(patch, lambda rows: rows * torch.tensor([1, 1, 1, 1, 1, 0, 1])), "classes"),
        (lambda patch: spoil(patch, lambda rows: rows[:, [0] * 40]), "selection"),
        (lambda patch: spoil(patch, lambda rows: torch.cat([rows[..., :4].roll(1, 1), rows[..., 4:]], 2)), "boxes"),
    ],
    ids=["normalization", "boxes", "scores", "classes", "one for all", "mixed up"],
)
def test_options_that_compute_something_else_are_refused(
    damage: Callable[[pytest.MonkeyPatch], None],
    differing: str,
    make_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    damage(monkeypatch)
    uint8 = differing.startswith("p")
    request = ExportRequest(weights=make_checkpoint(), output=tmp_path / "m.onnx", uint8_input=uint8, top_k=0 if uint8 else 40)
    with pytest.raises(
        CheckFailed, match=rf"was not written: at 64x64 with --.* its ({differing}) differ by .*, the limit is 1e-05"
    ):
        list(export_onnx(request))
    assert not request.output.exists()


def test_a_selection_that_is_not_the_best_is_seen(tmp_path: Path) -> None:
    config = tiny()
    model, spec = settled(config), model_spec(config, CLASSES)
    tracer.write_onnx(model, spec, tmp_path / "plain.onnx")
    tracer.write_onnx(model, spec.replace(top_k=41), tmp_path / "m.onnx")
    with OrtBackend(tmp_path / "plain.onnx") as one, OrtBackend(tmp_path / "m.onnx") as other:
        maps, (rows,) = outputs(one), outputs(other)
    selecting = spec.replace(top_k=40)
    for first, output in ((0, None), (1, "selection")):  # without the best one, a better one was left out
        found = parity.compare_outputs(spec, maps, selecting, [rows[:, first : first + 40]])
        worst = parity.worst(found)
        assert worst.relative < parity.OPTIONS_LIMIT if output is None else worst.output == output


@pytest.mark.parametrize(
    ("topk", "message"),
    [
        ("3841", "expected at most 3840, the most that TensorRT selects, got 3841"),
        ("0", "expected"),
        ("337", "top_k is 337, more than its 336 boxes"),
    ],
)
def test_a_count_that_cannot_be(
    topk: str, message: str, make_checkpoint: Callable[..., Path], tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    output = tmp_path / "m.onnx"
    code, _, err = command(exporter.main, "--weights", make_checkpoint(), "--output", output, "--topk", topk)
    assert code == 2 and message in err and not output.exists()


def test_the_gate_scores_what_such_a_file_finds(exported: Exported, tmp_path: Path) -> None:
    files = [exported.model]
    for uint8, top_k in ((True, 0), (False, 150), (True, 150)):
        files.append(tmp_path / f"{uint8}-{top_k}.onnx")
        for _ in export_onnx(ExportRequest(weights=exported.weights, output=files[-1], uint8_input=uint8, top_k=top_k)):
            pass
    dataset = open_dataset(str(exported.data), "val")
    with gate.open_files(files) as opened:
        measured = [gate.measure(item.name, item.backend, item.file, dataset, opened[0].backend) for item in opened]
    assert [round(item.evaluation.ap, 6) for item in measured] == [round(measured[0].evaluation.ap, 6)] * 4
    assert measured[0].evaluation.ap > 0.9  # by the making of the set
    assert all(item.difference is not None and item.difference < parity.OPTIONS_LIMIT for item in measured)


@pytest.mark.parametrize("level", [0, 2])
@pytest.mark.parametrize("channel", [0, 4, 5, 7])
def test_values_that_are_not_numbers_are_not_passed_over(level: int, channel: int, tmp_path: Path) -> None:
    config = tiny()
    model, spec = settled(config), model_spec(config, CLASSES)
    model.heads[level].predict.bias.data[8 + channel] = float("nan")
    tracer.write_onnx(model, spec.replace(top_k=50), tmp_path / "m.onnx")
    for name in ("onnxruntime", "openvino") if importlib.util.find_spec("openvino") else ("onnxruntime",):
        with open_backend(tmp_path / "m.onnx", name) as backend, pytest.raises(ModelError, match="holds NaN"):
            Detector(backend)(IMAGE)


def test_quantization_goes_where_it_goes_without_options(tmp_path: Path) -> None:
    config = tiny()
    model, spec = settled(config), model_spec(config, CLASSES)
    tracer.write_onnx(model, spec, tmp_path / "plain.onnx")
    tracer.write_onnx(model, spec.replace(input_type="uint8", top_k=50), tmp_path / "m.onnx")
    plain, optioned = (Graph(onnx.load(str(tmp_path / name))) for name in ("plain.onnx", "m.onnx"))
    for target in ("tensorrt", "cpu"):
        before, after = place(plain, target), place(optioned, target)
        assert len(after.layers) == len(before.layers) > 0 and len(after.float_layers) == len(before.float_layers) > 0
        assert len(after.tensors) == len(before.tensors)
        assert (
            "images" in before.tensors and "images" not in after.tensors
        )  # the normalized images are quantized, the bytes not


def test_layers_are_ranked_as_without_options(make_checkpoint: Callable[..., Path], coco_set: Path, tmp_path: Path) -> None:
    weights, rankings = make_checkpoint(), []
    for name, uint8, top_k in (("plain", False, 0), ("optioned", True, 100)):
        for _ in export_onnx(ExportRequest(weights=weights, output=tmp_path / f"{name}.onnx", uint8_input=uint8, top_k=top_k)):
            pass
        request = Request(
            model=tmp_path / f"{name}.onnx",
            data=coco_set,
            output=tmp_path / f"{name}.int8.onnx",
            method="minmax",
            max_ap_drop=None,
            sensitivity=True,
        )
        rankings.append(calibrate(request).ranking)
    assert [item.layer for item in rankings[0]] == [item.layer for item in rankings[1]]
    np.testing.assert_allclose([item.error for item in rankings[0]], [item.error for item in rankings[1]], rtol=1e-3)


def test_a_plain_file_and_one_with_options_are_bisected(tmp_path: Path) -> None:
    config = tiny()
    model, spec = settled(config), model_spec(config, CLASSES)
    tracer.write_onnx(model, spec, tmp_path / "plain.onnx")
    tracer.write_onnx(model, spec.replace(input_type="uint8", top_k=50), tmp_path / "m.onnx")
    layers = compare_layers(tmp_path / "plain.onnx", tmp_path / "m.onnx", IMAGE)
    assert len(layers) > 10 and max(layer.difference for layer in layers) < 1e-6
    assert {"p5", "p4", "p3"} <= {layer.tensor for layer in layers}


@pytest.mark.skipif(not importlib.util.find_spec("tensorrt_rtx"), reason="tensorrt-rtx is not installed")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_engines_are_built_of_them(precision: str, tmp_path: Path) -> None:
    path = write({}, precision, tmp_path, **OPTIONS[-1])
    built = tmp_path / "m.engine"
    assert engine.main(["--onnx", str(path), "--output", str(built), "--flavor", "rtx"]) == 0
    spec = json.loads(manifest_path(built).read_text())["spec"]
    assert (spec["input_type"], spec["top_k"]) == ("uint8", 50)


def test_two_files_that_decode_are_bisected_up_to_their_maps(tmp_path: Path) -> None:
    config = tiny()
    model, spec = settled(config), model_spec(config, CLASSES).replace(top_k=50)
    tracer.write_onnx(model, spec, tmp_path / "one.onnx")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 2e-4 * torch.randn_like(parameter) * parameter.abs()
    tracer.write_onnx(model, spec, tmp_path / "other.onnx")
    layers = compare_layers(tmp_path / "one.onnx", tmp_path / "other.onnx", IMAGE)
    assert 0 < max(layer.difference for layer in layers) < 0.05
    assert {layers[-1].tensor} < {"p5", "p4", "p3"} and not {"candidates"} & {layer.tensor for layer in layers}


def test_a_file_whose_types_contradict_its_description_is_refused(tmp_path: Path) -> None:
    config = tiny()
    model, spec = settled(config), model_spec(config, CLASSES)
    path = tmp_path / "m.onnx"
    for written, claimed, message in (
        ({"input_type": "uint8"}, {}, r"input images is uint8 \[N, 64, 64, 3\], its spec says float32 \[N, 3, 64, 64\]"),
        ({}, {"input_type": "uint8"}, r"input images is float32 \[N, 3, 64, 64\], its spec says uint8 \[N, 64, 64, 3\]"),
        ({}, {"top_k": 50}, "has no output 'candidates'; its outputs are p5, p4, p3"),
        ({"top_k": 50}, {"top_k": 51}, r"output candidates is float32 \[N, 50, 7\], its spec says float32 \[N, 51, 7\]"),
    ):
        tracer.write_onnx(model, spec.replace(**written), path)
        proto = onnx.load(str(path))
        del proto.metadata_props[:]
        onnx.helper.set_model_props(proto, spec.replace(**claimed).to_metadata())
        onnx.save(proto, str(path))
        with pytest.raises(ModelError, match=message):
            OrtBackend(path)
        if importlib.util.find_spec("openvino"):
            with pytest.raises(ModelError, match=message):
                open_backend(path, "openvino")


def test_wrong_images_are_refused(tmp_path: Path) -> None:
    config = tiny()
    path = tmp_path / "m.onnx"
    tracer.write_onnx(settled(config), model_spec(config, CLASSES).replace(input_type="uint8"), path)
    with OrtBackend(path) as backend, pytest.raises(InputError, match=r"expected uint8 \['N', 64, 64, 3\], got float32"):
        backend.infer(np.zeros((1, 3, 64, 64), np.float32))
