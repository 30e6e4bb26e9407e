"""A journal that was cut anywhere is resumed with every source once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runtime.errors import InputError
from runtime.results.journal import JOURNAL, Journal

SETTINGS = {"model": "abc", "score threshold": 0.25}


def image(name: str) -> dict[str, Any]:
    return {"source": name, "width": 4, "height": 3, "detections": []}


def work(journal: Journal) -> None:
    """Three images, and a video of three frames between them; what is finished is left out."""
    for name in ("a.png", "film.mp4", "caf\udce9.png", "z.png"):
        if name in journal.finished:
            continue
        if name != "film.mp4":
            journal.add(image(name))
            continue
        for frame in range(3):
            journal.add({**image(name), "frame": frame})
        journal.finish(name)


def test_cut_anywhere_it_goes_on_with_every_source_once(tmp_path: Path) -> None:
    whole = Journal(tmp_path, SETTINGS, resume=False)
    work(whole)
    expected, content = list(whole.records()), (tmp_path / JOURNAL).read_bytes()
    whole.close(keep=True)
    assert len(expected) == 6
    for end in range(0, len(content) + 1, 3):
        (tmp_path / JOURNAL).write_bytes(content[:end])
        journal = Journal(tmp_path, SETTINGS, resume=True)
        work(journal)
        assert list(journal.records()) == expected, end
        journal.close(keep=True)
    assert (tmp_path / JOURNAL).read_bytes() == content


def test_what_a_failed_video_left_is_taken_out(tmp_path: Path) -> None:
    journal = Journal(tmp_path, SETTINGS, resume=False)
    journal.add(image("a.png"))
    journal.add({**image("film.mp4"), "frame": 0})
    journal.discard_unfinished()
    journal.add(image("b.png"))
    assert [record["source"] for record in journal.records()] == ["a.png", "b.png"]
    journal.close(keep=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no journal\n", "no journal of this version"),
        (b'{"journal": 99, "settings": {}}\n', "no journal of this version"),
        (
            b'{"journal": 1, "settings": {"model": "abc", "score threshold": 0.5}}\n',
            "score threshold 0.5, now it is 0.25",
        ),
        (b'{"journal": 1, "settings": {"model": "abc"}}\n', "made with score threshold None, now it is 0.25"),
    ],
)
def test_another_runs_journal_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_bytes(content)
    with pytest.raises(InputError, match=message):
        Journal(tmp_path, SETTINGS, resume=True)
    assert (tmp_path / JOURNAL).read_bytes() == content
    Journal(tmp_path, SETTINGS, resume=False).close(keep=False)
