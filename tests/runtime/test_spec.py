"""ModelSpec: round trip through metadata, validation of every field, older formats."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import ModelError
from runtime.spec import FORMAT_VERSION, ModelSpec

FIELDS = [field.name for field in dataclasses.fields(ModelSpec)]
PREFERENCES = {"operating_threshold", "made_split"}
SIDE = st.floats(0.5, 2000)
SHARE = st.floats(0, 1, exclude_min=True, exclude_max=True)
LEVEL = st.lists(st.tuples(SIDE, SIDE), min_size=1, max_size=4).map(tuple)
TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs")))
TRIPLE = st.tuples(*[st.floats(0.01, 2)] * 3)


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    strides = tuple(draw(st.lists(st.sampled_from([4, 8, 16, 32, 64]), min_size=1, max_size=4, unique=True)))
    return ModelSpec(
        name=draw(TEXT),
        class_names=tuple(draw(st.lists(TEXT, min_size=1, max_size=5))),
        input_size=draw(st.tuples(*[st.integers(1, 20).map(lambda n: n * 64)] * 2)),
        anchors=tuple(draw(LEVEL) for _ in strides),
        strides=strides,
        head=draw(st.sampled_from(["yolo", "retinanet"])),
        resize=draw(st.sampled_from(["letterbox", "stretch"])),
        pad_value=draw(st.floats(0, 255)),
        mean=draw(TRIPLE),
        std=draw(TRIPLE),
        color=draw(st.sampled_from(["rgb", "bgr"])),
        score_threshold=draw(st.floats(0, 1)),
        nms_threshold=draw(st.floats(0.01, 1)),
        operating_threshold=draw(st.none() | st.floats(0, 1, exclude_min=True)),
        made_split=draw(st.none() | st.tuples(SHARE, st.integers(0, 2**63 - 1), st.just("0" * 64))),
        precision=draw(st.sampled_from(["fp32", "fp16", "int8"])),
        source_sha256=draw(st.text("0123456789abcdef", max_size=64)),
        made_with=tuple(draw(st.lists(TEXT, max_size=3))),
    )


@given(specs(), st.dictionaries(st.text().filter(lambda key: key not in FIELDS), st.text(), max_size=2))
def test_metadata_round_trip(spec: ModelSpec, foreign: dict[str, str]) -> None:
    metadata = spec.to_metadata()
    assert all(isinstance(value, str) for value in metadata.values())
    assert ModelSpec.from_metadata({**metadata, **foreign}) == spec


@pytest.mark.parametrize("metadata", [{}, {"other": "1"}])
def test_a_foreign_model_has_no_description(metadata: dict[str, str]) -> None:
    with pytest.raises(ModelError, match="no model spec"):
        ModelSpec.from_metadata(metadata)


@pytest.mark.parametrize("field", sorted(set(FIELDS) - PREFERENCES))
def test_every_field_must_be_there(field: str, make_spec: Callable[..., ModelSpec]) -> None:
    metadata = make_spec().to_metadata()
    del metadata[field]
    with pytest.raises(ModelError, match="no model spec" if field == "format_version" else f"lacks {field};"):
        ModelSpec.from_metadata(metadata)


@pytest.mark.parametrize("foreign", [{}, {"head": json.dumps("retinanet")}])  # a key that format 1 did not know
def test_format_1_is_yolo(foreign: dict[str, str], make_spec: Callable[..., ModelSpec]) -> None:
    metadata = make_spec().to_metadata()
    del metadata["head"]
    old = ModelSpec.from_metadata({**metadata, **foreign, "format_version": "1"})
    assert old == make_spec()
    assert old.head == "yolo" and old.format_version == FORMAT_VERSION == 3


def test_format_2_is_plain(make_spec: Callable[..., ModelSpec]) -> None:
    metadata = make_spec(head="retinanet").to_metadata()
    del metadata["input_type"], metadata["top_k"]
    old = ModelSpec.from_metadata({**metadata, "format_version": "2"})
    assert old == make_spec(head="retinanet") == old.plain()
    assert make_spec(input_type="uint8", top_k=7).plain() == make_spec()


@pytest.mark.parametrize("version", range(1, FORMAT_VERSION + 1))
def test_a_file_without_an_operating_threshold_has_none(version: int, make_spec: Callable[..., ModelSpec]) -> None:
    metadata = {**make_spec().to_metadata(), "format_version": str(version)}
    del metadata["operating_threshold"]
    assert ModelSpec.from_metadata(metadata) == make_spec()
    assert make_spec().operating_threshold is None


def test_what_a_model_takes_and_gives_out(make_spec: Callable[..., ModelSpec]) -> None:
    spec = make_spec(input_size=(64, 96))
    assert spec.input_shape == (3, 64, 96)
    assert spec.outputs == {"p5": (28, 2, 3), "p4": (28, 4, 6), "p3": (28, 8, 12)}
    assert spec.boxes_per_level() == (24, 96, 384)
    assert spec.replace(input_type="uint8").input_shape == (64, 96, 3)
    assert spec.replace(top_k=504).outputs == {"candidates": (504, 7)}
    with pytest.raises(ModelError, match="top_k is 505, more than its 504 boxes"):
        spec.replace(top_k=505)


@pytest.mark.parametrize("text", ["", "{", "letterbox", "'letterbox'", "[1, 2", "[" * 100_000])
@pytest.mark.parametrize("field", ["name", "anchors"])
def test_not_json(field: str, text: str, make_spec: Callable[..., ModelSpec]) -> None:
    with pytest.raises(ModelError, match="not valid JSON"):
        ModelSpec.from_metadata({**make_spec().to_metadata(), field: text})


WRONG: list[tuple[str, object]] = [
    ("name", None),
    ("name", 3),
    ("class_names", []),
    ("class_names", "dot"),
    ("class_names", [1, 2]),
    ("class_names", None),
    ("class_names", ["dot", "two\nlines"]),
    ("class_names", ["dot", "\x1b[2J"]),
    ("class_names", ["dot", "\ud800"]),  # half a character, which no terminal or file takes
    ("input_size", 64),
    ("input_size", [64]),
    ("input_size", [64, 64, 64]),
    ("input_size", [64.0, 64.0]),
    ("input_size", [0, 64]),
    ("input_size", [-64, 64]),
    ("input_size", [True, 64]),
    ("input_size", ["64", "64"]),
    ("input_size", [64, 8224]),
    ("input_size", [64, 10**9]),
    # not multiples of 32
    ("input_size", [65, 64]),
    ("input_size", [64, 48]),
    ("input_size", [16, 16]),
    ("anchors", []),
    ("anchors", [[], [], []]),
    ("anchors", [[[1, 2]], [[1, 2]]]),
    ("anchors", [[[1, 2]]] * 4),
    ("anchors", [[[1, 2, 3]]] * 3),
    ("anchors", [[[0, 2]]] * 3),
    ("anchors", [[[-1, 2]]] * 3),
    ("anchors", [[[float("nan"), 2]]] * 3),
    ("anchors", [[[float("inf"), 2]]] * 3),
    ("anchors", [[[10**400, 2]]] * 3),
    ("anchors", [[[1e308, 2]]] * 3),
    ("anchors", {"p5": [[1, 2]]}),
    ("strides", []),
    ("strides", [32, 16]),
    ("strides", [32, 16, 0]),
    ("strides", [32, 16, -8]),
    ("strides", [32, 16, 7]),
    ("strides", [32, 16, 8.0]),
    ("strides", 32),
    ("strides", [32, 16, 16]),
    ("strides", [32, 16, 2**60]),
    ("strides", [32, 16, 2**2000]),
    ("head", "ssd"),
    ("head", None),
    ("head", ["yolo"]),
    ("resize", "crop"),
    ("resize", None),
    ("resize", ["letterbox"]),
    ("color", "RGB"),
    ("color", {}),
    ("precision", "fp64"),
    ("pad_value", -1),
    ("pad_value", 256),
    ("pad_value", "114"),
    ("pad_value", float("nan")),
    ("mean", [0, 0]),
    ("mean", [0, 0, "0"]),
    ("mean", [0, 0, float("nan")]),
    ("std", [1, 1, 0]),
    ("std", [1, 1, -1]),
    ("std", None),
    ("std", [1, 1, 1e-308]),
    ("mean", [0, 0, 1e308]),
    ("score_threshold", -0.1),
    ("score_threshold", 1.1),
    ("score_threshold", None),
    ("score_threshold", True),
    ("nms_threshold", 0),
    ("nms_threshold", 1.1),
    ("nms_threshold", [0.6]),
    ("operating_threshold", 0),
    ("operating_threshold", -0.1),
    ("operating_threshold", 1.1),
    ("operating_threshold", float("nan")),
    ("operating_threshold", "0.5"),
    ("operating_threshold", True),
    ("operating_threshold", [0.5]),
    ("made_split", [0.2, 0]),
    ("made_split", [1.0, 0, "0" * 64]),
    ("made_split", [0.2, -1, "0" * 64]),
    ("made_split", [0.2, 0, "../../x"]),
    ("made_split", 0.2),
    ("source_sha256", None),
    ("made_with", None),
    ("made_with", "torch 2"),
    ("made_with", [2]),
    ("input_type", None),
    ("input_type", "int8"),
    ("top_k", -1),
    ("top_k", 3841),
    ("top_k", 1.5),
    ("top_k", False),
    ("top_k", None),
    ("format_version", None),
    ("format_version", "1"),
    ("format_version", 1.5),
    ("format_version", FORMAT_VERSION + 1),
    ("format_version", 0),
]


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_wrong_values(field: str, value: object, make_spec: Callable[..., ModelSpec]) -> None:
    with pytest.raises(ModelError, match=f"{field}|input size|anchor levels|has format"):
        ModelSpec.from_metadata({**make_spec().to_metadata(), field: json.dumps(value)})


def test_values_at_their_bounds(make_spec: Callable[..., ModelSpec]) -> None:
    at_bounds = {
        "input_size": (8192, 8192),
        "mean": (-1e6, 0, 1e6),
        "std": (1e-6, 1, 1e6),
        "operating_threshold": 1,
        "class_names": ("naïve", "\u0645\u06cc\u200c\u062e"),
    }
    spec = make_spec(**at_bounds, strides=(8192, 4, 2), anchors=(((1e6, 1e-6),),) * 3)
    assert ModelSpec.from_metadata(spec.to_metadata()) == spec


def test_outputs_beyond_any_memory_are_refused(make_spec: Callable[..., ModelSpec]) -> None:
    many = tuple(map(str, range(300_000)))
    with pytest.raises(ModelError, match="its maps would hold 1209620160 values an image, at most 1073741824 are taken"):
        make_spec(class_names=many, input_size=(256, 256), anchors=(((1.0, 1.0),) * 3,) * 3)


@pytest.mark.parametrize("field", ["name", "head", "format_version"])
@pytest.mark.parametrize("value", ["x" * 100_000, ["x"] * 100_000, 10**4000], ids=["text", "list", "number"])
def test_a_refusal_quotes_little_of_what_it_refuses(field: str, value: object, make_spec: Callable[..., ModelSpec]) -> None:
    metadata = {**make_spec().to_metadata(), "color": '"grey"', field: json.dumps(value)}
    with pytest.raises(ModelError) as caught:
        ModelSpec.from_metadata(metadata)
    assert len(str(caught.value)) < 300


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=5)
    | st.sampled_from([2**60, 10**400]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=150)
@given(
    specs(),
    st.dictionaries(st.sampled_from(FIELDS), st.none() | JSON.map(json.dumps) | st.text(max_size=20), min_size=1, max_size=3),
)
def test_tampered_metadata_is_read_as_it_is_or_refused(spec: ModelSpec, changes: dict[str, str | None]) -> None:
    metadata = {key: text for key, text in {**spec.to_metadata(), **changes}.items() if text is not None}
    message = ""
    try:
        found = ModelSpec.from_metadata(metadata)
    except ModelError as error:
        message = str(error)
    if message:
        assert "\n" not in message and len(message) < 500
    else:
        assert ModelSpec.from_metadata(found.to_metadata()) == found
        if found.format_version == json.loads(metadata["format_version"]):  # else it was brought up to date
            assert {key: json.loads(text) for key, text in found.to_metadata().items()} == {
                key: json.loads(metadata.get(key, "null")) for key in FIELDS
            }


def test_a_newer_format_names_both_versions(make_spec: Callable[..., ModelSpec]) -> None:
    metadata = {**make_spec().to_metadata(), "format_version": "99", "anchors": json.dumps("of another kind")}
    with pytest.raises(ModelError, match=f"has format 99, this code reads up to {FORMAT_VERSION}; update the code"):
        ModelSpec.from_metadata(metadata)


def test_replace_validates_again(make_spec: Callable[..., ModelSpec]) -> None:
    assert make_spec().replace(input_size=(96, 32)).input_size == (96, 32)
    with pytest.raises(ModelError, match="33x64 is not a multiple of 32"):
        make_spec().replace(input_size=(33, 64))


@pytest.mark.parametrize(
    ("strides", "names", "shapes"),
    [
        ((32, 16, 8), ("p5", "p4", "p3"), [(28, 3, 5), (28, 6, 10), (28, 12, 20)]),
        ((8, 16, 32), ("p3", "p4", "p5"), [(28, 12, 20), (28, 6, 10), (28, 3, 5)]),
        ((16,), ("p4",), [(28, 6, 10)]),
    ],
)
def test_outputs(
    strides: tuple[int, ...], names: tuple[str, ...], shapes: list[tuple[int, ...]], make_spec: Callable[..., ModelSpec]
) -> None:
    anchors = (((1.0, 1.0),) * 4,) * len(strides)
    spec = make_spec(strides=strides, anchors=anchors, input_size=(96, 160))
    assert spec.num_classes == 2
    assert spec.map_names == names
    assert [spec.map_shape(level) for level in range(len(strides))] == shapes


def test_retinanets_outputs_are_rounded_up(make_spec: Callable[..., ModelSpec]) -> None:
    strides = (128, 64, 32, 16, 8)
    spec = make_spec(head="retinanet", strides=strides, anchors=(((1.0, 1.0),) * 9,) * 5, input_size=(160, 288))
    assert spec.map_names == ("p7", "p6", "p5", "p4", "p3")
    sizes = [(2, 3), (3, 5), (5, 9), (10, 18), (20, 36)]
    assert [spec.map_shape(level) for level in range(5)] == [(9 * 6, *size) for size in sizes]
    with pytest.raises(ModelError, match="80x64 is not a multiple of 32"):
        spec.replace(input_size=(80, 64))


def test_anchors_may_differ_in_number(make_spec: Callable[..., ModelSpec]) -> None:
    spec = make_spec(anchors=(((1.0, 1.0),), ((1.0, 1.0),) * 3, ((1.0, 1.0),) * 4))
    assert [spec.map_shape(level)[0] for level in range(3)] == [7, 21, 28]
