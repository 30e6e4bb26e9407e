"""Tests the page in a browser: both color schemes, its script, and that nothing is cut off."""

from __future__ import annotations

import subprocess
from pathlib import Path

import cv2
import pytest

from runtime.media.image import read_image
from tests.support.browser import CHROMIUM, needs_chromium


def browse(page: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    profile = f"--user-data-dir={page.parent / 'profile'}"
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr", "--v=0", profile)
    return subprocess.run([CHROMIUM, *flags, *arguments, page.as_uri()], capture_output=True, text=True, timeout=120)


@needs_chromium
@pytest.mark.parametrize(("scheme", "number"), [("dark", 0), ("light", 1)])
def test_a_browser_shows_the_page_without_errors(scheme: str, number: int, page: Path, tmp_path: Path) -> None:
    image = tmp_path / "shot.png"
    scheme_flag = f"--blink-settings=preferredColorScheme={number}"
    result = browse(page, scheme_flag, f"--screenshot={image}", "--window-size=1280,4000")
    assert result.returncode == 0, result.stderr
    assert "CONSOLE" not in result.stderr
    shot = read_image(image)
    ground = shot[2, 2].mean()
    assert ground < 60 if scheme == "dark" else ground > 230
    # The charts' bars and the images' noise are there: strong colors, away from the ground's gray.
    saturation = cv2.cvtColor(shot, cv2.COLOR_BGR2HSV)[..., 1]
    assert (saturation > 100).sum() > 20_000


@needs_chromium
def test_the_script_runs_and_a_broken_one_would_be_noticed(page: Path) -> None:
    result = browse(page, "--dump-dom")
    assert result.stdout.count('class="chart') == 12
    figures = result.stdout.split('id="histograms-0"')[1].split("</div>")[0]
    assert [part.split(">")[0] for part in figures.split("<figure")[1:]] == ["", ' hidden=""']  # one of two shown
    content = page.read_text(encoding="utf-8")
    page.write_text(content.replace("<script>", "<script>undefinedFunction();"), encoding="utf-8")
    assert "undefinedFunction is not defined" in browse(page, "--dump-dom").stderr


OVERFLOWS = """
const wide = (item) => item.scrollWidth > item.clientWidth + 1;
const found = wide(document.documentElement) ? ["page"] : [];
for (const item of document.querySelectorAll("%s")) if (wide(item)) found.push(item.className);
document.documentElement.setAttribute("data-overflows", found.join() || "nothing");
"""


@needs_chromium
@pytest.mark.parametrize(
    ("width", "checked"), [(1300, ".card, .models, .scroll"), (390, ".card, .notes, .legend, .scroll:has(.stacked)")]
)
def test_nothing_is_cut_off_at_the_side(width: int, checked: str, page: Path) -> None:
    content = page.read_text(encoding="utf-8").replace("</script>", OVERFLOWS % checked + "</script>")
    content = content.replace("bad.onnx", "a_file_with_a_name_that_is_longer_than_a_phone_is_wide.onnx")
    page.write_text(content, encoding="utf-8")
    assert 'data-overflows="nothing"' in browse(page, "--dump-dom", f"--window-size={width},900").stdout


ENLARGED = """
document.querySelectorAll(".images .enlarge")[1].click();
document.querySelector("dialog").dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
"""


@needs_chromium
def test_an_image_is_enlarged_and_the_arrow_keys_lead_on(page: Path) -> None:
    content = page.read_text(encoding="utf-8").replace("</script>", ENLARGED + "</script>")
    page.write_text(content, encoding="utf-8")
    result = browse(page, "--dump-dom")
    dialog = result.stdout.split("<dialog")[1].split("</dialog>")[0]
    assert " open" in dialog.split(">")[0]
    assert "2.png, bad.onnx: 2 boxes" in dialog and dialog.count("<figure") == 1
    assert "CONSOLE" not in result.stderr
