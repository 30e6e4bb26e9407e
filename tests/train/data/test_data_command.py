"""`python -m train.data`: the report, its exit codes and the image."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import pytest

from runtime.errors import CheckFailed, InputError
from tests.support.layouts import coco, make_single, write
from train.data.__main__ import main


def test_a_good_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, shown = make_single(tmp_path / "set"), tmp_path / "shown.jpg"
    code = main(["--data", str(root), "--strict", "--show", "3", "--size", "96", "--output", str(shown)])
    assert code == 0 and cv2.imread(str(shown)).shape == (640, 1280, 3)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("train: 16 images, 16 objects: ") and lines[1].startswith("val: 4 images, 4 objects: ")
    assert lines[-1] == f"{root}: nothing to correct"


def test_strict_fails_where_there_is_something_to_correct(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_single(tmp_path / "set")
    (root / "images" / "7.png").write_bytes(b"no image")
    assert main(["--data", str(root)]) == 0
    assert "to correct: " in capsys.readouterr().out
    with pytest.raises(CheckFailed, match=r"1 things to correct, the first: .*7\.png"):
        main(["--data", str(root), "--strict"])


def test_a_set_without_objects_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_single(tmp_path / "set", 2)
    shutil.rmtree(root / "images")
    make_single(root, 2)
    write(root / "result.json", {**coco(["0.png", "1.png"]), "annotations": []})
    with pytest.raises(InputError, match="no object to train on"):
        main(["--data", str(root)])
    assert "train: 1 images (1 without objects), 0 objects" in capsys.readouterr().out
