"""The page in a browser: boxes, threshold without a new request, token, names that are HTML, phone width, both schemes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from runtime.detector import Detector
from runtime.manifest import write_manifest
from runtime.media.image import write_image
from tests.support.browser import Tab, needs_chromium, open_tab
from tests.support.detect_command import white
from tests.support.serving import running

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
pytest.importorskip("websockets")
pytest.importorskip("uvicorn")

from runtime.serving.app import create_app
from runtime.serving.model_file import ModelFile

NASTY = "<img src=x onerror=alert(1)>"
CURVE = {"thresholds": [0.1, 0.5, 0.9], "precision": [0.5, 0.75, 1.0], "recall": [1.0, 0.5, None], "f1": [0.6, 0.6, None]}


def browse(address: str, main: Callable[[Tab], Coroutine[Any, Any, None]], width: int = 1200) -> None:
    async def whole() -> None:
        async with open_tab(address, width) as tab:
            await main(tab)

    asyncio.run(whole())


@pytest.fixture
def model(write_onnx: Callable[..., Path], make_spec: Callable[..., Any], tmp_path: Path) -> Path:
    spec = make_spec(class_names=("dot", NASTY))
    path = write_onnx(tmp_path / "model.onnx", spec)
    write_manifest(path, spec, [], {"operating_curve": CURVE})
    return path


@needs_chromium
def test_boxes_follow_the_slider_without_a_new_request(model: Path, tmp_path: Path) -> None:
    image = tmp_path / "<b>odd&name.png"
    write_image(image, white(640, 320))

    async def main(tab: Tab) -> None:
        await tab.until("document.querySelector('#operating:not([hidden]) #guide')")
        await tab.choose_file("#file", image)
        await tab.until("document.querySelectorAll('#boxes rect').length === 1")
        await tab.until("get('image').complete && get('image').naturalWidth === 640")
        assert await tab.run("get('boxes').getAttribute('viewBox')") == "0 0 640 320"
        box = await tab.run(
            "['x', 'y', 'width', 'height'].map(n => Number(document.querySelector('#boxes rect').getAttribute(n)))"
        )
        assert box == [320, 20, 160, 120]
        shown, drawn = [
            await tab.run(
                f"(({{left, top, width, height}}) => [left, top, width, height])(get('{name}').getBoundingClientRect())"
            )
            for name in ("image", "boxes")
        ]
        assert shown == pytest.approx(drawn, abs=1)  # the boxes lie on the image
        assert await tab.run("get('rows').textContent.includes(model.class_names[1])")
        assert (await tab.run("get('status').textContent")).startswith("<b>odd&name.png: 640 × 320")
        assert await tab.run("document.querySelectorAll('main img').length") == 1  # names are text
        assert "infer" in await tab.run("get('times').textContent")
        assert "precision 50.0 %, recall 100.0 %" in await tab.run("get('point').textContent")
        requests = len(tab.requests)
        for threshold, count in (("1", 0), ("0.05", 1)):
            await tab.run(f"(get('threshold').value = {threshold}, get('threshold').dispatchEvent(new Event('input')))")
            assert await tab.run("document.querySelectorAll('#boxes rect').length") == count
        assert "recall –" not in await tab.run("get('point').textContent")
        await tab.run("0")
        posts = [address for address in tab.requests if "detect?" in address]
        assert len(posts) == 1 and posts[0].endswith("detect?threshold=0.05")
        assert len(tab.requests) == requests
        assert all(address.startswith((tab.requests[0], "blob:", "data:")) for address in tab.requests), tab.requests
        assert tab.told == []

    file = ModelFile(model)
    with Detector(model, score_threshold=0.05) as detector, running(create_app(detector, model_file=file)) as port:
        browse(f"http://127.0.0.1:{port}/", main)


@needs_chromium
def test_a_phone_a_token_a_dropped_file_and_a_bad_one(model: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    token = "correct-horse-battery"

    async def main(tab: Tab) -> None:
        await tab.until("!get('access').hidden && get('status').textContent.includes('a token is needed')")
        await tab.run(f"(get('token').value = {json.dumps(token)}, get('access').requestSubmit())")
        await tab.until("model && get('access').hidden")
        drop = "const data = new DataTransfer(); data.items.add(new File(%s, 'x.png'));"
        drop += "document.body.dispatchEvent(new DragEvent('drop', {bubbles: true, cancelable: true, dataTransfer: data}))"
        await tab.run("(() => {" + drop % "['junk']" + "})()")
        await tab.until("get('status').className === 'problem'")
        assert "not an image of a kind that is taken" in await tab.run("get('status').textContent")
        canvas = (
            "await new Promise(done => Object.assign(document.createElement('canvas'), {width: 64, height: 900}).toBlob(done))"
        )
        await tab.run("(async () => { const blob = " + canvas + ";" + drop % "[blob]" + "})()")
        await tab.until("answer && answer.height === 900")
        unnamed = "[...document.querySelectorAll('input')].filter(item => !item.labels.length).length"
        assert await tab.run(unnamed) == 0
        assert await tab.run("document.documentElement.scrollWidth <= innerWidth")  # nothing is cut off at the side
        grounds = []
        for scheme in ("light", "dark"):
            await tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            grounds.append(await tab.run("getComputedStyle(document.body).backgroundColor"))
        assert grounds == ["rgb(255, 255, 255)", "rgb(18, 21, 26)"]
        await tab.run(
            "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.hacked = 1'}))"
        )
        assert await tab.run("window.hacked") is None  # the policy lets no other script run

    with Detector(model, score_threshold=0.05) as detector, running(create_app(detector, token=token)) as port:
        browse(f"http://127.0.0.1:{port}/", main, width=390)
