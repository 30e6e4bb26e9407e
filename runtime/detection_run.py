"""Runs a detector over files, videos, cameras and streams, and saves what it finds; yields a record an image or frame."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Optional, TypeVar, Union

from tqdm import tqdm

from runtime.console.terminal import printable
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.errors import InputError
from runtime.media.live.address import LiveAddress
from runtime.media.live.reader import LiveFrame, read_live
from runtime.media.sources import SkippedSources, Source, read_each, read_source
from runtime.media.video import Frame, frame_count, read_frames
from runtime.ops.image import MAX_PIXELS, Image
from runtime.results.records import Record, to_record
from runtime.results.writer import ResultWriter, Save
from runtime.streaming.prefetch import close_generator
from runtime.streaming.statistics import RunStatistics
from runtime.viz.annotate import draw
from runtime.viz.window import Window

_Moving = TypeVar("_Moving", Frame, LiveFrame)


class WindowClosed(Exception):
    """Ends a run whose window the user closed."""


@dataclass
class DetectionRun:
    """What a run works with.

    Attributes:
        detector: an open detector that counts into `statistics`.
        results: where what it finds is saved.
        statistics: times reading and writing.
        window: shows each image or frame; None for none.
        dropped: frames of a camera or stream that the model had no time for.
    """

    detector: Detector
    results: ResultWriter
    statistics: RunStatistics
    window: Optional[Window] = None
    dropped: int = 0

    def files(
        self, sources: Sequence[Source], skipped: SkippedSources, *, batch: int, strict: bool
    ) -> Generator[Record, None, None]:
        """Yields a record an image or frame of a video, once its results are saved.

        Args:
            sources: files, in this order.
            skipped: counts those that cannot be used.
            batch: images that are run together.
            strict: raise for a video that is cut short.
        """
        contents = read_each(sources, self._read, skipped, label="detect", ahead=batch)
        with close_generator(contents):
            for part in _groups(contents, batch):
                if part[0][1] is None:
                    yield from self._video(part[0][0], skipped, batch, strict)
                else:
                    yield from self._images([(source, image) for source, image in part if image is not None], skipped)

    def _read(self, source: Source) -> Optional[Image]:
        """Reads an image; None for a video, whose frames are read while others are worked on."""
        if source.is_video:
            return None
        with self.statistics.time("read"):
            return read_source(source)

    def _images(self, part: Sequence[tuple[Source, Image]], skipped: SkippedSources) -> Iterator[Record]:
        for (source, image), found in zip(part, detect_each(self.detector, [image for _, image in part])):
            with skipped.skip_unusable():
                if isinstance(found, InputError):
                    raise found
                with self.results.open_source(source, is_moving=False) as save:
                    record = self._record(source, image, found)
                    self._save(save, image, found, record, 0.0)
                yield record
                self._show(image, found, wait=True)

    def _video(self, source: Source, skipped: SkippedSources, batch: int, strict: bool) -> Iterator[Record]:
        """Detects in the frames of a video.

        While a frame is drawn and encoded here, the model runs on the next one, and a third one is decoded, in other threads.
        """
        frames: collections.deque[Frame] = collections.deque()  # that are on their way
        with skipped.skip_unusable(), contextlib.ExitStack() as stack:
            images = _images(self._timed(read_frames(source.path, strict=strict)), frames)
            results = self.detector.stream(images, batch=batch)
            save = stack.enter_context(self.results.open_source(source, is_moving=True))
            stack.enter_context(close_generator(results))
            title, total = printable(source.path.name, 40), frame_count(source.path)
            bar = tqdm(results, title, total, unit="frame", disable=None, leave=False)
            for number, (image, found) in enumerate(bar):
                record = self._record(source, image, found, frame=number)
                self._save(save, image, found, record, frames.popleft().time)
                yield record
                self._show(image, found, wait=False)

    def live(self, address: LiveAddress, source: Source, *, timeout: float, retry: float) -> Generator[Record, None, None]:
        """Yields a record of each frame of a camera or stream that the model has time for, until it ends.

        Args:
            address: of the camera or stream.
            source: names its results.
            timeout: see `read_live`.
            retry: see `read_live`.

        Raises:
            InputError: see `read_live`; what was found until then is saved.
            KeyboardInterrupt: by the user, likewise.
        """
        ended_by: Optional[BaseException] = None
        with self.results.open_source(source, is_moving=True) as save:
            try:
                frames = read_live(address, timeout=timeout, retry=retry)
                with close_generator(frames):
                    for frame in frames:
                        found = self.detector(frame.image)
                        self.dropped = frame.number + 1 - self.statistics.images
                        record = self._record(source, frame.image, found, frame=frame.number, time=frame.received)
                        self._save(save, frame.image, found, record, frame.time)
                        yield record
                        self._show(frame.image, found, wait=False)
            except (InputError, KeyboardInterrupt, GeneratorExit, WindowClosed) as error:
                if not self.statistics.images:
                    raise
                ended_by = error
        self.results.finish()
        if ended_by is not None:
            raise ended_by

    def _record(
        self, source: Source, image: Image, found: Detections, frame: Optional[int] = None, time: Optional[float] = None
    ) -> Record:
        return to_record(source.title, image, found, self.detector.spec.class_names, frame=frame, time=time)

    def _save(self, save: Save, image: Image, found: Detections, record: Record, time: float) -> None:
        with self.statistics.time("write"):
            save(image, found, record, time)

    def _show(self, image: Image, found: Detections, *, wait: bool) -> None:
        if self.window is not None and not self.window.show(draw(image, found, self.detector.spec.class_names), wait=wait):
            raise WindowClosed

    def _timed(self, frames: Generator[_Moving, None, None]) -> Generator[_Moving, None, None]:
        """Yields frames, and times how long each took to read."""
        with close_generator(frames):
            while True:
                with self.statistics.time("read"):
                    frame = next(frames, None)
                if frame is None:
                    return
                yield frame


def detect_each(detector: Detector, images: Sequence[Image]) -> Sequence[Union[Detections, InputError]]:
    """Detects in a batch; where that fails, in each image alone, so that one costs no other its result."""
    try:
        return detector(images)
    except InputError as error:
        return [error] if len(images) == 1 else [detect_each(detector, [image])[0] for image in images]


def _images(frames: Generator[Frame, None, None], on_their_way: collections.deque[Frame]) -> Generator[Image, None, None]:
    """Yields the images of frames, and appends the frames to `on_their_way`."""
    with close_generator(frames):
        for frame in frames:
            on_their_way.append(frame)
            yield frame.image


def _groups(
    contents: Iterable[tuple[Source, Optional[Image]]], size: int
) -> Generator[list[tuple[Source, Optional[Image]]], None, None]:
    """Groups images to batches, which end early where they are very large; videos (None) stay alone.

    The images before an error are yielded before it is raised.
    """
    part: list[tuple[Source, Optional[Image]]] = []
    pixels = 0
    try:
        for source, image in contents:
            if image is None and part:
                yield part
                part, pixels = [], 0
            part.append((source, image))
            pixels += 0 if image is None else image.shape[0] * image.shape[1]
            if image is None or len(part) == size or pixels > MAX_PIXELS:
                yield part
                part, pixels = [], 0
    except Exception:
        if part:
            yield part
        raise
    if part:
        yield part
