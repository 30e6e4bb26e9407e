"""Names as annotations write them, looked up by what lies on disk, and never outside the folder."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path
from typing import Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.datasets.folder import DatasetFolder
from runtime.errors import InputError

NFC, NFD = (unicodedata.normalize(form, "Été") for form in ("NFC", "NFD"))


def make(root: Path, *names: str) -> DatasetFolder:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")
    return DatasetFolder(root)


@pytest.mark.parametrize(
    ("on_disk", "name", "found"),
    [
        # as written
        (["a.jpg"], "a.jpg", "a.jpg"),
        (["a.jpg", "A.jpg", "a.JPG"], "A.jpg", "A.jpg"),
        (["cam0/1.jpg", "cam1/1.jpg"], "cam1/1.jpg", "cam1/1.jpg"),
        (["a b (2).jpg"], "a b (2).jpg", "a b (2).jpg"),
        (["a\\b.jpg", "a/b.jpg"], "a/b.jpg", "a/b.jpg"),
        (["a.jpg"], "./a.jpg", "a.jpg"),
        # Windows
        (["cam0/1.jpg"], "cam0\\1.jpg", "cam0/1.jpg"),
        (["IMG_1.JPG"], "img_1.jpg", "IMG_1.JPG"),
        # the suffix's case before the stem's
        (["a.JPG", "A.jpg"], "a.jpg", "a.JPG"),
        # macOS
        ([f"{NFD}.jpg"], f"{NFC}.jpg", f"{NFD}.jpg"),
        ([f"{NFC}.jpg"], f"{NFD}.JPG", f"{NFC}.jpg"),
        ([f"{NFD}/1.jpg"], f"{NFC}/1.jpg", f"{NFD}/1.jpg"),
        # the stem alone
        (["a.png"], "a.jpg", "a.png"),
        (["a.png"], "a", "a.png"),
        (["10.30.00.jpg"], "10.30.00", "10.30.00.jpg"),
        (["a.jpg.png"], "a.jpg", "a.jpg.png"),
        (["IMG_1.PNG"], "img_1", "IMG_1.PNG"),
        (["a.txt"], "a", None),
        # nothing is guessed
        (["b.jpg"], "a.jpg", None),
        (["cam0/1.jpg"], "1.jpg", None),
        ([f"{NFC}.jpg"], "%C3%89t%C3%A9.jpg", None),
        (["a.jpg"], "https://example.org/a.jpg", None),
        (["a.jpg"], "", None),
        (["a.jpg"], "a.jpg\0", None),
    ],
)
def test_names_are_looked_up(on_disk: list[str], name: str, found: Optional[str], tmp_path: Path) -> None:
    folder = make(tmp_path, *on_disk)
    assert folder.find([tmp_path], name) == (tmp_path / found if found else None)


def test_a_name_that_fits_two_files_is_refused(tmp_path: Path) -> None:
    for on_disk, name in ((["b.JPG", "b.Jpg"], "b.jpg"), (["c.jpg", "c.png"], "c"), (["D.jpg", "D.JPG"], "d.jpg")):
        folder = make(tmp_path / on_disk[0], *on_disk)
        with pytest.raises(InputError, match=f"'{re.escape(name)}' may be .* or "):
            folder.find([folder.root], name)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../a.jpg", "x/../../a.jpg", "..\\a.jpg", "C:\\a.jpg", "c:/a.jpg", "\\\\server\\a.jpg", ".."]
)
def test_names_do_not_lead_out_of_the_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("")
    folder = make(tmp_path / "set", "x/b.jpg")
    with pytest.raises(InputError, match="absolute path, or leads out of the dataset's folder"):
        folder.find([folder.root], name)


@settings(max_examples=200)
@given(st.text(st.sampled_from("./\\aC:\0é"), max_size=12))
def test_whatever_the_name_what_is_found_is_inside(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    root = tmp_path_factory.getbasetemp() / "any"
    folder = make(root / "set", "a.jpg", "aa/a.png") if not root.exists() else DatasetFolder(root / "set")
    (root / "a.jpg").write_text("")
    try:
        found = folder.find([folder.root], name)
    except InputError:
        return
    assert found is None or os.path.realpath(found).startswith(os.path.realpath(folder.root) + os.sep)


def test_links_lead_out_on_request_only(tmp_path: Path) -> None:
    make(tmp_path / "other", "a.jpg", "deep/b.jpg")
    inside = make(tmp_path / "set", "real/c.jpg")
    root = inside.root
    (root / "a.jpg").symlink_to(tmp_path / "other" / "a.jpg")
    (root / "deep").symlink_to(tmp_path / "other" / "deep")
    (root / "again").symlink_to(root / "real")
    (root / "real" / "loop").symlink_to(root)
    assert inside.find([root], "again/c.jpg") == root / "again" / "c.jpg"
    for folders, name in (([root], "a.jpg"), ([root / "deep"], "b.jpg")):
        with pytest.raises(InputError, match=r"symbolic link that leads out of the dataset's folder.*--follow-links"):
            DatasetFolder(root).find(folders, name)
        assert DatasetFolder(root, follow_links=True).find(folders, name) == folders[0] / name
    with pytest.raises(InputError, match="symbolic link"):
        inside.read_text(root / "a.jpg")


def test_text_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffété\r\n\r\n b c \n".encode())
    assert DatasetFolder(tmp_path).read_lines(tmp_path / "a.txt") == ["été", "b c"]
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert DatasetFolder(tmp_path).read_json(tmp_path / "a.json") == [1]
    for bad in (b"\xff\xfe\x80", b"\x80"):
        (tmp_path / "a.txt").write_bytes(bad)
        with pytest.raises(InputError, match=r"a\.txt: is no UTF-8 text"):
            DatasetFolder(tmp_path).read_lines(tmp_path / "a.txt")
