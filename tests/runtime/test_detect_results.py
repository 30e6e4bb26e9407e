"""`python -m runtime.detect`: what it saves, leaves out and resumes, and its last line."""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.detect import main
from runtime.detector import Detector
from runtime.errors import OutputError
from runtime.media.image import read_image, write_image
from runtime.media.live import reader
from runtime.ops.image import Image
from runtime.results import writer
from tests.support.detect_command import Command, lines, one_error, white
from tests.support.stream_server import encoded, play, refuse, serve

BLACK = np.zeros((64, 128, 3), np.uint8)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("a.png", "a.jpg", "sub/c.png", "sub/d.png"):
        write_image(tmp_path / "in" / name, white())
    write_image(tmp_path / "in" / "e.png", BLACK)
    (tmp_path / "in" / "film.avi").write_bytes(encoded("avi", codec="mjpeg", frames=3))
    return tmp_path / "in"


def made(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


EVERY = {
    "images": ["a.jpg", "a.png", "e.png", "sub/c.png", "sub/d.png"],
    "video": ["film.avi.mp4"],
    "txt": ["txt/a.2.txt", "txt/a.txt", "txt/e.txt", "txt/sub/c.txt", "txt/sub/d.txt"]
    + [f"txt/film.avi/00000{n}.txt" for n in range(3)],
    "crops": [f"crops/ring/{name}_0.jpg" for name in ("a", "a.2", "sub/c", "sub/d", *(f"film.avi/00000{n}" for n in range(3)))],
    "jsonl": ["detections.jsonl"],
    "csv": ["detections.csv"],
    "coco": ["coco_images.json", "coco_results.json"],
}


@pytest.mark.parametrize("kinds", [*EVERY, ",".join(EVERY)])
def test_kinds(kinds: str, command: Command, tiny_onnx: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("--engine", tiny_onnx, "--source", photos, "--recursive", "--batch", 2, "--json")
    code, printed, err = command(main, *arguments, "--save", kinds, "--output", out)
    assert code == 0 and made(out) == sorted(name for kind in kinds.split(",") for name in EVERY[kind])
    assert err.splitlines()[-1].startswith("8 images, 7 detections; ms per image: read ") and "nothing found" not in err
    if "jsonl" in kinds:
        assert (out / "detections.jsonl").read_text() == printed
    if "crops" in kinds:
        assert read_image(out / "crops" / "ring" / "a_0.jpg").shape == (24, 32, 3)


@pytest.mark.parametrize(
    ("kinds", "name", "said"),
    [
        (
            "images",
            "film.avi",
            "--save images: expected an image among the sources, found videos or streams alone; give --save video",
        ),
        ("video", "e.png", "--save video: expected a video among the sources, found images alone; give --save images"),
        ("images,video", "film.avi", ""),
        ("images,video", "e.png", ""),
        ("images,txt", "film.avi", "--save images: expected an image"),
        ("video,csv", "e.png", "--save video: expected a video"),
        ("images", "*.*", ""),
        ("video", "*.*", ""),
    ],
)
def test_kinds_that_no_source_gives(
    kinds: str, name: str, said: str, command: Command, tiny_onnx: Path, photos: Path, tmp_path: Path
) -> None:
    arguments = ("--engine", tiny_onnx, "--source", photos / name, "--save", kinds, "--output", tmp_path / "out")
    code, out, err = command(main, *arguments)
    if said and "," not in kinds:
        assert (code, out) == (2, "") and said in one_error(err) and not (tmp_path / "out").exists()
    else:
        assert code == 0 and made(tmp_path / "out")
        assert err.count("expected") == bool(said) and said in err


def test_batches_are_filled_across_files(
    command: Command, tiny_onnx: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    detect = Detector._detect

    def counted(self: Detector, images: Sequence[Image]) -> Any:
        sizes.append(len(images))
        return detect(self, images)

    monkeypatch.setattr(Detector, "_detect", counted)
    arguments = ("--engine", tiny_onnx, "--source", photos, "--recursive", "--json", "--batch")
    found = {}
    for batch in (1, 2, 4):
        sizes.clear()
        code, out, _ = command(main, *arguments, batch)
        found[batch] = lines(out), list(sizes)
        assert code == 0
    assert found[1][0] == found[2][0] == found[4][0]
    assert found[1][1] == [1] * 8 and found[4][1] == [3, 3, 2] and sum(found[2][1]) == 8


def test_classes_and_the_best_score(command: Command, tiny_onnx: Path, good: Path) -> None:
    arguments = ("--engine", tiny_onnx, "--source", good, "--json", "--classes")
    for classes, count in (("ring", 1), ("1", 1), ("dot", 0), ("dot,ring", 1)):
        code, out, err = command(main, *arguments, classes)
        assert (code, len(lines(out)[0]["detections"])) == (0, count)
        assert ("nothing found: the best score is " in err) == (count == 0)
    assert "no class 'rinf'; do you mean ring" in one_error(command(main, *arguments, "rinf")[2])


def failing(function: Callable[..., Any], call: int, error: Any) -> Callable[..., Any]:
    """The function, whose call of that number, from 0, raises the error instead."""
    calls = itertools.count()

    def called(*arguments: Any) -> Any:
        if next(calls) == call:
            raise error
        return function(*arguments)

    return called


@pytest.mark.parametrize("first", [("--save", "jsonl,txt"), ("--save", "jsonl,txt", "--resume")])
def test_resume_after_an_interrupt(
    first: tuple[str, ...],
    command: Command,
    tiny_onnx: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ("--engine", tiny_onnx, "--source", photos, "--recursive", "--output", tmp_path / "out", "--json")
    with monkeypatch.context() as context:
        context.setattr(writer, "to_yolo", failing(writer.to_yolo, 4, KeyboardInterrupt))  # in the middle of the video
        code, begun, err = command(main, *arguments, *first)
    assert code == 130 and "what was found so far is kept in " in err and "--resume goes on" in err
    assert "detections.jsonl" not in made(tmp_path / "out")
    code, rest, err = command(main, *arguments, *first, "--resume")
    assert code == 0 and "3 of 6 files have their results; 3 are left" in err
    saved = lines((tmp_path / "out" / "detections.jsonl").read_text())
    assert len(saved) == 8 and max(Counter(map(str, saved)).values()) == 1
    assert len(begun.splitlines()) == 4 and len(rest.splitlines()) == 5  # the video's first frame was printed before
    write_image(photos / "new.png", white())
    code, rest, _ = command(main, *arguments, *first, "--resume")
    assert [Path(line["source"]).name for line in lines(rest)] == ["new.png"]
    assert len((tmp_path / "out" / "detections.jsonl").read_text().splitlines()) == 9
    code, _, err = command(main, *arguments, *first, "--resume", "--conf", "0.5")
    assert code == 2 and "were made with score threshold 0.25, now it is 0.5" in one_error(err)


def test_resume_takes_files_that_are_there_for_results(command: Command, tiny_onnx: Path, photos: Path, tmp_path: Path) -> None:
    arguments = ("--engine", tiny_onnx, "--source", photos, "--output", tmp_path / "out")
    command(main, *arguments)
    os.unlink(tmp_path / "out" / "e.png")
    code, out, err = command(main, *arguments, "--resume")
    assert code == 0 and "3 of 4 files have their results" in err
    assert out.splitlines() == [f"{photos / 'e.png'}: nothing found"]


def test_resume_needs_a_folder_apart(command: Command, tiny_onnx: Path, photos: Path) -> None:
    code, _, err = command(main, "--engine", tiny_onnx, "--source", photos, "--output", photos, "--resume")
    assert code == 2 and "lies in the folder of the results" in one_error(err)


def test_resume_takes_no_other_images_for_done(
    command: Command, tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--engine", tiny_onnx, "--save", "jsonl", "--output", tmp_path / "out", "--resume", "--source")
    for day in ("first", "second"):
        write_image(tmp_path / day / "a.png", white())
    monkeypatch.chdir(tmp_path / "first")
    assert [command(main, *arguments, ".")[0] for _ in range(2)] == [0, 0]
    monkeypatch.chdir(tmp_path / "second")
    code, _, err = command(main, *arguments, ".")
    assert code == 2 and f"made with working folder {tmp_path / 'first'}, now it is {tmp_path / 'second'}" in one_error(err)
    content = (tmp_path / "second" / "a.png").read_bytes()
    monkeypatch.setattr("runtime.media.sources.read_stdin", lambda: content)
    code, _, err = command(main, *arguments, "-")
    assert code == 2 and "an image from stdin has no name to know it by" in one_error(err)


def test_a_disk_that_fills_up_keeps_the_journal(
    command: Command, tiny_onnx: Path, photos: Path, tmp_path: Path, full_disk: Callable[..., Any]
) -> None:
    arguments = ("--engine", tiny_onnx, "--source", photos, "--save", "csv", "--output", tmp_path / "out")
    with full_disk(700):
        code, _, err = command(main, *arguments)
    assert code == 2 and "error: cannot write " in err and made(tmp_path / "out") == ["detections.journal"]
    code, _, err = command(main, *arguments, "--resume")
    assert code == 0 and "files have their results" in err
    assert len((tmp_path / "out" / "detections.csv").read_text().splitlines()) == 1 + 2 + 3


# --- streams


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(reader, "FIRST_PAUSE", 0.05)
    with serve([play(encoded(), seconds=0.5), refuse]) as (address, _):
        yield address.replace("http://", "http://user:secret@")


@pytest.fixture
def endless() -> Any:
    with serve([play(encoded(), seconds=0.5, repeat=True)]) as (address, _):
        yield address


def test_a_stream_that_is_lost_keeps_what_was_found(command: Command, tiny_onnx: Path, stream: str, tmp_path: Path) -> None:
    arguments = ("--engine", tiny_onnx, "--source", stream, "--json", "--timeout", 1, "--retry", 0.2)
    code, out, err = command(main, *arguments, "--save", "video,jsonl", "--output", tmp_path / "out")
    found = lines(out)
    assert code == 2 and 0 < len(found) <= 25 and {len(line["detections"]) for line in found} == {1}
    assert list(found[0]) == ["source", "width", "height", "detections", "frame", "time"]
    assert "secret" not in out + err and "lost after " in err and f"{len(found)} images, {len(found)} detections" in err
    assert (tmp_path / "out" / "detections.jsonl").read_text() == out
    assert len(made(tmp_path / "out")) == 2 and made(tmp_path / "out")[0].endswith(".mp4")


def test_a_stream_writes_no_files_unless_told(
    command: Command, tiny_onnx: Path, stream: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = command(main, "--engine", tiny_onnx, "--source", stream, "--retry", 0)
    assert code == 2 and out.splitlines()[-1].endswith(": 1 ring") and not made(tmp_path)
    code, _, err = command(main, "--engine", tiny_onnx, "--source", stream, "--resume")
    assert code == 2 and "--resume: " in one_error(err) and "secret" not in err
    code, _, err = command(main, "--engine", tiny_onnx, "--source", stream, "--save", "images")
    assert code == 2 and "found videos or streams alone" in one_error(err) and not made(tmp_path)


def test_options_that_would_have_no_effect(command: Command, tiny_onnx: Path, stream: str, photos: Path) -> None:
    for option in (("--batch", 2), ("--recursive",), ("--strict",)):
        code, _, err = command(main, "--engine", tiny_onnx, "--source", stream, *option)
        assert code == 2 and f"{option[0]}: for files alone, not for http://" in one_error(err) and "secret" not in err
    for option in (("--timeout", 3), ("--retry", "inf")):
        code, _, err = command(main, "--engine", tiny_onnx, "--source", photos, *option)
        assert code == 2 and f"{option[0]}: for cameras and streams alone, not for {photos}" in one_error(err)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OutputError("disk full")])
def test_a_stream_that_is_interrupted(
    error: Any, command: Command, tiny_onnx: Path, endless: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C is how most streams end; what fails keeps the journal."""
    monkeypatch.setattr(writer, "draw", failing(writer.draw, 1, error))  # early: a busy machine drops most frames
    code, _, err = command(
        main, "--engine", tiny_onnx, "--source", endless, "--save", "video,csv", "--output", tmp_path / "out"
    )
    if error is KeyboardInterrupt:
        assert code == 130 and len(made(tmp_path / "out")) == 2 and "kept in" not in err
        assert len((tmp_path / "out" / "detections.csv").read_text().splitlines()) == 2
    else:
        assert code == 2 and made(tmp_path / "out") == ["detections.journal"]
        assert len((tmp_path / "out" / "detections.journal").read_text().splitlines()) == 2
        assert json.loads((tmp_path / "out" / "detections.journal").read_text().splitlines()[-1])["detections"]
