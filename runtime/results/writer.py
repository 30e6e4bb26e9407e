"""Writes the results of a run: annotated copies, crops and labels as they come, tables at the end."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable, Optional

from runtime.detections import Detections
from runtime.errors import InputError
from runtime.files import locked_folder, output_folder, write_text
from runtime.media.image import write_image
from runtime.media.sources import Source
from runtime.media.video_writer import write_video
from runtime.ops.image import Image
from runtime.results.journal import JOURNAL, Journal
from runtime.results.paths import result_paths
from runtime.results.records import Record, to_yolo
from runtime.results.tables import TABLES, write_tables
from runtime.viz.annotate import draw

log = logging.getLogger(__name__)

KINDS = ("images", "video", "txt", "crops", *TABLES)
"""The kinds of results that can be written."""

_NOT_IN_NAMES = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')
_LONGEST_NAME = 60  # characters of a class in a folder's name: at most 240 bytes

Save = Callable[[Image, Detections, Record, float], None]
"""Saves the results of an image or frame, given its detections, its record, and its time in seconds from the first frame."""


class ResultWriter:
    """Writes the results of images and videos, source by source. Files are written whole or not at all.

    Args:
        folder: where they go; None to write none.
        kinds: of `KINDS`.
        sources: all that the run works on, so that no result overwrites one of them or another result.
        class_names: by class id.
        journal: keeps the records, for the tables.

    Attributes:
        folder: as given.
        is_complete: the tables were written.
    """

    def __init__(
        self,
        folder: Optional[Path],
        kinds: Sequence[str],
        sources: Sequence[Source],
        class_names: Sequence[str],
        journal: Optional[Journal] = None,
    ) -> None:
        self.folder, self._kinds, self._class_names = folder, frozenset(kinds), class_names
        self._journal = journal
        self.is_complete = False
        copies = folder is not None and self._kinds & {"images", "video"}
        self._copies = result_paths(sources, folder) if folder and copies else {}
        named = folder is not None and self._kinds & {"txt", "crops"}
        self._labels = result_paths(sources, folder / "txt", _label_name) if folder and named else {}

    def is_finished(self, source: Source) -> bool:
        """True if an earlier run, or this one, has written the results of a source."""
        if self._journal is None:
            return False
        if source.title not in self._journal.finished and self._has_files(source):
            self._journal.finish(source.title)
        return source.title in self._journal.finished

    def _has_files(self, source: Source) -> bool:
        """True if all files of a source are there; only where files are all that is wanted, and no journal tells."""
        if self._journal is None or self._journal.is_resumed or self._kinds & {"crops", *TABLES}:
            return False
        wanted = [self._copies[source]] if source in self._copies and _copy_kind(source) in self._kinds else []
        wanted += [self._labels[source]] if "txt" in self._kinds and not source.is_video else []
        return bool(wanted) and all(path.exists() for path in wanted)

    @contextlib.contextmanager
    def open_source(self, source: Source, *, is_moving: bool) -> Iterator[Save]:
        """Yields a function that saves the results of a source, which are complete when the block ends without an error.

        Args:
            source: an image or a video.
            is_moving: it has frames: a video or a stream.

        Raises:
            OutputError: a result cannot be written, also in the function; ItemError where that is only for this source.
        """
        with contextlib.ExitStack() as stack:
            write_frame = None
            if is_moving and "video" in self._kinds and self.folder:
                write_frame = stack.enter_context(write_video(self._copies[source]))

            def save(image: Image, found: Detections, record: Record, time: float) -> None:
                if write_frame is not None:
                    write_frame(draw(image, found, self._class_names), time)
                elif not is_moving and "images" in self._kinds and self.folder:
                    write_image(self._copies[source], draw(image, found, self._class_names))
                self._save_parts(source, image, found, record.get("frame"))
                if self._journal is not None:
                    self._journal.add(record)

            try:
                yield save
            except BaseException:
                if self._journal is not None and source.address is None:  # a stream comes only once
                    self._journal.discard_unfinished()
                raise
        if is_moving and self._journal is not None:
            self._journal.finish(source.title)

    def _save_parts(self, source: Source, image: Image, found: Detections, frame: Optional[int]) -> None:
        """Writes the labels and the crops of an image or frame."""
        if source not in self._labels or self.folder is None:
            return
        place = self._labels[source] if frame is None else self.folder / "txt" / source.name / f"{frame:06d}.txt"
        if "txt" in self._kinds:
            write_text(place, to_yolo(image, found))
        if "crops" in self._kinds:
            name = place.relative_to(self.folder / "txt").with_suffix("")
            for number, (box, class_id) in enumerate(zip(found.boxes.tolist(), found.class_ids.tolist())):
                folder = self.folder / "crops" / _class_folder(self._class_names[class_id], class_id)
                write_image(folder / name.with_name(f"{name.name}_{number}.jpg"), _crop(image, box))

    def finish(self) -> list[Path]:
        """Writes the tables of all that was saved; returns their paths. Called again, it does nothing."""
        if self.is_complete or self.folder is None or self._journal is None:
            return []
        self.is_complete = True
        return write_tables(self.folder, sorted(self._kinds), self._journal.records, self._class_names)


def _copy_kind(source: Source) -> str:
    return "video" if source.is_video else "images"


def _label_name(source: Source) -> Path:
    return source.name.with_name(f"{source.name.stem}.txt")


def _class_folder(class_name: str, class_id: int) -> str:
    name = _NOT_IN_NAMES.sub("_", class_name)[:_LONGEST_NAME].strip(" .")
    return name or f"class-{class_id}"


def _crop(image: Image, box: Sequence[float]) -> Image:
    """Cuts out the pixels that a box touches, at least one."""
    height, width = image.shape[:2]
    left, top = min(math.floor(box[0]), width - 1), min(math.floor(box[1]), height - 1)
    right, bottom = max(math.ceil(box[2]), left + 1), max(math.ceil(box[3]), top + 1)
    return image[top:bottom, left:right]


@contextlib.contextmanager
def open_results(
    output: Optional[str],
    kinds: Sequence[str],
    sources: Sequence[Source],
    class_names: Sequence[str],
    *,
    settings: Callable[[], dict[str, Any]],
    resume: bool = False,
) -> Iterator[ResultWriter]:
    """Yields the writer of a run's results. Tables are written when the block ends without an error.

    Otherwise what was found stays in the journal, for a run that resumes it.

    Args:
        output: folder; None to write nothing.
        kinds: of `KINDS`.
        sources: all that the run works on.
        class_names: by class id.
        settings: of the run, plain values; only asked for if there is a journal.
        resume: leave out what an earlier run has finished, and keep the journal for later ones.

    Raises:
        InputError: the earlier run had other settings or ran in another folder, its results lie among the sources, or it is to
            be resumed with an image from stdin; or `kinds` has nothing that these sources give.
        OutputError: the folder cannot be written to, or another process writes into it.
    """
    if output is None:
        yield ResultWriter(None, (), sources, class_names)
        return
    _check_kinds(kinds, sources)
    if not resume and not set(kinds) & set(TABLES):
        yield ResultWriter(output_folder(output), kinds, sources, class_names)
        return
    with locked_folder(output) as folder:
        if resume:
            _check_resumable(folder, sources)
        files = sorted(set(kinds) - set(TABLES))
        # Sources are known by their names as typed, which mean other files in another folder.
        base = None if all(source.path.is_absolute() for source in sources) else os.getcwd()
        journal = Journal(folder, {**settings(), "files": files, "working folder": base}, resume=resume)
        keep, writer = True, None
        try:
            writer = ResultWriter(folder, kinds, sources, class_names, journal)
            yield writer
            writer.finish()
            keep = resume
        except BaseException:
            is_complete = writer is not None and writer.is_complete
            keep = resume if is_complete else journal.has_records
            if keep and not is_complete:
                remedy = "; --resume goes on" if journal.finished else ""
                log.warning("what was found so far is kept in %s%s", folder / JOURNAL, remedy)
            raise
        finally:
            journal.close(keep=keep)


def _check_kinds(kinds: Sequence[str], sources: Sequence[Source]) -> None:
    """Warns of annotated copies that no source gives; raises InputError if there is nothing else to write."""
    copies = set(kinds) & {"images", "video"}
    if not copies or any(_copy_kind(source) in copies for source in sources):
        return
    (kind,) = copies  # with both, every source gives one
    wanted, given, other = ("an image", "videos or streams", "video") if kind == "images" else ("a video", "images", "images")
    message = f"--save {kind}: expected {wanted} among the sources, found {given} alone; give --save {other} for their copies"
    if len(set(kinds)) == 1:
        raise InputError(message)
    log.warning("%s", message)


def _check_resumable(folder: Path, sources: Sequence[Source]) -> None:
    """Raises InputError if a later run would take results for sources, or could not tell whether it has those of a source."""
    root = os.path.realpath(folder)
    for source in sources:
        if source.content is not None:
            raise InputError("--resume: an image from stdin has no name to know it by; give --resume with files alone")
        if os.path.realpath(source.path.parent) == root:
            raise InputError(f"--resume: {source.path} lies in the folder of the results, {folder}; choose another --output")
