"""A run ends early only where its interval leaves no gain worth having."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest

from runtime.errors import ModelError
from runtime.evaluation.matching import ClassMatches, Matches
from tests.support.training_runs import difference, random_recipe, run_options
from train import checkpoint, loop, run_log
from train.loop import train
from train.run import early_stopping
from train.run.early_stopping import EarlyStopping
from train.run.folder import find_checkpoint

NAMES = ("a",)


def matches(images: int, right: float, seed: int = 0) -> Matches:
    """A detection and an object on each image; a share of the detections is right, at every IoU threshold."""
    hits = np.random.default_rng(seed).permutation(images) < right * images
    index, scores = np.arange(images, dtype=np.int32), np.linspace(1, 0.1, images)
    none = np.zeros((10, images), bool)
    item = ClassMatches(index, scores, np.tile(hits, (10, 1)), none, np.ones(images, np.int32))
    return Matches(tuple(range(1, images + 1)), NAMES, {"all": (item,)})


@pytest.mark.parametrize(
    ("images", "shares", "stale"),
    [
        (400, [], 0),
        (400, [0.5], 0),  # nothing to compare with
        (400, [0.5, 0.5], 1),  # the same detections: no gain, and no doubt about it
        (400, [0.5, 0.5, 0.5], 2),
        (400, [0.5, 0.3, 0.3], 2),  # clearly worse
        (400, [0.5, 0.7, 0.9], 0),  # clearly better
        (400, [0.5, 0.3, 0.3, 0.8], 0),  # a gain starts the count anew
        (400, [0.5, 0.3, 0.8, 0.6], 1),  # worse than the best, not than the one before it
    ],
)
def test_the_count(images: int, shares: list[float], stale: int) -> None:
    stopping, best = EarlyStopping(2), -1.0
    for share in shares:
        stopping.judge(matches(images, share), share >= best)
        stopping.judge(matches(images, share), share >= best)  # made again after an interruption
        stopping.commit()
        best = max(best, share)
    assert stopping.stale == stale and stopping.ends == (stale >= 2)
    again = EarlyStopping(2)
    again.load_state_dict(stopping.state_dict(), NAMES)
    for each in (stopping, again):
        each.judge(matches(images, 0.6, seed=3), False)
        each.commit()
    assert again.stale == stopping.stale


def test_a_wide_interval_never_ends_a_run() -> None:
    stopping = EarlyStopping(1)
    for seed in range(5):  # 20 images, other ones right each time: the bound allows a gain
        stopping.judge(matches(20, 0.5, seed), seed == 0)
        stopping.commit()
    assert not stopping.ends


def test_what_does_not_count() -> None:
    without = EarlyStopping(0)
    without.judge(matches(50, 0.5), True)
    without.commit()
    without.judge(matches(50, 0.5), False)
    without.commit()
    assert not without.ends and without.state_dict() == {}
    unreadable = EarlyStopping(1)
    for _ in range(3):
        unreadable.judge(None, False)
        unreadable.commit()
    assert not unreadable.ends
    vanished = EarlyStopping(1)
    for images, stale in ((20, 0), (19, 0), (19, 1)):  # an image less: nothing to compare with but from now on
        vanished.judge(matches(images, 0.5), images == 20)
        vanished.commit()
        assert vanished.stale == stale
    state = {**EarlyStopping(1).state_dict(), "image_ids": matches(3, 1).by_area["all"][0].objects}
    with pytest.raises(ModelError, match="early stopping"):
        EarlyStopping(1).load_state_dict(state, NAMES)  # type: ignore[arg-type]


def test_a_run_ends_and_resumes_exactly(coco_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "Board", lambda *_: MagicMock())
    monkeypatch.setattr(early_stopping, "WORTH_HAVING", 101.0)  # so that every evaluation counts
    config = random_recipe(patience=2, epochs=9)
    train(config, run_options(coco_set, tmp_path / "whole"))
    assert checkpoint.load(tmp_path / "whole" / "last.pt").epoch == 3
    evaluate, calls = loop._evaluate, iter(range(1, 9))

    def killed(run: loop.Run) -> object:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return evaluate(run)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config, run_options(coco_set, tmp_path / "cut"))
    train(config, run_options(coco_set, tmp_path / "cut"), find_checkpoint(tmp_path / "cut"))
    assert difference(tmp_path / "whole", tmp_path / "cut") == []
    train(config, run_options(coco_set, tmp_path / "cut"), find_checkpoint(tmp_path / "cut"))  # complete: nothing to do
    assert checkpoint.load(tmp_path / "cut" / "last.pt").epoch == 3
