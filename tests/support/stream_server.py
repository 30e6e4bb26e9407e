"""Encoded video, and an HTTP server on the loopback that plays it, stalls or hangs up as told."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import av
import numpy as np

Play = Callable[[socket.socket, threading.Event], None]
"""Answers one connection; the event is set at the end of the test."""


def encoded(format_: str = "mpegts", frames: int = 25, codec: str = "mpeg2video", size: tuple[int, int] = (128, 64)) -> bytes:
    """A video of white frames, 25 a second."""
    file = io.BytesIO()
    with av.open(file, "w", format=format_) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.gop_size = 5
        image = np.full((size[1], size[0], 3), 255, np.uint8)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(image, format="bgr24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def play(
    data: bytes, *, seconds: float = 0.0, then: str = "close", repeat: bool = False, kind: str = "video/mp2t", length: int = 0
) -> Play:
    """Sends data in so many seconds, and then closes the connection or stalls; `length` is what it claims to send."""

    def answer(connection: socket.socket, over: threading.Event) -> None:
        claim = f"Content-Length: {length}\r\n" if length else ""
        connection.sendall(f"HTTP/1.0 200 OK\r\nContent-Type: {kind}\r\n{claim}\r\n".encode())
        step = 188 * 8
        while not over.is_set():
            for start in range(0, len(data), step):
                connection.sendall(data[start : start + step])
                if over.wait(seconds * step / len(data)):
                    return
            if not repeat:
                break
        if then == "stall":
            over.wait()

    return answer


def refuse(connection: socket.socket, over: threading.Event) -> None:
    connection.sendall(b"HTTP/1.0 404 Not Found\r\n\r\n")


def silent(connection: socket.socket, over: threading.Event) -> None:
    over.wait()


@contextlib.contextmanager
def serve(plays: Sequence[Play]) -> Iterator[tuple[str, list[float]]]:
    """Yields the address, and the times at which connections came; the last play answers all further ones."""
    over, times = threading.Event(), []
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def answer(connection: socket.socket, number: int) -> None:
        with connection, contextlib.suppress(OSError):
            connection.recv(4096)
            plays[min(number, len(plays) - 1)](connection, over)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                times.append(time.monotonic())
                threads.append(threading.Thread(target=answer, args=(connection, len(times) - 1)))
                threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/live.ts", times
    finally:
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for thread in (acceptor, *threads):
            thread.join(5)
