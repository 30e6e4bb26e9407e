"""Tells cameras and network streams from files by what `--source` says, and names them without their passwords."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

SCHEMES = ("rtsp", "rtsps", "http", "https", "rtmp", "rtmps", "rtp", "srt", "tcp", "udp")
"""Of the addresses of streams."""

_DEVICE = re.compile(r"/dev/video\d+")
_ADDRESS = re.compile(rf"({'|'.join(SCHEMES)})://", re.IGNORECASE)
_SECRET = re.compile(r"(?<=://)[^?]*@")  # also one that holds a slash
_QUERY = re.compile(r"\?.*", re.DOTALL)  # where some cameras take a password
_LONGEST_NAME = 100


@dataclass(frozen=True)
class LiveAddress:
    """A camera or a network stream.

    Attributes:
        address: as the user gave it: a camera's number or device, or a URL, which may hold a password.
        title: the address without user, password and query, for messages and records.
        name: where its results go, relative to the output folder.
    """

    address: str
    title: str
    name: Path

    @property
    def is_camera(self) -> bool:
        """True if it is a device of this machine."""
        return not _ADDRESS.match(self.address)


def live_address(source: str) -> Optional[LiveAddress]:
    """Returns the camera or stream that `source` names; None for files: a file or folder called `0` comes before camera 0."""
    is_camera = (source.isascii() and source.isdigit()) or bool(_DEVICE.fullmatch(source))
    if is_camera and (source.startswith("/dev/") or not os.path.lexists(source)):
        return LiveAddress(source, f"camera {source}", Path(f"camera-{re.sub('[^0-9]', '', source)}.mp4"))
    if not _ADDRESS.match(source):
        return None
    title = live_title(source)
    name = re.sub(r"[^A-Za-z0-9]+", "-", title.partition("://")[2])[:_LONGEST_NAME].strip("-")
    return LiveAddress(source, title, Path(f"{name or 'stream'}.mp4"))


def is_live(source: str) -> bool:
    """True if `source` names a camera or a stream."""
    return live_address(source) is not None


def live_title(source: str) -> str:
    """Returns an address without user, password and query."""
    return _QUERY.sub("", _SECRET.sub("", source))
