"""`python -m runtime.detect` on bad files, folders, models and arguments."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime.backends.open import open_backend
from runtime.detect import main
from runtime.errors import InputError
from runtime.media.image import read_image, write_image
from runtime.spec import FORMAT_VERSION, ModelSpec
from tests.support.detect_command import Command, lines, one_error, white
from tests.support.image_files import needs_gif
from tests.support.onnx_writer import FLOAT16


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


def test_a_result_that_cannot_be_written_does_not_end_the_batch(command: Command, tiny_onnx: Path, tmp_path: Path) -> None:
    """A folder lies in the place of one, which gets another name; one name is too long with its suffix, one image too wide."""
    for name in ("a.png", "b.png", "d.png"):
        write_image(tmp_path / "in" / name, white())
    cv2.imwrite(str(tmp_path / "in" / f"{'c' * 251}.pgm"), white()[..., 0])
    write_image(tmp_path / "e.png", white(70_000, 1))
    (tmp_path / "e.png").rename(tmp_path / "in" / "e.jpg")  # which holds at most 65,535 columns
    (tmp_path / "out" / "b.png").mkdir(parents=True)
    arguments = ("--engine", tiny_onnx, "--source", tmp_path / "in", "--output", tmp_path / "out", "--json")
    code, out, err = command(main, *arguments)
    assert code == 2 and [Path(line["source"]).name for line in lines(out)] == ["a.png", "b.png", "d.png"]
    assert "error: 2 of 5 results could not be written\n" in err and err.count("skipped: cannot write ") == 2
    assert "2 of 5 files skipped" in err and "Traceback" not in err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.2.png", "b.png", "d.png"]
    assert command(main, *arguments, "--strict")[0] == 2


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


@needs_gif
@pytest.mark.parametrize("output", ["in", "in/.", "other/../in", "link"])
def test_sources_are_never_overwritten(
    output: str, command: Command, tiny_onnx: Path, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    sources = {"a.png": encoded(".png"), "a.gif": encoded(".gif"), "a.gif.png": encoded(".png"), "x.jpg": encoded(".jpg")}
    for name, data in sources.items():
        (good.parent / name).write_bytes(data)
    code, out, _ = command(main, "--engine", tiny_onnx, "--source", good.parent, "--output", output)
    assert code == 0 and len(out.splitlines()) == 4
    assert {name: (good.parent / name).read_bytes() for name in sources} == sources
    made = sorted(path.name for path in good.parent.iterdir() if path.name not in sources)
    assert made == ["a.2.png", "a.gif.2.png", "a.gif.3.png", "x.2.jpg"]


def encoded(suffix: str) -> bytes:
    return cv2.imencode(suffix, white())[1].tobytes()


@needs_gif
def test_a_result_that_cannot_be_written_for_its_own_reasons_is_skipped_and_counted(
    command: Command, tiny_onnx: Path, good: Path, tmp_path: Path
) -> None:
    (good.parent / "wide.webp").write_bytes(cv2.imencode(".png", white(17_000, 2))[1].tobytes())  # WebP ends at 16,383
    (good.parent / f"{'n' * 250}.gif").write_bytes(encoded(".gif"))  # which leaves no room for .png
    code, out, err = command(main, "--engine", tiny_onnx, "--source", good.parent, "--output", tmp_path / "out")
    assert code == 2 and len(out.splitlines()) == 1
    end, *skipped, count = err.splitlines()  # the log comes last here
    assert len(skipped) == 2 and all(line.startswith("skipped: cannot write") for line in skipped)
    assert count == "2 of 3 files skipped" and end.startswith("error: 2 of 3 results could not be written")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


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
