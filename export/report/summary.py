"""Puts the verdict of `report.json` into words; the page and the Markdown say the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from calibration.budget import FAILED, PASSED, UNDECIDED
from export.accuracy.gate import NOT_RUN
from export.report.formats import ratio

Data = Mapping[str, Any]

NOT_FASTER = "not faster"
SPEED_NOTE = (
    "Speed is relative to the FP32 file: 2 is twice as fast. The files took turns on this machine, one image at a time, from"
    " image to boxes; in parentheses are the 5th and the 95th percentile of the rounds."
)
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
    return " ".join([*found, *_speed_sentences(data)])


def _speed_sentences(data: Data) -> list[str]:
    """Says which files are not faster than FP32, which is what they were made for."""
    names = [file["name"] for file in data["files"] if speed_verdict(file) == NOT_FASTER]
    if not names:
        return []
    return [f"On this machine, {_listed(names)} {'is' if len(names) == 1 else 'are'} not faster than FP32."]


def speed_verdict(file: Data) -> str:
    """Returns whether a file is faster than the FP32 file, as in the gate by the median; empty where that was not measured."""
    speed = file["speedup"]
    if not speed or file["precision"] == "fp32":
        return ""
    return NOT_FASTER if speed["ratio"] <= 1 else "faster" if speed["low"] > 1 else "faster in the median"


def speed_reference(data: Data) -> str:
    """Returns the name of the FP32 file that the others are compared with in speed; empty where none was."""
    ran = [file for file in data["files"] if file["measured"]]
    compared = any(file["speedup"] for file in ran)
    return next((file["name"] for file in ran if compared and not file["speedup"]), "")


def speed(file: Data, data: Data) -> str:
    """Formats the speed of a file with its bounds and in words; empty where it was not measured."""
    if not file["speedup"]:
        return "1" if file["name"] == speed_reference(data) else ""
    return ", ".join(filter(None, [ratio(file["speedup"]), speed_verdict(file)]))


def threshold_sentence(data: Data) -> str:
    """Says which operating threshold the detections are compared at, and where it comes from."""
    stored = "stored in the weights; training stores the one of best F1 on its validation split, unless another is chosen later"
    source = stored if data["operating"]["stored"] else "the default of detection; the weights store none"
    return (
        "AP counts detections of every score; people see those from a threshold on. It is"
        f" {data['operating']['threshold']:g} here ({source})."
    )


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def remarks(data: Data) -> list[tuple[str, str]]:
    """Lists (file, remark): the reasons for every verdict but a pass, and the oddities."""
    found = []
    for file in data["files"]:
        reasons = list(file["reasons"])
        if file["status"] == NOT_RUN:
            reasons = [f"built, not measured: {'; '.join(reasons)}"]
        found += [(file["name"], text) for text in (*reasons, *file["notes"])]
    return found
