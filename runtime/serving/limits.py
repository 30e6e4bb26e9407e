"""Limits of a server: bytes, pixels, images at a time, seconds; and the errors of requests that go beyond them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Optional

from runtime.errors import InputError

_UPLOADS = 8  # images of the largest size that may be on their way at a time


@dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Attributes:
        most_bytes: of an image file.
        most_pixels: of an image.
        most_images: decoded, waiting or running at a time; more are refused.
        upload_seconds: for the whole body of a request.
        answer_seconds: from the end of the upload to the answer.
    """

    most_bytes: int = 20 << 20
    most_pixels: int = 25_000_000
    most_images: int = 32
    upload_seconds: float = 20.0
    answer_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < float("inf"):
                raise InputError(f"limits: {name}: expected a number above 0, got {value}")


class RefusedRequestError(InputError):
    """A request that is not answered with detections.

    Attributes:
        status: HTTP status code.
        retry_after: seconds after which another try may do better; None if none will.
    """

    def __init__(self, status: int, message: str, retry_after: Optional[int] = None) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


class Uploads:
    """Reads bodies of requests, each and all together of bounded size and time.

    Args:
        limits: of the server.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._held = 0  # bytes of the bodies that are being read

    async def read(self, parts: AsyncIterator[bytes], length: Optional[str]) -> bytes:
        """Returns a whole body.

        Args:
            parts: of the body, as they come.
            length: the header Content-Length.

        Raises:
            RefusedRequestError: too large (413), too slow (408), or too many others are being read (503).
        """
        if length is not None and length.isascii() and length.isdigit() and int(length[:20]) > self._limits.most_bytes:
            raise self._too_large()
        try:
            return await asyncio.wait_for(self._read(parts), self._limits.upload_seconds)
        except asyncio.TimeoutError as error:
            message = f"the image did not arrive within {self._limits.upload_seconds:g} s; send a smaller one"
            raise RefusedRequestError(408, message) from error

    async def _read(self, parts: AsyncIterator[bytes]) -> bytes:
        body = bytearray()
        try:
            async for part in parts:
                body += part
                self._held += len(part)
                if len(body) > self._limits.most_bytes:
                    raise self._too_large()
                if self._held > _UPLOADS * self._limits.most_bytes:
                    raise RefusedRequestError(503, "too many images are on their way; try again", retry_after=1)
            return bytes(body)
        finally:
            self._held -= len(body)

    def _too_large(self) -> RefusedRequestError:
        return RefusedRequestError(413, f"the image has more than {self._limits.most_bytes / 1e6:.4g} MB; send a smaller one")
