"""Metadata replaced in the bytes of an ONNX file: read back by ONNX Runtime and by onnx, all else untouched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.backends.onnx_metadata import replace_metadata
from runtime.backends.open import open_backend
from runtime.spec import ModelSpec


def entry(key: str, value: str) -> bytes:
    """A field 14 of ModelProto, for short texts."""
    inner = b"\x0a" + bytes([len(key.encode())]) + key.encode() + b"\x12" + bytes([len(value.encode())]) + value.encode()
    return b"\x72" + bytes([len(inner)]) + inner


OTHER = b"\x08\x09" + b"\x11" + bytes(8) + b"\x1d" + bytes(4) + b"\x42\x03abc" + b"\xa8\x01\x96\x01"  # of every wire type


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", entry("a", "new")),
        (OTHER, OTHER + entry("a", "new")),
        (entry("a", "old") + OTHER, entry("a", "new") + OTHER),
        (entry("a", "old") + OTHER + entry("a", "twice") + entry("b", "a"), entry("a", "new") + OTHER + entry("b", "a")),
        (entry("ab", "a") + b"\x72\x00", entry("ab", "a") + b"\x72\x00" + entry("a", "new")),
    ],
)
def test_one_entry_changes_and_no_other_byte(before: bytes, after: bytes) -> None:
    assert replace_metadata(before, {"a": "new"}) == after
    assert replace_metadata(before, {}) == before


@given(st.dictionaries(st.text(max_size=9), st.text(max_size=200), max_size=4))
def test_what_is_added_is_replaced_by_the_next(changes: dict[str, str]) -> None:
    once = replace_metadata(OTHER, changes)
    assert replace_metadata(once, changes) == once
    assert replace_metadata(replace_metadata(once, dict.fromkeys(changes, "")), changes) == once


@pytest.mark.parametrize("damaged", [b"\x72", b"\x72\x05ab", b"\x0b", b"\x11abc", b"\xff" * 20, b"\x72\x02\x0a\x09", b"\x08"])
def test_what_is_no_sequence_of_fields_is_refused(damaged: bytes) -> None:
    with pytest.raises(ValueError, match=r"a field|a number"):
        replace_metadata(damaged, {"a": "new"})


@given(st.binary(max_size=60))
def test_any_bytes_are_rewritten_or_refused(data: bytes) -> None:
    try:
        found = replace_metadata(data, {"a": "new"})
    except ValueError:  # UnicodeDecodeError is one
        return
    assert entry("a", "new") in found
    assert replace_metadata(data, {}) == data


def test_the_model_computes_the_same(
    write_onnx: Callable[..., Path], make_spec: Callable[..., ModelSpec], tmp_path: Path
) -> None:
    model = write_onnx(tmp_path / "a.onnx", spec=make_spec(name="a"))
    changes = {"name": '"bé' + "x" * 300 + '"', "operating_threshold": "0.5"}
    (tmp_path / "b.onnx").write_bytes(replace_metadata(model.read_bytes(), changes))
    images = np.random.default_rng(0).random((2, 3, 64, 64), np.float32)
    with open_backend(model) as first, open_backend(tmp_path / "b.onnx") as second:
        assert second.spec == first.spec.replace(name="bé" + "x" * 300, operating_threshold=0.5)
        for one, other in zip(first.infer(images), second.infer(images)):
            np.testing.assert_array_equal(one, other)


def test_the_onnx_package_reads_the_same_graph(tiny_onnx: Path) -> None:
    onnx = pytest.importorskip("onnx")
    before = onnx.load_model_from_string(tiny_onnx.read_bytes())
    after = onnx.load_model_from_string(replace_metadata(tiny_onnx.read_bytes(), {"operating_threshold": "0.5", "new": "1"}))
    texts = {item.key: item.value for item in after.metadata_props}
    assert (texts.pop("operating_threshold"), texts.pop("new")) == ("0.5", "1")
    expected = {item.key: item.value for item in before.metadata_props}
    del expected["operating_threshold"]
    assert texts == expected
    del before.metadata_props[:], after.metadata_props[:]
    assert before == after
