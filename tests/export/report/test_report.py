"""Tests the report as JSON, and as a page that is well formed and harmless."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.budget import BUDGETS, FAILED, PASSED, UNDECIDED
from export.accuracy.gate import Verification
from export.report import write_report
from export.report.images import choose_images, jpeg_uri
from export.report.page import environment, render_page
from export.report.report_data import dataset_sha256, report_data
from runtime.files import sha256
from runtime.manifest import write_manifest
from runtime.media.image import write_image
from tests.support.report_pages import (
    CALIBRATION,
    NASTY,
    elements,
    words,
)


def test_the_json_says_all_that_was_measured(page: Path, found: Verification) -> None:
    report = json.loads(
        (page.parent / "report.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON")
    )
    assert (report["passed"], report["limits"]["by_precision"]) == (False, BUDGETS)
    good, bad, worse, engine = report["files"]
    assert good["measured"]["figures"] == found.outcomes[0].measurement.evaluation.metrics  # type: ignore[union-attr]
    assert (good["measured"]["change"], good["measured"]["worst_class"]) == (0, None)
    assert good["measured"]["changed_detections"] == {"kept": 3, "rescored": 0, "appeared": 0, "vanished": 0}
    assert bad["measured"]["changed_detections"] == {"kept": 1, "rescored": 1, "appeared": 1, "vanished": 1}
    assert bad["measured"]["worst_class"] == {"name": "cat", "change": pytest.approx(-20)}
    assert bad["measured"]["difference"] is None  # infinite
    assert bad["sha256"] == sha256(found.outcomes[1].file)
    assert bad["manifest"]["details"]["calibration"]["method"] == "entropy"
    assert (worse["measured"], worse["status"]) == (None, "failed")
    assert (engine["status"], engine["precision"]) == ("built, not run", None)
    assert report["data"]["skipped"] == ["3.png: the file is empty"]


def test_the_hash_of_the_data_follows_an_image(found: Verification) -> None:
    before = dataset_sha256(found.dataset)
    assert before == dataset_sha256(found.dataset)
    write_image(found.dataset.images[0].path, np.zeros((90, 160, 3), np.uint8))
    assert before != dataset_sha256(found.dataset)


def test_the_page_is_well_formed_and_needs_nothing_else(page: Path) -> None:
    content = page.read_text(encoding="utf-8")
    ET.fromstring(content)
    assert len(content) < 5_000_000
    for forbidden in ("http://", "https://", "src=", "@import", "url("):
        assert forbidden not in content, forbidden
    assert all(image.get("href", "").startswith("data:image/jpeg;base64,") for image in elements(page, "image"))
    identifiers = [item.get("id") for item in ET.parse(page).getroot().iter() if item.get("id")]
    assert len(identifiers) == len(set(identifiers))
    for item in elements(page, "use"):
        assert item.get("href", "").removeprefix("#") in identifiers


def test_a_hostile_class_name_is_only_text(page: Path) -> None:
    content = page.read_text(encoding="utf-8")
    assert "<script>alert" not in content
    assert len(elements(page, "script")) == 1
    assert words(page).count(NASTY) >= 2
    assert f"damaged {NASTY} \N{REPLACEMENT CHARACTER}" in words(page)  # XML has no bell


def test_the_page_shows_every_file_its_verdict_and_why(page: Path) -> None:
    said = words(page)
    for expected in (
        *("bad.onnx, worse.onnx must not be used", "m.engine was built, not measured"),
        *("bad.onnx: lost −20.000 points", "m.engine: built, not measured: no GPU"),
    ):
        assert expected in said
    assert "1 more could not be read" in said
    rows = elements(page, "table")[0].findall("./tbody/tr")
    assert ["".join(row[0].itertext()) for row in rows] == ["PyTorch", "good.onnx", "bad.onnx", "worse.onnx", "m.engine"]
    assert ["".join(cell.itertext()).strip() for cell in rows[2]][1:] == [
        *("✗ failed", "−20.000 (−24.000, −16.000)", "0.5", "40.00", "40.00", "40.00", "–", "40.00", "40.00", "cat −20.00"),
        *("0.00", "3.0", "–"),
    ]


def test_every_minus_is_a_real_one(page: Path) -> None:
    assert not re.search(r"(?<![\w.)\]/-])-\.?\d", " ".join("".join(elements(page, "main")[0].itertext()).split()))


def test_the_charts_are_named_and_there(page: Path) -> None:
    charts = [item.get("aria-label") for item in ET.parse(page).getroot().iter() if "chart" in item.get("class", "").split()]
    assert charts == [
        "ΔAP of each file against its budget",
        "Limits of good.onnx",
        "Limits of bad.onnx",
        "Precision against recall",
        "F1 against the score threshold",
        "AP against size",
        "AP against time",
        "ΔAP by class, good.onnx",
        "ΔAP by class, bad.onnx",
        "Calibration histogram of first",
        f"Calibration histogram of {NASTY}",
        "Sensitivity of the layers of bad.onnx",
    ]
    assert "9.50 %, ΔAP −0.25, stays FP32" in words(page)
    assert "0.00 %" in words(page)
    assert "untouched" not in words(page)  # infinitely far above the noise
    assert "nan" not in page.read_text(encoding="utf-8").split("<main>")[1].split("base64")[0]


def test_changed_boxes_are_marked_beside_the_reference_and_the_most_changed_image_comes_first(page: Path) -> None:
    drawings = [item for item in elements(page, "svg") if item.find("use") is not None]
    labels = [item.get("aria-label", "") for item in drawings]
    assert labels[:3] == [
        "2.png, PyTorch: 2 boxes",
        "2.png, good.onnx: 2 boxes",
        "2.png, bad.onnx: 2 boxes (1 rescored, 1 appeared, 1 vanished)",
    ]
    assert labels[3].startswith("1.png")
    kinds = [box.get("class") for box in drawings[2].iter("rect") if box.get("class") != "under"]
    assert sorted(kinds) == ["box appeared", "box labeled", "box rescored", "box vanished"]  # the crowd is not shown


def test_without_calibration_the_page_says_so(found: Verification, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx.json").unlink()
    said = words(write_report(tmp_path, found))
    assert said.count("No calibration data") == 1


def test_with_calibration_it_does_not_say_that_there_is_none(found: Verification, tmp_path: Path) -> None:
    spec = found.outcomes[1].spec
    assert spec is not None
    write_manifest(found.outcomes[1].file, spec, [], {"calibration": CALIBRATION | {"sensitivity": []}})
    said = words(write_report(tmp_path, found))
    assert "No calibration data" not in said and "no layer was quantized alone" in said


def judged(found: Verification, *statuses: str, **limits: bool) -> Verification:
    """Verdicts of other statuses on the files that ran."""
    outcomes = tuple(replace(item, status=status) for item, status in zip(found.outcomes, statuses))
    return replace(found, outcomes=outcomes, limits=replace(found.limits, **limits))


@pytest.mark.parametrize(
    ("statuses", "accepted", "badge", "text"),
    [
        ((PASSED, PASSED), False, "✓ passed", "All 2 files that ran kept their accuracy."),
        ((PASSED,), False, "✓ passed", "The file that ran kept its accuracy."),
        ((PASSED, UNDECIDED), False, "? undecided", "do not show whether bad.onnx kept its accuracy"),
        ((UNDECIDED, UNDECIDED), True, "? undecided, accepted", "whether good.onnx, bad.onnx kept their accuracy"),
        ((FAILED, UNDECIDED), False, "✗ failed", "good.onnx must not be used."),
        ((FAILED, UNDECIDED), True, "✗ failed", "good.onnx must not be used."),
    ],
)
def test_the_overall_verdict(
    statuses: tuple[str, ...], accepted: bool, badge: str, text: str, found: Verification, tmp_path: Path
) -> None:
    page = write_report(tmp_path, judged(found, *statuses, accept_undecided=accepted))
    (verdict,) = [item for item in elements(page, "p") if item.get("class") == "verdict"]
    said = " ".join("".join(verdict.itertext()).split())
    assert said.startswith(badge + " ") and text in said


def test_an_accepted_foreign_file_is_shown(found: Verification, tmp_path: Path) -> None:
    spec = found.outcomes[0].spec
    assert spec is not None
    foreign = replace(found.outcomes[0], spec=spec.replace(source_sha256="1" * 64))
    changed = replace(found, outcomes=(foreign, *found.outcomes[1:]))
    assert "foreign (accepted)" not in words(write_report(tmp_path, changed))
    said = words(write_report(tmp_path, replace(changed, limits=replace(found.limits, allow_foreign=True))))
    assert "✓ passed, foreign (accepted)" in said


@pytest.mark.parametrize("key", list(CALIBRATION))
def test_any_part_of_the_calibration_may_be_absent(key: str, found: Verification, tmp_path: Path) -> None:
    for details in ({k: v for k, v in CALIBRATION.items() if k != key}, {key: CALIBRATION[key]}):
        spec = found.outcomes[1].spec
        assert spec is not None
        write_manifest(found.outcomes[1].file, spec, [], {"calibration": details})
        ET.parse(write_report(tmp_path, found))


def test_templates_escape_values_and_replace_control_characters() -> None:
    rendered = environment().from_string("<p class='{{ x }}'>{{ x }}</p>").render(x='<a b="c">&\'\x00')
    safe = "&lt;a b=&#34;c&#34;&gt;&amp;&#39;\N{REPLACEMENT CHARACTER}"
    assert rendered == f"<p class='{safe}'>{safe}</p>"


def hostile(value: Any) -> Any:
    """Appends markup to every string of a value that does not choose between templates' branches."""
    if isinstance(value, dict):
        return {key: item if key == "status" else hostile(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return f"{value}</script></style>{NASTY}<b class='x'>]]>" if isinstance(value, str) else value


def test_no_value_becomes_markup(found: Verification, page: Path) -> None:
    images = choose_images(found)
    tame = sorted(item.tag for item in ET.parse(page).getroot().iter())
    altered = [
        replace(image, name=hostile(image.name), boxes={hostile(k): v for k, v in image.boxes.items()}) for image in images
    ]
    content = render_page(hostile(report_data(found)), altered)
    assert content.count("&lt;script&gt;alert") > 20
    assert sorted(item.tag for item in ET.fromstring(content).iter()) == tame


def test_images_are_of_bounded_size(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), dtype=np.uint8)  # what JPEG compresses worst
    assert len(jpeg_uri(noise)) < 270_000  # 200 kB in base64
    tall = np.full((4000, 2, 3), 200, np.uint8)
    assert jpeg_uri(tall).startswith("data:image/jpeg;base64,")
