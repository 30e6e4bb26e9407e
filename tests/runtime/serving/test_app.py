"""The application in process: good and bad requests, overload, clients that leave, and what it says of itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from runtime.detector import Detector
from runtime.errors import InputError
from runtime.manifest import write_manifest
from tests.support.detect_command import RING, white
from tests.support.image_files import encode

pytest.importorskip("fastapi")
pytest.importorskip("httpx")
pytest.importorskip("prometheus_client")

import httpx
from fastapi import FastAPI

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # newer versions would rather have httpx's successor
    from fastapi.testclient import TestClient

from runtime.serving.app import create_app
from runtime.serving.limits import Limits
from runtime.serving.model_file import ModelFile
from tests.support.serving import GatedBackend

WHITE, BLACK = encode(".png", white()), encode(".png", np.zeros((64, 128, 3), np.uint8))
TOKEN = "correct-horse-battery"
ALLOWED = {"Authorization": f"Bearer {TOKEN}"}


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims another size than it has."""
    data = bytearray(encode(".png", white(8, 8)))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return bytes(data)


def test_an_image_is_answered_as_by_the_detector(detector: Detector) -> None:
    with TestClient(create_app(detector)) as client:
        reply = client.post("/detect", content=WHITE, params={"name": "<b>.png"})
    record = reply.json()
    assert reply.status_code == 200
    assert (record["source"], record["width"], record["height"], record["threshold"]) == ("<b>.png", 128, 64, 0.25)
    assert record["detections"] == detector(white()).to_dicts(detector.spec.class_names)
    assert record["detections"][0] == {**RING, "score": pytest.approx(0.989, abs=0.01)}
    assert set(record["milliseconds"]) == {"decode", "wait", "preprocess", "infer", "postprocess"}
    assert min(record["milliseconds"].values()) >= 0 and record["batch"] == 1


@pytest.mark.parametrize(
    ("content", "headers", "query", "status", "detail"),
    [
        (b"", {}, "", 422, "image: the file is empty"),
        (b"hello", {}, "", 422, "not an image of a kind that is taken: JPEG, PNG"),
        (WHITE[:-20], {}, "", 422, "the image is truncated"),
        (encode(".jpg", white())[:-30], {}, "", 422, "the image is truncated"),
        (png_of(5, 5)[:40], {}, "", 422, "truncated"),
        (png_of(60_000, 60_000), {}, "", 422, "the image is 60000x60000, at most 25 million pixels are read"),
        (png_of(16_000, 16_000), {}, "", 422, "the image is 16000x16000, at most 25 million"),
        (b"P6\n99999 99999\n255\n" + bytes(30), {}, "", 422, "99999x99999, at most 25 million"),
        (b"GIF89a\xff\xff\xff\xff\0\0\0;", {}, "", 422, "65535x65535, at most 25 million"),
        (b"\0\0\0\x20ftypavif" + bytes(60), {}, "", 422, "not an image of a kind that is taken"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(60), {}, "", 422, "not an image of a kind that is taken"),
        (b"%PDF-1.7\n" + bytes(99), {}, "", 422, "not an image of a kind that is taken"),
        (bytes(3 << 20), {}, "", 413, "more than 2.097 MB"),
        (b"a", {"Content-Length": str(10**30)}, "", 413, "more than 2.097 MB"),
        (b"a", {"Content-Type": "multipart/form-data; boundary=x"}, "", 415, "not a form: curl --data-binary"),
        (WHITE, {}, "threshold=0.01", 422, "threshold: Input should be greater than or equal to 0.05"),
        (WHITE, {}, "threshold=nan", 422, "threshold: "),
        (WHITE, {}, "threshold=1e999", 422, "threshold: "),
        (WHITE, {}, "threshold=a%0ab", 422, "threshold: "),
        (WHITE, {}, "name=" + 301 * "x", 422, "name: String should have at most 300"),
    ],
    ids=lambda value: value[:12] if isinstance(value, (bytes, str)) else None,
)
def test_bad_requests_are_refused_in_one_line(
    content: bytes, headers: dict[str, str], query: str, status: int, detail: str, detector: Detector
) -> None:
    with TestClient(create_app(detector, limits=Limits(most_bytes=2 << 20))) as client:
        reply = client.post(f"/detect?{query}", content=content, headers=headers)
        assert reply.status_code == status, reply.text
        assert list(reply.json()) == ["detail"]
        assert detail in reply.json()["detail"] and "\n" not in reply.json()["detail"]
        assert client.post("/detect", content=WHITE).status_code == 200


@pytest.mark.parametrize("size", [(1, 1), (20_000, 1), (1, 20_000)])
def test_odd_sizes_are_fine(size: tuple[int, int], detector: Detector) -> None:
    with TestClient(create_app(detector)) as client:
        for suffix in (".png", ".jpg", ".bmp"):
            reply = client.post("/detect", content=encode(suffix, white(*size)))
            assert (reply.status_code, reply.json()["width"], reply.json()["height"]) == (200, *size)


def test_a_threshold_is_that_of_a_detector_with_it(write_onnx: Any, make_spec: Any, tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", make_spec(operating_threshold=0.995))
    with Detector(path, score_threshold=0.05) as detector, TestClient(create_app(detector)) as client:
        for gray in (255, 200, 150, 120):
            image = np.full((64, 128, 3), gray, np.uint8)
            for threshold in (0.05, 0.3, 0.7, 0.99):
                with Detector(path, score_threshold=threshold) as other:
                    expected = other(image).to_dicts(other.spec.class_names)
                reply = client.post(f"/detect?threshold={threshold}", content=encode(".png", image))
                assert reply.json()["detections"] == expected
        assert client.post("/detect", content=WHITE).json()["threshold"] == 0.995


def test_what_it_says_of_itself(tiny_onnx: Path, tmp_path: Path, make_spec: Any) -> None:
    path = tmp_path / "model.onnx"
    shutil.copy(tiny_onnx, path)
    curve = {"thresholds": [0.1, 0.5], "precision": [0.5, 1.0], "recall": [1.0, 0.5], "f1": [0.6, None]}
    write_manifest(path, make_spec(), [], {"operating_curve": curve})
    file = ModelFile(path)
    with Detector(path) as detector, TestClient(create_app(detector, model_file=file, batch=3)) as client:
        said = client.get("/model").json()
        assert (said["file"], said["sha256"], said["file_state"]) == ("model.onnx", file.sha256, "as opened")
        assert (said["batch"], said["threshold"], said["lowest_threshold"]) == (3, 0.25, 0.25)
        assert said["class_names"] == ["dot", "ring"] and said["spec"]["input_size"] == [64, 64]
        assert said["curve"] == curve
        assert client.get("/health").json() == {"status": "alive"}
        path.touch()
        assert client.get("/ready").json() == {"status": "ready", "file_state": "as opened"}
        path.write_bytes(b"another")
        assert client.get("/ready").json()["file_state"] == client.get("/model").json()["file_state"] == "replaced"
        assert client.post("/detect", content=WHITE).json()["detections"]  # the opened one is served on
        path.unlink()
        assert client.get("/ready").json() == {"status": "ready", "file_state": "missing"}
        assert client.get("/model").json()["sha256"] == file.sha256
        metrics = client.get("/metrics").text
    assert 'detector_requests_total{path="/detect",status="200"} 1.0' in metrics
    assert "detector_batch_size_count 1.0" in metrics and "detector_detections_total 1.0" in metrics
    assert 'detector_stage_seconds_count{stage="infer"} 1.0' in metrics


def test_a_token_guards_everything_but_the_page_and_the_probes(detector: Detector) -> None:
    with TestClient(create_app(detector, token=TOKEN)) as client:
        for path in ("/", "/health", "/ready"):
            assert client.get(path).status_code == 200
        for given in ({}, {"Authorization": "Bearer x"}, {"Authorization": f"Basic {TOKEN}"}, {"Authorization": "Bearer"}):
            assert client.post("/detect", content=WHITE, headers=given).status_code == 401
            assert client.get("/model", headers=given).status_code == client.get("/metrics", headers=given).status_code == 401
        assert client.get("/model", headers={"Authorization": b"Bearer \xe9"}).status_code == 401
        assert client.post("/detect", content=WHITE, headers=ALLOWED).status_code == 200
        assert client.get("/metrics", headers=ALLOWED).status_code == 200
        assert client.get("/openapi.json").json()["paths"]["/detect"]["post"]["security"]


@pytest.mark.parametrize(
    "token", ["", "short", "with a space in the middle", "ümläuts-are-not-ascii", "line\nbreak-and-more-of-it"]
)
def test_tokens_that_protect_nothing_are_refused(token: str, detector: Detector) -> None:
    with pytest.raises(InputError, match="token: expected at least 16 ASCII characters"):
        create_app(detector, token=token)


def test_a_server_for_this_machine_takes_no_name_of_others(detector: Detector) -> None:
    with TestClient(create_app(detector, hosts={"localhost", "[::1]"})) as client:
        for host, status in (
            ("localhost:80", 200),
            ("[::1]:8000", 200),
            ("evil.example", 403),
            ("localhost.evil.example", 403),
        ):
            assert client.get("/health", headers={"Host": host}).status_code == status


def test_no_other_page_is_needed_or_allowed(detector: Detector) -> None:
    with TestClient(create_app(detector)) as client:
        page = client.get("/")
        policy = page.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert "http" not in page.text.replace("http://www.w3.org/2000/svg", "")
        assert client.get("/docs").status_code == client.get("/redoc").status_code == 404
        assert page.headers["X-Content-Type-Options"] == "nosniff"


def test_it_is_mounted_in_another_application(detector: Detector) -> None:
    mounted = create_app(detector)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with mounted.router.lifespan_context(mounted):
            yield

    app = FastAPI(lifespan=lifespan)
    app.mount("/detector", mounted)
    forgotten = FastAPI()
    forgotten.mount("/detector", create_app(detector))  # a second one: each has its own metrics
    with TestClient(app) as client:
        assert client.post("/detector/detect", content=WHITE).status_code == 200
        assert "/detect" in client.get("/detector/openapi.json").json()["paths"]
    with TestClient(forgotten) as client:
        reply = client.post("/detector/detect", content=WHITE)
        assert (reply.status_code, reply.headers["Retry-After"]) == (503, "1")
        assert "run the lifespan of the application" in reply.json()["detail"]
        assert client.get("/detector/ready").status_code == 503


# --- many at a time


Client = httpx.AsyncClient


def run(app: FastAPI, main: Callable[[Client], Coroutine[Any, Any, None]]) -> None:
    """Runs a test in the loop of an application; no thread is left of it."""

    async def whole() -> None:
        transport = httpx.ASGITransport(app=app)
        async with app.router.lifespan_context(app), Client(transport=transport, base_url="http://localhost") as client:
            await main(client)

    before = threading.active_count()
    asyncio.run(whole())
    assert threading.active_count() == before


async def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < limit
        await asyncio.sleep(0.005)


def test_who_comes_too_late_is_told_when_to_try_again(backend: GatedBackend, detector: Detector) -> None:
    async def main(client: Client) -> None:
        backend.gate.clear()
        calls = [asyncio.create_task(client.post("/detect", content=WHITE)) for _ in range(9)]
        await until(lambda: sum(call.done() for call in calls) == 3)
        refused = [call.result() for call in calls if call.done()]
        assert {reply.status_code for reply in refused} == {503}
        assert all(int(reply.headers["Retry-After"]) >= 1 for reply in refused)
        assert refused[0].json()["detail"] == "6 images are waiting or running, which is the limit; try again"
        assert (await client.get("/health")).status_code == (await client.get("/ready")).status_code == 200
        backend.gate.set()
        assert sorted(reply.status_code for reply in await asyncio.gather(*calls)) == 6 * [200] + 3 * [503]
        assert sum(backend.sizes) == 6 and max(backend.sizes) > 1
        assert (await client.post("/detect", content=WHITE)).status_code == 200

    run(create_app(detector, batch=4, limits=Limits(most_images=6)), main)


def test_what_takes_too_long_is_given_up(backend: GatedBackend, detector: Detector) -> None:
    async def main(client: Client) -> None:
        backend.gate.clear()
        replies = await asyncio.gather(*(client.post("/detect", content=WHITE) for _ in range(3)))
        assert {reply.status_code for reply in replies} == {504}
        assert replies[0].json()["detail"] == "no answer within 0.2 s; try again later"
        await asyncio.sleep(0.2)  # its run began after the requests
        assert (await client.get("/ready")).json() == {"status": "the model has been running for more than 0.2 s"}
        assert (await client.post("/detect", content=WHITE)).status_code == 503
        backend.gate.set()
        await asyncio.sleep(0.1)
        assert (await client.get("/ready")).status_code == 200
        assert (await client.post("/detect", content=WHITE)).status_code == 200
        assert backend.sizes == [1, 1]  # those that nobody waited for were not run

    run(create_app(detector, batch=1, limits=Limits(answer_seconds=0.2)), main)


def test_a_client_that_leaves_takes_its_work_along(backend: GatedBackend, detector: Detector) -> None:
    app = create_app(detector, batch=1)

    async def leaving(gone: asyncio.Event, part: bytes) -> list[Any]:
        sent: list[Any] = []
        parts = [{"type": "http.request", "body": part, "more_body": part != WHITE}]

        async def receive() -> Any:
            if parts:
                return parts.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/detect",
            "query_string": b"",
            "headers": [(b"content-length", b"999")],
        }
        await app(
            {**scope, "http_version": "1.1", "scheme": "http", "server": None, "client": None, "root_path": ""}, receive, send
        )
        return sent

    async def main(client: Client) -> None:
        backend.gate.clear()
        first = asyncio.create_task(client.post("/detect", content=WHITE))
        await until(lambda: backend.sizes == [1])
        gone = asyncio.Event()
        tasks = [asyncio.create_task(leaving(gone, part)) for part in (WHITE, WHITE, WHITE[:50])]
        await asyncio.sleep(0.1)
        gone.set()
        for sent in await asyncio.wait_for(asyncio.gather(*tasks), 5):
            assert [message["status"] for message in sent if "status" in message] == [499]
        backend.gate.set()
        assert (await first).status_code == 200
        assert backend.sizes == [1]
        assert 'status="499"} 3.0' in (await client.get("/metrics")).text

    run(app, main)


def test_an_error_concerns_its_own_image(backend: GatedBackend, detector: Detector, caplog: pytest.LogCaptureFixture) -> None:
    async def main(client: Client) -> None:
        backend.fails = True
        backend.gate.clear()
        calls = [asyncio.create_task(client.post("/detect", content=data)) for data in (WHITE, WHITE, BLACK, WHITE)]
        await asyncio.sleep(0.2)
        backend.gate.set()
        replies = await asyncio.gather(*calls)
        assert [reply.status_code for reply in replies] == [200, 200, 500, 200]
        assert replies[2].json() == {"detail": "a fault of the server; its log says more"}
        assert backend.sizes.count(1) >= 2  # each of the failed batch was run alone

    run(create_app(detector, batch=4), main)
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert line.startswith("unexpected: RuntimeError: no such kernel") and "\n" not in line


def test_bodies_that_are_being_sent_are_bounded_together(detector: Detector) -> None:
    async def main(client: Client) -> None:
        more = asyncio.Event()

        async def slowly() -> AsyncIterator[bytes]:
            yield bytes(900)
            await more.wait()

        calls = [asyncio.create_task(client.post("/detect", content=slowly())) for _ in range(9)]
        await until(lambda: any(call.done() for call in calls))
        more.set()
        statuses = sorted([reply.status_code for reply in await asyncio.gather(*calls)])
        assert statuses == 8 * [422] + [503]

    run(create_app(detector, limits=Limits(most_bytes=1000)), main)


def test_a_body_that_comes_slowly_is_given_up(detector: Detector) -> None:
    async def main(client: Client) -> None:
        async def slowly() -> AsyncIterator[bytes]:
            for byte in WHITE:
                yield bytes([byte])
                await asyncio.sleep(0.05)

        reply = await client.post("/detect", content=slowly())
        assert reply.status_code == 408
        assert reply.json()["detail"] == "the image did not arrive within 0.2 s; send a smaller one"

    run(create_app(detector, limits=Limits(upload_seconds=0.2)), main)


def test_limits_are_checked() -> None:
    with pytest.raises(InputError, match="limits: most_images: expected a number above 0, got 0"):
        Limits(most_images=0)


# --- its OpenAPI document


def test_requests_made_up_from_its_own_document(detector: Detector) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings, strategies
    from schemathesis.specs.openapi.checks import positive_data_acceptance as accepts  # other bytes than images are refused

    app, seen = create_app(detector, limits=Limits(most_bytes=1 << 16)), set[tuple[str, int]]()
    with TestClient(app) as client:
        document = client.get("/openapi.json").json()
        assert json.dumps(document)
        for operation in schemathesis.openapi.from_dict(document).get_all_operations():

            @given(case=operation.ok().as_strategy(), is_image=strategies.booleans())
            @settings(max_examples=15, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
            def check(case: Any, is_image: bool) -> None:
                if is_image and case.body is not schemathesis.core.NOT_SET:
                    case.body = WHITE
                request = case.as_transport_kwargs(base_url="http://testserver")
                request.pop("cookies")
                response = client.request(
                    **{"content" if key == "data" else key: value for key, value in request.items() if value is not None}
                )
                assert response.status_code < 500, response.text
                case.validate_response(schemathesis.Response.from_any(response), excluded_checks=() if is_image else [accepts])
                seen.add((case.path, response.status_code))

            check()
    assert {("/detect", 200), ("/detect", 422), ("/model", 200), ("/metrics", 200), ("/ready", 200)} <= seen


def test_images_survive_their_way(detector: Detector) -> None:
    """The size in the answer is that of the image as viewers show it."""
    image = np.zeros((40, 90, 3), np.uint8)
    with TestClient(create_app(detector)) as client:
        for suffix in (".png", ".jpg", ".webp", ".bmp", ".tiff", ".ppm"):
            reply = client.post("/detect", content=cv2.imencode(suffix, image)[1].tobytes())
            assert (reply.json()["width"], reply.json()["height"]) == (90, 40), suffix
