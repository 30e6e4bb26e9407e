"""Finds the files that `--source` names, and reads them one by one; see `runtime.media.live` for cameras and streams."""

from __future__ import annotations

import contextlib
import functools
import glob
import logging
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Optional, TypeVar, Union

from tqdm import tqdm

from runtime.errors import InputError, ItemError, OutputError
from runtime.files import PathLike
from runtime.media.image import decode_image, read_image
from runtime.media.kinds import is_video
from runtime.media.live.address import is_live, live_title
from runtime.media.source_lists import STDIN, is_image, is_list, listed_files, read_list, read_stdin
from runtime.ops.image import Image
from runtime.streaming.prefetch import close_generator, prefetch

log = logging.getLogger(__name__)

Content = TypeVar("Content")


@dataclass(frozen=True)
class Source:
    """One file, camera or stream to detect in.

    Attributes:
        path: the image or video; `-` for an image from stdin; the name for a camera or stream.
        name: where its result goes, relative to the output folder; unique within one run.
        content: of an image that is no file.
        address: of a camera or stream, without passwords.
    """

    path: Path
    name: Path
    content: Optional[bytes] = field(default=None, repr=False, compare=False)
    address: Optional[str] = None

    @property
    def title(self) -> str:
        """What messages and records call it."""
        return str(self.path) if self.address is None else self.address

    @functools.cached_property
    def is_video(self) -> bool:
        """True if it is to be read frame by frame."""
        return self.content is None and is_video(self.path)


def find_sources(source: str, *, recursive: bool = False, leave_out: Optional[PathLike] = None) -> list[Source]:
    """Lists the files that `source` names: sorted, but those of a list in its order.

    A folder gives all its files but hidden ones, so that a bad one is noticed.

    Args:
        source: image, video, folder, glob pattern, list of files (.txt), or `-` for stdin: an image, or a list of files.
        recursive: read the folders in a folder too, but hidden and linked ones.
        leave_out: folder whose files are not read: of results.

    Raises:
        InputError: nothing there.
    """
    if source == STDIN:
        content = read_stdin()
        if is_image(content):
            return [Source(Path(source), Path("stdin.png"), content)]
        files = listed_files("stdin", content, Path())
    else:
        files = find_files(source, recursive=recursive, leave_out=leave_out)
    places = [Path(os.path.abspath(file)) for file in files]  # without `..`, which would lead results out of their folder
    common = Path(os.path.commonpath([place.parent for place in places]))
    return [Source(file, place.relative_to(common)) for file, place in zip(files, places)]


def find_files(source: str, *, recursive: bool = False, leave_out: Optional[PathLike] = None) -> list[Path]:
    """Lists the files as `find_sources` does, which has the arguments and errors, but for stdin."""
    path = Path(source)
    if not source:
        raise InputError("no source given; name an image, folder, glob pattern, list or video")
    if path.is_dir():
        files = _files_in(path, recursive, leave_out)
    elif path.is_file():
        files = listed_files(source, read_list(path), path.parent) if is_list(path) else [path]
    elif is_live(source):
        raise InputError(f"{live_title(source)}: expected files; only python -m runtime.detect reads cameras and streams")
    else:
        files = sorted(Path(item) for item in glob.glob(source, recursive=True) if os.path.isfile(item))
        if not files:
            raise InputError(f"{source}: no such image, folder, video, or files of that pattern")
    return files


def _files_in(folder: Path, recursive: bool, leave_out: Optional[PathLike]) -> list[Path]:
    """Lists the visible files of a folder, and of those in it."""

    def warn(error: OSError) -> None:
        log.warning("skipped: %s: cannot be read (%s)", error.filename, error.strerror)

    out = None if leave_out is None else os.path.realpath(leave_out)
    files: list[Path] = []
    has_folders = False
    for place, folders, names in os.walk(folder, onerror=warn if recursive else _raise):
        folders[:] = [name for name in folders if not name.startswith(".") and os.path.realpath(Path(place, name)) != out]
        has_folders = has_folders or bool(folders)
        if not recursive:
            folders.clear()
        files += [item for item in (Path(place, name) for name in names) if item.is_file() and not item.name.startswith(".")]
    if not files:
        remedy = "; add --recursive to read the folders in it" if has_folders and not recursive else ""
        raise InputError(f"{folder}: the folder has no files{remedy}")
    return sorted(files)


def _raise(error: OSError) -> None:
    raise error


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
    sources: Sequence[Source], read: Callable[[Source], Content], skipped: SkippedSources, *, label: str, ahead: int = 1
) -> Generator[tuple[Source, Content], None, None]:
    """Yields each source and what `read` makes of it; the next ones are read by another thread meanwhile.

    Args:
        sources: what to read; of several there is a progress bar.
        read: called once a source.
        skipped: counts the sources for which `read` raises InputError; they are not yielded.
        label: of the progress bar.
        ahead: how many are read meanwhile.
    """

    def attempt(source: Source) -> tuple[Source, Union[Content, InputError]]:
        try:
            return source, read(source)
        except InputError as error:
            return source, error

    contents = prefetch(sources, attempt, depth=ahead)
    quiet = None if len(sources) > 1 else True  # None: where stderr is no terminal
    with close_generator(contents):
        for source, content in tqdm(contents, desc=label, total=len(sources), unit="file", disable=quiet, leave=False):
            if isinstance(content, InputError):
                skipped.add(content)
            else:
                yield source, content


def read_source(source: Source) -> Image:
    """Reads the image of a source, see `read_image`."""
    return read_image(source.path) if source.content is None else decode_image(source.content, "stdin")
