"""A model that waits at a gate, a served model in a process of its own, and raw requests to it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from runtime.backends.open import open_backend
from runtime.serving.limits import Limits

ROOT = Path(__file__).parents[2]


class GatedBackend:
    """A backend that waits at a gate, remembers the sizes of its batches, and fails on a black image if told to."""

    def __init__(self, path: Path) -> None:
        self._backend = open_backend(path)
        self.gate, self.sizes, self.fails = threading.Event(), list[int](), False
        self.gate.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def infer(self, images: np.ndarray) -> list[np.ndarray]:
        self.sizes.append(len(images))
        assert self.gate.wait(20)
        if self.fails and not images[:, :, 32, 32].all():
            raise RuntimeError("no such kernel")
        return self._backend.infer(images)


@contextlib.contextmanager
def served(model: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Runs `python -m runtime.serve` on a free port; yields the process and the port, and kills what is left of it."""
    command = [sys.executable, "-m", "runtime.serve", "--engine", str(model), "--port", "0", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        found = None
        for line in process.stderr:
            found = re.search(r"serving .* at http://.*:(\d+)/", line)
            if found:
                break
        assert found, "the server did not start"
        yield process, int(found[1])
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def running(app: Any, **limits: Any) -> Iterator[int]:
    """Serves an application from a thread of this process; yields the port."""
    import uvicorn

    from runtime.serving import server

    with server.listen("127.0.0.1", 0) as listener:
        service = uvicorn.Server(server.configure(app, Limits(**limits)))
        thread = threading.Thread(target=lambda: asyncio.run(service.serve(sockets=[listener])))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            service.should_exit = True
            thread.join(20)


def send(port: int, data: bytes) -> socket.socket:
    """Opens a connection and sends the start of a request."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    connection.sendall(data)
    return connection


def head(length: int, target: str = "/detect", more: str = "") -> bytes:
    return f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{more}\r\n".encode()


def received(connection: socket.socket) -> bytes:
    """Returns everything until the server closes the connection."""
    parts = []
    with connection, contextlib.suppress(ConnectionResetError):
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)
