"""`python -m runtime.detect` on videos: whole, cut short, interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from runtime.detect import main
from runtime.detector import Detector
from runtime.errors import ModelError
from runtime.media.video import read_video
from runtime.results import writer
from tests.support.detect_command import Command, lines, one_error, white


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
    said, end, last = err.splitlines()
    assert said == (
        f"{source}: the video is cut short or damaged; {len(found)} of 20 frames could be decoded, the last one perhaps in part"
    )
    assert end.startswith("annotated images are in") and last.startswith(f"{len(found)} images, ")
    assert len(list(read_video(tmp_path / "out" / "film.avi.mp4", strict=True))) == len(found)


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
    done = subprocess.run([*map(str, text)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and len(done.stdout.splitlines()) > 2
    assert [line.split(":")[0] for line in done.stderr.splitlines()[1:]] == [
        str(tmp_path / "film.avi"),
        "skipped",
        "1 of 2 files skipped",
        f"{len(done.stdout.splitlines())} images, 2 detections; ms per image",
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

    monkeypatch.setattr(writer, "draw", interrupted)
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
    assert [frame.shape for frame in read_video(made, strict=True)] == [(64, 128, 3)] * len(records)


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


def test_names_that_are_no_text(command: Command, tiny_onnx: Path, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/in\xff"))
    folder.mkdir()
    for name in (b"caf\xe9.mp4", b"caf\xe9.png"):
        path = folder / os.fsdecode(name)
        if path.suffix == ".png":
            path.write_bytes(cv2.imencode(".png", white())[1].tobytes())
        else:
            path.write_bytes(write_video(tmp_path / "film.mp4", 2).read_bytes())
    out_folder = folder / "out"
    code, out, _ = command(main, "--engine", tiny_onnx, "--source", folder, "--output", out_folder, "--json")
    assert code == 0 and len(lines(out)) == 3
    assert sorted(os.listdir(os.fsencode(out_folder))) == [b"caf\xe9.mp4", b"caf\xe9.png"]
