"""What `--source` may name: an image, a folder, a glob pattern or a video; and work through all of it."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, Union

from tqdm import tqdm

from runtime.errors import InputError, OutputError
from runtime.media.image import IMAGE_SUFFIXES, Image, read_image
from runtime.media.video import VIDEO_SUFFIXES
from runtime.streaming.prefetch import close_generator, prefetch

log = logging.getLogger(__name__)

_WRITABLE = IMAGE_SUFFIXES - {".pgm"}  # which holds gray images alone

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

    @property
    def is_video(self) -> bool:
        """Whether it is to be read frame by frame."""
        return self.path.suffix.lower() in VIDEO_SUFFIXES


def find_sources(source: str) -> list[Source]:
    """Files that `source` names, sorted. In a folder every file counts (hidden ones apart), so that a bad one is noticed.

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


def result_path(source: Source, folder: Path) -> Path:
    """Where the annotated copy goes: the source's own name, to which kinds that OpenCV cannot write add .mp4 or .png.

    Raises:
        InputError: it would overwrite the source.
    """
    path = folder / source.name
    if source.is_video:
        path = path if path.suffix == ".mp4" else path.with_name(f"{path.name}.mp4")
    elif path.suffix.lower() not in _WRITABLE:
        path = path.with_name(f"{path.name}.png")
    if path.resolve() == source.path.resolve():
        raise InputError(f"{source.path}: its annotated copy would overwrite it; choose another --output")
    return path


def for_each(
    sources: Sequence[Source],
    read: Callable[[Source], Content],
    work: Callable[[Source, Content], None],
    *,
    label: str,
    strict: bool,
) -> None:
    """Call `work` for each source and what `read` makes of it; one of several that cannot be used is skipped.

    The next source is read by another thread meanwhile. Of several there is a progress bar called `label`.

    Args:
        strict: stop at the first that cannot be used.

    Raises:
        InputError: what `read` or `work` raised if strict or for the only source; or none of them could be used.
        OutputError: always passed on, since the next result could not be written either.
    """

    def attempt(source: Source) -> tuple[Source, Union[Content, InputError]]:
        try:
            return source, read(source)
        except InputError as error:
            return source, error

    skipped, last_error = 0, ""
    contents = prefetch(sources, attempt, depth=1)
    quiet = None if len(sources) > 1 else True  # None: where stderr is no terminal
    with close_generator(contents):
        for source, content in tqdm(contents, desc=label, total=len(sources), unit="file", disable=quiet, leave=False):
            try:
                if isinstance(content, InputError):
                    raise content
                work(source, content)
            except OutputError:
                raise
            except InputError as error:
                if strict or len(sources) == 1:
                    raise
                log.warning("skipped: %s", error)
                skipped, last_error = skipped + 1, str(error)
    if skipped == len(sources):
        raise InputError(f"none of the {skipped} files could be used (the last: {last_error})")
    if skipped:
        log.warning("%d of %d files skipped", skipped, len(sources))


def read_source(source: Source) -> Image:
    """The image of a source, see `read_image`."""
    return read_image(source.path)
