"""Finds the image that kills the workers which read it, so that it costs a row and not the run."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from runtime.errors import DetectorError, OutputError

_FOLDER = "_attempts"  # in the output folder
_CAREFUL_FROM = 2  # attempts that ended without a result
_GIVEN_UP_FROM = 2  # of those, in which the same image was the last


def forget_attempts(folder: Path) -> None:
    """Forgets all attempts of a run: they ended for reasons that no image gave."""
    shutil.rmtree(folder / _FOLDER, ignore_errors=True)


@contextlib.contextmanager
def forgotten_if_ended(folder: Path) -> Iterator[None]:
    """Forgets all attempts of a run if Ctrl-C or an error ends the block, and with it the workers."""
    try:
        yield
    except (KeyboardInterrupt, DetectorError):
        forget_attempts(folder)
        raise


class Attempts:
    """Attempts at a shard, noted in a file, since the process that makes one may be killed at any moment.

    Args:
        folder: of the results.
        shard: number of the shard.

    Attributes:
        is_careful: earlier attempts ended in such a way: images are to be run one by one, each noted before.
        given_up: numbers of the images, within the shard, that are not to be tried again.
    """

    def __init__(self, folder: Path, shard: int) -> None:
        self._path = folder / _FOLDER / f"{shard:06d}"
        earlier = self._read()
        self.is_careful = len(earlier) >= _CAREFUL_FROM
        last = Counter(attempt[-1] for attempt in earlier if attempt)
        self.given_up = {int(image) for image, times in last.items() if times >= _GIVEN_UP_FROM}
        self._append("start")

    def _read(self) -> list[list[str]]:
        """Returns the images that each attempt noted."""
        attempts: list[list[str]] = []
        with contextlib.suppress(OSError):
            for line in self._path.read_text("ascii", "replace").splitlines():
                if line == "start":
                    attempts.append([])
                elif line.isdigit() and attempts:
                    attempts[-1].append(line)
        return attempts

    def note(self, image: int) -> None:
        """Notes the image that is run next."""
        self._append(str(image))

    def _append(self, line: str) -> None:
        try:
            self._path.parent.mkdir(exist_ok=True)
            with open(self._path, "a", encoding="ascii") as file:
                file.write(f"{line}\n")
        except OSError as error:
            raise OutputError(f"cannot write {self._path}: {error.strerror or error}; free some space") from error

    def finish(self) -> None:
        """Forgets the attempts: the shard is written."""
        with contextlib.suppress(OSError):
            os.unlink(self._path)
