"""No result overwrites an input or another result, whatever the files are called."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.media.sources import Source
from runtime.results.paths import result_paths


def sources(names: list[str], folder: str = "/in") -> list[Source]:
    return [Source(Path(folder) / name, Path(name)) for name in names]


@pytest.mark.parametrize(
    ("names", "folder", "expected"),
    [
        # nothing in the way: the sources' own names
        (["a.png", "b.JPG", "c/d.tif"], "/out", ["a.png", "b.JPG", "c/d.tif"]),
        # kinds that cannot be written
        (["a.gif", "b", "c.pgm", "d.avi", "e.mp4"], "/out", ["a.gif.png", "b.png", "c.pgm.png", "d.avi.mp4", "e.mp4"]),
        # the inputs' own folder
        (["a.png"], "/in", ["a.2.png"]),
        (["a.gif"], "/in", ["a.gif.png"]),
        (["a.gif", "a.gif.png", "x.jpg"], "/in", ["a.gif.3.png", "a.gif.2.png", "x.2.jpg"]),
        # names that differ by case or Unicode form are one name on some file systems
        (["a.png", "A.png", "Ä.jpg", "A\u0308.jpg"], "/out", ["a.png", "A.2.png", "Ä.jpg", "A\u0308.2.jpg"]),
        # a number that is taken
        (["a.gif", "a.gif.2.png", "a.gif.png"], "/out", ["a.gif.3.png", "a.gif.2.png", "a.gif.png"]),
        # a folder of the name
        (["a.gif", "a.gif.png/b.png"], "/out", ["a.gif.2.png", "a.gif.png/b.png"]),
        # a path to the same folder by another way
        (["a.png"], "/other/../in", ["a.2.png"]),
    ],
)
def test_names(names: list[str], folder: str, expected: list[str]) -> None:
    assert [str(path.relative_to(folder)) for path in result_paths(sources(names), Path(folder)).values()] == expected


def test_an_existing_folder_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    assert list(result_paths(sources(["a.png"]), tmp_path).values()) == [tmp_path / "a.2.png"]


ENDS = ["", ".png", ".PNG", ".gif", ".gif.png", ".2.png", ".mp4", ".avi", ".avi.mp4", "/x.png"]
STEMS = st.text("aAäÄI\u0131ß.\u0308", min_size=1, max_size=3).filter(lambda text: text.strip("."))
NAMES = st.lists(st.tuples(STEMS, st.sampled_from(ENDS)).map("".join), unique=True, max_size=12)


@given(NAMES, st.sampled_from(["/in", "/in/a", "/out"]))
def test_results_never_meet(names: list[str], folder: str) -> None:
    given_sources = sources(sorted(names))
    chosen = result_paths(given_sources, Path(folder))
    assert list(chosen) == given_sources
    paths = [path.resolve() for path in chosen.values()]
    keys = {unicodedata.normalize("NFC", str(path)).casefold() for path in paths}
    assert len(keys) == len(paths)
    assert not keys & {unicodedata.normalize("NFC", str(source.path)).casefold() for source in given_sources}
    assert not set(paths) & {parent for path in paths for parent in path.parents}
    assert all(path.is_relative_to(folder) for path in paths)
