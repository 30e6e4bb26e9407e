"""The COCO figures: cases worked out by hand, and equality with pycocotools on the original files."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.datasets.dataset import Dataset
from runtime.datasets.open import open_dataset
from runtime.detections import Detections
from runtime.errors import InputError, ModelError
from runtime.evaluation.coco import METRICS, Evaluation, evaluate, match_classes, predict_share, score_predictions
from runtime.ops.image import Image

MakeCoco = Callable[..., Path]
NAMES = ("dot", "ring")
Box = tuple[float, float, float, float]  # left, top, width, height
Found = tuple[Box, float, int]  # box, score, class id


def detections(found: Sequence[Found]) -> Detections:
    corners = [(x, y, x + w, y + h) for (x, y, w, h), _, _ in found]
    return Detections.from_arrays(corners, [score for _, score, _ in found], [k for _, _, k in found])


def replay(answers: Sequence[Sequence[Found]]) -> Callable[[Sequence[Image]], list[Detections]]:
    """A predictor that gives these answers image by image, whatever the batches."""
    stream: Iterator[Sequence[Found]] = iter(answers)
    return lambda images: [detections(next(stream)) for _ in images]


def run(root: Path, answers: Sequence[Sequence[Found]], names: Sequence[str] = NAMES, **options: Any) -> Evaluation:
    return evaluate(replay(answers), open_dataset(root, "val"), names, progress=False, **options)


def approx(value: float) -> Any:
    return pytest.approx(value, abs=1e-12)


BIG: Box = (50, 40, 100, 100)
IMAGE = (5, 200, 200, 0)


def test_perfect_detections(make_coco: MakeCoco) -> None:
    boxes = [(5, 9, BIG), (5, 3, (0, 0, 20, 20)), (6, 9, (10, 10, 50, 50))]
    root = make_coco([IMAGE, (6, 200, 200, 0)], boxes)
    result = run(root, [[(BIG, 0.9, 1), ((0, 0, 20, 20), 0.8, 0)], [((10, 10, 50, 50), 0.7, 1)]])
    assert result.metrics == {name: approx(1) for name in METRICS} and tuple(result.metrics) == METRICS
    assert result.per_class == {"dot": approx(1), "ring": approx(1)}
    assert (result.ap, result.ap50, result.images, result.skipped) == (approx(1), approx(1), 2, ())


def test_nothing_found(make_coco: MakeCoco) -> None:
    result = run(make_coco([IMAGE], [(5, 9, BIG)]), [[]])
    assert result.metrics["AP"] == 0 and result.metrics["AR100"] == 0 and result.results == []
    assert result.per_class == {"dot": -1, "ring": 0}  # -1: the split has no such object


def test_nothing_to_find(make_coco: MakeCoco) -> None:
    result = run(make_coco([IMAGE]), [[(BIG, 0.9, 1)]])
    assert set(result.metrics.values()) == {-1} and result.per_class == {"dot": -1, "ring": -1}


@pytest.mark.parametrize(
    ("found", "ap"),
    [
        # one of two objects: precision 1 up to recall 0.5, that is at 51 of COCO's 101 recall points
        ([(BIG, 0.9, 1)], 51 / 101),
        # a wrong box above the right one: precision 1/2 over the first 51 points
        ([((0, 150, 40, 40), 0.95, 1), (BIG, 0.9, 1)], 0.5 * 51 / 101),
        # below it: harmless
        ([((0, 150, 40, 40), 0.5, 1), (BIG, 0.9, 1)], 51 / 101),
        # a second box on the same object is wrong, here above nothing
        ([(BIG, 0.9, 1), (BIG, 0.8, 1)], 51 / 101),
        # the right box, the wrong class
        ([(BIG, 0.9, 0)], 0),
        # both, and a wrong one between: 1 up to recall 0.5, then 2/3
        ([(BIG, 0.9, 1), ((0, 150, 40, 40), 0.8, 1), ((0, 0, 30, 30), 0.7, 1)], (51 + 50 * 2 / 3) / 101),
    ],
)
def test_ranking_by_hand(found: list[Found], ap: float, make_coco: MakeCoco) -> None:
    result = run(make_coco([IMAGE], [(5, 9, BIG), (5, 9, (0, 0, 30, 30))]), [found])
    assert result.per_class["ring"] == approx(ap)
    assert result.ap == approx(ap) and result.ap50 == approx(ap)  # `dot` has no object and is in no average


def test_localisation_by_hand(make_coco: MakeCoco) -> None:
    # IoU 0.62 passes the thresholds 0.50, 0.55 and 0.60 of ten
    result = run(make_coco([IMAGE], [(5, 9, BIG)]), [[((50, 40, 62, 100), 0.9, 1)]])
    assert (result.ap, result.ap50, result.metrics["AP75"]) == (approx(0.3), approx(1), 0)
    assert (result.metrics["APl"], result.metrics["APm"], result.metrics["AR100"]) == (approx(0.3), -1, approx(0.3))


def test_sizes_by_hand(make_coco: MakeCoco) -> None:
    small, medium, large = (0, 0, 20, 20), (30, 0, 50, 50), (80, 60, 120, 120)
    root = make_coco([IMAGE], [(5, 9, box) for box in (small, medium, large)])
    # medium found; large found at IoU 0.75, which passes 0.50 to 0.75, six of ten
    figures = run(root, [[(medium, 0.9, 1), ((80, 60, 90, 120), 0.8, 1)]]).metrics
    assert (figures["APs"], figures["APm"], figures["APl"]) == (0, approx(1), approx(0.6))
    assert (figures["ARs"], figures["ARm"], figures["ARl"]) == (0, approx(1), approx(0.6))
    assert figures["AR1"] == approx(1 / 3)
    assert figures["AR100"] == approx((6 * 2 / 3 + 4 / 3) / 10)


def test_crowds_forgive(make_coco: MakeCoco) -> None:
    crowd = (5, 9, (0, 150, 50, 50), {"iscrowd": 1})
    inside: list[Found] = [((x, 155, 8, 8), 0.99, 1) for x in (1, 12, 24, 36)]
    with_crowd = run(make_coco([IMAGE], [(5, 9, BIG), crowd]), [[*inside, (BIG, 0.5, 1)]])
    assert with_crowd.ap == approx(1)
    without = run(make_coco([IMAGE], [(5, 9, BIG)]), [[*inside, (BIG, 0.5, 1)]])
    assert without.ap == approx(1 / 5)


@pytest.mark.parametrize(("wrong", "ap"), [(99, 1 / 100), (100, 0)])
def test_a_hundred_detections_count(wrong: int, ap: float, make_coco: MakeCoco) -> None:
    others: list[Found] = [((0, 0, 10, 10), 0.9, 1)] * wrong
    result = run(make_coco([IMAGE], [(5, 9, BIG)]), [[*others, (BIG, 0.5, 1)]])
    assert result.ap == approx(ap) and result.per_class["ring"] == approx(ap)


def test_images_without_objects_count(make_coco: MakeCoco) -> None:
    root = make_coco([IMAGE, (6, 50, 50, 0)], [(5, 9, BIG)])
    assert run(root, [[(BIG, 0.5, 1)], [((0, 0, 9, 9), 0.9, 1)]]).ap == approx(0.5)


@pytest.mark.parametrize("batch", [1, 2, 3, 10])
def test_batches_and_original_ids(batch: int, make_coco: MakeCoco) -> None:
    ids = [40, 7, 900_000_000_000]  # not in order
    root = make_coco([(i, 60, 40, 0) for i in ids], [(i, 3, (1.0, 2.0, 10.0, 10.0)) for i in ids])
    sizes = []

    def predict(images: Sequence[Image]) -> list[Detections]:
        sizes.append(len(images))
        return [detections([((1, 2, 10.25, 10), 0.5, 0)])] * len(images)

    dataset = open_dataset(root, "val")
    result = evaluate(predict, dataset, NAMES, batch=batch, progress=False)
    assert sum(sizes) == 3 and max(sizes) == min(batch, 3)
    record = {"category_id": 1, "bbox": [1.0, 2.0, 10.25, 10.0], "score": 0.5}
    assert result.results == [{"image_id": i, **record} for i in (2, 1, 3)]
    assert dataset.to_source(result.results) == [{**record, "image_id": i, "category_id": 3} for i in ids]
    assert result.ap50 == approx(1)
    assert json.loads(json.dumps(result.to_dict())) == {
        "figures": result.metrics,
        "per_class": {"dot": result.ap, "ring": -1},
        "images": 3,
        "skipped": [],
    }


def test_classes_are_matched_by_name(make_coco: MakeCoco) -> None:
    root = make_coco([IMAGE], [(5, 9, BIG), (5, 3, (0, 0, 20, 20))])
    result = run(root, [[(BIG, 0.9, 0), ((0, 0, 20, 20), 0.8, 1)]], names=("ring", "dot"))
    assert result.ap == approx(1)
    assert [record["category_id"] for record in result.results] == [2, 1]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "the model has 0 classes, .* has 2"),
        (("dot",), "only in the data: ring"),
        (("dot", "ring", "cat"), "only in the model: cat; only in the data: none"),
        (("dot", "Ring"), "only in the model: Ring; only in the data: ring"),
        (("dot", "ring", "ring"), "the model has 3 classes"),
    ],
)
def test_other_classes_are_refused(names: tuple[str, ...], message: str, make_coco: MakeCoco) -> None:
    dataset = open_dataset(make_coco([IMAGE]), "val")
    with pytest.raises(ModelError, match=message):
        match_classes(names, dataset)


def test_unreadable_images_are_left_out(make_coco: MakeCoco, caplog: pytest.LogCaptureFixture) -> None:
    root = make_coco([(i, 200, 200, 0) for i in (1, 2, 3)], [(i, 9, BIG) for i in (1, 2, 3)])
    (root / "val2017" / "2.png").write_bytes(b"no image")
    for batch in (1, 2, 3):
        result = run(root, [[(BIG, 0.9, 1)]] * 2, batch=batch)
        assert result.ap == approx(1)  # the second image's object is not missed: it is in no figure
        assert result.images == 2 and len(result.skipped) == 1 and "2.png" in result.skipped[0]
        assert [record["image_id"] for record in result.results] == [1, 3]
    assert "1 of 3 images could not be read" in caplog.text
    with pytest.raises(InputError, match=r"2\.png"):
        run(root, [[]] * 3, strict=True)


def test_no_readable_image(make_coco: MakeCoco) -> None:
    root = make_coco([IMAGE])
    (root / "val2017" / "5.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"none of the 1 images of val2017 can be read \(.*5\.png: the file is empty"):
        run(root, [])


def random_case(make_coco: MakeCoco, seed: int) -> tuple[Path, list[list[Found]]]:
    """A set with every oddity: crowds, areas that are not the box's, boxes that reach out, empty images, tied scores."""
    rng = np.random.default_rng(seed)
    ids = rng.choice(10_000, 12, replace=False).tolist()
    boxes, answers = [], []
    for image_id in ids:
        found: list[Found] = []
        for _ in range(rng.integers(0, 7)):
            label = int(rng.integers(2))
            x, y = rng.uniform(-5, 90, 2)
            w, h = rng.uniform(5, 110, 2)
            crowd = int(rng.random() < 0.2)
            boxes.append((image_id, (3, 9)[label], (x, y, w, h), {"iscrowd": crowd, "area": w * h * rng.uniform(0.4, 1)}))
            for _ in range(rng.integers(0, 3)):
                jitter = rng.normal(0, 4, 4)
                box = (x + jitter[0], y + jitter[1], max(w + jitter[2], 1), max(h + jitter[3], 1))
                found.append((box, float(np.float32(rng.integers(1, 20) / 20)), label))
        found += [
            ((*rng.uniform(0, 80, 2), *rng.uniform(1, 60, 2)), float(rng.random()), int(rng.integers(2))) for _ in range(3)
        ]
        answers.append(found)
    return make_coco([(i, 120, 120, 0) for i in ids], boxes), answers


@pytest.mark.parametrize("seed", range(3))
def test_equals_plain_pycocotools_on_the_original_files(seed: int, make_coco: MakeCoco, tmp_path: Path) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    root, answers = random_case(make_coco, seed)
    result = run(root, answers, batch=4)
    results_file = tmp_path / "results.json"
    results_file.write_text(json.dumps(open_dataset(root, "val").to_source(result.results)))
    with contextlib.redirect_stdout(io.StringIO()):
        source = root / "annotations" / "instances_val2017.json"
        content = json.loads(source.read_text())
        for annotation in content["annotations"]:  # the one deviation: pycocotools misreads an id of 0
            annotation["id"] += 1
        source.write_text(json.dumps(content))
        truth = COCO(str(source))
        judge = COCOeval(truth, truth.loadRes(str(results_file)), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    assert [result.metrics[name] for name in METRICS] == judge.stats.tolist()
    assert 0.1 < result.ap < 0.9
    precision = judge.eval["precision"][:, :, :, 0, 2]
    assert result.per_class == {"dot": precision[:, :, 0].mean(), "ring": precision[:, :, 1].mean()}


def test_an_annotation_id_of_zero_is_scored(make_coco: MakeCoco) -> None:
    root = make_coco([IMAGE], [(5, 9, BIG)])  # make_coco counts annotations from 0
    assert json.loads((root / "annotations" / "instances_val2017.json").read_text())["annotations"][0]["id"] == 0
    assert run(root, [[(BIG, 0.9, 1)]]).ap == approx(1)


def test_evaluation_does_not_change_the_dataset(make_coco: MakeCoco) -> None:
    dataset: Dataset = open_dataset(make_coco([IMAGE], [(5, 9, BIG)]), "val")
    before = json.dumps(dataset.annotations)
    first = evaluate(replay([[(BIG, 0.9, 1)]]), dataset, NAMES, progress=False)
    second = evaluate(replay([[(BIG, 0.9, 1)]]), dataset, NAMES, progress=False)
    assert first == second and json.dumps(dataset.annotations) == before


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_shares_are_scored_as_one(make_coco: MakeCoco, ranks: int) -> None:
    """Whatever the number of ranks, each image counts once and keeps its place; one cannot be read, one rank may have none."""
    root = make_coco([(n, 200, 200, 0) for n in range(1, 8)], [(n, 9, BIG) for n in range(1, 8)])
    (root / "val2017" / "4.png").write_bytes(b"no image")
    dataset = open_dataset(root, "val")

    def predict(images: Sequence[Image]) -> list[Detections]:
        return [detections([(BIG, 0.5, 1), ((0, 0, 9, 9), 0.25, 0)]) for _ in images]

    whole = evaluate(predict, dataset, NAMES, batch=2, progress=False)
    shares = [predict_share(predict, dataset, NAMES, batch=2, progress=False, share=(rank, ranks)) for rank in range(ranks)]
    assert score_predictions(dataset, shares) == whole
    with pytest.raises(AssertionError, match="scored twice"):
        score_predictions(dataset, [*shares, shares[0]])
