"""Reads the directories of TIFF files and of EXIF data, which has the same form."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Optional

WIDTH, HEIGHT, ORIENTATION, SUBFILE_TYPE, SUB_DIRECTORIES = 256, 257, 274, 254, 330
_WHOLE = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}  # field types of whole numbers
_MOST_FIELDS, _MOST_DIRECTORIES, _MOST_VALUES = 4096, 64, 64

MARKS = (b"II*\0", b"II+\0", b"MM\0*", b"MM\0+")
"""What a TIFF file begins with."""


class Field(NamedTuple):
    """A field of whole numbers.

    Attributes:
        values: its numbers, at most 64 of them.
        place: offset of the first in the data.
    """

    values: tuple[int, ...]
    place: int


@dataclass(frozen=True)
class Directory:
    """One image of a file.

    Attributes:
        fields: those of whole numbers, by tag.
        next_offset: of the next directory; 0 after the last.
    """

    fields: dict[int, Field]
    next_offset: int

    def get(self, tag: int, default: int = 0) -> int:
        """Returns the first number of a field."""
        return self.fields[tag].values[0] if tag in self.fields else default

    @property
    def is_reduced(self) -> bool:
        """True if it is a small version of another image."""
        return bool(self.get(SUBFILE_TYPE) & 1)

    @property
    def pixels(self) -> int:
        return self.get(WIDTH) * self.get(HEIGHT)


@dataclass(frozen=True)
class Tiff:
    """A TIFF file.

    Attributes:
        data: all bytes, from the byte order mark on.
    """

    data: bytes

    @property
    def _order(self) -> str:
        return "<" if self.data[:2] == b"II" else ">"

    @property
    def _is_big(self) -> bool:
        return b"+" in self.data[:4]

    @property
    def first(self) -> Directory:
        """The directory of the image that is decoded. Raises ValueError or struct.error where it is damaged."""
        layout, place = ("Q", 8) if self._is_big else ("I", 4)
        return self.directory(self._numbers(layout, place)[0])

    def directory(self, offset: int) -> Directory:
        """Reads the directory at an offset. Raises ValueError or struct.error where it is damaged."""
        entry, offset_type, count_type = ("HHQ", "Q", "Q") if self._is_big else ("HHI", "I", "H")
        (count,) = self._numbers(count_type, offset)
        start = offset + struct.calcsize(f"={count_type}")
        if count > _MOST_FIELDS:
            raise ValueError(f"a directory of {count} fields")
        head, room = struct.calcsize(f"={entry}"), struct.calcsize(f"={offset_type}")
        fields: dict[int, Field] = {}
        for index in range(count):
            place = start + index * (head + room)
            tag, kind, length = self._numbers(entry, place)
            if kind not in _WHOLE or not length or tag in fields:
                continue
            layout = _WHOLE[kind] * min(length, _MOST_VALUES)
            is_inside = struct.calcsize(f"={_WHOLE[kind]}") * length <= room
            with contextlib.suppress(ValueError, struct.error):  # the others may be good
                value = place + head if is_inside else self._numbers(offset_type, place + head)[0]
                fields[tag] = Field(self._numbers(layout, value), value)
        end = start + count * (head + room)
        return Directory(fields, self._numbers(offset_type, end)[0] if end + room <= len(self.data) else 0)

    def _numbers(self, layout: str, offset: int) -> tuple[int, ...]:
        if offset > len(self.data):
            raise ValueError("an offset behind the end")
        return struct.unpack_from(self._order + layout, self.data, offset)

    def others(self) -> Iterator[tuple[Directory, bool]]:
        """Yields further directories that can be read, and whether each is a page of its own (not part of the first)."""
        first = self.first
        for offset in first.fields.get(SUB_DIRECTORIES, Field((), 0)).values:
            found = self._try_directory(offset)
            if found:
                yield found, False
        seen, offset = {0}, first.next_offset
        while offset not in seen and len(seen) < _MOST_DIRECTORIES:
            seen.add(offset)
            found = self._try_directory(offset)
            if not found:
                return
            yield found, True
            offset = found.next_offset

    def _try_directory(self, offset: int) -> Optional[Directory]:
        try:
            return self.directory(offset)
        except (ValueError, struct.error):
            return None
