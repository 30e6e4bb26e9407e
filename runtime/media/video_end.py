"""Finds video files that are shorter than they claim, from the lengths that their containers state."""

from __future__ import annotations

from typing import Optional

from runtime.files import PathLike

_MP4_PARTS = frozenset({b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"uuid", b"moof", b"mfra", b"sidx", b"styp"})


def is_cut(path: PathLike) -> bool:
    """True if a file is shorter than it claims. Known for .mp4 and its kin, .avi, .mkv and .webm; others count as whole.

    FFmpeg decodes what is there and mends the rest, so that a missing end shows in no frame for sure.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            position = 0
            while position < size:
                file.seek(position)
                length = _part_length(file.read(24))
                if length is None:
                    return False
                position += length
            return position > size
    except OSError:
        return False


def _part_length(head: bytes) -> Optional[int]:
    """Reads the length in bytes of the part of a file that begins with `head`, if it is of a known kind."""
    if head[:4] == b"RIFF" and len(head) >= 8:
        return 8 + int.from_bytes(head[4:8], "little")
    if head[4:8] in _MP4_PARTS:
        short, long = int.from_bytes(head[:4], "big"), int.from_bytes(head[8:16], "big")
        length = long if short == 1 else short
        return length if length >= 8 else None  # 0: as far as the file goes
    if head[:4] in (b"\x1aE\xdf\xa3", b"\x18S\x80g") and len(head) > 4:  # EBML's header, Matroska's segment
        width = 9 - head[4].bit_length()
        length = int.from_bytes(head[4 : 4 + width], "big") - (1 << 7 * width)
        return 4 + width + length if length < (1 << 7 * width) - 1 else None  # all ones: not known
    return None
