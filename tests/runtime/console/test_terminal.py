"""No name can control a terminal, start a line in a log, or end a command because stdout lacks its characters."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
from tqdm import tqdm

from runtime.console.terminal import LineFormatter, guarded_streams, printable


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("", ""),
        ("plain ä 日本 😀", "plain ä 日本 😀"),
        (Path("a\x1b]0;title\x07.png"), r"a\x1b]0;title\x07.png"),
        ("a\r\nb\tc\x7f\x9b", r"a\r\nb\tc\x7f\x9b"),
        ("a\u2028b\u202ecod.exe", r"a\u2028b\u202ecod.exe"),
    ],
)
def test_printable(value: object, text: str) -> None:
    assert printable(value) == text


@pytest.mark.parametrize("length", [39, 40, 41, 10_000])
def test_long_text_loses_its_middle(length: int) -> None:
    found = printable("a" * 5 + "x" * (length - 10) + "z" * 5, 40)
    assert len(found) == min(length, 40) and found[:5] == "aaaaa" and found[-5:] == "zzzzz"
    assert len(printable("\x1b" * length, 40)) == 40, "escapes are longer than what they stand for"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("a\nb",), r"2 lines\n" "X a\\nb"),
        ((Path("a\x1b[2J"),), r"2 lines\n" r"X a\x1b[2J"),
        ((ValueError("a\nb"),), r"2 lines\n" r"X a\nb"),
        ((7,), r"2 lines\n" "X 7"),
        ((np.int64(7),), r"2 lines\n" "X 7"),
    ],
)
def test_arguments_of_a_log_record_stay_on_their_line(arguments: tuple[object, ...], line: str) -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "2 lines\nX %s", arguments, None)
    assert LineFormatter("%(message)s").format(record).replace("\n", r"\n", 1) == line


@pytest.mark.parametrize("value", [7, 7.0, True, np.int64(7), np.float32(7), np.uint8(7)])
def test_numbers_in_a_log_record_are_formatted_as_numbers(value: float) -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "%d %.1f", (value, value), None)
    assert LineFormatter("%(message)s").format(record) == f"{int(value)} {float(value):.1f}"


class Terminal(io.TextIOWrapper):
    """Text stream that says it is a terminal, or not."""

    is_terminal = True

    def isatty(self) -> bool:
        return self.is_terminal

    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode("latin-1")  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_streams(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = Terminal(io.BytesIO(), "ascii"), Terminal(io.BytesIO(), "ascii")
    out.is_terminal = is_terminal
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with guarded_streams():
        print("日\x1b[2J\udcff\nnext")
        print("\x1b[2Jwarning", file=sys.stderr)
        for _ in tqdm([0], "\x1b]0;name", file=sys.stderr):
            pass
    assert (sys.stdout, sys.stderr) == (out, err)
    escape = r"\x1b" if is_terminal else "\x1b"
    assert out.text() == rf"\u65e5{escape}[2J\udcff" + "\nnext\n"
    assert "\x1b" not in err.text() and r"\x1b]0;name" in err.text()
