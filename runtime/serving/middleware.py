"""Wraps the application: counts requests, sets headers, and leaves no body unread and no error without an answer."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Collection, MutableMapping
from typing import Any, Callable, Optional

from runtime.console.terminal import unexpected
from runtime.serving.metrics import Metrics

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

_HEADERS = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))
_DRAIN_BYTES, _DRAIN_SECONDS = 8 << 20, 2.0


class Guard:
    """ASGI middleware of a server.

    Args:
        app: the application.
        metrics: counts its requests.
        hosts: names that the header Host may have; None for any. A server for this machine alone takes no others, so that no
            web page can reach it by a name of its own.
    """

    def __init__(self, app: Application, metrics: Metrics, hosts: Optional[Collection[str]] = None) -> None:
        self._app, self._metrics, self._hosts = app, metrics, hosts

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        exchange = _Exchange(scope, receive, send)
        try:
            if self._hosts is not None and _host(scope) not in self._hosts:
                await exchange.refuse(403, f"host: expected one of {', '.join(sorted(self._hosts))}; or start with a token")
            else:
                await self._app(scope, exchange.receive, exchange.send)
        except Exception as error:
            log.error("%s", unexpected(error))
            log.debug("details:", exc_info=error)
            if exchange.status is None:
                await exchange.refuse(500, "a fault of the server; its log says more")
            else:
                raise
        finally:
            if exchange.status is not None:
                path = getattr(scope.get("route"), "path", "other")
                self._metrics.see_request(path, exchange.status, time.perf_counter() - start)


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Message, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        self._receive, self._send = receive, send
        self._is_read = b"transfer-encoding" not in headers and headers.get(b"content-length", b"0") == b"0"
        self._is_asked_for = b"expect" not in headers  # otherwise the body comes once somebody reads it
        self.status: Optional[int] = None

    async def receive(self) -> Message:
        self._is_asked_for = True
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            self._is_read = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._drain()
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), *_HEADERS]
            if not self._is_read:
                message["headers"].append((b"connection", b"close"))
        await self._send(message)

    async def _drain(self) -> None:
        """Reads what is left of a body that is refused: a client that is still sending would not see the answer."""
        deadline, left = time.monotonic() + _DRAIN_SECONDS, _DRAIN_BYTES
        while not self._is_read and self._is_asked_for and left > 0:
            try:
                message = await asyncio.wait_for(self.receive(), max(deadline - time.monotonic(), 0.001))
            except asyncio.TimeoutError:
                return
            left -= len(message.get("body", b""))

    async def refuse(self, status: int, detail: str) -> None:
        content = json.dumps({"detail": detail}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": content})


def _host(scope: Message) -> str:
    """Returns the header Host without the port."""
    host: str = dict(scope["headers"]).get(b"host", b"").decode("latin-1").lower()
    return host.rpartition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
