"""Plots of an evaluation: lines where the values are, nothing cut off, and the values beside them in a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from runtime.evaluation.matching import AREAS, IOU_THRESHOLDS, ClassMatches, Matches
from runtime.evaluation.operating_point import Curves, choose, measure_curves
from runtime.media.image import read_image
from runtime.ops.image import Image
from runtime.viz import accuracy_plots
from runtime.viz.accuracy_plots import plot_f1, plot_precision_recall
from runtime.viz.annotate import class_color
from runtime.viz.canvas import GAP, INK, MARGIN, PAPER, shorten, text_size
from runtime.viz.chart import LEFT, SIDE
from runtime.viz.confusion_plot import plot_confusion
from runtime.viz.plot_files import write_plots

LONG = "a class name that goes on and on and does not fit into any legend at all"
HEAD = MARGIN + 52 + GAP  # height above a chart


def found(kinds: Sequence[tuple[float, bool]], objects: int) -> ClassMatches:
    right = np.tile([kind for _, kind in kinds], (IOU_THRESHOLDS, 1)).astype(bool)
    scores = np.array([score for score, _ in kinds], np.float64)
    none = np.zeros_like(right)
    return ClassMatches(np.zeros(len(kinds), np.int32), scores, right, none, np.array([objects], np.int32))


def curves_of(**classes: ClassMatches) -> Curves:
    return measure_curves(Matches((1,), tuple(classes), dict.fromkeys(AREAS, tuple(classes.values()))))


# thresholds 0.8, 0.6, 0.4, 0.2: precision 1, 1/2, 2/3, 3/4; recall 1/5, 1/5, 2/5, 3/5; F1 1/3, 2/7, 1/2, 2/3
FOUR = curves_of(cat=found([(0.8, True), (0.6, False), (0.4, True), (0.2, True)], objects=5), none=found([], 0))


def at(drawn: Image, x: float, y: float) -> list[int]:
    """The color at a point of the unit square."""
    return drawn[round(HEAD + GAP + (1 - y) * SIDE), round(MARGIN + LEFT + x * SIDE)].tolist()


def test_a_curve_passes_where_precision_and_recall_are() -> None:
    drawn = plot_precision_recall(FOUR, choose(FOUR))
    for recall, precision in [(0.2, 1), (0.2, 0.75), (0.2, 0.5), (0.3, (1 / 2 + 2 / 3) / 2), (0.4, 2 / 3)]:
        assert at(drawn, recall, precision) == list(INK)
    for recall, precision in [(0.1, 0.9), (0.3, 0.9), (0.7, 0.7), (0.5, 0.9)]:
        assert at(drawn, recall, precision) == list(PAPER)
    assert at(drawn, 0.6, 0.75) == [255, 255, 255]  # in the circle of the operating point


def test_f1_is_a_step_between_scores() -> None:
    drawn = plot_f1(FOUR, choose(FOUR))
    for threshold, f1 in [(0.9, 0), (0.7, 1 / 3), (0.5, 2 / 7), (0.3, 1 / 2), (0.4, 0.4)]:
        assert at(drawn, threshold, f1) == list(INK)
    for threshold, f1 in [(0.9, 1 / 3), (0.1, 2 / 3), (0.7, 0.45)]:
        assert at(drawn, threshold, f1) == list(PAPER)
    chosen = choose(FOUR).overall
    assert chosen is not None and at(drawn, chosen.threshold, 2 / 3) == [255, 255, 255]


def many(count: int) -> Curves:
    rng = np.random.default_rng(0)
    return curves_of(
        **{
            f"{index} {LONG}": found(
                [(float(score), bool(rng.random() < score)) for score in np.sort(rng.random(8))[::-1]], 20 + index
            )
            for index in range(count)
        }
    )


@pytest.mark.parametrize("curves", [FOUR, many(1), many(14), many(15), many(80), curves_of(none=found([], 0)), curves_of()])
@pytest.mark.parametrize("plot", [plot_precision_recall, plot_f1])
def test_nothing_is_cut_off(plot: object, curves: Curves) -> None:
    drawn = plot(curves, choose(curves))  # type: ignore[operator]
    assert drawn.dtype == np.uint8
    for edge in (drawn[:20], drawn[-20:], drawn[:, :20], drawn[:, -20:]):
        assert (edge == PAPER).all()


def test_classes_beyond_the_legend_are_gray() -> None:
    drawn = plot_precision_recall(many(16), choose(many(16)))
    right = drawn[:, MARGIN + LEFT + SIDE + 30 :]
    shown = [index for index in range(16) if (right == class_color(index)).all(axis=2).any()]
    assert shown == list(range(2, 16))  # those with the most objects
    assert (right == accuracy_plots._OTHERS).all(axis=2).any()


COUNTS = np.array([[30.0, 10, 0], [0, 5, 15], [1, 3, np.nan]])


def test_a_cell_has_the_shade_of_its_share() -> None:
    drawn = plot_confusion(COUNTS, ("cat", "dog"), "score >= 0.5")
    shades = drawn[-MARGIN - 3 * 44 :: 44, -MARGIN - 3 * 44 :: 44][:3, :3]  # corners of the cells: their border
    assert (shades == shades[0, 0]).all()
    inside = drawn[-MARGIN - 3 * 44 + 3 :: 44, -MARGIN - 3 * 44 + 3 :: 44][:3, :3].astype(float)
    share = (250 - inside[..., 2]) / (250 - 20)  # red falls from the paper's to that of a full cell
    np.testing.assert_allclose(share, [[0.75, 0.25, 0], [0, 0.25, 0.75], [0.25, 0.75, 0]], atol=0.01)


@pytest.mark.parametrize("names", [(), ("cat",), (LONG, "dog"), tuple(f"{LONG} {index}" for index in range(13))])
def test_no_name_or_count_of_a_matrix_is_cut_off(names: tuple[str, ...]) -> None:
    size = len(names) + 1
    counts = np.full((size, size), 1_234_567.0)
    counts[-1, -1] = np.nan
    drawn = plot_confusion(counts, names, "score >= 0.5")
    for edge in (drawn[:20], drawn[-20:], drawn[:, :20], drawn[:, -20:]):
        assert (edge == PAPER).all()
    assert drawn.shape[1] >= size * text_size("1234567", 0.4)[0]


def test_an_empty_row_has_no_shade() -> None:
    drawn = plot_confusion(np.array([[0, 0], [0, np.nan]]), ("cat",), "")
    assert not ((drawn == (130, 70, 20)).all(axis=2)).any()


def test_a_shortened_text_fits() -> None:
    assert shorten("cat", 0.5, 100) == "cat"
    assert shorten(LONG, 0.5, 100).endswith("..") and text_size(shorten(LONG, 0.5, 100), 0.5)[0] <= 100
    assert shorten(LONG, 0.5, 1) == ".."


def test_the_folder_holds_the_plots_and_their_values(tmp_path: Path) -> None:
    write_plots(tmp_path / "plots", FOUR, choose(FOUR), COUNTS, ("cat", "none"))
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == [
        "confusion.png",
        "curves.json",
        "f1.png",
        "precision-recall.png",
    ]
    np.testing.assert_array_equal(read_image(tmp_path / "plots" / "f1.png"), plot_f1(FOUR, choose(FOUR)))
    content = json.loads((tmp_path / "plots" / "curves.json").read_text())
    assert content["operating_point"] == choose(FOUR).to_dict()
    cat = {
        "objects": 5,
        "threshold": [0.8, 0.6, 0.4, 0.2],
        "precision": [1, 1 / 2, 2 / 3, 3 / 4],
        "recall": [1 / 5, 1 / 5, 2 / 5, 3 / 5],
        "f1": [2 / 6, 2 / 7, 4 / 8, 6 / 9],
    }
    nothing = {"objects": 0, "threshold": [], "precision": [], "recall": [], "f1": []}
    assert (content["all"], content["per_class"]) == (cat, {"cat": cat, "none": nothing})
    assert content["confusion"] == {
        "classes": ["cat", "none", "background"],
        "counts": [[30, 10, 0], [0, 5, 15], [1, 3, None]],
    }


def test_long_curves_are_thinned_in_the_file(tmp_path: Path) -> None:
    scores = np.linspace(1, 0.01, 50_000)
    long = curves_of(cat=found([(float(score), True) for score in scores], 60_000))
    write_plots(tmp_path, long, choose(long), np.array([[1, 0], [0, np.nan]]), ("cat",))
    values = json.loads((tmp_path / "curves.json").read_text())["all"]
    assert len(values["threshold"]) == len(values["recall"]) == 2000
    assert (values["threshold"][0], values["threshold"][-1]) == (1, 0.01)
