"""Everything that `--save` writes holds the same detections, and a run that was cut goes on without losing or doubling any."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from pycocotools.coco import COCO

from runtime.detect import main
from runtime.media.image import read_image, write_image
from runtime.results.journal import JOURNAL
from tests.support.detect_command import RING, Command, lines, one_error, white


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images in two folders, with one ring each."""
    for name in ("1.png", "2.png", "below/3.png"):
        write_image(tmp_path / "in" / name, white())
    return tmp_path / "in"


def test_every_kind_says_the_same(command: Command, tiny_onnx: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--engine", tiny_onnx, "--source", folder, "--recursive", "--output", out, "--batch", "2", "--json")
    code, said, err = command(main, *options, "--save", "images,txt,crops,jsonl,csv,coco")
    records = lines(said)
    assert code == 0 and [Path(item["source"]).name for item in records] == ["1.png", "2.png", "3.png"]
    assert err.splitlines()[-1].startswith("3 images, 3 detections; ms per image: ")
    assert lines((out / "detections.jsonl").read_text()) == records
    box, score = RING["box"], records[0]["detections"][0]["score"]
    assert [item["detections"] for item in records] == [[{**RING, "score": score}]] * 3
    with open(out / "detections.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["source"] for row in rows] == [item["source"] for item in records]
    assert all([float(row[side]) for side in ("x1", "y1", "x2", "y2")] == box and row["class_name"] == "ring" for row in rows)
    found = COCO(str(out / "coco_images.json")).loadRes(str(out / "coco_results.json"))
    assert sorted(found.getImgIds()) == [1, 2, 3] and found.loadCats(2)[0]["name"] == "ring"
    assert [item["bbox"] for item in found.loadAnns(found.getAnnIds())] == [[box[0], box[1], 32, 24]] * 3
    (text,) = {path.read_text() for path in (out / "txt").rglob("*.txt")}
    assert [float(value) for value in text.split()] == pytest.approx([1, 80 / 128, 16 / 64, 32 / 128, 24 / 64, score], abs=1e-5)
    crops = [read_image(path) for path in (out / "crops" / "ring").rglob("*.jpg")]
    assert len(crops) == 3 and all(crop.shape == (24, 32, 3) and crop.min() > 250 for crop in crops)
    assert not (out / JOURNAL).exists()


@pytest.mark.parametrize("kept", ["nothing", "settings", "one image", "one and a half"])
def test_a_run_that_was_cut_is_resumed(
    kept: str, command: Command, tiny_onnx: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal is left as a kill leaves it; what follows equals a run that nothing cut."""
    options = ("--engine", tiny_onnx, "--source", folder, "--recursive", "--save", "jsonl,csv")
    assert command(main, *options, "--output", tmp_path / "whole")[0] == 0
    journal: list[bytes] = []
    with monkeypatch.context() as patch:
        patch.setattr("runtime.results.writer.write_tables", lambda *_: _keep_and_stop(tmp_path / "out" / JOURNAL, journal))
        assert command(main, *options, "--output", tmp_path / "out")[0] == 130
    settings, *images = journal[0].splitlines(keepends=True)
    content = {
        "nothing": settings[:5],
        "settings": settings,
        "one image": settings + images[0],
        "one and a half": settings + images[0] + images[1][:20],
    }
    (tmp_path / "out" / JOURNAL).write_bytes(content[kept])
    code, said, _ = command(main, *options, "--output", tmp_path / "out", "--resume")
    assert code == 0 and len(said.splitlines()) == (2 if "one" in kept else 3)
    for name in ("detections.jsonl", "detections.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def _keep_and_stop(path: Path, kept: list[bytes]) -> Any:
    kept.append(path.read_bytes())
    raise KeyboardInterrupt


def test_a_journal_of_other_settings_is_refused(command: Command, tiny_onnx: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / JOURNAL).write_text(json.dumps({"journal": 1, "settings": {"conf": 0.9}}) + "\n")
    options = ("--engine", tiny_onnx, "--source", folder, "--save", "csv", "--output", tmp_path / "out", "--resume")
    code, _, err = command(main, *options)
    assert code == 2 and "choose another --output" in one_error(err)


@pytest.mark.parametrize(("classes", "count"), [("ring", 1), ("1", 1), ("0", 0), ("0,ring", 1)])
def test_classes_are_named_or_numbered(
    classes: str, count: int, command: Command, tiny_onnx: Path, good: Path, tmp_path: Path
) -> None:
    code, said, _ = command(main, "--engine", tiny_onnx, "--source", good, "--json", "--classes", classes)
    assert code == 0 and len(lines(said)[0]["detections"]) == count


def test_an_unknown_class_is_refused(command: Command, tiny_onnx: Path, good: Path) -> None:
    code, _, err = command(main, "--engine", tiny_onnx, "--source", good, "--classes", "zebra")
    assert code == 2 and "zebra" in one_error(err)
