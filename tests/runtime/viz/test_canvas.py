"""Text of any script is drawn so that it can be read, with the font of the extra `fonts` and without."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import numpy as np
import pytest

from runtime.detections import Detections
from runtime.viz import canvas, glyphs
from runtime.viz.annotate import draw
from runtime.viz.canvas import INK, PAPER, class_label, paper, shorten, text_size, upwards, write
from runtime.viz.confusion_plot import plot_confusion

HAS_FONT = all(importlib.util.find_spec(name) for name in ("PIL", "noto_cjk_sans_otc"))
NAMES = ("圆形", "方形", "carré", "звезда", "三角 △", "Ωμέγα", "ねこ", "고양이", "عربي", "हिन्दी", "ไทย", "🐱", "plain")


@pytest.fixture(params=["font", "no font"], autouse=True)
def font(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "no font":
        monkeypatch.setattr(glyphs, "_font", lambda pixels: None)
    elif not HAS_FONT:
        pytest.skip("the extra `fonts` is not installed")
    canvas._legible.cache_clear()
    yield request.param
    canvas._legible.cache_clear()


def drawn(text: str, size: float = 0.5) -> np.ndarray:
    width, height, depth = text_size(text, size)
    image = paper(width + 8, height + depth + 8)
    write(image, text, (4, height + 4), size, INK)
    return image


@pytest.mark.parametrize("size", [0.4, 0.5, 1.2])
@pytest.mark.parametrize("name", NAMES)
def test_text_stays_in_the_room_that_it_asks_for(name: str, size: float) -> None:
    image = drawn(name, size)
    assert (image != PAPER).any()
    image[3:-3, 3:-3] = PAPER  # a line may be wider than a pixel
    assert (image == PAPER).all()


def test_different_names_look_different_and_none_is_question_marks() -> None:
    labels = [class_label(name, index) for index, name in enumerate(NAMES)]
    images = {drawn(label).tobytes() for label in labels}
    assert len(images) == len(NAMES) and not images & {drawn("?" * count).tobytes() for count in range(1, 9)}


def test_a_name_that_is_written_in_latin_letters_has_its_id(font: str) -> None:
    assert class_label("plain", 3) == "plain" and class_label("🐱", 3) == ":cat: #3"
    assert class_label("圆形", 0) == ("YuanXing #0" if font == "no font" else "圆形")
    assert class_label("звезда", 7) == ("zvezda #7" if font == "no font" else "звезда")


@pytest.mark.parametrize("corner", [(-30, -5), (-5, 30), (95, 20), (40, 200), (200, -200)])
def test_text_is_cut_at_the_border(corner: tuple[int, int]) -> None:
    for name in NAMES:
        image = paper(100, 40)
        write(image, name, corner, 1.0, INK)
        assert image.shape == (40, 100, 3)


def test_long_names_are_shortened_and_turned() -> None:
    for name in NAMES:
        assert text_size(shorten(name * 30, 0.5, 100), 0.5)[0] <= 100
        width, height, depth = text_size(name, 0.5)
        assert upwards(name, 0.5, INK).shape == (width, height + depth, 3)


def test_every_picture_shows_them() -> None:
    boxes = [(10, 20 + 20 * index, 200, 36 + 20 * index) for index in range(len(NAMES))]
    found = Detections.from_arrays(boxes, [0.9] * len(NAMES), list(range(len(NAMES))))
    image = draw(np.full((320, 240, 3), 60, np.uint8), found, NAMES)
    marks = draw(np.full((320, 240, 3), 60, np.uint8), found, ["?" * len(name) for name in NAMES])
    assert (image != marks).any()
    counts = np.ones((len(NAMES) + 1,) * 2)
    assert plot_confusion(counts, NAMES, "").shape[1] > 200
