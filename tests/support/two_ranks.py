"""Runs in each of two processes for the tests of distributed training; started by `torchrun`, results in a folder."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from runtime import cli
from runtime.datasets.open import open_dataset
from runtime.detector import Detector
from runtime.errors import InputError
from runtime.evaluation.coco import evaluate, predict_share, score_predictions
from tests.support.small_models import CLASSES, settled, tiny
from tests.support.training_runs import difference, random_recipe, run_options
from train.config import TrainConfig
from train.data.augment import AugmentConfig
from train.data.device_feed import to_device
from train.data.epoch import epoch_batches, shared_batches
from train.data.normalizer import Normalizer
from train.data.training_set import TrainingSet
from train.distributed import World, joined
from train.loop import train
from train.model import build_model
from train.model.sync_norm import synchronized
from train.parts import part_of
from train.precision import Precision
from train.run.folder import find_checkpoint
from train.run.step import Stepper
from train.spec import model_spec
from train.torch_backend import TorchBackend

torch.set_num_threads(1)
CPU = torch.device("cpu")


def config_of(detector: str) -> TrainConfig:
    """A float64 training of 4 steps with batches of 5, which two ranks cannot halve."""
    config = tiny(detector=detector) if detector == "retinanet" else tiny()
    return config.replace(batch=5, augment=AugmentConfig.none(), mixup=False, precision="fp32", learning_rate=1e-3)


def trained(data: Path, config: TrainConfig, world: World, steps: int, part: int | None = None, frozen: bool = False) -> Any:
    """Trains some steps; returns the first step's gradients and the weights at the end, by name."""
    dataset = open_dataset(data, "train")
    spec = model_spec(config, dataset.class_names)
    torch.manual_seed(0)
    model = settled(config).double().train(not frozen)
    if world.size > 1:
        synchronized(model, CPU)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    step = Stepper(config, model, optimizer, Precision("fp32", CPU), None, world, part)
    step.plan(config.batch)
    examples = TrainingSet(dataset, spec, config.augment, config.seed)
    examples.matcher = model.matcher
    normalizer = Normalizer(spec, CPU)
    gradients, losses = {}, []
    for number in range(steps):
        planned = epoch_batches(len(examples), number, 0, config.batch, config.sizes, False)[:1]
        batches = [examples.batch(part) for part in shared_batches(planned, world.rank, world.size, step.parts)]
        found = [part._replace(images=part.images.double()) for part in to_device(batches, normalizer, CPU)]
        losses.append([float(value) for value in map(world.mean, step(found, config.learning_rate, 0))])
        with_gradient = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
        gradients = gradients or {name: value.clone() for name, value in with_gradient.items()}
    return gradients, {name: value.clone() for name, value in model.state_dict().items()}, losses


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Largest difference, relative to the largest value of the tensor."""
    assert one.keys() == other.keys()
    return max(float((one[n] - other[n]).abs().max() / other[n].abs().max().clamp(min=1e-12)) for n in one if one[n].numel())


def norm(tensors: dict[str, torch.Tensor]) -> float:
    return float(torch.stack([value.double().norm() for value in tensors.values()]).norm())


def compare_gradients(data: Path, world: World) -> dict[str, Any]:
    """One process with the whole batch against two with a part each, and against parts one after the other."""
    found: dict[str, Any] = {}
    for detector in ("yolov3", "retinanet"):
        config = config_of(detector)
        steps = 4 if detector == "yolov3" else 1
        alone, together = trained(data, config, World(), steps), trained(data, config, world, steps)
        torch.manual_seed(0)
        model = settled(config).double()
        start, names = model.state_dict(), [name for name, _ in model.named_parameters()]
        update = {name: alone[1][name] - start[name] for name in names}
        apart = {name: together[1][name] - alone[1][name] for name in names}
        found[detector] = {
            "unused": sorted(set(names) - set(together[0])),
            "gradients": distance(together[0], alone[0]),
            "weights": norm(apart) / norm(update),
            "statistics": distance(*({n: v for n, v in end[1].items() if "running" in n} for end in (together, alone))),
            "losses": max(abs(a - b) / abs(b) for a, b in zip(together[2][0], alone[2][0]) if b),
        }
        frozen = trained(data, config, World(), 1, frozen=True)[0]
        accumulated = trained(data, config, world, 1, part=1, frozen=True)[0]
        found[detector]["accumulated"] = distance(accumulated, frozen)
    return found


def compare_norms(world: World) -> dict[str, float]:
    """Batch norm of a batch against that of its two unequal parts."""
    torch.manual_seed(0)
    images = torch.randn(5, 6, 4, 3, dtype=torch.float64) * 3 + 100
    weights = torch.randn_like(images)
    parts = [slice(0, 3), slice(3, 5)]
    whole = nn.Sequential(nn.BatchNorm2d(6, momentum=0.3)).double()
    nn.init.uniform_(whole[0].weight)
    mine = nn.Sequential(nn.BatchNorm2d(6, momentum=0.3)).double()
    mine.load_state_dict(whole.state_dict())
    synchronized(mine, CPU)
    inputs = images.clone().requires_grad_(), images[parts[world.rank]].clone().requires_grad_()
    outputs = whole(inputs[0]), mine(inputs[1])
    (outputs[0] * weights).sum().backward()
    (outputs[1] * weights[parts[world.rank]]).sum().backward()
    gradient = world.mean(mine[0].weight.grad) * world.size
    running = [[norm[0].get_buffer(name) for name in ("running_mean", "running_var")] for norm in (mine, whole)]
    return {
        "output": float((outputs[1] - outputs[0][parts[world.rank]]).detach().abs().max()),
        "input": float((inputs[1].grad - inputs[0].grad[parts[world.rank]]).abs().max()),
        "weight": float((gradient - whole[0].weight.grad).abs().max()),
        "running": max(float((one - other).abs().max()) for one, other in zip(*running)),
    }


def compare_evaluations(data: Path, world: World) -> dict[str, Any]:
    """The merged evaluation against that of one process."""
    config = tiny()
    spec = model_spec(config, CLASSES)
    detector = Detector(TorchBackend(settled(config).eval(), spec), score_threshold=0.01)
    dataset = open_dataset(data, "train")
    share = predict_share(detector, dataset, CLASSES, batch=3, progress=False, share=(world.rank, world.size))
    shares = world.gather(share)
    if not world.is_main:
        return {}
    merged, alone = score_predictions(dataset, shares), evaluate(detector, dataset, CLASSES, batch=3, progress=False)
    return {"equal": merged == alone, "results": len(merged.results), "shares": [len(part.scored) for part in shares]}


class _Killed(BaseException):
    """Stands for the end of both processes."""


@contextlib.contextmanager
def killed_at(call: int) -> Iterator[None]:
    step, calls = Stepper.__call__, iter(range(1, 1000))

    def wrapped(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            raise _Killed
        return step(*arguments, **options)

    Stepper.__call__ = wrapped  # type: ignore[method-assign]
    try:
        with contextlib.suppress(_Killed):
            yield
    finally:
        Stepper.__call__ = step  # type: ignore[method-assign]


def restart(data: Path, folder: Path, world: World) -> dict[str, Any]:
    """A run of both, killed amid an epoch and continued, against an undisturbed one."""
    config = random_recipe(batch=4, freeze=(("backbone", 1),))
    train(config, run_options(data, folder / "whole", save_steps=1), world=world)
    with killed_at(4):
        train(config, run_options(data, folder / "killed", save_steps=1), world=world)
    saved = world.from_main(lambda: find_checkpoint(folder / "killed"))
    train(config, run_options(data, folder / "killed", save_steps=1), saved, world)
    return {
        "step": saved and saved.progress and (saved.epoch, saved.progress.step),
        "thawed": _thawed(folder / "whole", config) if world.is_main else [],
        "difference": difference(folder / "whole", folder / "killed") if world.is_main else [],
    }


def _thawed(folder: Path, config: TrainConfig) -> list[str]:
    """Parts of the weights that have optimizer state at the end, none if a weight lacks it."""
    end = find_checkpoint(folder)
    assert end and end.optimizer
    names = list(dict(build_model(config.model, end.spec.num_classes).named_parameters()))
    return [] if len(end.optimizer["state"]) < len(names) else sorted({part_of(name) for name in names})


def disagree(world: World) -> str:
    try:
        world.check_agreement({"recipe": "a", "data": f"hash {world.rank}"})
    except InputError as error:
        return str(error)
    return ""


def main() -> int:
    data, folder = map(Path, sys.argv[1:3])
    with joined("cpu") as world:
        found = {
            "norms": compare_norms(world),
            "gradients": compare_gradients(data, world),
            "evaluation": compare_evaluations(data, world),
            "restart": restart(data, folder, world),
            "disagreement": disagree(world),
        }
        (folder / f"{world.rank}.json").write_text(json.dumps(found))
        if world.rank == 1:
            raise InputError("rank 1 cannot go on")
        torch.distributed.barrier()  # in which rank 0 waits for it
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    cli.run(main)
