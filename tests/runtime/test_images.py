"""Every picture enters as uint8 BGR in the right orientation, or is refused with its name; writing is whole or not at all."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime.errors import InputError
from runtime.images import read_image, write_image

# 40x24 Adobe CMYK: left half red (0, 255, 255, 0), right half blue (255, 255, 0, 0).
CMYK_JPEG = base64.b64decode(
    "/9j/7gAOQWRvYmUAZAAAAAAA/9sAQwANCQoLCggNCwoLDg4NDxMgFRMSEhMnHB4XIC4pMTAuKS0sMzpKPjM2RjcsLUBXQUZMTlJTUjI+WmFaUGBKUVJP"
    "/8AAFAgAGAAoBEMRAE0RAFkRAEsRAP/EABYAAQEBAAAAAAAAAAAAAAAAAAAHCP/EABgQAQADAQAAAAAAAAAAAAAAAAAHRYPD/9oADgRDAE0AWQBLAAA/"
    "AKcmCYKcAJjM9NvzFPhi5w6CYCnAA06MxAAmMz02/MU+GLnDoJgKcADTozEACYzPTb8xT4YucOgmApwAP//Z"
)
PICTURE = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)

# What each EXIF orientation asks for, as a transformation of the stored pixels.
ORIENTATIONS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


def encode(suffix: str, image: np.ndarray, *options: int) -> bytes:
    good, data = cv2.imencode(suffix, image, list(options))
    assert good
    return data.tobytes()


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
    write_image(tmp_path / f"a{suffix}", PICTURE)
    np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}"), PICTURE)


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".webp"])
def test_lossy_kinds_come_back_nearly(tmp_path: Path, suffix: str) -> None:
    smooth = np.full((24, 40, 3), (40, 120, 200), np.uint8)
    write_image(tmp_path / f"a{suffix}", smooth)
    assert np.abs(read_image(tmp_path / f"a{suffix}").astype(int) - smooth).max() <= 3


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        # 8-bit grey: three equal channels
        (encode(".png", PICTURE[..., 0]), np.repeat(PICTURE[..., :1], 3, 2)),
        # 16-bit colour and grey: the high byte
        (encode(".png", PICTURE.astype(np.uint16) * 256), PICTURE),
        (encode(".png", PICTURE[..., 0].astype(np.uint16) * 256), np.repeat(PICTURE[..., :1], 3, 2)),
        # alpha is dropped, not blended
        (encode(".png", np.dstack([PICTURE, PICTURE[..., 0]])), PICTURE),
        (encode(".webp", np.dstack([PICTURE, np.full((24, 40), 255, np.uint8)]), cv2.IMWRITE_WEBP_QUALITY, 101), PICTURE),
        # palette
        (
            palette_png(np.array([[0, 1], [1, 0]]), [(255, 0, 0), (1, 2, 3)]),
            [[[0, 0, 255], [3, 2, 1]], [[3, 2, 1], [0, 0, 255]]],
        ),
        # one pixel
        (encode(".png", PICTURE[:1, :1]), PICTURE[:1, :1]),
    ],
    ids=["grey", "16-bit", "16-bit grey", "alpha", "webp alpha", "palette", "1x1"],
)
def test_kinds_of_pixels(tmp_path: Path, data: bytes, expected: object) -> None:
    image = read_image(saved(tmp_path / "picture", data))  # the content decides, not the name
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, np.asarray(expected))


def test_grey_jpeg(tmp_path: Path) -> None:
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
    jpeg = encode(".jpg", PICTURE)
    stored = read_image(saved(tmp_path / "plain.jpg", jpeg))
    turned = read_image(saved(tmp_path / "a.jpg", with_exif(jpeg, orientation, order)))
    np.testing.assert_array_equal(turned, ORIENTATIONS[orientation](stored))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_size_of_the_annotation_chooses_the_frame(tmp_path: Path, orientation: int) -> None:
    jpeg = encode(".jpg", PICTURE)
    stored = read_image(saved(tmp_path / "plain.jpg", jpeg), (40, 24))
    path = saved(tmp_path / "a.jpg", with_exif(jpeg, orientation))
    upright = ORIENTATIONS[orientation](stored)
    np.testing.assert_array_equal(read_image(path, (upright.shape[1], upright.shape[0])), upright)
    if orientation >= 5:  # drawn on the picture as stored
        np.testing.assert_array_equal(read_image(path, (40, 24)), stored)


@pytest.mark.parametrize("size", [(24, 40), (40, 25), (80, 48)])
def test_another_size_than_annotated_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    path = saved(tmp_path / "odd.jpg", encode(".jpg", PICTURE))
    with pytest.raises(InputError, match=rf"odd\.jpg: the picture is 40x24 but its annotation says {size[0]}x{size[1]}"):
        read_image(path, size)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"\0", "not a picture"),
        (b"no picture, just text\n", "not a picture"),
        (b"\xff\xd8", "not a picture"),
        (b"\xff\xd8\xff\xd9", "not a picture"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (b"GIF89a", "not a picture"),
        (b"BM" + bytes(60), "decoded"),
    ],
)
def test_not_a_picture(tmp_path: Path, data: bytes, message: str) -> None:
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
def test_garbage_after_a_good_picture_is_ignored(tmp_path: Path, suffix: str, garbage: bytes) -> None:
    data = encode(suffix, SMALL)
    plain = read_image(saved(tmp_path / f"plain{suffix}", data))
    np.testing.assert_array_equal(read_image(saved(tmp_path / f"more{suffix}", data + garbage)), plain)


def test_a_second_picture_in_the_same_file_is_ignored(tmp_path: Path) -> None:
    first, second = encode(".jpg", SMALL), encode(".jpg", PICTURE)  # as phones append a depth map
    assert read_image(saved(tmp_path / "a.jpg", first + second)).shape == SMALL.shape


@pytest.mark.parametrize("name", ["a.xyz", "a", "a.pgm"])
def test_a_kind_that_cannot_be_written_leaves_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"cannot write .*a"):
        write_image(tmp_path / name, PICTURE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif", ".ppm"])
def test_a_full_disk_leaves_nothing(tmp_path: Path, suffix: str, full_disk: Callable[[], AbstractContextManager[None]]) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    with full_disk(), pytest.raises(InputError, match=rf"cannot write .*a\{suffix}"):
        write_image(tmp_path / f"a{suffix}", noise)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_picture(tmp_path: Path, full_disk: Callable[[], AbstractContextManager[None]]) -> None:
    path = tmp_path / "a.png"
    write_image(path, SMALL[:2, :2])
    with full_disk(), pytest.raises(InputError):
        write_image(path, np.random.default_rng(2).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    np.testing.assert_array_equal(read_image(path), SMALL[:2, :2])
    assert list(tmp_path.iterdir()) == [path]
