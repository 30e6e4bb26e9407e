"""Finds what `--source` names (an image, a folder, a glob pattern or a video), and reads it source by source."""

from __future__ import annotations

import contextlib
import functools
import glob
import logging
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Optional, TypeVar, Union

from tqdm import tqdm

from runtime.errors import InputError, ItemError, OutputError
from runtime.media.image import read_image
from runtime.media.kinds import is_video
from runtime.ops.image import Image
from runtime.streaming.prefetch import close_generator, prefetch

log = logging.getLogger(__name__)

Content = TypeVar("Content")


@dataclass(frozen=True)
class Source:
    """One file to detect in.

    Attributes:
        path: the image or video.
        name: where its result goes, relative to the output folder; unique within one run.
    """

    path: Path
    name: Path

    @functools.cached_property
    def is_video(self) -> bool:
        """True if it is to be read frame by frame."""
        return is_video(self.path)


def find_sources(source: str) -> list[Source]:
    """Lists the files that `source` names, sorted. A folder gives all its files but hidden ones, so that a bad one is noticed.

    Raises:
        InputError: nothing there.
    """
    path = Path(source)
    if not source:
        raise InputError("no source given; name an image, folder, glob pattern or video")
    if path.is_dir():
        files = sorted(item for item in path.iterdir() if item.is_file() and not item.name.startswith("."))
        if not files:
            raise InputError(f"{source}: the folder has no files")
    elif path.is_file():
        files = [path]
    else:
        files = sorted(Path(item) for item in glob.glob(source, recursive=True) if os.path.isfile(item))
        if not files:
            raise InputError(f"{source}: no such image, folder, video, or files of that pattern")
    common = Path(os.path.commonpath([file.absolute().parent for file in files]))
    return [Source(file, file.absolute().relative_to(common)) for file in files]


class SkippedSources:
    """Skips sources that cannot be used, and those whose result cannot be written for reasons of its own; counts both.

    Leaving its `with` block says how many were skipped.

    Args:
        count: number of sources.
        strict: raise for the first that cannot be used.

    Raises:
        InputError: a source cannot be used, and it is the only one, or `strict` is set; or none of them could be used.
        OutputError: a result could not be written; where that is only for reasons of its own, after the last source.
    """

    def __init__(self, count: int, *, strict: bool) -> None:
        self._count, self._raises = count, strict or count == 1
        self._skipped = self._unwritten = 0
        self._last: Union[InputError, ItemError, None] = None

    def add(self, error: Union[InputError, ItemError]) -> None:
        """Skips one source, with a warning."""
        if self._raises:
            raise error
        log.warning("skipped: %s", error)
        self._skipped, self._last = self._skipped + 1, error
        self._unwritten += isinstance(error, ItemError)

    @contextlib.contextmanager
    def skip_unusable(self) -> Iterator[None]:
        """Skips the source that the block works on where it raises InputError or ItemError; any other error ends the run."""
        try:
            yield
        except (InputError, ItemError) as error:
            self.add(error)

    def __enter__(self) -> SkippedSources:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        if kind is not None or not self._skipped:
            return
        if self._skipped == self._count:
            raise InputError(f"none of the {self._skipped} files could be used (the last: {self._last})")
        log.warning("%d of %d files skipped", self._skipped, self._count)
        if self._unwritten:
            raise OutputError(f"{self._unwritten} of {self._count} results could not be written")


def read_each(
    sources: Sequence[Source], read: Callable[[Source], Content], skipped: SkippedSources, *, label: str
) -> Generator[tuple[Source, Content], None, None]:
    """Yields each source and what `read` makes of it; the next one is read by another thread meanwhile.

    Args:
        sources: what to read; of several there is a progress bar.
        read: called once a source.
        skipped: counts the sources for which `read` raises InputError; they are not yielded.
        label: of the progress bar.
    """

    def attempt(source: Source) -> tuple[Source, Union[Content, InputError]]:
        try:
            return source, read(source)
        except InputError as error:
            return source, error

    contents = prefetch(sources, attempt, depth=1)
    quiet = None if len(sources) > 1 else True  # None: where stderr is no terminal
    with close_generator(contents):
        for source, content in tqdm(contents, desc=label, total=len(sources), unit="file", disable=quiet, leave=False):
            if isinstance(content, InputError):
                skipped.add(content)
            else:
                yield source, content


def read_source(source: Source) -> Image:
    """Reads the image of a source, see `read_image`."""
    return read_image(source.path)
