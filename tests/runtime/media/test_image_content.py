"""Content of a file besides its image, or instead of it: orientation, further frames, previews, damage, appended data."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runtime.errors import InputError
from runtime.media import image_header, jpeg
from runtime.media.image import read_image
from tests.support.image_files import ORIENTATIONS, encode, needs_gif

IMAGE = cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8), (40, 24))


def directory(order: str, *fields: tuple[int, int, int], following: int = 0) -> bytes:
    """A TIFF directory of (tag, kind, value)."""
    layouts = {3: "Hxx", 4: "I"}
    entries = b"".join(struct.pack(f"{order}HHI{layouts[kind]}", tag, kind, 1, value) for tag, kind, value in fields)
    return struct.pack(f"{order}H", len(fields)) + entries + struct.pack(f"{order}I", following)


def exif(orientation: int, order: str = "<") -> bytes:
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(f"{order}I", 8) + directory(order, (274, 3, orientation))


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def oriented_jpeg(orientation: int, order: str) -> bytes:
    data, content = encode(".jpg", IMAGE), b"Exif\0\0" + exif(orientation, order)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content + data[2:]


def oriented_png(orientation: int, order: str) -> bytes:
    data = encode(".png", IMAGE)
    return data[:33] + png_chunk(b"eXIf", exif(orientation, order)) + data[33:]


def oriented_png_late(orientation: int, order: str) -> bytes:
    data = encode(".png", IMAGE)
    return data[:-12] + png_chunk(b"eXIf", exif(orientation, order)) + data[-12:]


def oriented_webp(orientation: int, order: str, start: bytes = b"") -> bytes:
    chunk, content = encode(".webp", IMAGE, cv2.IMWRITE_WEBP_QUALITY, 101)[12:], start + exif(orientation, order)
    extended = b"VP8X" + struct.pack("<IBxxxHBHB", 10, 8, 39, 0, 23, 0)
    body = b"WEBP" + extended + chunk + b"EXIF" + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff(image: np.ndarray, order: str, *more: tuple[int, int, int], following: bytes = b"") -> bytes:
    """An uncompressed TIFF of one strip, with further fields; another directory may follow."""
    pixels = np.ascontiguousarray(image[..., ::-1]).astype(image.dtype.newbyteorder(order)).tobytes()
    height, width = image.shape[:2]
    fields = [(256, 4, width), (257, 4, height), (259, 3, 1), (262, 3, 2), (273, 4, 0), (277, 3, 3), (278, 4, height)]
    fields += [(279, 4, len(pixels)), (258, 3, 8 * image.itemsize), *more]
    start = 8 + 6 + 12 * len(fields)
    fields = sorted((tag, kind, start if tag == 273 else value) for tag, kind, value in fields)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    return head + directory(order, *fields, following=start + len(pixels) if following else 0) + pixels + following


KINDS: dict[str, Callable[[int, str], bytes]] = {
    "jpeg": oriented_jpeg,
    "png": oriented_png,
    "png, at the end": oriented_png_late,
    "webp": oriented_webp,
    "webp, as in a jpeg": lambda orientation, order: oriented_webp(orientation, order, b"Exif\0\0"),
    "tiff": lambda orientation, order: tiff(IMAGE, order, (274, 3, orientation)),
    "tiff of 16 bit": lambda orientation, order: tiff(IMAGE.astype(np.uint16) * 257, order, (274, 3, orientation)),
}


@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_orientation_of_every_kind(kind: str, order: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(KINDS[kind](1, order))
    stored = read_image(path)
    assert stored.shape == IMAGE.shape and (kind == "jpeg" or np.array_equal(stored, IMAGE))
    for orientation, turn in ORIENTATIONS.items():
        path.write_bytes(KINDS[kind](orientation, order))
        upright = turn(stored)
        np.testing.assert_array_equal(read_image(path), upright)
        np.testing.assert_array_equal(read_image(path, upright.shape[1::-1]), upright)
        if orientation >= 5:
            np.testing.assert_array_equal(read_image(path, (40, 24)), stored)
    for orientation in (0, 9, 77):
        path.write_bytes(KINDS[kind](orientation, order))
        np.testing.assert_array_equal(read_image(path), stored)


# --- previews and turned kinds


@pytest.mark.parametrize("order", ["<", ">"])
def test_raw_photos_are_refused(order: str, tmp_path: Path) -> None:
    reduced, dng = (254, 4, 1), (50706, 4, 0x01040000)
    larger = directory(order, (256, 4, 4000), (257, 4, 3000))
    end = len(tiff(IMAGE, order, (330, 4, 0)))
    canon = bytearray(tiff(IMAGE, order))
    canon = canon[:4] + struct.pack(f"{order}I", 16) + b"CR\2\0\0\0\0\0" + canon[8:]
    raws = {
        "nef": tiff(IMAGE, order, reduced),
        "dng": tiff(IMAGE, order, dng),
        "arw": tiff(IMAGE, order, (330, 4, end)) + larger,
        "cr2": bytes(canon),
    }
    for name, data in raws.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=rf"{name}: a raw photo, of which only a preview can be read; convert it"):
            read_image(tmp_path / name)
    smaller = directory(order, (254, 4, 1), (256, 4, 10), (257, 4, 6))  # a pyramid
    (tmp_path / "plain").write_bytes(tiff(IMAGE, order, (330, 4, end)) + smaller)
    np.testing.assert_array_equal(read_image(tmp_path / "plain"), IMAGE)


@pytest.mark.parametrize(("box", "is_read"), [(b"irot\1", False), (b"irot\3", False), (b"irot\0", True), (b"imir\0", False)])
def test_a_turned_avif_is_refused(box: bytes, is_read: bool, tmp_path: Path) -> None:
    data = b"\0\0\0\x20ftypavif" + bytes(20) + b"\0\0\0\x09" + box
    (tmp_path / "a.avif").write_bytes(data)
    with pytest.raises(InputError, match="not an image" if is_read else "stored turned"):
        read_image(tmp_path / "a.avif")


# --- several frames


def animation(suffix: str, count: int) -> bytes:
    frames = cv2.Animation()
    frames.frames = [IMAGE] + [255 - IMAGE] * (count - 1)
    frames.durations = [100] * count
    good, data = cv2.imencodeanimation(suffix, frames)
    assert good
    return np.asarray(data).tobytes()


@pytest.mark.parametrize("kind", [pytest.param(".gif", marks=needs_gif), ".webp", ".png", "tiff"])
def test_the_first_of_several_frames_is_read_with_one_line(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if kind != "tiff" and not hasattr(cv2, "Animation"):
        pytest.skip("this OpenCV writes no animations")
    page = directory("<", (256, 4, 40), (257, 4, 24))
    many, one = (
        (tiff(IMAGE, "<", following=page), tiff(IMAGE, "<")) if kind == "tiff" else (animation(kind, 3), encode(kind, IMAGE))
    )
    (tmp_path / "many").write_bytes(many)
    (tmp_path / "one").write_bytes(one)
    for _ in range(3):
        assert read_image(tmp_path / "many").shape == read_image(tmp_path / "one").shape == IMAGE.shape
    assert caplog.messages == [f"{tmp_path / 'many'}: of its several frames or pages the first one is read"]


def test_a_thumbnail_is_no_further_page(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    thumbnail = directory("<", (254, 4, 1), (256, 4, 10), (257, 4, 6))
    (tmp_path / "a.tif").write_bytes(tiff(IMAGE, "<", following=thumbnail))
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), IMAGE)
    assert not caplog.records


# --- damage


PHOTO = cv2.resize(np.random.default_rng(3).integers(0, 256, (20, 30, 3), dtype=np.uint8), (240, 160))
JPEGS = {
    "baseline": encode(".jpg", PHOTO),
    "progressive": encode(".jpg", PHOTO, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    "restarts": encode(".jpg", PHOTO, cv2.IMWRITE_JPEG_RST_INTERVAL, 4),
    "gray": encode(".jpg", PHOTO[..., 0]),
    "exif": oriented_jpeg(6, "<"),
}


@settings(max_examples=150)
@given(st.sampled_from(sorted(JPEGS)), st.floats(0, 1, exclude_max=True))
def test_a_jpeg_cut_anywhere_is_not_whole(kind: str, share: float) -> None:
    data = JPEGS[kind]
    assert jpeg.scan_count(data) and not jpeg.scan_count(data[: int(share * (len(data) - 1))])
    assert not jpeg.scan_count(data[:-1])


MP4 = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom\0\0\x10\0mdat\xff\xd8\xff\xda\xff\xc4" + bytes(range(256)) * 4


@pytest.mark.parametrize(
    "behind", [MP4, MP4 + b"\xff\xda", JPEGS["gray"][:-2], b"\xff\xda\0\2" * 9], ids=["mp4", "sos", "cut", "many"]
)
@pytest.mark.parametrize("kind", JPEGS)
def test_what_follows_a_whole_jpeg_is_not_looked_at(kind: str, behind: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(JPEGS[kind])
    (tmp_path / "b.jpg").write_bytes(JPEGS[kind] + behind)
    np.testing.assert_array_equal(read_image(tmp_path / "b.jpg"), read_image(tmp_path / "a.jpg"))
    (tmp_path / "b.jpg").write_bytes(JPEGS[kind][:-300] + behind)  # the same, but cut
    with pytest.raises(InputError):
        read_image(tmp_path / "b.jpg")


@pytest.mark.parametrize("kind", ["baseline", "progressive", "restarts", "gray"])
@pytest.mark.parametrize("fault", ["zeros", "noise", "part missing"])
def test_a_jpeg_damaged_in_its_scans_is_refused(kind: str, fault: str, tmp_path: Path) -> None:
    data = bytearray(JPEGS[kind])
    start = len(data) // 2
    noise = np.random.default_rng(1).integers(0, 255, 400, dtype=np.uint8).tobytes()  # without 0xff
    data[start : start + 400] = {"zeros": bytes(400), "noise": noise, "part missing": b""}[fault]
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.jpg: "):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("padding", [b"\0", b"\0" * 200, b"\xaa" * 7])
def test_padding_before_the_end_is_no_damage(padding: bytes, tmp_path: Path) -> None:
    """Some cameras fill up the last block; libjpeg warns of it."""
    data = JPEGS["baseline"]
    (tmp_path / "a.jpg").write_bytes(data)
    (tmp_path / "b.jpg").write_bytes(data[:-2] + padding + data[-2:])
    np.testing.assert_array_equal(read_image(tmp_path / "b.jpg"), read_image(tmp_path / "a.jpg"))


# --- any bytes


STARTS = [
    *(make(6, order) for make in KINDS.values() for order in "<>"),
    *JPEGS.values(),
    tiff(IMAGE, "<", (330, 4, 8), following=directory("<", (256, 4, 40))),
    b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;",
    b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0",
    b"",
]


@settings(max_examples=300)
@given(st.sampled_from(STARTS), st.integers(0, 700), st.binary(max_size=12), st.booleans())
@example(b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0" + b"\xff" * 8, 0, b"", False)  # as many fields as fit in 64 bits
@example(b"II*\0\x08\0\0\0\0\0\x08\0\0\0", 0, b"", False)  # a directory that follows itself
def test_damaged_files_always_have_an_answer(data: bytes, place: int, garbage: bytes, is_cut: bool) -> None:
    damaged = data[:place] + garbage + (b"" if is_cut else data[place + len(garbage) :])
    assert 1 <= image_header.orientation(damaged) <= 8
    assert len(image_header.without_orientation(damaged)) == len(damaged)
    for question in (image_header.has_more_frames, image_header.is_preview, image_header.is_turned_avif):
        assert question(damaged) in (True, False)
    assert jpeg.scan_count(damaged) >= 0
