"""The command in a process of its own: signals, slow clients, what it refuses to start with."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from runtime import serve
from runtime.detector import Detector
from runtime.serving.limits import Limits
from tests.support.detect_command import Command, white
from tests.support.image_files import encode
from tests.support.serving import head, received, running, send, served

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from runtime.serving import server
from runtime.serving.app import create_app

WHITE = encode(".png", white())
ROOT = Path(__file__).parents[3]


def test_without_its_packages_it_names_the_extra(command: Command, tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "runtime.serving.app", raising=False)
    code, _, err = command(serve.main, "--engine", tiny_onnx)
    assert (code, err) == (3, "error: fastapi is not installed; run `pip install 'yolov3-asff-tensorrt[serve]'`\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], r"--host 0.0.0.0: others can reach it; set DETECTOR_TOKEN or --token"),
        (["--host", "::"], r"--host ::: others can reach it"),
        (["--host", ""], r"--host : others can reach it"),
        (["--host", "0.0.0.0", "--token", "short"], r"token: expected at least 16 ASCII characters"),
        (["--host", "no.such.host.invalid", "--token", 20 * "x"], r"cannot listen on no.such.host.invalid, port 0: .*; choose"),
        (["--port", "70000"], r"port: expected 0 to 65535, got 70000"),
        (["--conf", "0.3", "--min-conf", "0.4"], r"--min-conf 0.4: is above the threshold of 0.3; set --conf too"),
        (["--max-megabytes", "0"], r"argument --max-megabytes: expected a number above 0 and at most 1e\+09, got 0"),
        (["--max-megapixels", "1e308"], r"argument --max-megapixels: expected a number above 0 and at most 1e\+09, got 1e308"),
        (["--timeout", "inf"], r"argument --timeout: expected a number above 0 and at most 1e\+09, got inf"),
        (["--engine", "missing.onnx"], r"missing.onnx: cannot be read \(No such file or directory\)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_it_does_not_start_with(
    arguments: list[str], message: str, command: Command, tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(serve.TOKEN_VARIABLE, raising=False)
    code, out, err = command(serve.main, "--engine", tiny_onnx, "--port", "0", *arguments)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert re.match("error: " + message, line), line


def test_a_taken_port(command: Command, tiny_onnx: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = command(serve.main, "--engine", tiny_onnx, "--port", port)
    assert (code, err) == (
        2,
        f"error: cannot listen on 127.0.0.1, port {port}: Address already in use; choose another --host or --port\n",
    )


def test_sigterm_answers_what_it_has_and_refuses_the_rest(tiny_onnx: Path) -> None:
    with served(tiny_onnx) as (process, port):
        half = send(port, head(len(WHITE)) + WHITE[:20])  # a request that is under way
        idle = send(port, b"")
        unfinished = send(port, b"POST /det")
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        with pytest.raises(ConnectionRefusedError):
            send(port, b"")
        assert received(idle) == received(unfinished) == b""
        half.sendall(WHITE[20:])
        answer = received(half)
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["detections"][0]["class_name"] == "ring"
        assert process.wait(10) == 143
        assert process.stderr is not None and process.stderr.read() == "interrupted\n"


def test_a_second_signal_ends_it_at_once(tiny_onnx: Path) -> None:
    with served(tiny_onnx) as (process, port):
        with send(port, head(len(WHITE)) + WHITE[:20]):
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 130
        assert process.stderr is not None and process.stderr.read() == "interrupted\n"


HANGING = """
import sys, threading
from runtime import cli
from runtime.detector import Detector
from runtime.serving.app import create_app
from runtime.serving.limits import Limits
from runtime.serving.server import listen, serve

def main():
    detector, limits = Detector(sys.argv[1]), Limits(upload_seconds=0.2, answer_seconds=0.2)
    detector.timed = lambda *given: threading.Event().wait()
    listener = listen("127.0.0.1", 0)
    print(listener.getsockname()[1], flush=True)
    serve(create_app(detector, limits=limits), listener, limits)
    return 0

cli.run(main)
"""


@pytest.mark.parametrize(("numbers", "longest"), [([signal.SIGTERM], 6), ([signal.SIGTERM, signal.SIGINT], 1.5)])
def test_a_model_that_hangs_does_not_hold_up_the_end(numbers: list[signal.Signals], longest: float, tiny_onnx: Path) -> None:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HANGING, str(tiny_onnx)], cwd=ROOT, text=True, **pipes) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            port = int(process.stdout.readline())
            request = head(len(WHITE), more="Connection: close\r\n") + WHITE
            assert received(send(port, request)).startswith(b"HTTP/1.1 504")
            start = time.monotonic()
            for number in numbers:
                process.send_signal(number)
                time.sleep(0.2)
            assert process.wait(30) == 143 and time.monotonic() - start < longest
            assert process.stderr.read().splitlines()[-1] == "interrupted"
        finally:
            process.kill()


def test_clients_that_are_slow_or_refused_get_an_answer_and_leave_nothing(
    tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server runs in a thread of this process, so that its threads and descriptors can be counted."""
    monkeypatch.setattr(server, "_HEAD_SECONDS", 0.3)
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    limits = Limits(most_bytes=100_000, upload_seconds=0.5)
    body = WHITE + bytes(50_000)
    requests = [
        (b"", b"408 Request Timeout"),  # says nothing
        (b"POST /detect HTTP/1.1\r\nHost: lo", b"408 Request Timeout"),
        (head(len(body)) + body[:1000], b"408 Request Timeout"),
        (head(10**9) + bytes(2000), b"413 "),
        (head(200_000) + bytes(200_000), b"413 "),
        (head(50_000, "/nowhere") + bytes(50_000), b"404 "),
        (head(50_000, "/nowhere") + bytes(500), b"404 "),
        (b"\x16\x03\x01\x02\x00\x01\x00" + b"\r\n\r\n", b"400 "),  # TLS
        (b"POST /detect HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", b"400 "),
        (head(9, more="Expect: 100-continue\r\nContent-Type: multipart/x\r\n"), b"415 "),
    ]
    with Detector(tiny_onnx) as detector, running(create_app(detector, limits=limits)) as port:
        slow = [(send(port, data), status) for data, status in requests * 5]
        with send(port, head(len(WHITE)) + WHITE + b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n") as good:
            start = time.monotonic()
            answer = received(good)
            assert answer.count(b"HTTP/1.1 200 OK") == 2 and time.monotonic() - start < 2  # they do not hold up the others
        for connection, status in slow:
            if status in (b"404 ", b"413 "):
                connection.shutdown(socket.SHUT_WR)
            answer = received(connection)
            assert answer.partition(b" ")[2].startswith(status), (answer, status)
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == (descriptors, threads)


def test_connections_are_bounded(tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_CONNECTIONS", 4)
    with Detector(tiny_onnx) as detector, running(create_app(detector)) as port:
        held = [send(port, b"") for _ in range(4)]
        time.sleep(0.1)
        assert received(send(port, b"")).startswith(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n")
        for connection in held:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert received(connection).startswith(b"HTTP/1.1 200 OK")
        assert received(send(port, b"GET / HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")


def test_the_token_comes_from_the_environment_too(tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(serve.TOKEN_VARIABLE, 20 * "t")
    with served(tiny_onnx, "--host", "0.0.0.0") as (process, port):
        del process
        request = b"GET /model HTTP/1.1\r\nHost: anything\r\nConnection: close\r\n%s\r\n"
        assert received(send(port, request % b"")).startswith(b"HTTP/1.1 401 ")
        assert received(send(port, request % b"Authorization: Bearer tttttttttttttttttttt\r\n")).startswith(b"HTTP/1.1 200 ")
