"""Looks up and reads the files of a dataset folder, and nothing that lies outside it."""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Optional

from runtime import files
from runtime.console.terminal import printable
from runtime.errors import InputError
from runtime.files import PathLike
from runtime.media.kinds import IMAGE_SUFFIXES

LARGEST_ANNOTATIONS = 4 << 30
"""Most bytes that are read of one file of annotations: ten times those of COCO."""
_DRIVE = re.compile(r"[A-Za-z]:/")
_LONGEST = 120  # characters of a quoted text
_LINKS = "a symbolic link that leads out of the dataset's folder; read it with --follow-links if you trust it"


class DatasetFolder:
    """Dataset folder whose files are looked up by what lies on disk.

    A name is first taken as it is, then with the suffix's case and the Unicode form (composed or decomposed) left open, then
    without regard to case, then by its stem alone; a form that fits two files is refused.

    Attributes:
        root: the folder.
        follow_links: symbolic links may lead out of the folder.
    """

    def __init__(self, root: PathLike, follow_links: bool = False) -> None:
        self.root, self.follow_links = Path(root), follow_links
        self._real = os.path.realpath(self.root)
        self._listings: dict[Path, _Listing] = {}
        self._json: dict[Path, Any] = {}

    def check_inside(self, path: Path) -> None:
        """Raises InputError if a symbolic link leads from the folder to a file outside."""
        if not self.follow_links and not _is_inside(os.path.realpath(path), self._real):
            raise InputError(f"{path}: {_LINKS}")

    def read_bytes(self, path: Path) -> bytes:
        """Reads a regular file of the folder.

        Raises:
            InputError: it lies outside the folder, or cannot be read; see `runtime.files.open_file`.
        """
        self.check_inside(path)
        return files.read_bytes(path, LARGEST_ANNOTATIONS)

    def read_text(self, path: Path) -> str:
        """Reads a UTF-8 file, with or without a byte order mark; errors are those of `read_bytes`."""
        self.check_inside(path)
        return files.read_text(path, LARGEST_ANNOTATIONS)

    def read_lines(self, path: Path) -> list[str]:
        """Reads the lines of a list that are not blank, without the blanks around them."""
        return [line.strip() for line in self.read_text(path).splitlines() if line.strip()]

    def read_json(self, path: Path) -> Any:
        """Reads a JSON file, once.

        Raises:
            InputError: as `read_bytes`, or it is not JSON.
        """
        if path not in self._json:
            self.check_inside(path)
            self._json[path] = files.read_json(path, LARGEST_ANNOTATIONS)
        return self._json[path]

    def forget_json(self, path: Path) -> None:
        """Gives the memory of a file back that was read with `read_json`."""
        self._json.pop(path, None)

    def find(self, folders: Sequence[Path], name: str, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> Optional[Path]:
        """As `find_text`, as a path."""
        found = self.find_text(folders, name, suffixes)
        return None if found is None else Path(found)

    def find_text(self, folders: Sequence[Path], name: str, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> Optional[str]:
        """Finds the file of a name, as annotations write it, in the first of some folders that has it; None if none has.

        Args:
            folders: in which the name is looked up, in this order for each of its forms.
            name: relative to a folder; a stem or a whole name, with slashes or backslashes.
            suffixes: of the files that may be meant where the stem alone fits, lower case.

        Raises:
            InputError: the name leads out of the folders, by itself or by a link, or fits two files.
        """
        key = self._relative(name)
        for form in _FORMS:
            for folder in folders:
                listing = self._listing(folder)
                found = listing.lookup(form, key, suffixes)
                if len(found) > 1:
                    raise InputError(
                        f"{folder}: {shorten(repr(name))} may be {found[0]} or {found[1]}; rename one, or write its whole name"
                    )
                if found:
                    return os.path.join(listing.folder, found[0])
                if key in listing.outside:
                    raise InputError(f"{folder / key}: {_LINKS}")
        return None

    def files(self, folder: Path) -> list[str]:
        """Lists the files under a folder, by their names relative to it, sorted."""
        return sorted(self._listing(folder).files)

    def _relative(self, name: str) -> str:
        """Returns a name with slashes, without `.`; raises InputError where it leads out of the folder."""
        slashed = name.replace("\\", "/")
        if slashed.startswith("/") or _DRIVE.match(slashed) or ".." in slashed.split("/"):
            raise InputError(
                f"{self.root}: {shorten(repr(name))} is an absolute path, or leads out of the dataset's folder by '..';"
                " write names relative to the folder"
            )
        return posixpath.normpath(slashed)

    def _listing(self, folder: Path) -> _Listing:
        if folder not in self._listings:
            if folder.is_dir():
                self.check_inside(folder)
            self._listings[folder] = _Listing(folder, lambda path: self.follow_links or _is_inside(path, self._real))
        return self._listings[folder]


class _Listing:
    """Files under a folder.

    Attributes:
        folder: itself.
        files: their names relative to the folder, with slashes.
        outside: names of symbolic links that lead to where nothing is read.
    """

    def __init__(self, folder: Path, may_read: Callable[[str], bool]) -> None:
        self.folder = str(folder)
        self.files: set[str] = set()
        self.outside: set[str] = set()
        self._by_form: dict[Callable[[str], str], dict[str, list[str]]] = {}
        self._scan(str(folder), "", may_read, {os.path.realpath(folder)})

    def _scan(self, folder: str, prefix: str, may_read: Callable[[str], bool], seen: set[str]) -> None:
        try:
            entries = list(os.scandir(folder))
        except (OSError, ValueError):
            return
        for entry in entries:
            name = f"{prefix}{entry.name}"
            if entry.is_symlink():
                real = os.path.realpath(entry.path)
                if not may_read(real):
                    self.outside.add(name)
                    continue
                if real in seen:  # a link to a folder above
                    continue
            if entry.is_dir():
                self._scan(entry.path, f"{name}/", may_read, seen | {os.path.realpath(entry.path)})
            elif entry.is_file():
                self.files.add(name)

    def lookup(self, form: Callable[[str], str], key: str, suffixes: frozenset[str]) -> list[str]:
        """Lists the files that a name may mean in one of `_FORMS`."""
        if form is _as_written:
            return [key] if key in self.files else []
        if form not in self._by_form:
            names: dict[str, list[str]] = defaultdict(list)
            for name in sorted(self.files):
                names[form(name)].append(name)
            self._by_form[form] = names
        by_form = self._by_form[form]
        if form not in _STEMS:
            return by_form.get(form(key), [])
        # The name itself may be a stem with a point in it, such as `10.30.00`.
        for stem in (f"{key}.", key) if _suffix(key) in IMAGE_SUFFIXES else (f"{key}.",):
            found = [name for name in by_form.get(form(stem), ()) if _suffix(name) in suffixes]
            if found:
                return found
        return []


def _as_written(name: str) -> str:
    return name


def _composed(name: str) -> str:
    """Brings a name to Unicode's composed form; macOS decomposes letters."""
    return unicodedata.normalize("NFC", name)


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _any_suffix_case(name: str) -> str:
    stem, suffix = posixpath.splitext(_composed(name))
    return stem + suffix.lower()


def _any_case(name: str) -> str:
    return _composed(name).casefold()


def _stem(name: str) -> str:
    return posixpath.splitext(_composed(name))[0]


def _stem_in_any_case(name: str) -> str:
    return _stem(name).casefold()


_STEMS = (_stem, _stem_in_any_case)
_FORMS: tuple[Callable[[str], str], ...] = (_as_written, _any_suffix_case, _any_case, *_STEMS)


def _is_inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def shorten(text: str) -> str:
    """Returns a text as a message quotes it; see `printable`."""
    return printable(text, _LONGEST)


def describe(root: Path) -> str:
    """Says in a few words what lies in a folder, for a message."""
    folders = sorted(path.name for path in root.iterdir() if path.is_dir())
    kinds: dict[str, int] = defaultdict(int)
    for path in root.iterdir():
        if not path.is_dir():
            kinds[path.suffix.lower() or path.name] += 1
    return ", ".join(_parts(folders, kinds)) or "nothing"


def _parts(folders: Sequence[str], kinds: dict[str, int]) -> Iterator[str]:
    yield from (f"{name}/" for name in folders[:6])
    if len(folders) > 6:
        yield f"{len(folders) - 6} more folders"
    yield from (f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda item: -item[1])[:4])
