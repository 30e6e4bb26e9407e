"""Streams over HTTP on the loopback: never ending, lost and back, stalled, gone; and files on a server."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Optional

import pytest

from runtime.errors import InputError
from runtime.media.live import reader
from runtime.media.live.address import live_address
from runtime.media.live.reader import LiveFrame, read_live
from tests.support.stream_server import Play, encoded, play, refuse, serve, silent


@pytest.fixture(scope="module")
def clip() -> bytes:
    return encoded()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "FIRST_PAUSE", 0.05)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def read(
    plays: Sequence[Play],
    timeout: float = 1,
    retry: float = 0.3,
    stop: Optional[int] = None,
    work: Callable[[LiveFrame], object] = lambda frame: None,
) -> tuple[list[LiveFrame], str, int]:
    """The frames, the error that ended them, and the number of connections; nothing may be left open."""
    found, error = [], ""
    before = open_files()
    with serve(plays) as (address, times):
        live = live_address(address)
        assert live is not None
        frames = read_live(live, timeout=timeout, retry=retry)
        try:
            for frame in itertools.islice(frames, stop):
                found.append(frame)
                work(frame)
        except InputError as caught:
            error = str(caught).removeprefix(f"{live.title}: ")
        frames.close()
        assert not [thread for thread in threading.enumerate() if thread.name == "live"]
    assert open_files() == before
    return found, error, len(times)


def test_a_stream_that_never_ends(clip: bytes) -> None:
    """One frame is held, however slow its reader is: what it gets is new, and the rest is dropped."""
    ages = []

    def slow(frame: LiveFrame) -> None:
        ages.append(time.time() - frame.received)
        time.sleep(0.1)

    found, error, _ = read([play(clip, seconds=0.25, repeat=True)], stop=10, work=slow)
    numbers = [frame.number for frame in found]
    assert not error and numbers == sorted(set(numbers)) and numbers[-1] > 15
    assert {frame.image.shape for frame in found} == {(64, 128, 3)} and found[0].image.min() > 240
    assert sorted(ages)[5] < 0.5
    times = [frame.time for frame in found]  # a busy machine may drop the first frame too
    assert times[0] < 0.5 and times[-1] - times[0] > 0.5 and times == sorted(set(times))


def test_a_connection_that_is_lost_and_comes_back(clip: bytes, caplog: pytest.LogCaptureFixture) -> None:
    found, error, connections = read([play(clip, seconds=0.2), refuse, refuse, play(clip, seconds=0.2), refuse], retry=2)
    assert found[-1].number == 47 and connections >= 5
    assert error == "lost after 48 frames and not back within 2 s (cannot be opened (Server returned 404 Not Found))"
    told = [message.partition(": ")[2] for message in caplog.messages]
    assert [message.partition(" (")[0] for message in told] == ["connection lost", "connected again", "connection lost"]


def test_pauses_grow(clip: bytes) -> None:
    with serve([play(clip), refuse]) as (address, times):
        live = live_address(address)
        assert live is not None
        with pytest.raises(InputError, match="not back within 1 s"):
            list(read_live(live, timeout=1, retry=1))
    assert 3 <= len(times) <= 7  # 20 if they did not


def test_a_stream_that_stalls(clip: bytes) -> None:
    start = time.monotonic()
    found, error, connections = read([play(clip, seconds=0.2, then="stall"), silent], timeout=0.6, retry=1)
    assert found and connections >= 2 and time.monotonic() - start < 10
    assert error == "lost after 24 frames and not back within 1 s (cannot be opened (no answer for 0.6 s))"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (refuse, "cannot be opened (Server returned 404 Not Found); is the address right?"),
        (silent, "cannot be opened (no answer for 0.3 s); is the address right?"),
        (play(b"<html>no video</html>"), "cannot be opened"),  # the reason depends on when the connection is closed
        (play(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"), "cannot be opened ("),
    ],
)
def test_a_stream_that_cannot_be_opened_is_told_at_once(answer: Play, message: str) -> None:
    start = time.monotonic()
    found, error, connections = read([answer], timeout=0.3, retry=60)
    assert not found and error.startswith(message) and connections == 1 and time.monotonic() - start < 10


def test_nobody_listens_and_the_password_is_not_told() -> None:
    live = live_address("http://user:secret@127.0.0.1:1/live.ts?pwd=secret")
    assert live is not None
    with pytest.raises(InputError, match=r"^http://127\.0\.0\.1:1/live\.ts: cannot be opened \(Connection refused\)") as error:
        next(read_live(live))
    assert error.value.__cause__ is None and "secret" not in str(error.value)


def test_a_reader_that_stops_early(clip: bytes) -> None:
    found, error, _ = read([play(clip, seconds=0.2, repeat=True)], stop=3)
    assert len(found) == 3 and not error


def test_motion_jpeg_as_of_ip_cameras() -> None:
    clip = encoded("mpjpeg", codec="mjpeg", frames=10)
    found, _, _ = read([play(clip, seconds=0.2, kind="multipart/x-mixed-replace;boundary=ffmpeg", repeat=True)], stop=3)
    assert len(found) == 3 and found[0].image.shape == (64, 128, 3)


def test_every_frame_of_a_file_on_a_server() -> None:
    film = encoded("avi", codec="mjpeg")
    whole = play(film, kind="video/x-msvideo", length=len(film))
    found, error, connections = read([whole], work=lambda frame: time.sleep(0.005))
    assert not error and connections == 1 and [frame.number for frame in found] == list(range(25))
    assert [frame.time for frame in found] == pytest.approx([number / 25 for number in range(25)], abs=1e-3)


@pytest.mark.parametrize(("container", "codec"), [("mjpeg", "mjpeg"), ("mpegts", "mpeg2video")])
def test_a_file_on_a_server_that_states_no_duration(container: str, codec: str) -> None:
    film = encoded(container, codec=codec)
    found, error, connections = read([play(film, length=len(film))], work=lambda frame: time.sleep(0.005))
    assert not error and connections == 1 and len(found) == 25


def test_a_file_on_a_server_is_not_begun_again() -> None:
    film = encoded("avi", codec="mjpeg")
    cut = play(film[: len(film) * 2 // 3], kind="video/x-msvideo", length=len(film))
    found, error, _ = read([cut])
    assert 5 < len(found) < 25 and error == f"cut short or damaged after {len(found)} frames"
