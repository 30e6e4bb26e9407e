"""Finding what a source names, reading several ahead, and skipping what cannot be used."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.errors import InputError, ItemError, OutputError
from runtime.media.sources import SkippedSources, Source, find_sources, read_each, read_source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.png", "notes.txt", ".hidden.png", "film.MP4", "sub/c.png", "sub/a.png", "[1].png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"x")
    return tmp_path / "in"


def names(sources: list[Source]) -> list[str]:
    return [str(source.name) for source in sources]


def test_a_folder_gives_all_its_visible_files(folder: Path) -> None:
    sources = find_sources(str(folder))
    assert names(sources) == ["[1].png", "a.png", "b.jpg", "film.MP4", "notes.txt"]
    assert [source.path for source in sources] == [folder / name for name in names(sources)]
    assert [source.is_video for source in sources] == [False, False, False, True, False]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.png", ["[1].png", "a.png"]),
        ("?.*", ["a.png", "b.jpg"]),
        ("sub/*", ["a.png", "c.png"]),
        # files of one name in two folders stay apart
        ("**/*.png", ["[1].png", "a.png", "sub/a.png", "sub/c.png"]),
        ("**", ["[1].png", "a.png", "b.jpg", "film.MP4", "notes.txt", "sub/a.png", "sub/c.png"]),
        # a file whose name looks like a pattern
        ("[1].png", ["[1].png"]),
        ("a.png", ["a.png"]),
    ],
)
def test_patterns_and_single_files(folder: Path, pattern: str, found: list[str]) -> None:
    assert names(find_sources(str(folder / pattern))) == found


def test_relative_paths(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert [(s.path, str(s.name)) for s in find_sources("sub")] == [
        (Path("sub/a.png"), "a.png"),
        (Path("sub/c.png"), "c.png"),
    ]
    assert names(find_sources("*/../*.jpg")) == ["b.jpg"]


@pytest.mark.parametrize("source", ["gone.jpg", "gone/", "*.gone", "empty", "hidden"])
def test_nothing_there(tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty" / "sub").mkdir(parents=True)
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / ".DS_Store").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^" + source.replace("*", r"\*") + ": (no such|the folder has no files)"):
        find_sources(source)


def test_read_source_refuses_by_name(folder: Path) -> None:
    with pytest.raises(InputError, match=r"notes\.txt: not an image"):
        read_source(find_sources(str(folder / "notes.txt"))[0])


def test_the_next_source_is_read_while_one_is_worked_on() -> None:
    sources = [Source(Path(name), Path(name)) for name in "abcd"]
    read: list[str] = []
    worked: list[tuple[str, str, int]] = []

    def take(source: Source) -> str:
        read.append(str(source.path))
        if source.path == Path("b"):
            raise InputError("b: bad")
        return f"content of {source.path}"

    with SkippedSources(4, strict=False) as skipped:
        for source, content in read_each(sources, take, skipped, label="test"):
            limit = time.monotonic() + 5
            while len(read) < min("abcd".index(str(source.path)) + 2, 4) and time.monotonic() < limit:
                time.sleep(0.001)
            worked.append((str(source.path), content, len(read)))
    assert worked == [("a", "content of a", 2), ("c", "content of c", 4), ("d", "content of d", 4)]
    with pytest.raises(InputError, match="b: bad"), SkippedSources(4, strict=True) as skipped:
        list(read_each(sources, take, skipped, label="test"))


@pytest.mark.parametrize(
    ("count", "strict", "bad", "ends_with"),
    [
        (1, False, "", None),
        (3, False, "a", None),
        (3, False, "ab", None),
        (3, False, "abc", "none of the 3 files could be used (the last: c: bad)"),
        (3, True, "b", "b: bad"),
        (1, False, "a", "a: bad"),
    ],
)
def test_unusable_sources_are_skipped(count: int, strict: bool, bad: str, ends_with: str | None) -> None:
    """Whether reading fails or what is done with the content."""

    def fail_if_bad(source: Source) -> str:
        if str(source.path) in bad:
            raise InputError(f"{source.path}: bad")
        return str(source.path)

    def run(read: Callable[[Source], str], work: Callable[[Source], str]) -> list[str]:
        done = []
        with SkippedSources(count, strict=strict) as skipped:
            for source, _ in read_each(sources, read, skipped, label="test"):
                with skipped.skip_unusable():
                    done.append(work(source))
        return done

    sources = [Source(Path(name), Path(name)) for name in "abc"[:count]]
    for stages in ((fail_if_bad, lambda source: str(source.path)), (lambda source: "content", fail_if_bad)):
        if ends_with is None:
            assert run(*stages) == [name for name in "abc"[:count] if name not in bad]
        else:
            with pytest.raises(InputError) as error:
                run(*stages)
            assert str(error.value) == ends_with


def test_a_result_that_cannot_be_written_ends_the_run() -> None:
    with pytest.raises(OutputError), SkippedSources(3, strict=False) as skipped, skipped.skip_unusable():
        raise OutputError("disk full")


def test_a_result_that_cannot_be_written_for_its_own_reasons_is_skipped_and_told(caplog: pytest.LogCaptureFixture) -> None:
    def run(done: list[str]) -> None:
        with SkippedSources(3, strict=False) as skipped:
            for name in "abc":
                with skipped.skip_unusable():
                    if name == "b":
                        raise ItemError("cannot write b: File name too long")
                    done.append(name)

    done: list[str] = []
    with pytest.raises(OutputError, match="1 of 3 results could not be written"):
        run(done)
    assert done == ["a", "c"]
    assert caplog.messages == ["skipped: cannot write b: File name too long", "1 of 3 files skipped"]
