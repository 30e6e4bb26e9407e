"""What the accuracy gate found, written for programs (`report.json`) and for people (`report.html`)."""

from __future__ import annotations

from pathlib import Path

from export.accuracy.gate import Verification
from export.report.content import content
from export.report.images import choose_images
from export.report.page import page
from runtime.files import write_json, write_text


def write_report(folder: Path, found: Verification) -> Path:
    """Write both into an existing folder; returns the page's path.

    The page is one file that needs nothing else: style, script, charts and images are inside it.
    """
    figures = content(found)
    write_json(folder / "report.json", figures)
    write_text(folder / "report.html", page(figures, choose_images(found)))
    return folder / "report.html"
