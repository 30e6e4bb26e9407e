"""Things that a video file may not do, whatever its name and content, and the times and turns of its frames."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from runtime.errors import InputError, MissingComponentError
from runtime.media.video import frame_count, read_frames, read_video
from runtime.media.video_writer import write_video

FRAMES = 5


@pytest.fixture
def clip(tmp_path: Path) -> bytes:
    with write_video(tmp_path / "clip.mp4") as write:
        for number in range(FRAMES):
            write(np.full((48, 64, 3), 40 * number, np.uint8), number / 10)
    return (tmp_path / "clip.mp4").read_bytes()


@pytest.fixture
def server() -> Iterator[socket.socket]:
    """A server that nobody may call."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{target}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile '{target}'\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "playlist": "[playlist]\nFile1={target}\nNumberOfEntries=1\n",
    "dash": (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT5S">'
        '<Period><AdaptationSet contentType="video"><Representation id="1" mimeType="video/mp4" bandwidth="1">'
        "<BaseURL>{target}</BaseURL>"
        "</Representation></AdaptationSet></Period></MPD>"
    ),
}


@pytest.mark.parametrize("suffix", [".mp4", ".ts", ".avi"])
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_playlist_reaches_no_other_file_and_no_network(
    kind: str, suffix: str, clip: bytes, server: socket.socket, tmp_path: Path
) -> None:
    port = server.getsockname()[1]
    for target in (f"http://127.0.0.1:{port}/a.ts", f"tcp://127.0.0.1:{port}", "clip.mp4", str(tmp_path / "clip.mp4")):
        path = tmp_path / f"list{suffix}"
        path.write_text(PLAYLISTS[kind].format(target=target))
        with pytest.raises(InputError, match=r"list.*: not a video that can be decoded"):
            list(read_video(path))


@pytest.mark.parametrize(
    "name",
    [
        "cam1-2024-05-01T12:30:00.mp4",
        "http:/127.0.0.1:PORT/a.mp4",
        "tcp:127.0.0.1:PORT",
        "concat:a|b.mp4",
        "img%02d.mp4",
        "-.mp4",
    ]
    + [os.fsdecode(b"caf\xe9.mp4"), "猫.mp4", "two\nlines.mp4"],
)
def test_any_name_is_only_a_name(
    name: str, clip: bytes, server: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(name.replace("PORT", str(server.getsockname()[1])))
    monkeypatch.chdir(tmp_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(clip)
    assert len(list(read_video(path, strict=True))) == len(list(read_video(str(path)))) == FRAMES
    with write_video(path) as write:
        write(np.zeros((8, 8, 3), np.uint8), 0)
    assert frame_count(path) == 1


@pytest.mark.parametrize("name", ["gone.mp4", ".", "pipe", "/dev/zero", "a\0b"])
def test_what_is_no_file_is_not_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="cannot be read"):
        list(read_video(tmp_path / name))


# --- times


def with_times(path: Path, times: list[int]) -> None:
    """Writes a WebM to a pipe, as a browser records: without a rate, a length or an index."""
    read_end, write_end = os.pipe()
    with open(write_end, "wb") as pipe:
        encode(pipe, "webm", "libvpx", times)
    with open(read_end, "rb") as pipe:
        path.write_bytes(pipe.read())


def encode(target: Any, kind: str, codec: str, times: Iterable[int]) -> None:
    """Writes a video of gray frames at times in milliseconds; every 25th can be decoded alone."""
    with av.open(target, "w", format=kind) as container:
        stream = container.add_stream(codec)
        stream.codec_context.gop_size = 25
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time in times:
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 80, np.uint8), format="bgr24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("times", [[0, 29, 67, 102, 135, 236, 240], [500, 533, 566, 1600], [0, 33, 66, 100, 133]])
def test_frames_keep_their_times_in_a_copy(times: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with_times(tmp_path / "rec.webm", times)
    frames = list(read_frames(tmp_path / "rec.webm", strict=True))
    wanted = [(time - times[0]) / 1000 for time in times]
    assert [frame.time for frame in frames] == pytest.approx(wanted)
    with write_video(tmp_path / "copy.mp4") as write:
        for frame in frames:
            write(frame.image, frame.time)
    assert [frame.time for frame in read_frames(tmp_path / "copy.mp4", strict=True)] == pytest.approx(wanted)
    with av.open(str(tmp_path / "copy.mp4")) as copy:
        assert copy.duration / 1e6 == pytest.approx(wanted[-1] * len(times) / (len(times) - 1), abs=2e-3)
    assert not caplog.records


def test_times_that_cannot_be_right_are_made_up(tmp_path: Path) -> None:
    with write_video(tmp_path / "a.mp4") as write:
        for time in (0, 0.04, 0.08, 9000, 9000.04):  # a clock that jumps by hours
            write(np.zeros((48, 64, 3), np.uint8), time)
    found = [frame.time for frame in read_frames(tmp_path / "a.mp4")]
    assert found[:3] == pytest.approx([0, 0.04, 0.08]) and found[4] - found[3] == pytest.approx(0.04) and found[3] < 3700


# --- whole, though shorter than something in it says


def box(data: bytes, name: bytes) -> int:
    return data.index(name) + 4


def test_a_trimmed_clip_is_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An edit list that shows the first part, as phones write for a trimmed clip; all frames are still in the file."""
    with write_video(tmp_path / "long.mp4") as write:
        for number in range(100):
            write(np.full((48, 64, 3), number, np.uint8), number / 25)
    data = bytearray((tmp_path / "long.mp4").read_bytes())
    place = box(data, b"elst") + 8  # of the first entry: length in the movie's ticks, then where it starts
    struct.pack_into(">I", data, place, struct.unpack_from(">I", data, place)[0] // 4)
    (tmp_path / "trimmed.mp4").write_bytes(data)
    assert 20 < len(list(read_video(tmp_path / "trimmed.mp4", strict=True))) < 40
    assert not caplog.records


@pytest.mark.parametrize(
    ("kind", "codec"), [("mpegts", "mpeg4"), ("matroska", "mpeg4"), ("flv", "flv"), ("asf", "mpeg4"), ("avi", "mpeg4")]
)
def test_a_clip_from_the_middle_is_whole(kind: str, codec: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its time stamps do not start at 0, and the length that it states is that from 0 on."""
    encode(str(tmp_path / "a"), kind, codec, range(3000, 5000, 40))
    assert len(list(read_video(tmp_path / "a", strict=True))) >= 49
    if kind == "mpegts":  # of a broadcast, from anywhere to anywhere
        data = (tmp_path / "a").read_bytes()
        (tmp_path / "a").write_bytes(data[188 * (len(data) // 940) : 188 * (len(data) // 235)])
        assert 20 <= len(list(read_video(tmp_path / "a", strict=True))) < 50
    assert not caplog.records


@pytest.mark.parametrize("behind", [b"\0" * 100, b"garbage" * 50, b"\xff\xd8\xff\xe0"])
def test_a_whole_file_followed_by_anything_is_whole(clip: bytes, behind: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(clip + behind)
    assert len(list(read_video(tmp_path / "a.mp4", strict=True))) == FRAMES


# --- turned and large frames


@pytest.mark.parametrize(
    ("matrix", "quarters"),
    [((1, 0, 0, 1), 0), ((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)],
)
def test_rotation_is_applied(matrix: tuple[int, ...], quarters: int, tmp_path: Path) -> None:
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:24, :32] = 255
    with write_video(tmp_path / "a.mp4") as write:
        write(frame, 0)
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    a, b, c, d = (65536 * value for value in matrix)
    struct.pack_into(">9i", data, box(data, b"tkhd") + 40, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(data)
    (found,) = read_video(tmp_path / "turned.mp4")
    assert np.abs(found.astype(int) - np.rot90(frame, quarters)).mean() < 8


def test_frames_larger_than_an_image_may_be_are_refused(clip: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.media.video.MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(InputError, match=r"clip\.mp4: the frames are 64x48, at most"):
        list(read_video(tmp_path / "clip.mp4"))


def test_without_pyav(clip: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(MissingComponentError, match="pip install av"):
        list(read_video(tmp_path / "clip.mp4"))
