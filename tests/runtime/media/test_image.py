"""Every image enters as uint8 BGR in the right orientation, or is refused with its name; writing is whole or not at all."""

from __future__ import annotations

import base64
import os
import struct
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import InputError, OutputError
from runtime.media import jpeg
from runtime.media.image import read_image, write_image
from runtime.media.image_header import claimed_size
from tests.support.image_files import ORIENTATIONS, encode

# 40x24 Adobe CMYK: left half red (0, 255, 255, 0), right half blue (255, 255, 0, 0).
CMYK_JPEG = base64.b64decode(
    "/9j/7gAOQWRvYmUAZAAAAAAA/9sAQwANCQoLCggNCwoLDg4NDxMgFRMSEhMnHB4XIC4pMTAuKS0sMzpKPjM2RjcsLUBXQUZMTlJTUjI+WmFaUGBKUVJP"
    "/8AAFAgAGAAoBEMRAE0RAFkRAEsRAP/EABYAAQEBAAAAAAAAAAAAAAAAAAAHCP/EABgQAQADAQAAAAAAAAAAAAAAAAAHRYPD/9oADgRDAE0AWQBLAAA/"
    "AKcmCYKcAJjM9NvzFPhi5w6CYCnAA06MxAAmMz02/MU+GLnDoJgKcADTozEACYzPTb8xT4YucOgmApwAP//Z"
)
IMAGE = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)


def with_exif(jpeg: bytes, orientation: int, order: str = "<", thumbnail: bytes = b"") -> bytes:
    """The JPEG with an APP1 segment after its start marker: an EXIF orientation and, if given, a thumbnail."""
    tiff = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8)
    directory = struct.pack(f"{order}HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)
    payload = b"Exif\0\0" + tiff + directory + thumbnail
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + jpeg[2:]


def palette_png(indices: np.ndarray, palette_rgb: list[tuple[int, int, int]]) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = indices.shape
    rows = b"".join(b"\0" + row.astype(np.uint8).tobytes() for row in indices)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0))
        + chunk(b"PLTE", bytes(value for color in palette_rgb for value in color))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def saved(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".ppm", ".tif"])
def test_lossless_kinds_come_back_exactly(tmp_path: Path, suffix: str) -> None:
    write_image(tmp_path / f"a{suffix}", IMAGE)
    np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}"), IMAGE)


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".webp"])
def test_lossy_kinds_come_back_nearly(tmp_path: Path, suffix: str) -> None:
    smooth = np.full((24, 40, 3), (40, 120, 200), np.uint8)
    write_image(tmp_path / f"a{suffix}", smooth)
    assert np.abs(read_image(tmp_path / f"a{suffix}").astype(int) - smooth).max() <= 3


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        # 8-bit gray: three equal channels
        (encode(".png", IMAGE[..., 0]), np.repeat(IMAGE[..., :1], 3, 2)),
        # 16-bit color and gray: the high byte
        (encode(".png", IMAGE.astype(np.uint16) * 256), IMAGE),
        (encode(".png", IMAGE[..., 0].astype(np.uint16) * 256), np.repeat(IMAGE[..., :1], 3, 2)),
        # alpha is dropped, not blended
        (encode(".png", np.dstack([IMAGE, IMAGE[..., 0]])), IMAGE),
        (encode(".webp", np.dstack([IMAGE, np.full((24, 40), 255, np.uint8)]), cv2.IMWRITE_WEBP_QUALITY, 101), IMAGE),
        # palette
        (
            palette_png(np.array([[0, 1], [1, 0]]), [(255, 0, 0), (1, 2, 3)]),
            [[[0, 0, 255], [3, 2, 1]], [[3, 2, 1], [0, 0, 255]]],
        ),
        # one pixel
        (encode(".png", IMAGE[:1, :1]), IMAGE[:1, :1]),
    ],
    ids=["grey", "16-bit", "16-bit gray", "alpha", "webp alpha", "palette", "1x1"],
)
def test_kinds_of_pixels(tmp_path: Path, data: bytes, expected: object) -> None:
    image = read_image(saved(tmp_path / "image", data))  # the content decides, not the name
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, np.asarray(expected))


def test_gray_jpeg(tmp_path: Path) -> None:
    image = read_image(saved(tmp_path / "a.jpg", encode(".jpg", np.full((24, 40), 90, np.uint8))))
    np.testing.assert_array_equal(image, np.full((24, 40, 3), 90))


def test_cmyk_jpeg(tmp_path: Path) -> None:
    image = read_image(saved(tmp_path / "a.jpg", CMYK_JPEG)).astype(int)
    assert image.shape == (24, 40, 3)
    assert np.abs(image[:, 2:16] - (0, 0, 255)).max() <= 4
    assert np.abs(image[:, 24:38] - (255, 0, 0)).max() <= 4


@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, order: str) -> None:
    jpeg = encode(".jpg", IMAGE)
    stored = read_image(saved(tmp_path / "plain.jpg", jpeg))
    turned = read_image(saved(tmp_path / "a.jpg", with_exif(jpeg, orientation, order)))
    np.testing.assert_array_equal(turned, ORIENTATIONS[orientation](stored))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_size_of_the_annotation_chooses_the_frame(tmp_path: Path, orientation: int) -> None:
    jpeg = encode(".jpg", IMAGE)
    stored = read_image(saved(tmp_path / "plain.jpg", jpeg), (40, 24))
    path = saved(tmp_path / "a.jpg", with_exif(jpeg, orientation))
    upright = ORIENTATIONS[orientation](stored)
    np.testing.assert_array_equal(read_image(path, (upright.shape[1], upright.shape[0])), upright)
    if orientation >= 5:  # drawn on the image as stored
        np.testing.assert_array_equal(read_image(path, (40, 24)), stored)


@pytest.mark.parametrize("size", [(24, 40), (40, 25), (80, 48)])
def test_another_size_than_annotated_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    path = saved(tmp_path / "odd.jpg", encode(".jpg", IMAGE))
    with pytest.raises(InputError, match=rf"odd\.jpg: the image is 40x24 but its annotation says {size[0]}x{size[1]}"):
        read_image(path, size)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"\0", "not an image"),
        (b"no image, just text\n", "not an image"),
        (b"\xff\xd8", "truncated"),
        (b"\xff\xd8\xff\xd9", "truncated"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (b"GIF89a", "not an image"),
        (b"BM" + bytes(60), "decoded"),
    ],
)
def test_not_an_image(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=rf"bad\.jpg: .*{message}"):
        read_image(saved(tmp_path / "bad.jpg", data))


def test_missing_and_directory(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.jpg: cannot be read \(No such file"):
        read_image(tmp_path / "gone.jpg")
    with pytest.raises(InputError, match="cannot be read"):
        read_image(tmp_path)


SMALL = np.random.default_rng(1).integers(0, 256, (16, 24, 3), dtype=np.uint8)
JPEGS = {
    "baseline": encode(".jpg", SMALL),
    "progressive": encode(".jpg", SMALL, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    "restarts": encode(".jpg", SMALL, cv2.IMWRITE_JPEG_RST_INTERVAL, 1),
    "thumbnail": with_exif(encode(".jpg", SMALL), 1, thumbnail=encode(".jpg", SMALL[:8, :8])),
    "cmyk": CMYK_JPEG,
}


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_cut_anywhere_is_refused(tmp_path: Path, kind: str) -> None:
    data = JPEGS[kind]
    path = tmp_path / "cut.jpg"
    assert read_image(saved(path, data)).size
    for end in [*range(0, len(data), 7), *range(len(data) - 20, len(data))]:
        path.write_bytes(data[:end])
        with pytest.raises(InputError, match=r"cut\.jpg"):
            read_image(path)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".ppm"])
def test_other_kinds_cut_anywhere_are_refused(tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = encode(suffix, SMALL)
    path = tmp_path / f"cut{suffix}"
    assert read_image(saved(path, data)).size
    for end in [*range(0, len(data), 23), *range(len(data) - 20, len(data))]:
        path.write_bytes(data[:end])
        with pytest.raises(InputError, match="cut"):
            read_image(path)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize(
    "garbage", [b"\0", b"\n" * 100, b"\xff" * 100, bytes(range(256)) * 3, b"\xff\xd9"], ids=["0", "lines", "ff", "bytes", "eoi"]
)
def test_garbage_after_a_good_image_is_ignored(tmp_path: Path, suffix: str, garbage: bytes) -> None:
    data = encode(suffix, SMALL)
    plain = read_image(saved(tmp_path / f"plain{suffix}", data))
    np.testing.assert_array_equal(read_image(saved(tmp_path / f"more{suffix}", data + garbage)), plain)


def test_a_second_image_in_the_same_file_is_ignored(tmp_path: Path) -> None:
    first, second = encode(".jpg", SMALL), encode(".jpg", IMAGE)  # as phones append a depth map
    assert read_image(saved(tmp_path / "a.jpg", first + second)).shape == SMALL.shape


# --- sizes


KINDS = {
    kind: encode(suffix, SMALL, *options)
    for kind, suffix, *options in (
        ("jpeg", ".jpg"),
        ("progressive", ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        ("png", ".png"),
        ("bmp", ".bmp"),
        ("webp", ".webp", cv2.IMWRITE_WEBP_QUALITY, 80),
        ("webp lossless", ".webp", cv2.IMWRITE_WEBP_QUALITY, 101),
        ("tiff", ".tif"),
        ("ppm", ".ppm"),
    )
}
KINDS["webp extended"] = (
    KINDS["webp"][:4] + struct.pack("<I", len(KINDS["webp"]) + 10) + b"WEBPVP8X" + bytes((10, 0, 0, 0, 0, 0, 0, 0))
    + bytes((23, 0, 0, 15, 0, 0)) + KINDS["webp"][12:]
)  # fmt: skip
KINDS["ppm comment"] = KINDS["ppm"].replace(b"P6\n", b"P6\n# 60000 60000\n#\n")
KINDS["jpeg garbage"] = KINDS["jpeg"][:20] + b"\0\xff\0\xff" + KINDS["jpeg"][20:]  # which decoders skip
KINDS["bmp top down"] = KINDS["bmp"][:22] + struct.pack("<i", -16) + KINDS["bmp"][26:]


def tiff_header(order: str, is_big: bool, kind: int, width: int, height: int) -> bytes:
    """A TIFF with one directory that says nothing but the size."""
    mark = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}H", 43 if is_big else 42)
    entry = {3: "H", 4: "I", 16: "Q"}[kind]
    value = 8 if is_big else 4
    head = struct.pack(f"{order}HHQQ", 8, 0, 16, 2) if is_big else struct.pack(f"{order}IH", 8, 2)
    sides = (
        struct.pack(f"{order}HH{'Q' if is_big else 'I'}{entry}", tag, kind, 1, side).ljust(value + (12 if is_big else 8), b"\0")
        for tag, side in ((256, width), (257, height))
    )
    return mark + head + b"".join(sides)


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_in_the_header_is_that_of_the_image(kind: str) -> None:
    decoded = cv2.imdecode(np.frombuffer(KINDS[kind], np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None and claimed_size(KINDS[kind]) == (decoded.shape[1], decoded.shape[0]) == (24, 16)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("is_big", "kind"), [(False, 3), (False, 4), (True, 3), (True, 4), (True, 16)])
def test_every_way_to_write_a_tiffs_size(order: str, is_big: bool, kind: int) -> None:
    assert claimed_size(tiff_header(order, is_big, kind, 60000, 50000)) == (60000, 50000)


def test_other_kinds_claim_nothing() -> None:
    for data in (b"", b"P6", b"II", b"RIFF1234WAVE", b"text"):
        assert claimed_size(data) is None


@settings(max_examples=300)
@given(st.sampled_from([*KINDS.values(), tiff_header("<", False, 4, 9, 9)]), st.integers(0, 400), st.binary(max_size=8))
def test_a_damaged_header_claims_a_size_or_is_refused(data: bytes, place: int, garbage: bytes) -> None:
    for damaged in (data[:place], data[:place] + garbage + data[place + len(garbage) :]):
        try:
            found = claimed_size(damaged)
        except ValueError:
            continue
        assert found is None or all(isinstance(side, int) for side in found)


def claiming(kind: str, width: int, height: int) -> bytes:
    """The small image of a kind, with another size in its header."""
    data = bytearray(KINDS[kind])
    place, layout = {
        "jpeg": (KINDS["jpeg"].index(b"\xff\xc0") + 5, ">HH"),
        "png": (16, ">II"),
        "bmp": (18, "<ii"),
        "webp extended": (24, "<HBHB"),
        "ppm": (0, ""),
    }[kind]
    if kind == "ppm":
        return b"P6\n%d %d\n255\n" % (width, height) + bytes(100)
    sides = (height, width) if kind == "jpeg" else (width, height)
    if kind == "webp extended":
        sides = tuple(part for side in sides for part in ((side - 1) & 0xFFFF, (side - 1) >> 16))
    struct.pack_into(layout, data, place, *sides)
    return bytes(data)


def test_a_jpeg_of_very_many_scans_is_refused_undecoded(tmp_path: Path) -> None:
    data = encode(".jpg", np.zeros((64, 64, 3), np.uint8), cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    found = list(jpeg.segments(data))
    start, end = found[-3].end, found[-2].end  # the last scan
    for copies in (0, 50):
        path = saved(tmp_path / "many.jpg", data[:end] + data[start:end] * copies + data[end:])
        if copies:
            with pytest.raises(InputError, match=r"many.jpg: a JPEG of \d+ scans, at most 50 are read; save it anew"):
                read_image(path)
        else:
            assert read_image(path).shape == (64, 64, 3)


@pytest.mark.parametrize("kind", ["jpeg", "png", "bmp", "webp extended", "ppm"])
def test_an_image_that_no_memory_should_hold_is_refused_unread(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.media.image.cv2.imdecode", None)
    path = saved(tmp_path / "huge", claiming(kind, 60000, 30000))
    with pytest.raises(InputError, match=r"huge: the image is 60000x30000, at most 268 million pixels are read; scale it"):
        read_image(path)


def test_the_limit_itself_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.png", KINDS["png"])
    for limit, is_read in ((24 * 16, True), (24 * 16 - 1, False)):
        monkeypatch.setattr("runtime.media.image.MAX_PIXELS", limit)
        if is_read:
            assert read_image(path).shape == (16, 24, 3)
        else:
            with pytest.raises(InputError, match="the image is 24x16"):
                read_image(path)


def test_a_file_too_large_for_any_image_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "a.tif", "wb") as file:
        file.truncate(1 << 40)  # a hole
    with pytest.raises(InputError, match=r"a\.tif: the file has 1099\.5 GB, at most 2\.1 are read"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["pipe", "/dev/zero", "a\0b", "loop"])
def test_what_is_no_file_is_not_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match="cannot be read"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".ppm"])
@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 20_000, 3), (20_000, 1, 3)])
def test_thin_images(suffix: str, shape: tuple[int, int, int], tmp_path: Path) -> None:
    image = np.full(shape, 77, np.uint8)
    write_image(tmp_path / f"a{suffix}", image)
    np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}"), image)


@pytest.mark.parametrize("name", ["a.xyz", "a", "a.pgm"])
def test_a_kind_that_cannot_be_written_leaves_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match=r"cannot write .*a"):
        write_image(tmp_path / name, IMAGE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif", ".ppm"])
def test_a_full_disk_leaves_nothing(tmp_path: Path, suffix: str, full_disk: Callable[[], AbstractContextManager[None]]) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    with full_disk(), pytest.raises(OutputError, match=rf"cannot write .*a\{suffix}"):
        write_image(tmp_path / f"a{suffix}", noise)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_image(tmp_path: Path, full_disk: Callable[[], AbstractContextManager[None]]) -> None:
    path = tmp_path / "a.png"
    write_image(path, SMALL[:2, :2])
    with full_disk(), pytest.raises(OutputError):
        write_image(path, np.random.default_rng(2).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    np.testing.assert_array_equal(read_image(path), SMALL[:2, :2])
    assert list(tmp_path.iterdir()) == [path]
