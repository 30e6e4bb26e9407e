"""`python -m runtime.detect` from arguments to files, lines and exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from runtime import detect
from runtime.backends.open import open_backend
from runtime.detect import main
from runtime.detector import Detector
from runtime.errors import InputError, ModelError
from runtime.media.image import read_image, write_image
from runtime.media.video import read_video
from runtime.spec import FORMAT_VERSION, ModelSpec
from tests.support.onnx_writer import FLOAT16

Command = Callable[..., tuple[int, str, str]]
# What the tiny model finds in a white image of 128 x 64.
RING: dict[str, Any] = {"box": [64.0, 4.0, 96.0, 28.0], "class_id": 1, "class_name": "ring"}


def white(width: int = 128, height: int = 64) -> np.ndarray:
    return np.full((height, width, 3), 255, np.uint8)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two good images, one of them black, and three bad files."""
    folder = tmp_path / "in"
    write_image(folder / "a.png", white())
    write_image(folder / "b.jpg", np.zeros((50, 40, 3), np.uint8))
    (folder / "empty.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no image")
    (folder / "cut.jpg").write_bytes((folder / "b.jpg").read_bytes()[:-40])
    return folder


@pytest.fixture
def good(tmp_path: Path) -> Path:
    write_image(tmp_path / "in" / "a.png", white())
    return tmp_path / "in" / "a.png"


def lines(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def one_error(err: str) -> str:
    """The single line of an error, which is all there is on stderr."""
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err


# --- what it finds


def test_json_lines(command: Command, tiny_onnx: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = command(main, "--engine", tiny_onnx, "--source", images, "--json")
    assert code == 0
    first, second = lines(out)
    assert list(first) == ["source", "width", "height", "detections"]
    assert (first["source"], first["width"], first["height"]) == (str(images / "a.png"), 128, 64)
    (found,) = first["detections"]
    assert list(found) == ["box", "score", "class_id", "class_name"]
    assert {key: found[key] for key in RING} == RING
    assert 0.9 < found["score"] < 1
    assert second == {"source": str(images / "b.jpg"), "width": 40, "height": 50, "detections": []}
    for name in ("empty.png", "notes.txt", "cut.jpg"):
        assert f"{name}: " in err
    assert "3 of 5 files skipped" in err
    assert [path.name for path in tmp_path.iterdir()] == ["in"]  # --json alone writes no image


def test_images_go_to_runs_detect_unless_told(
    command: Command, tiny_onnx: Path, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = command(main, "--engine", tiny_onnx, "--source", good)
    assert code == 0 and (tmp_path / "runs" / "detect" / "a.png").is_file() and "annotated images are in runs/detect" in err


def test_annotated_images_keep_their_names(command: Command, tiny_onnx: Path, images: Path, tmp_path: Path) -> None:
    code, out, _ = command(main, "--engine", tiny_onnx, "--source", images, "--output", tmp_path / "out")
    assert code == 0
    assert out.splitlines() == [f"{images}/a.png: 1 ring", f"{images}/b.jpg: nothing found"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.jpg"]
    drawn = read_image(tmp_path / "out" / "a.png")
    assert drawn.shape == (64, 128, 3) and (drawn[20, 64] != 255).any() and (drawn[40:] == 255).all()
    assert read_image(tmp_path / "out" / "b.jpg").max() == 0
    np.testing.assert_array_equal(read_image(images / "a.png"), white())


def test_json_and_images_together(command: Command, tiny_onnx: Path, good: Path, tmp_path: Path) -> None:
    code, out, _ = command(main, "--engine", tiny_onnx, "--source", good, "--output", tmp_path / "out", "--json")
    assert code == 0 and len(lines(out)) == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ((), 1),
        (("--conf", "0"), 100),
        (("--conf", "1"), 0),
        (("--conf", "0", "--max-detections", "3"), 3),
        (("--conf", "0", "--max-detections", "1000", "--iou", "1"), 336),
    ],
)
def test_options_reach_the_detector(
    options: tuple[str, ...], count: int, command: Command, tiny_onnx: Path, tmp_path: Path
) -> None:
    write_image(tmp_path / "a.png", white(64, 64))
    code, out, _ = command(main, "--engine", tiny_onnx, "--source", tmp_path / "a.png", "--json", *options)
    assert (code, len(lines(out)[0]["detections"])) == (0, count)


def test_a_glob_over_folders(command: Command, tiny_onnx: Path, tmp_path: Path) -> None:
    for folder in ("x", "y"):
        write_image(tmp_path / "in" / folder / "a.png", white())
    code, _, _ = command(main, "--engine", tiny_onnx, "--source", tmp_path / "in/**/*.png", "--output", tmp_path / "out")
    assert code == 0
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("out/**/*.png")) == ["out/x/a.png", "out/y/a.png"]


@pytest.mark.parametrize("suffix", [".gif", ".pgm", ""])
def test_kinds_that_cannot_be_written_become_png(suffix: str, command: Command, tiny_onnx: Path, tmp_path: Path) -> None:
    source = tmp_path / f"a{suffix}"
    source.write_bytes(cv2.imencode(suffix or ".png", white()[..., 0] if suffix == ".pgm" else white())[1].tobytes())
    code, _, _ = command(main, "--engine", tiny_onnx, "--source", source, "--output", tmp_path / "out")
    assert code == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"a{suffix}.png"]


def test_batch_of_a_fixed_size(command: Command, write_onnx: Callable[..., Path], good: Path, tmp_path: Path) -> None:
    model = write_onnx(tmp_path / "fixed.onnx", batch=4)
    code, out, _ = command(main, "--engine", model, "--source", good, "--json")
    assert code == 0 and lines(out)[0]["detections"][0]["box"] == RING["box"]


# --- video


def write_video(path: Path, count: int = 5) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*("MJPG" if path.suffix == ".avi" else "mp4v")), 12, (128, 64))
    assert writer.isOpened()
    for number in range(count):
        writer.write(white() if number % 2 else np.zeros((64, 128, 3), np.uint8))
    writer.release()
    return path


@pytest.mark.parametrize("name", ["film.mp4", "film.avi"])
def test_video(name: str, command: Command, tiny_onnx: Path, tmp_path: Path) -> None:
    source = write_video(tmp_path / name)
    code, out, _ = command(main, "--engine", tiny_onnx, "--source", source, "--output", tmp_path / "out", "--json")
    assert code == 0
    assert [(line["frame"], len(line["detections"])) for line in lines(out)] == [(0, 0), (1, 1), (2, 0), (3, 1), (4, 0)]
    assert list(lines(out)[0]) == ["source", "width", "height", "detections", "frame"]
    (made,) = (tmp_path / "out").iterdir()
    assert made.suffix == ".mp4"
    frames = list(read_video(made))
    assert len(frames) == 5 and {frame.shape for frame in frames} == {(64, 128, 3)}
    assert frames[0].mean() < 5 and frames[1].mean() > 200


def test_video_as_json_alone(command: Command, tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = command(main, "--engine", tiny_onnx, "--source", write_video(tmp_path / "film.mp4"), "--json")
    assert code == 0 and len(lines(out)) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]


def test_videos_of_one_stem_stay_apart(command: Command, tiny_onnx: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_video(tmp_path / "in" / "film.avi", 2)
    write_video(tmp_path / "in" / "film.mp4", 3)
    code, _, _ = command(main, "--engine", tiny_onnx, "--source", tmp_path / "in", "--output", tmp_path / "out")
    assert code == 0
    assert sorted(len(list(read_video(path))) for path in (tmp_path / "out").iterdir()) == [2, 3]


def test_a_bad_video_among_images(command: Command, tiny_onnx: Path, good: Path, tmp_path: Path) -> None:
    (good.parent / "bad.mp4").write_bytes(b"no video")
    code, out, err = command(main, "--engine", tiny_onnx, "--source", good.parent, "--output", tmp_path / "out")
    assert code == 0 and "1 ring" in out
    assert "bad.mp4: not a video that can be decoded" in err and "1 of 2 files skipped" in err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


def cut_video(path: Path) -> Path:
    """Ends before its 20 frames do."""
    write_video(path, 20)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 5 // 8])
    return path


def test_a_cut_video_gives_what_it_has(command: Command, tiny_onnx: Path, tmp_path: Path) -> None:
    source = cut_video(tmp_path / "film.avi")
    code, out, err = command(main, "--engine", tiny_onnx, "--source", source, "--output", tmp_path / "out", "--json")
    found = lines(out)
    assert code == 0 and 2 < len(found) < 20 and [line["frame"] for line in found] == list(range(len(found)))
    said, end = err.splitlines()
    assert said == (
        f"{source}: the video is cut short or damaged; {len(found)} of 20 frames could be decoded, the last one perhaps in part"
    )
    assert end.startswith("annotated images are in")
    assert len(list(read_video(tmp_path / "out" / "film.avi.mp4"))) == len(found)


def test_a_cut_video_is_an_error_where_asked_for(command: Command, tiny_onnx: Path, tmp_path: Path) -> None:
    source = cut_video(tmp_path / "film.avi")
    code, out, err = command(
        main, "--engine", tiny_onnx, "--source", source, "--output", tmp_path / "out", "--json", "--strict"
    )
    assert code == 2 and 2 < len(lines(out)) < 20 and "film.avi: the video is cut short or damaged" in one_error(err)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_cut_video_without_its_index(command: Command, tiny_onnx: Path, tmp_path: Path) -> None:
    source = cut_video(tmp_path / "film.mp4")
    code, out, err = command(main, "--engine", tiny_onnx, "--source", source, "--output", tmp_path / "out")
    assert (code, out) == (2, "") and "film.mp4: cut short, nothing of it can be decoded" in one_error(err)
    assert list((tmp_path / "out").iterdir()) == []


def test_ffmpeg_is_quiet(tiny_onnx: Path, tmp_path: Path) -> None:
    text = [sys.executable, "-m", "runtime.detect", "--engine", tiny_onnx, "--source", tmp_path / "*.*", "--json"]
    for name in ("film.avi", "film.mp4"):
        cut_video(tmp_path / name)
    environment = {name: value for name, value in os.environ.items() if name != "OPENCV_FFMPEG_LOGLEVEL"}
    done = subprocess.run([*map(str, text)], capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 0 and len(done.stdout.splitlines()) > 2
    assert [line.split(":")[0] for line in done.stderr.splitlines()[1:]] == [
        str(tmp_path / "film.avi"),
        "skipped",
        "1 of 2 files skipped",
    ]


def test_an_error_in_mid_video_leaves_nothing(
    command: Command, tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(100))
    select = Detector.select

    def fails(self: Detector, *arguments: Any) -> Any:
        if next(calls) == 7:
            raise ModelError("the model is damaged")
        return select(self, *arguments)

    monkeypatch.setattr(Detector, "select", fails)
    source = write_video(tmp_path / "film.mp4", 50)
    code, out, err = command(main, "--engine", tiny_onnx, "--source", source, "--output", tmp_path / "out", "--json")
    assert (code, one_error(err)) == (2, "error: the model is damaged\n")
    assert len(lines(out)) == 7 and list((tmp_path / "out").iterdir()) == []
    assert not prefetch_threads()


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_an_interrupt_ends_the_threads_before_it_is_passed_on(
    tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        assert prefetch_threads()
        raise KeyboardInterrupt

    monkeypatch.setattr(detect, "draw", interrupted)
    source = write_video(tmp_path / "film.mp4", 50)
    with pytest.raises(KeyboardInterrupt) as held:  # with its traceback, and all that the frames in it hold
        main(["--engine", str(tiny_onnx), "--source", str(source), "--output", str(tmp_path / "out")])
    assert held.value and not prefetch_threads() and list((tmp_path / "out").iterdir()) == []


def test_a_video_whose_frames_change_their_size(command: Command, tiny_onnx: Path, tmp_path: Path) -> None:
    parts = []
    for index, size in enumerate([(128, 64), (64, 64)]):
        path = tmp_path / f"{index}.mpg"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"PIM1"), 25, size)
        for _ in range(6):
            writer.write(white(*size))
        writer.release()
        parts.append(path.read_bytes())
    (tmp_path / "both.mpg").write_bytes(b"".join(parts))
    code, out, _ = command(
        main, "--engine", tiny_onnx, "--source", tmp_path / "both.mpg", "--output", tmp_path / "out", "--json"
    )
    records = lines(out)
    assert code == 0 and len(records) > 8 and {len(record["detections"]) for record in records} == {1}
    (made,) = (tmp_path / "out").iterdir()
    assert [frame.shape for frame in read_video(made)] == [(64, 128, 3)] * len(records)


def test_ctrl_c_in_mid_video(tiny_onnx: Path, tmp_path: Path) -> None:
    source = write_video(tmp_path / "film.mp4", 3000)
    text = [sys.executable, "-m", "runtime.detect", "--engine", tiny_onnx, "--source", source, "--output", tmp_path / "out"]
    with subprocess.Popen([*map(str, text), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        for _ in range(10):
            process.stdout.readline()
        assert len(list((tmp_path / "out").iterdir())) == 1  # the file in the making
        process.send_signal(signal.SIGINT)
        count = 10 + sum(1 for _ in process.stdout)
        assert process.wait(10) == 130
        assert process.stderr.read().splitlines()[1:] == ["interrupted"]
    assert count < 3000 and list((tmp_path / "out").iterdir()) == []


# --- bad files and folders


def test_strict_stops_at_the_first_bad_file(command: Command, tiny_onnx: Path, images: Path) -> None:
    code, out, err = command(main, "--engine", tiny_onnx, "--source", images, "--json", "--strict")
    assert code == 2
    assert len(lines(out)) == 2  # a.png, b.jpg; then cut.jpg
    assert "cut.jpg: the image is truncated" in one_error(err)


def test_no_good_file_at_all(command: Command, tiny_onnx: Path, images: Path) -> None:
    for name in ("a.png", "b.jpg"):
        (images / name).unlink()
    code, out, err = command(main, "--engine", tiny_onnx, "--source", images, "--json")
    assert (code, out) == (2, "")
    assert "error: none of the 3 files could be used (the last: " in err and "notes.txt" in err


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gone.jpg", "gone.jpg: no such image, folder, video"),
        ("hollow", "hollow: the folder has no files"),
        ("*.gone", "no such image, folder, video, or files of that pattern"),
        ("in/empty.png", "empty.png: the file is empty"),
        ("in/notes.txt", "notes.txt: not an image that can be decoded"),
        ("in/cut.jpg", "cut.jpg: the image is truncated"),
    ],
)
def test_a_bad_source(
    source: str, message: str, command: Command, tiny_onnx: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images.parent)
    Path("hollow").mkdir()
    code, out, err = command(main, "--engine", tiny_onnx, "--source", source, "--json")
    assert (code, out) == (2, "")
    assert message in one_error(err)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (20_000, 1), (1, 20_000)])
def test_thin_images(width: int, height: int, command: Command, tiny_onnx: Path, tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg"):
        write_image(tmp_path / name, white(width, height))
        code, out, _ = command(main, "--engine", tiny_onnx, "--source", tmp_path / name, "--output", tmp_path / "out", "--json")
        (record,) = lines(out)
        assert (code, record["width"], record["height"]) == (0, width, height)
        assert read_image(tmp_path / "out" / name).shape == (height, width, 3)


def test_an_image_larger_than_memory_is_skipped(command: Command, tiny_onnx: Path, good: Path) -> None:
    (good.parent / "huge.ppm").write_bytes(b"P6 60000 60000 255\n")
    code, out, err = command(main, "--engine", tiny_onnx, "--source", good.parent, "--json")
    assert code == 0 and len(lines(out)) == 1
    assert "skipped: " in err and "huge.ppm: the image is 60000x60000, at most 268 million pixels are read" in err
    code, out, err = command(main, "--engine", tiny_onnx, "--source", good.parent / "huge.ppm", "--json")
    assert (code, out) == (2, "") and "huge.ppm: the image is 60000x60000" in one_error(err)


def test_output_that_cannot_be_written(command: Command, tiny_onnx: Path, good: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        code, _, err = command(main, "--engine", tiny_onnx, "--source", good, "--output", output)
        assert code == 2 and "cannot write into" in one_error(err)


def test_a_full_disk(
    command: Command, tiny_onnx: Path, tmp_path: Path, full_disk: Callable[[], AbstractContextManager[None]]
) -> None:
    source = tmp_path / "a.jpg"
    write_image(source, white(256, 256))
    assert source.stat().st_size < 2048
    with full_disk():
        code, _, err = command(main, "--engine", tiny_onnx, "--source", source, "--output", tmp_path / "out")
    assert code == 2 and "cannot write" in one_error(err) and "a.jpg" in err
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("output", ["in", "in/.", "other/../in", "link"])
def test_sources_are_never_overwritten(
    output: str, command: Command, tiny_onnx: Path, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    code, _, err = command(main, "--engine", tiny_onnx, "--source", good.parent, "--output", output)
    assert code == 2
    assert "a.png: its annotated copy would overwrite it; choose another --output" in one_error(err)
    np.testing.assert_array_equal(read_image(good), white())


# --- bad models and arguments


def damaged(kind: str, folder: Path, spec: ModelSpec, write_onnx: Callable[..., Path]) -> Path:
    path = folder / "model.onnx"
    metadata = spec.to_metadata()
    if kind == "garbage":
        path.write_bytes(b"no model" * 100)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut":
        write_onnx(path)
        path.write_bytes(path.read_bytes()[:1000])
    elif kind == "foreign":
        write_onnx(path, metadata={})
    elif kind == "field":
        write_onnx(path, metadata={key: text for key, text in metadata.items() if key != "anchors"})
    elif kind == "newer":
        write_onnx(path, metadata={**metadata, "format_version": str(FORMAT_VERSION + 1)})
    elif kind == "classes":
        write_onnx(path, metadata={**metadata, "class_names": '["a", "b", "c"]'})
    elif kind == "levels":
        two = spec.replace(strides=(32, 16), anchors=spec.anchors[:2])
        write_onnx(path, spec=two, metadata=metadata)
    elif kind == "size":
        write_onnx(path, metadata={**metadata, "input_size": "[96, 64]"})
    elif kind == "input":
        write_onnx(path, input_name="x")
    elif kind == "type":
        write_onnx(path, cast=FLOAT16)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no such model file"),
        ("empty", "not a usable ONNX model"),
        ("garbage", "not a usable ONNX model"),
        ("cut", "not a usable ONNX model"),
        ("foreign", "no model spec in its metadata; export it with `python -m export.onnx`"),
        ("field", "its model spec lacks anchors"),
        ("newer", f"has format {FORMAT_VERSION + 1}, this code reads up to {FORMAT_VERSION}"),
        ("classes", r"output p5 is float32 \[N, 28, 2, 2\], its spec says float32 \[N, 32, 2, 2\]; export it again"),
        ("levels", "has no output 'p3'; its outputs are p5, p4"),
        ("size", r"input images is float32 \[N, 3, 64, 64\], its spec says float32 \[N, 3, 96, 64\]"),
        ("input", "expected one input 'images', found x; export it again"),
        ("type", r"output p5 is float16 \[N, 28, 2, 2\], its spec says float32 \[N, 28, 2, 2\]"),
    ],
)
def test_bad_models(
    kind: str,
    message: str,
    command: Command,
    good: Path,
    tmp_path: Path,
    make_spec: Callable[..., ModelSpec],
    write_onnx: Callable[..., Path],
) -> None:
    model = damaged(kind, tmp_path, make_spec(), write_onnx)
    code, out, err = command(main, "--engine", model, "--source", good, "--json")
    assert (code, out) == (2, "")
    assert "model.onnx" in one_error(err)
    with pytest.raises(InputError, match=message):
        open_backend(model)


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("model.pt", 2, "expected an .onnx or .engine model, got .pt; make one with"),
        ("model", 2, "expected an .onnx or .engine model, got no suffix"),
        ("model.engine", 2, "without its manifest model.engine.json"),
    ],
)
def test_other_kinds_of_models(name: str, code: int, message: str, command: Command, good: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    found, _, err = command(main, "--engine", tmp_path / name, "--source", good, "--json")
    assert found == code and message in one_error(err)


def test_a_missing_onnxruntime_is_named(command: Command, tiny_onnx: Path, good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, _, err = command(main, "--engine", tiny_onnx, "--backend", "onnxruntime", "--source", good, "--json")
    assert code == 3 and "onnxruntime is not installed; run `pip install onnxruntime`" in one_error(err)


def test_a_model_that_answers_nan_is_damaged(
    command: Command, good: Path, tmp_path: Path, write_onnx: Callable[..., Path], make_spec: Callable[..., ModelSpec]
) -> None:
    broken = {"p4": np.full(make_spec().map_shape(1), np.nan, np.float32)}
    write_onnx(tmp_path / "nan.onnx", changed=broken)
    code, out, err = command(main, "--engine", tmp_path / "nan.onnx", "--source", good, "--json")
    assert (code, out) == (2, "") and "output p4 holds NaN" in one_error(err)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--engine", "model.onnx"],
        ["--source", "a.jpg"],
        ["--engine", "model.onnx", "--source", "a.jpg", "--conf", "1.5"],
        ["--engine", "model.onnx", "--source", "a.jpg", "--conf", "nan"],
        ["--engine", "model.onnx", "--source", "a.jpg", "--conf", "much"],
        ["--engine", "model.onnx", "--source", "a.jpg", "--iou", "-0.1"],
        ["--engine", "model.onnx", "--source", "a.jpg", "--max-detections", "0"],
        ["--engine", "model.onnx", "--source", "a.jpg", "--max-detections", "2.5"],
        ["--engine", "model.onnx", "--source", "a.jpg", "--nonsense"],
    ],
)
def test_bad_arguments(arguments: list[str], command: Command) -> None:
    code, out, err = command(main, *arguments)
    assert (code, out) == (2, "") and re.fullmatch(r"error: .*; see python -m runtime\.detect --help\n", err)


@pytest.mark.parametrize("arguments", [("--engine", "a\n\x1b[2Jb.onnx"), ("--engine", "a.onnx", "a\n\x1b[2Jb")])
def test_an_error_is_one_line_whatever_it_quotes(arguments: tuple[str, ...], command: Command, good: Path) -> None:
    code, _, err = command(main, *arguments, "--source", good, "--json")
    assert code == 2 and "a\\n\\x1b[2Jb" in err and err.count("\n") == 1 and "\x1b" not in err


def test_an_iou_of_zero_is_refused(command: Command, tiny_onnx: Path, good: Path) -> None:
    code, _, err = command(main, "--engine", tiny_onnx, "--source", good, "--iou", "0", "--json")
    assert code == 2 and "IoU threshold" in one_error(err)


# --- the backend itself, and the real command line


def test_the_backend_checks_what_it_is_given(tiny_onnx: Path) -> None:
    with open_backend(tiny_onnx) as backend:
        assert backend.batch_size is None
        maps = backend.infer(np.ones((3, 3, 64, 64), np.float32))
        assert [raw.shape for raw in maps] == [(3, 28, 2, 2), (3, 28, 4, 4), (3, 28, 8, 8)]
        assert {raw.dtype for raw in maps} == {np.dtype(np.float32)}
        for wrong in (np.ones((1, 3, 64, 32), np.float32), np.ones((1, 3, 64, 64)), np.ones((3, 64, 64), np.float32)):
            with pytest.raises(InputError, match=r"expected float32 \['N', 3, 64, 64\]"):
                backend.infer(wrong)
    backend.close()
    with pytest.raises(ModelError, match="was closed"):
        backend.infer(np.ones((1, 3, 64, 64), np.float32))


def test_a_fixed_batch_takes_no_other(write_onnx: Callable[..., Path], tmp_path: Path) -> None:
    with open_backend(write_onnx(tmp_path / "fixed.onnx", batch=2)) as backend:
        assert backend.batch_size == 2
        with pytest.raises(InputError, match=r"expected float32 \[2, 3, 64, 64\]"):
            backend.infer(np.ones((1, 3, 64, 64), np.float32))


def test_detector_opens_a_path(tiny_onnx: Path) -> None:
    with Detector(str(tiny_onnx)) as detector:
        np.testing.assert_allclose(detector(white()).boxes, [RING["box"]], atol=1e-3)


def test_the_command_line(tiny_onnx: Path, images: Path, tmp_path: Path) -> None:
    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        text = [sys.executable, "-m", "runtime.detect", "--engine", tiny_onnx, *map(str, arguments)]
        return subprocess.run(text, capture_output=True, text=True, timeout=60, check=False)

    done = call("--source", images, "--output", tmp_path / "out")
    assert done.returncode == 0
    assert done.stdout == f"{images}/a.png: 1 ring\n{images}/b.jpg: nothing found\n"
    runs_in, *further = done.stderr.splitlines()
    assert runs_in.startswith(f"{tiny_onnx} runs in ONNX Runtime ")
    assert [line.split(":")[0] for line in further] == ["skipped"] * 3 + [
        "3 of 5 files skipped",
        f"annotated images are in {tmp_path}/out",
    ]
    failed = call("--source", "gone")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert one_error(failed.stderr) == "error: gone: no such image, folder, video, or files of that pattern\n"
