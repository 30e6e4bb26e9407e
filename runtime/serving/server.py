"""Runs an application in uvicorn: one process, bounded connections, and an end in order on SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, Optional

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from runtime.console import signals
from runtime.console.startup import leave
from runtime.errors import InputError
from runtime.serving.limits import Limits

log = logging.getLogger(__name__)

_CONNECTIONS = 512  # a process may commonly open 1024 files
_HEAD_SECONDS = 10.0
_IDLE_SECONDS = 65  # longer than clients and proxies keep a connection, or they would send into one that is being closed
_BACKLOG = 256
_TICK = 0.1  # seconds
_LAST_PORT = 65535
_END = b"Connection: close\r\nContent-Length: 0\r\n\r\n"
_LATE = b"HTTP/1.1 408 Request Timeout\r\n" + _END
_FULL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n" + _END


class _Protocol(H11Protocol):
    """HTTP with bounded connections, and a time for the head of a request: uvicorn alone holds any number for ever."""

    _deadline: Optional[asyncio.TimerHandle] = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > _CONNECTIONS:
            self._end(_FULL)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Optional[Exception]) -> None:
        super().connection_lost(exc)
        self._unwatch()

    def _watch(self) -> None:
        is_waiting = self.conn.their_state is h11.IDLE and not self.transport.is_closing()
        if not is_waiting:
            self._unwatch()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(_HEAD_SECONDS, self._end, _LATE)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _end(self, answer: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(answer)
            self.transport.close()


class _Server(uvicorn.Server):
    """Server that ends once a signal was received."""

    def __init__(self, config: uvicorn.Config, received: list[int]) -> None:
        super().__init__(config)
        self._received = received

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or bool(self._received)


def is_loopback(host: str) -> bool:
    """True if a host name or address is of this machine alone, in all its meanings."""
    with contextlib.suppress(OSError, ValueError):
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        return all(ipaddress.ip_address(item[4][0]).is_loopback for item in found)
    return False


def listen(host: str, port: int) -> socket.socket:
    """Opens the socket of a server; port 0 takes a free one.

    Raises:
        InputError: no such host, or the port is taken or forbidden.
    """
    if not 0 <= port <= _LAST_PORT:
        raise InputError(f"port: expected 0 to {_LAST_PORT}, got {port}")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, UnicodeError) as error:
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number and number > 0 else getattr(error, "strerror", None) or error
        raise InputError(f"cannot listen on {host}, port {port}: {reason}; choose another --host or --port") from error


def serve(app: Any, listener: socket.socket, limits: Limits) -> None:
    """Serves until a signal comes; then refuses new connections and answers the requests it has.

    A second signal ends it at once. The signals are raised again at the end.

    Args:
        app: an ASGI application.
        listener: the open socket.
        limits: no request takes longer than these say.
    """
    config = configure(app, limits)
    grace = config.timeout_graceful_shutdown or 0
    with signals.held() as received, _ended_by_force(received, grace + 1):
        asyncio.run(_Server(config, received).serve(sockets=[listener]))


@contextlib.contextmanager
def _ended_by_force(received: list[int], seconds: float) -> Iterator[None]:
    """Ends the process on a second signal, or some time after the first: a model that hangs holds up any other end."""
    is_over = threading.Event()

    def watch() -> None:
        deadline = math.inf
        while not is_over.wait(_TICK):
            if received:
                deadline = min(deadline, time.monotonic() + seconds)
            if len(received) > 1 or time.monotonic() > deadline:
                leave(received[0])

    watcher = threading.Thread(target=watch, name="end of the server", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join()


def configure(app: Any, limits: Limits) -> uvicorn.Config:
    """Returns uvicorn's settings for an application; see `serve`."""
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # what matters is logged by the application, in one line
    return uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=math.ceil(limits.upload_seconds + limits.answer_seconds) + 1,
    )
