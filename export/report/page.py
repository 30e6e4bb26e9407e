"""`report.html`: one self-contained page about what every step did to the model."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from export.accuracy.gate import FAILED, NOT_RUN, PASSED
from export.report import sections
from export.report.images import Shown
from export.report.markup import table, tag, text
from export.report.side_by_side import side_by_side

Figures = Mapping[str, Any]

_MARKS = {PASSED: ("passed", "✓ passed"), FAILED: ("failed", "✗ failed"), NOT_RUN: ("idle", "– built, not run")}
_COLUMNS = {"AP": "AP", "AP50": "AP50", "AP75": "AP75", "APs": "small", "APm": "medium", "APl": "large"}


def page(figures: Figures, images: Sequence[Shown]) -> str:
    """The whole page from the content of `report.json` and the images to show."""
    heading = f"Accuracy of {figures['model']} after export"
    body = [
        _header(heading, figures),
        _section(
            "Every step",
            "Measured by one evaluation on the same images. Figures in percent, changes in points.",
            _steps(figures),
        ),
        _section("Accuracy and budget", *sections.accuracy(figures)),
        _section("Change by class", *sections.classes(figures)),
        _section("The same images through every step", *side_by_side(figures, images)),
        _section("Sensitivity by layer", *sections.sensitivity(figures)),
        _section("Calibration", *sections.calibration(figures)),
        _section("Lineage", "What was made from what. Hashes are SHA-256.", _lineage(figures)),
    ]
    files = {name: _packaged(name) for name in ("page.html", "style.css", "script.js")}
    return string.Template(files["page.html"]).substitute(
        title=text(heading), style=files["style.css"], script=files["script.js"], body="\n".join(body)
    )


def _packaged(name: str) -> str:
    return resources.files("export.report").joinpath(name).read_text(encoding="utf-8")


def _section(heading: str, lead: str, *content: str) -> str:
    return tag("section", tag("h2", text(heading)), tag("p", text(lead), class_="lead"), *content)


def _header(heading: str, figures: Figures) -> str:
    data, (height, width) = figures["data"], figures["input_size"]
    ran = [file for file in figures["files"] if file["status"] != NOT_RUN]
    failed = [file["name"] for file in ran if file["status"] == FAILED]
    verdict = f"{', '.join(failed)} must not be used." if failed else f"All {len(ran)} files that ran kept their accuracy."
    if not failed and len(ran) == 1:
        verdict = "The file that ran kept its accuracy."
    skipped = f", {len(data['skipped'])} more could not be read" if data["skipped"] else ""
    where = f"{data['images']} images of {data['split']} ({data['root']}){skipped}, input {height} × {width}"
    notes = [
        tag("li", tag("strong", text(file["name"])), ": ", text(note))
        for file in figures["files"]
        for note in (*file["reasons"], *file["notes"])
    ]
    return tag(
        "header",
        tag("h1", text(heading)),
        tag("p", text(where), class_="soft"),
        tag("p", _badge(FAILED if failed else PASSED), " ", text(verdict), class_="verdict"),
        tag("ul", *notes, class_="notes") if notes else "",
    )


def _badge(status: str) -> str:
    kind, label = _MARKS[status]
    return tag("span", text(label), class_=f"badge {kind}")


def _steps(figures: Figures) -> str:
    rest = ("Δ to PyTorch", "budget", "worst class", "size", "ms / image", "max tensor difference")
    rows = [_step_row(figures["reference"], figures["reference"], tag("span", "reference", class_="soft"))]
    rows += [_step_row(file, file["measured"], _badge(file["status"])) for file in figures["files"]]
    return table(("step", "verdict", *_COLUMNS.values(), *rest), rows, label="Figures of every step")


def _step_row(step: Figures, measured: Figures | None, verdict: str) -> list[str]:
    row = [text(step["name"]), verdict]
    budget = f"−{step['budget']:.2f}" if step.get("budget") is not None else "–"
    size = f"{step['bytes'] / 1e6:.2f} MB"
    if measured is None:
        return [*row, *["–"] * (len(_COLUMNS) + 1), budget, "–", size, "–", "–"]
    worst = measured.get("worst_class")
    return [
        *row,
        *(sections.percent(measured["figures"][name]) for name in _COLUMNS),
        sections.points(measured["change"]) if "change" in measured else "–",
        budget,
        f"{text(worst['name'])} {sections.points(worst['change'])}" if worst else "–",
        size,
        f"{measured['milliseconds']:.1f}",
        "–" if measured["difference"] is None else f"{measured['difference']:.1e}",
    ]


def _lineage(figures: Figures) -> str:
    data, weights = figures["data"], figures["weights"]
    rows = [
        ("data", f"{data['split']} of {data['root']} (annotations and images)", data["sha256"], ""),
        ("weights", weights["file"], weights["sha256"], ""),
    ]
    for file in figures["files"]:
        sources = [
            f"{item['role']} {item['name']} {item['sha256'][:12]}…" for item in (file["manifest"] or {}).get("made_from", ())
        ]
        made = "; ".join([*(f"from {source}" for source in sources), *(f"with {tool}" for tool in file["made_with"])])
        rows.append((file["name"], file["file"], file["sha256"], made))
    versions = ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
    listed = table(
        ("what", "where", "SHA-256", "made"), [[text(cell) for cell in row] for row in rows], label="Lineage", class_="lineage"
    )
    return listed + tag("p", "Verified with ", text(versions), ".", class_="soft")
