"""A real RTSP server: GStreamer's, where the system has it (gir1.2-gst-rtsp-server-1.0, python3-gi and its plugins)."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.errors import InputError
from runtime.media.live.address import LiveAddress, live_address
from runtime.media.live.reader import read_live

SYSTEM_PYTHON = shutil.which("python3", path="/usr/bin") or sys.executable
SERVER = """
import gi, sys
gi.require_version("Gst", "1.0"); gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
if not (Gst.ElementFactory.find("x264enc") and Gst.ElementFactory.find("rtph264pay")): sys.exit("no plugins")
server, factory = GstRtspServer.RTSPServer(), GstRtspServer.RTSPMediaFactory()
server.set_address("127.0.0.1"); server.set_service(sys.argv[1])
factory.set_launch("( videotestsrc is-live=true ! video/x-raw,width=128,height=64,framerate=25/1"
                   " ! x264enc tune=zerolatency key-int-max=5 ! rtph264pay name=pay0 )")
factory.set_shared(True)
server.get_mount_points().add_factory("/camera", factory)
if not server.attach(None): sys.exit("no port")
print(server.get_bound_port(), flush=True)
GLib.MainLoop().run()
"""


def start(port: int = 0) -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen(
        [SYSTEM_PYTHON, "-c", SERVER, str(port)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout
    line = process.stdout.readline()
    if not line:
        stop(process)
        pytest.skip("no GStreamer RTSP server on this system (gir1.2-gst-rtsp-server-1.0, python3-gi and plugins)")
    return process, int(line)


def stop(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate(timeout=10)


@pytest.fixture
def server() -> Iterator[tuple[subprocess.Popen[str], LiveAddress, int]]:
    if not Path(SYSTEM_PYTHON).exists():
        pytest.skip("no system Python")
    process, port = start()
    live = live_address(f"rtsp://user:secret@127.0.0.1:{port}/camera")
    assert live is not None
    yield process, live, port
    stop(process)


def test_lost_and_back_and_gone(
    server: tuple[subprocess.Popen[str], LiveAddress, int], caplog: pytest.LogCaptureFixture
) -> None:
    process, live, port = server
    frames = read_live(live, timeout=2, retry=4)
    assert [frame.image.shape for frame in itertools.islice(frames, 10)] == [(64, 128, 3)] * 10
    stop(process)
    process, _ = start(port)
    try:
        before = time.monotonic()
        while not any("connected again" in message for message in caplog.messages):
            next(frames)
            assert time.monotonic() - before < 10
    finally:
        stop(process)
    with pytest.raises(InputError, match="not back within 4 s"):
        list(frames)
    assert "secret" not in caplog.text
