"""Puts the verdict of `report.json` into words; the page and the Markdown say the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calibration.budget import FAILED, PASSED, UNDECIDED
from export.accuracy.gate import NOT_RUN

Data = Mapping[str, Any]

MARKS = {PASSED: "✓", FAILED: "✗", UNDECIDED: "?", NOT_RUN: "–"}


def verdict(data: Data) -> str:
    """Returns the overall verdict, with whether an undecided one was accepted."""
    return _accepted(data["status"], data)


def file_verdict(file: Data, data: Data) -> str:
    """Returns the verdict on a file, with what was accepted about it."""
    foreign = ", foreign (accepted)" if file["foreign"] and data["limits"]["allow_foreign"] else ""
    return _accepted(file["status"], data) + foreign


def _accepted(status: str, data: Data) -> str:
    return f"{status}, accepted" if status == UNDECIDED and data["limits"]["accept_undecided"] else status


def sentence(data: Data) -> str:
    """Says which files may be used."""
    names: dict[str, list[str]] = {status: [] for status in MARKS}
    for file in data["files"]:
        names[file["status"]].append(file["name"])
    found = []
    if names[FAILED]:
        found.append(f"{', '.join(names[FAILED])} must not be used.")
    if names[UNDECIDED]:
        whose = "its" if len(names[UNDECIDED]) == 1 else "their"
        found.append(f"The images do not show whether {', '.join(names[UNDECIDED])} kept {whose} accuracy.")
    if not found:
        count = len(names[PASSED])
        found.append(
            "The file that ran kept its accuracy." if count == 1 else f"All {count} files that ran kept their accuracy."
        )
    if names[NOT_RUN]:
        were = "was" if len(names[NOT_RUN]) == 1 else "were"
        found.append(f"{', '.join(names[NOT_RUN])} {were} built, not measured.")
    return " ".join(found)


def remarks(data: Data) -> list[tuple[str, str]]:
    """Lists (file, remark): the reasons for every verdict but a pass, and the oddities."""
    found = []
    for file in data["files"]:
        reasons = list(file["reasons"])
        if file["status"] == NOT_RUN:
            reasons = [f"built, not measured: {'; '.join(reasons)}"]
        found += [(file["name"], text) for text in (*reasons, *file["notes"])]
    return found
