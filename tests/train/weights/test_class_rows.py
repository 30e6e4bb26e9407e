"""Heads that go over to another list of classes, by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.small_models import CLASSES, settled, tiny
from train import checkpoint
from train.checkpoint import Checkpoint
from train.config import TrainConfig
from train.model import build_model
from train.spec import model_spec
from train.weights.initial import start_from

OLD = ("cat", "dog", "bird")
YOLO, PLAIN = tiny(), tiny(guided=False, adaption=False)
RETINA = tiny(detector="retinanet", fusion="none")

TABLE: tuple[tuple[tuple[str, ...], str], ...] = (
    (("cat", "dog", "bird"), ""),
    (("bird", "cat", "dog"), "3 of 3 classes keep their weights by name"),
    (("cat", "fish", "bird"), "2 of 3 classes keep their weights by name; fresh: fish"),
    (("dog",), "1 of 1 classes keep their weights by name"),
    (("a", "dog", "b", "cat", "c"), "2 of 5 classes keep their weights by name; fresh: a, b, c"),
    (("x", "y", "z"), "no class is known by name; fresh: x, y, z"),
)


def by_anchor(model: torch.nn.Module, lead: int, classes: int) -> list[Tensor]:
    """Rows `[A, lead + C, ...]` of the layers that predict classes."""
    found = []
    towers = {name: value for name, value in model.state_dict().items() if name.startswith("head.classes.")}
    last = max((int(name.split(".")[2]) for name in towers), default=-1)
    for name, value in model.state_dict().items():
        if ".predict." in name or (lead == 0 and name.startswith(f"head.classes.{last}.")):
            found.append(value.reshape(-1, lead + classes, *value.shape[1:]))
    assert found
    return found


@pytest.mark.parametrize(
    ("config", "new", "said"), [*((YOLO, *row) for row in TABLE), (PLAIN, *TABLE[2]), (RETINA, *TABLE[2]), (RETINA, *TABLE[5])]
)
def test_rows_follow_the_names(
    config: TrainConfig, new: tuple[str, ...], said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    torch.manual_seed(1)
    trained = settled(config, len(OLD))
    checkpoint.save(tmp_path / "m.pt", Checkpoint(config, model_spec(config, OLD), trained.state_dict(), None, 0, -1.0))
    torch.manual_seed(2)
    model = build_model(config.model, len(new), config.loss)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fresh_rows = by_anchor(build_and_load(config, len(new), before), lead_of(config), len(new))
    start_from(tmp_path / "m.pt", model, model_spec(config, new))
    known = [name for name in new if name in OLD]
    lead = lead_of(config)
    for ours, theirs, fresh in zip(by_anchor(model, lead, len(new)), by_anchor(trained, lead, len(OLD)), fresh_rows):
        assert torch.equal(ours[:, :lead], (theirs if known else fresh)[:, :lead])
        for index, name in enumerate(new):
            expected = theirs[:, lead + OLD.index(name)] if name in OLD else fresh[:, lead + index]
            assert torch.equal(ours[:, lead + index], expected), name
    assert ("heads:" in caplog.text) == bool(said) and said in caplog.text
    inner = next(name for name in before if name.startswith(("neck", "fpn")))
    assert torch.equal(model.state_dict()[inner], trained.state_dict()[inner])


def lead_of(config: TrainConfig) -> int:
    return 0 if config.model.detector == "retinanet" else 5


def build_and_load(config: TrainConfig, classes: int, state: dict[str, Tensor]) -> torch.nn.Module:
    model = build_model(config.model, classes, config.loss)
    model.load_state_dict(state)
    return model


def test_another_number_of_anchors_starts_fresh_even_where_shapes_fit(tmp_path: Path) -> None:
    """3 anchors of 3 classes have as many channels as 4 anchors of 1, whose name is known."""
    trained = settled(PLAIN)
    checkpoint.save(tmp_path / "m.pt", Checkpoint(PLAIN, model_spec(PLAIN, CLASSES), trained.state_dict(), None, 0, -1.0))
    model = build_model(YOLO.model, 1, YOLO.loss)
    before = model.heads[0].predict.weight.clone()  # type: ignore[union-attr]
    start_from(tmp_path / "m.pt", model, model_spec(YOLO, (CLASSES[0],)))
    assert torch.equal(model.heads[0].predict.weight, before)  # type: ignore[union-attr]
