"""A step of training: no wait for the device in any form of the loss, and values that are read one step late."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any, Optional

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from runtime.errors import CheckFailed, InputError
from tests.support.small_models import CLASSES, tiny
from train.config import LossConfig, TrainConfig
from train.data.device_feed import DeviceBatch, to_device
from train.data.normalizer import Normalizer
from train.data.training_set import Batch
from train.distributed import World
from train.ema import WeightAverage
from train.finite import StepMonitor
from train.logs.data_wait import Wait
from train.logs.step_log import Step, StepLog
from train.model import DetectorModel, build_model
from train.optim import build_optimizer
from train.precision import set_up
from train.run.step import Stepper
from train.spec import model_spec

CPU = torch.device("cpu")
WAITS = (
    "nonzero",
    "unique",
    "_unique",
    "_local_scalar_dense",
    "masked_select",
    "is_nonzero",
    "equal",
    "argwhere",
    "lift_fresh",
)
"""Beginnings of the names of operators that the host has to wait for: by their result's shape, by the result itself, or (the
last) by a copy from the host that is not pinned."""


class NoWaits(TorchDispatchMode):
    """Fails on an operator that makes the host wait for a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Optional[dict[str, Any]] = None) -> Any:
        name = func.overloadpacket.__name__
        assert not (name.startswith(WAITS) and not name.endswith("_backward")), f"{name} waits for the device"
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            kinds = {index.dtype for index in args[1] if index is not None}
            assert not kinds & {torch.bool, torch.uint8}, f"{name} by a mask waits for the device"
        if name == "repeat_interleave":
            assert (kwargs or {}).get("output_size") is not None, "repeat_interleave without a size waits for the device"
        return func(*args, **(kwargs or {}))


def labels(count: int = 6, side: int = 64, mixed: bool = True) -> Tensor:
    """Labels of four images, one of them with none; two share a cell."""
    generator = torch.Generator().manual_seed(count)
    rows = torch.rand(4, count, 6, generator=generator)
    rows[..., 0] = torch.randint(0, len(CLASSES), (4, count), generator=generator)
    rows[..., 1:5] = rows[..., 1:5] * side * 0.6 + 4
    rows[:, 1:2] = rows[:, :1]
    rows[3] = 0
    if not mixed:
        rows[..., 5] = (rows[..., 3] > 0).float()
    return rows


def batch(model: DetectorModel, config: TrainConfig, rows: Tensor) -> Batch:
    images = torch.randint(0, 256, (4, config.size, config.size, 3), dtype=torch.uint8)
    return Batch(images, rows, ["a", "b", "c", "d"], model.matcher(rows, (config.size, config.size)))


class Run:
    """What a step takes."""

    def __init__(self, config: TrainConfig, rows: Tensor, device: torch.device = CPU) -> None:
        torch.manual_seed(0)
        self.config, self.model = config, build_model(config.model, len(CLASSES), config.loss)
        self.precision = set_up(config, self.model, device, None)
        self.optimizer = build_optimizer(self.model, config)
        self.average = WeightAverage(self.model, config.ema) if config.ema else None
        self.monitor = StepMonitor((*self.model.components, "total", "gradient"), self.precision.scales)
        self.log = StepLog(1, config.clip_gradient)
        self.take_step = Stepper(config, self.model, self.optimizer, self.precision, self.average)
        normalizer = Normalizer(model_spec(config, CLASSES), device, self.precision.channels_last)
        self.batches = list(to_device([batch(self.model, config, rows)] * 3, normalizer, device))
        self.model.train()

    def step(self, found: DeviceBatch) -> None:
        values = self.take_step([found], self.config.learning_rate, 0)
        step = Step(self.log.total.steps + 1, 1, self.config.learning_rate, len(found.images), Wait(0.0))
        then = functools.partial(self.log.add, step)
        self.monitor.add(values, "epoch 1, batch 1", found.batch.sources, then=then)


SILENT = LossConfig(label_smoothing=False)
VARIANTS = {
    "asff": tiny(),
    "not guided": tiny(guided=False, adaption=False),
    "mobilenet": tiny(backbone="mobilenetv2"),
    "asff-star": tiny(rfb=True).replace(dropblock=((0, (1, 3, 5)),)),
    "no smoothing": tiny().replace(loss=SILENT),
    "no box loss": tiny(guided=False, adaption=False).replace(loss=LossConfig(iou_loss=False)),
    "ignore center": tiny().replace(loss=LossConfig(ignore_area=0.0)),
    "ignore area": tiny().replace(loss=LossConfig(ignore_area=0.5)),
    "retinanet": tiny(detector="retinanet"),
    "adamw, averaged, clipped": tiny().replace(optimizer="adamw", ema=0.99, clip_gradient=10.0, decay_all=True),
    "bf16": tiny().replace(precision="bf16"),
    "fp16": tiny().replace(precision="fp16"),
}


ROWS = {"mixup": labels(), "plain": labels(mixed=False), "no labels": torch.zeros(4, 1, 6)}
CASES = [(name, "mixup") for name in VARIANTS]
CASES += [(name, rows) for rows in ("plain", "no labels") for name in ("asff", "no smoothing", "ignore area", "retinanet")]


@pytest.mark.parametrize(("name", "rows"), CASES)
def test_no_operator_of_a_step_waits(name: str, rows: str) -> None:
    run = Run(VARIANTS[name], ROWS[rows])
    with NoWaits():
        run.step(run.batches[0])
        run.step(run.batches[1])
    assert run.monitor.steps == run.log.total.steps == 1 and run.monitor.sums["total"] > 0


@pytest.mark.parametrize(
    "waiting", ["x[x > 0]", "x.nonzero()", "x.unique()", "x.sum().item()", "x.masked_select(x > 0)", "x * torch.tensor(2.0)"]
)
def test_the_check_finds_waits(waiting: str) -> None:
    with pytest.raises(AssertionError, match="waits for the device"), NoWaits():
        eval(waiting, {"torch": torch, "x": torch.tensor([0.0, 1.0])})


@pytest.mark.gpu
@pytest.mark.parametrize("name", VARIANTS)
def test_no_step_waits_on_a_gpu(name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU that PyTorch can use")
    run = Run(VARIANTS[name], labels(), torch.device("cuda"))
    run.step(run.batches[0])  # libraries load and buffers are made
    run.step(run.batches[1])
    torch.cuda.set_sync_debug_mode("error")
    try:
        run.step(run.batches[2])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    run.monitor.flush()
    assert run.monitor.sums["total"] > 0


@pytest.mark.parametrize("name", ["asff", "ignore area", "retinanet"])
def test_targets_of_the_workers_give_the_loss_of_the_labels(name: str) -> None:
    run = Run(VARIANTS[name], labels())
    found = run.batches[0]
    run.model.eval()
    with torch.no_grad():
        prepared, matched = (run.model.loss(found.images, targets) for targets in (found.targets, labels()))
    assert {key: float(value) for key, value in prepared.items()} == {key: float(value) for key, value in matched.items()}


def test_a_fault_is_found_a_step_late_and_names_its_own_batch() -> None:
    monitor = StepMonitor(("total", "gradient"), scaled=False)
    bad, good = torch.tensor(float("nan")), torch.tensor(1.0)
    monitor.add([good, good], "epoch 3, batch 1", ["first.jpg"])
    monitor.add([bad, good], "epoch 3, batch 2", ["second.jpg", "other.jpg"])
    expected = r"the loss \(total\) is not finite in epoch 3, batch 2: second.jpg, other.jpg; .* lower --learning-rate$"
    with pytest.raises(CheckFailed, match=expected):
        monitor.add([good, good], "epoch 3, batch 3", ["third.jpg"])


def test_a_fault_of_the_last_step_is_found_at_the_end() -> None:
    monitor = StepMonitor(("total",), scaled=False)
    monitor.add([torch.tensor(float("inf"))], "epoch 1, batch 9", ["last.jpg"])
    with pytest.raises(CheckFailed, match=r"epoch 1, batch 9: last\.jpg"):
        monitor.flush()


def test_sums_go_on_from_those_of_a_checkpoint() -> None:
    monitor = StepMonitor(("total",), scaled=False, sums={"total": 4.0})
    for value in (1.0, 2.0, 6.0):
        monitor.add([torch.tensor(value)], "", [])
    assert monitor.sums == {"total": 7.0} and monitor.steps == 2  # the last one is still on its way
    monitor.flush()
    assert monitor.sums == {"total": 13.0}


def test_the_values_of_a_step_are_handed_on_a_step_late_unless_they_are_at_fault() -> None:
    monitor = StepMonitor(("total", "gradient"), scaled=False)
    seen: list[tuple[int, dict[str, float]]] = []
    for number, value in enumerate((1.0, 2.0, float("nan"))):
        monitor.add([torch.tensor(value)] * 2, "", [], then=lambda values, number=number: seen.append((number, values)))
        assert len(seen) == number
    with pytest.raises(CheckFailed):
        monitor.flush()
    assert seen == [(number, {"total": number + 1.0, "gradient": number + 1.0}) for number in (0, 1)]


def test_a_request_to_stop_is_heard_a_step_late() -> None:
    monitor = StepMonitor(("total",), scaled=False)
    assert not monitor.add([torch.tensor(1.0)], "", [], stop=True)
    assert monitor.add([torch.tensor(1.0)], "", [])


def test_overflows_of_scaled_gradients_stop_nothing_until_they_do_not_end() -> None:
    monitor = StepMonitor(("total", "gradient"), scaled=True)
    good, over = torch.tensor(1.0), torch.tensor(float("inf"))
    for number in range(50):
        monitor.add([good, over], f"batch {number}", [])
    monitor.flush()
    assert monitor.sums == {"total": 50.0, "gradient": 0.0}
    monitor.add([good, over], "batch 50", ["a.jpg"])
    with pytest.raises(CheckFailed, match=r"batch 50: a\.jpg; .* --precision bf16 or fp32"):
        monitor.flush()
    monitor = StepMonitor(("total", "gradient"), scaled=True)
    monitor.add([over, over], "batch 1", ["a.jpg"])  # the loss itself is no matter of scale
    with pytest.raises(CheckFailed, match="total, gradient"):
        monitor.flush()


class TwoRanks(World):
    """A world in which the other rank has values of its own."""

    def __init__(self, rank: int, other: Sequence[float]) -> None:
        super().__init__(rank, 2)
        object.__setattr__(self, "other", other)

    def mean(self, values: Tensor) -> Tensor:
        return (values + torch.tensor(self.other, dtype=values.dtype)) / 2  # type: ignore[attr-defined]


NAN = float("nan")


@pytest.mark.parametrize(
    ("rank", "mine", "other", "named"),
    [
        (0, [NAN, 1.0], [1.0, 1.0, 0, 0, 0], "mine + mixed"),
        (0, [1.0, 1.0], [NAN, 1.0, 0, 0, 1], "b, d"),
        (1, [1.0, 1.0], [NAN, 1.0, 0, 1, 0], "a, c"),
        (1, [1.0, NAN], [1.0, NAN, 0, 1, 0], "a, c, b, d"),
    ],
)
def test_every_rank_names_the_images_of_the_one_at_fault(rank: int, mine: list[float], other: list[float], named: str) -> None:
    monitor = StepMonitor(("total", "gradient"), scaled=False, world=TwoRanks(rank, other))
    monitor.add([torch.tensor(value) for value in mine], "epoch 1, batch 1", ["mine + mixed"], lambda: ["a", "b", "c", "d"])
    with pytest.raises(CheckFailed, match=rf"in epoch 1, batch 1: {re.escape(named)}; the last checkpoint is intact"):
        monitor.flush()


@pytest.mark.parametrize(
    ("fitting", "message"),
    [
        (
            2,
            "4 images of 64x64 pixels at a time do not fit into the memory of cpu, but 2 do: add --device-batch 2, which keeps",
        ),
        (1, "but 1 do: add --device-batch 1"),
        (0, "and neither does one; lower --size, or choose a smaller recipe"),
    ],
)
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()], ids=["gpu", "cpu"])
def test_out_of_memory_says_what_fits(fitting: int, message: str, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tiny(), labels())
    before = {name: value.clone() for name, value in run.model.named_parameters()}
    loss = run.model.loss

    def limited(images: Tensor, *rest: Any) -> dict[str, Tensor]:
        if len(images) > fitting:
            raise error
        return loss(images, *rest)

    monkeypatch.setattr(run.model, "loss", limited)
    with pytest.raises(InputError, match=re.escape(message)):
        run.step(run.batches[0])
    assert all(torch.equal(value, before[name]) for name, value in run.model.named_parameters())
