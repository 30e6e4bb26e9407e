"""Writes the results of the accuracy gate for programs (`report.json`) and for people (`report.html`, `model_card.md`)."""

from __future__ import annotations

from pathlib import Path

from export.accuracy.gate import Verification
from export.report.images import choose_images
from export.report.markdown import render_card
from export.report.page import render_page
from export.report.report_data import report_data
from runtime.files import write_json, write_text


def write_report(folder: Path, found: Verification) -> Path:
    """Writes these files into an existing folder and returns the path of the page.

    The page is one file that needs nothing else: style, script, charts and images are inside it.
    """
    data = report_data(found)
    write_json(folder / "report.json", data)
    write_text(folder / "model_card.md", render_card(data))
    write_text(folder / "report.html", render_page(data, choose_images(found)))
    return folder / "report.html"
