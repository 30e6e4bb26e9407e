"""Parts that are frozen for a while or for good, and learning rates by part."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch

from runtime.errors import InputError
from tests.support.small_models import tiny
from tests.support.training_runs import difference, random_recipe, run_options
from train import checkpoint, run_log
from train.config import PARTS, TrainConfig
from train.loop import train
from train.model import build_model
from train.optim import build_optimizer
from train.parts import check_parts, frozen_parts, never_trained, part_of
from train.run.folder import find_checkpoint
from train.run.step import Stepper


@pytest.fixture(autouse=True)
def without_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "Board", lambda *_: MagicMock())


@pytest.mark.parametrize("config", [tiny(), tiny(backbone="mobilenetv2"), tiny(detector="retinanet")])
def test_every_weight_is_of_a_part(config: TrainConfig) -> None:
    model = build_model(config.model, 2, config.loss)
    assert {part_of(name) for name in model.state_dict()} == set(PARTS)


@pytest.mark.parametrize(
    ("freeze", "epoch", "frozen", "never"),
    [
        ((), 0, set(), set()),
        ((("backbone", 0),), 9, {"backbone"}, {"backbone"}),
        ((("backbone", 2), ("neck", 1)), 0, {"backbone", "neck"}, set()),
        ((("backbone", 2), ("neck", 1)), 1, {"backbone"}, set()),
        ((("backbone", 2), ("neck", 1)), 2, set(), set()),
        ((("heads", 10),), 9, {"heads"}, {"heads"}),
    ],
)
def test_the_schedule(freeze: tuple[tuple[str, int], ...], epoch: int, frozen: set[str], never: set[str]) -> None:
    config = tiny().replace(freeze=freeze, epochs=10)
    assert (frozen_parts(config, epoch), never_trained(config)) == (frozen, never)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"freeze": (("body", 1),)}, "freeze body: expected each of backbone"),
        ({"freeze": (("neck", 1), ("neck", 2))}, "at most once"),
        ({"freeze": (("neck", -1),)}, "at least 0"),
        ({"freeze": tuple((part, 0) for part in PARTS)}, "leaves nothing to train"),
        ({"part_rates": (("neck", 0.0),)}, "above 0"),
        ({"part_rates": (("neck", float("nan")),)}, "above 0"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny().replace(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"freeze": (("fusion", 1),)}, "--freeze fusion: this model has no such part; it has backbone, heads, neck"),
        ({"part_rates": (("fusion", 0.5),)}, "--part-rates fusion: this model has no such part"),
        ({"freeze": (("backbone", 0), ("heads", 2), ("neck", 1))}, "nothing is left to train"),
        ({"freeze": (("backbone", 0), ("heads", 2))}, None),
    ],
)
def test_parts_are_those_of_the_model(change: dict[str, object], message: str | None) -> None:
    config = tiny(detector="retinanet", fusion="none")
    model = build_model(config.model, 2, config.loss)
    with pytest.raises(InputError, match=message) if message else contextlib.nullcontext():
        check_parts(model, config.replace(**change))


def test_rates_by_part_reach_every_weight_once() -> None:
    config = tiny().replace(part_rates=(("backbone", 0.1), ("neck", 0.5)), freeze=(("fusion", 0),))
    model = build_model(config.model, 2, config.loss)
    optimizer = build_optimizer(model, config)
    factors = {id(p): group["rate_factor"] for group in optimizer.param_groups for p in group["params"]}
    expected = {"backbone": 0.1, "neck": 0.5, "heads": 1.0}
    assert factors == {id(p): expected[part_of(n)] for n, p in model.named_parameters() if part_of(n) != "fusion"}


def test_frozen_parts_keep_everything_until_they_thaw_and_a_run_resumes_exactly(
    coco_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = random_recipe(freeze=(("backbone", 0), ("neck", 1)), part_rates=(("heads", 0.5),))
    states, rates = [], []
    call = Stepper.__call__

    def spied(self: Stepper, *arguments: object) -> object:
        states.append(copy.deepcopy(self._model.state_dict()))
        found = call(self, *arguments)  # type: ignore[arg-type]
        rates.append({group["rate_factor"]: group["lr"] for group in self._optimizer.param_groups})
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "__call__", spied)
        train(config, run_options(coco_set, tmp_path / "whole"))
    end = checkpoint.load(tmp_path / "whole" / "last.pt")
    moved = [
        {part_of(n) for n in one if not torch.equal(one[n], two[n])} for one, two in zip(states, [*states[1:], end.weights])
    ]
    assert moved == [{"fusion", "heads"}] * 4 + [{"neck", "fusion", "heads"}] * 4
    assert all(found[0.5] == found[1.0] / 2 for found in rates)
    model = build_model(config.model, 2)
    held = sum(part_of(name) != "backbone" for name, _ in model.named_parameters())
    assert end.optimizer and len(end.optimizer["state"]) == held  # of what never trains, none

    for stop_at in (3, 6):
        calls = iter(range(1, 100))

        def killed(self: Stepper, *arguments: object) -> object:
            if next(calls) == stop_at:  # noqa: B023
                raise KeyboardInterrupt
            return call(self, *arguments)  # type: ignore[arg-type]

        folder = tmp_path / str(stop_at)
        with monkeypatch.context() as patch:
            patch.setattr(Stepper, "__call__", killed)
            with pytest.raises(KeyboardInterrupt):
                train(config, run_options(coco_set, folder))
        train(config, run_options(coco_set, folder), find_checkpoint(folder))
        assert difference(tmp_path / "whole", folder) == []
    with pytest.raises(InputError, match=r"freeze .*, not "):
        train(config.replace(freeze=()), run_options(coco_set, folder), find_checkpoint(folder))
