"""Tells images from videos, by what the files hold; their names count only where that says nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".mkv", ".webm", ".avi", ".wmv", ".asf", ".flv", ".f4v", ".ogv", ".mxf"}
    | {".mpg", ".mpeg", ".m2v", ".vob", ".ts", ".mts", ".m2ts", ".divx", ".rm", ".rmvb", ".dv", ".h264", ".h265", ".hevc"}
)

_IMAGES = (
    *(b"\xff\xd8\xff", b"\x89PNG", b"BM", b"GIF8", b"\0\0\0\x0cjP  ", b"\x76\x2f\x31\x01"),  # the last two: JPEG 2000, OpenEXR
    *(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),  # TIFF
)
_IMAGE_BRANDS = frozenset({b"avif", b"avis", b"heic", b"heix", b"hevc", b"heim", b"mif1", b"msf1", b"crx "})  # of `ftyp`
_VIDEOS = (
    *(b"\x1aE\xdf\xa3", b"FLV\1", b"\x30\x26\xb2\x75", b"OggS", b".RMF", b"\x06\x0e\x2b\x34", b"DKIF"),
    *(b"\0\0\1\xba", b"\0\0\1\xb3"),  # MPEG
)
_MP4_PARTS = frozenset({b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp"})
_TS_PACKETS = ((0, 188), (4, 192))  # where the first of a transport stream starts, and the distance to the next
_HEAD = 512  # bytes that tell


def is_video(path: Path) -> bool:
    """Tells whether a file is to be read frame by frame. One that cannot be read counts by its suffix."""
    head = b""
    try:
        if path.is_file():
            with open(path, "rb") as file:
                head = file.read(_HEAD)
    except (OSError, ValueError):
        pass
    found = video_by_content(head)
    return path.suffix.lower() in VIDEO_SUFFIXES if found is None else found


def video_by_content(head: bytes) -> Optional[bool]:
    """Tells videos (True) from images (False) by the first bytes; None where those do not say."""
    if head[4:8] == b"ftyp":
        return head[8:12] not in _IMAGE_BRANDS
    if head[:4] == b"RIFF":
        return {b"AVI ": True, b"WEBP": False}.get(head[8:12])
    if head.startswith(_IMAGES):
        return False
    if head.startswith(_VIDEOS) or head[4:8] in _MP4_PARTS:
        return True
    if any(head[start::step][:2] == b"GG" for start, step in _TS_PACKETS):
        return True
    return None
