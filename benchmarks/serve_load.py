"""Puts a served model under load: clients that send without a pause, some of them rude; fails on any error but 503.

It starts `python -m runtime.serve` itself, and needs the extra `serve` and httpx.

Example: `python -m benchmarks.serve_load --engine model.onnx --seconds 600`
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import logging
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import cv2
import httpx
import numpy as np

from runtime import cli
from runtime.console.startup import exit_code
from runtime.errors import CheckFailed

_GROWTH = 32.0  # MB that the memory may grow by after the first third: pools and caches of a busy process fill up slowly
_BACK_OFF = 0.05  # seconds that a refused client waits at first; much less than it is told to, to keep the load up
_RUDE = 6  # every so many requests a client leaves before the answer


@dataclass
class Load:
    """What a load test saw.

    Attributes:
        statuses: number of answers by HTTP status.
        errors: of connections, or answers that should not be.
        seconds: of each request that was answered with detections.
        left: requests whose client went away.
        memory: (seconds since the start, resident MB) of the server.
        batches: number of runs by size; of several sizes, the upper bound.
    """

    statuses: collections.Counter[int] = field(default_factory=collections.Counter)
    errors: collections.Counter[str] = field(default_factory=collections.Counter)
    seconds: list[float] = field(default_factory=list)
    left: int = 0
    memory: list[tuple[float, float]] = field(default_factory=list)
    batches: dict[str, int] = field(default_factory=dict)

    @property
    def growth(self) -> float:
        """MB by which the last third of the time took more than the middle one, by medians."""
        end = self.memory[-1][0]
        thirds = [[value for at, value in self.memory if start <= at / end <= start + 1 / 3] for start in (1 / 3, 2 / 3)]
        before, after = (statistics.median(values) for values in thirds)
        return after - before

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        p50, p99 = (1e3 * float(np.percentile(self.seconds or [np.nan], share)) for share in (50, 99))
        return {
            "requests": sum(self.statuses.values()) + self.left,
            "statuses": dict(sorted(self.statuses.items())),
            "left": self.left,
            "errors": dict(self.errors),
            "p50_ms": round(p50, 1),
            "p99_ms": round(p99, 1),
            "memory_mb": [round(self.memory[0][1], 1), round(self.memory[-1][1], 1)],
            "memory_growth_mb": round(self.growth, 2),
            "batches": self.batches,
        }


@contextlib.contextmanager
def served(engine: str, arguments: list[str]) -> Iterator[str]:
    """Starts the server on a free port and ends it by SIGTERM; yields its address."""
    command = [sys.executable, "-m", "runtime.serve", "--engine", engine, "--port", "0", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        lines = []
        for line in process.stderr or ():
            lines.append(line)
            found = re.search(r"serving .* at (http://.*)/ ", line)
            if found:
                yield found[1]
                break
        else:
            raise CheckFailed(f"the server did not start: {' '.join(lines)}")
        process.send_signal(signal.SIGTERM)
        if process.wait(60) != exit_code(signal.SIGTERM):
            raise CheckFailed(f"the server ended with exit code {process.returncode} on SIGTERM")
    finally:
        process.kill()
        process.communicate()


def images(count: int = 8) -> list[bytes]:
    """Makes JPEG and PNG files of several sizes, of noise."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        height, width = (int(side) for side in rng.integers(100, 700, 2))
        coarse = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), np.uint8)
        suffix = ".jpg" if number % 4 else ".png"
        made.append(cv2.imencode(suffix, cv2.resize(coarse, (width, height)))[1].tobytes())
    return made


async def put_under_load(address: str, clients: int, seconds: float) -> Load:
    """Has clients send images without a pause for some time."""
    load, files, start = Load(), images(), time.monotonic()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=60, limits=limits, trust_env=False) as http:
        tasks = [asyncio.create_task(_send(http, load, files, number, start + seconds)) for number in range(clients)]
        while time.monotonic() < start + seconds:
            await asyncio.sleep(min(1.0, seconds / 20))
            text = (await http.get("/metrics")).text
            load.memory.append((time.monotonic() - start, _metric(text, "process_resident_memory_bytes") / 1e6))
        await asyncio.gather(*tasks)
        load.batches = _batches((await http.get("/metrics")).text)
    return load


async def _send(http: httpx.AsyncClient, load: Load, files: list[bytes], number: int, end: float) -> None:
    rng = np.random.default_rng(number)
    wait = _BACK_OFF
    while time.monotonic() < end:
        start = time.monotonic()
        request = http.post("/detect", content=files[int(rng.integers(len(files)))])
        try:
            if number % _RUDE == _RUDE - 1 and rng.random() < 0.5:
                await asyncio.wait_for(request, float(rng.random()) / 50)
                continue
            reply = await request
        except asyncio.TimeoutError:
            load.left += 1
            continue
        except httpx.HTTPError as error:
            load.errors[type(error).__name__] += 1
            continue
        load.statuses[reply.status_code] += 1
        if reply.status_code == 200:
            load.seconds.append(time.monotonic() - start)
            wait = _BACK_OFF
        elif reply.status_code == 503 and reply.headers.get("Retry-After", "").isdigit():
            await asyncio.sleep(wait)
            wait = min(2 * wait, float(reply.headers["Retry-After"]))
        else:
            load.errors[f"{reply.status_code}: {reply.text[:100]}"] += 1


def _metric(text: str, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else float("nan")


def _batches(text: str) -> dict[str, int]:
    """Returns the number of runs by size, from the cumulative counts of the metrics."""
    found = re.findall(r'^detector_batch_size_bucket\{le="(\S+)"\} (\S+)$', text, re.MULTILINE)
    counts = [(size, int(float(value))) for size, value in found]
    steps = zip(counts, [("", 0), *counts])
    return {size.removesuffix(".0"): count - before for (size, count), (_, before) in steps if count > before}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(
        "benchmarks.serve_load",
        "Put a served model under load; fails on any error but 503, and on memory that grows.",
        "python -m benchmarks.serve_load --engine model.onnx --seconds 600",
    )
    parser.add_argument("--engine", required=True, help="the model")
    parser.add_argument("--clients", type=cli.positive, default=24, help="that send without a pause (default: 24)")
    parser.add_argument("--seconds", type=cli.positive_number, default=60.0, help="(default: 60)")
    parser.add_argument("--json", action="store_true", help="metrics as JSON on stdout")
    parser.add_argument("server", nargs="*", help="after --: further arguments of runtime.serve")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs every request
    with served(options.engine, options.server) as address:
        load = asyncio.run(put_under_load(address, options.clients, options.seconds))
    found = load.to_dict()
    print(json.dumps(found, indent=1) if options.json else "\n".join(f"{name:18}{value}" for name, value in found.items()))
    if load.errors or not load.seconds:
        raise CheckFailed(f"requests failed other than by 503: {dict(load.errors)}")
    if load.growth > _GROWTH:
        raise CheckFailed(f"the server's memory grew by {load.growth:.1f} MB, at most {_GROWTH:g} are fine")
    return 0


if __name__ == "__main__":
    cli.run(main)
