"""A headless Chromium driven through its debugging protocol."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="no Chromium found; install chromium or set CHROMIUM to its path")


class Tab:
    """One page.

    Attributes:
        told: messages of its console and errors of its scripts and policies.
        requests: addresses that it asked for.
    """

    def __init__(self, socket: Any) -> None:
        self._socket, self._number = socket, 0
        self.told: list[str] = []
        self.requests: list[str] = []

    async def call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        await self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(await asyncio.wait_for(self._socket.recv(), 30))
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            if message.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
                self.told.append(json.dumps(message["params"]))
            if message.get("method") == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])

    async def run(self, script: str) -> Any:
        """Evaluates an expression; a promise is awaited."""
        done = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    async def until(self, condition: str, seconds: float = 15) -> None:
        """Waits until an expression is true."""
        limit = time.monotonic() + seconds
        while not await self.run(f"Boolean({condition})"):
            assert time.monotonic() < limit, (condition, await self.run("document.body.innerText"), self.told)
            await asyncio.sleep(0.05)

    async def choose_file(self, selector: str, path: Path) -> None:
        root = (await self.call("DOM.getDocument"))["root"]["nodeId"]
        node = (await self.call("DOM.querySelector", nodeId=root, selector=selector))["nodeId"]
        await self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])


@contextlib.asynccontextmanager
async def open_tab(address: str, width: int = 1200) -> AsyncIterator[Tab]:
    import websockets

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0")
        command = [CHROMIUM, *flags, f"--user-data-dir={profile}", f"--window-size={width},900", "about:blank"]
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port = Path(profile) / "DevToolsActivePort"
            limit = time.monotonic() + 60
            while not (port.exists() and port.read_text().count("\n")):
                assert time.monotonic() < limit and browser.poll() is None, "Chromium does not start"
                await asyncio.sleep(0.05)
            number, path = port.read_text().split()[:2]
            options: dict[str, Any] = {"max_size": None, "proxy": None}
            async with websockets.connect(f"ws://127.0.0.1:{number}{path}", **options) as whole:
                await whole.send(json.dumps({"id": 1, "method": "Target.getTargets"}))
                found = json.loads(await whole.recv())["result"]["targetInfos"]
            (target,) = [item["targetId"] for item in found if item["type"] == "page"]
            async with websockets.connect(f"ws://127.0.0.1:{number}/devtools/page/{target}", **options) as socket:
                tab = Tab(socket)
                for domain in ("Runtime", "Log", "Network", "Page", "DOM"):
                    await tab.call(f"{domain}.enable")
                size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
                await tab.call("Emulation.setDeviceMetricsOverride", **size)
                await tab.call("Page.navigate", url=address)
                await tab.until(f"document.readyState === 'complete' && location.href.startsWith({json.dumps(address)})")
                yield tab
        finally:
            browser.terminate()
            browser.wait(20)
