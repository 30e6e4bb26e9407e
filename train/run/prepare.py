"""Prepares a run: opens the data, builds the model, restores the state, and checks that they belong together."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from dataclasses import dataclass
from typing import Any

import torch

from runtime.datasets.dataset import Dataset
from runtime.errors import InputError
from runtime.files import locked_folder
from train.checkpoint import Checkpoint
from train.config import TrainConfig
from train.data.anchor_fit import box_shapes, fit_anchors, measure_fit
from train.data.epoch import SampleIndex, epoch_batches, steps_per_epoch
from train.data.loader import Feed, default_workers
from train.data.splits import check_splits, open_splits, save_made_split
from train.data.training_set import TrainingSet
from train.distributed import World
from train.logs.step_log import StepLog
from train.memory import keep_freed_memory
from train.model import build_model
from train.optim import build_optimizer
from train.overrides import AUTO
from train.parts import check_parts
from train.precision import set_up
from train.run.device import choose_device
from train.run.folder import METRICS, RunFolder
from train.run.identity import code_hash, data_hashes
from train.run.options import RunOptions
from train.run.state import RunState
from train.run.step import Stepper
from train.run_log import RunLogger, read_metrics
from train.spec import model_spec
from train.weights import recognize
from train.weights.initial import Found, detector_config, start_from

log = logging.getLogger(__name__)


@dataclass
class Run:
    """A run in progress. Folder and logger are those of the process that writes, None in the others."""

    options: RunOptions
    world: World
    state: RunState
    step: Stepper
    training_set: TrainingSet
    feed: Feed
    val_data: Dataset
    device: torch.device
    step_log: StepLog
    folder: RunFolder | None = None
    logger: RunLogger | None = None

    @property
    def title(self) -> str:
        """Where it runs."""
        size = self.world.size
        return str(self.device) if size == 1 else f"{size} processes, {self.device.type}"

    def plan_epoch(self) -> list[list[SampleIndex]]:
        """Plans all batches of the epoch that the state is in."""
        config, epoch = self.state.config, self.state.epoch
        left = config.epochs - epoch
        sizes = (config.size,) if left <= config.fixed_epochs else config.sizes
        mixup = config.mixup and left > config.plain_epochs
        return epoch_batches(len(self.feed), epoch, config.seed, config.batch, sizes, mixup)

    def open_folder(self, stack: contextlib.ExitStack, begin: bool) -> None:
        """Locks the folder until the stack is closed, and writes the files that a run begins with."""
        options, state = self.options, self.state
        path = stack.enter_context(locked_folder(options.output))
        self.folder = RunFolder(path, options.keep, options.save_steps, options.save_minutes)
        if begin:
            self.folder.begin(state)  # so that there is something to resume from at any moment
            save_made_split(path, self.training_set.dataset, self.val_data)
        elif state.epoch and not state.rows:  # an earlier version's checkpoint, which lacks them
            state.rows = [row for row in read_metrics(path / METRICS) if int(row["epoch"]) <= state.epoch]
        has_weights = any(fusion.kind == "asff" for fusion in state.model.fusions())
        self.logger = RunLogger(path, state.epoch, state.losses, state.spec.class_names, has_weights)
        done = state.epoch * steps_per_epoch(len(self.feed), state.config.batch) + state.step
        self.step_log.open(path, done, state.losses, self.logger.open_steps(done))
        stack.callback(self.step_log.close)
        if state.rows:
            self.logger.write_table(state.rows)


def prepare(config: TrainConfig, options: RunOptions, resume: Checkpoint | None, world: World) -> Run:
    """Opens the data, builds the model and restores the state; writes nothing. See `train.loop.train`."""
    train_data, val_data = open_splits(
        options.data, (config.train_split, config.val_split), options.made_split, options.follow_links
    )
    found = recognize(options.init) if options.init and not resume else None
    config = without_pointless_smoothing(config, len(train_data.class_names))
    config = with_found_anchors(config, train_data, found, resume)
    data = data_hashes((train_data, val_data))
    if world.size > 1:
        world.check_agreement(
            {"recipe": config.to_json(), **data, "code": code_hash(), "PyTorch": torch.__version__}
            | {"--device-batch": str(options.device_batch), "--compile": str(options.compile_with)}
        )
    if resume:
        check_same_run(resume, config, data, options)
    spec = resume.spec.replace(operating_threshold=None) if resume else model_spec(config, train_data.class_names)
    spec = spec.replace(made_split=val_data.made_split and tuple(val_data.made_split))
    check_splits(spec, train_data, val_data)
    training_set = TrainingSet(train_data, spec, config.augment, config.seed, cache=options.cache, strict=options.strict)
    device = choose_device(options.device, world)
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(config.seed)
    model = build_model(config.model, spec.num_classes, config.loss)
    check_parts(model, config)
    if options.init and found:
        start_from(options.init, model, spec, found)
    precision = set_up(config, model, device, options.compile_with)
    training_set.matcher = model.matcher
    world.synchronize_norms(model, device)
    state = RunState(config, spec, model, build_optimizer(model, config), precision, data)
    if resume:
        state.restore(resume)
    step = Stepper(config, model, state.optimizer, precision, state.average, world, options.device_batch)
    step.plan(min(config.batch, len(training_set)))
    workers = default_workers(device) if options.workers is None else options.workers
    most_pixels = -(-config.batch // (world.size * step.parts)) * max(config.size, *config.sizes) ** 2
    most_batches = steps_per_epoch(len(training_set), config.batch) * step.parts
    feed = Feed(training_set, workers, most_pixels, most_batches, pinned=device.type == "cuda")
    log.info("computing in %s, %d workers", precision.describe(state.optimizer), workers)
    step_log = StepLog(options.log_every, config.clip_gradient)
    return Run(options, world, state, step, training_set, feed, val_data, device, step_log)


def without_pointless_smoothing(config: TrainConfig, num_classes: int) -> TrainConfig:
    """Turns label smoothing off where it hides the class.

    Its targets are 1 - 1/C for the true class and 1/C for the others (section 2 of the paper): 0 for an only class, and 1/2
    for both of two.
    """
    if not config.loss.label_smoothing or num_classes > 2:
        return config
    log.warning("label smoothing is off: it needs at least 3 classes, the data has %d", num_classes)
    return config.replace(loss=dataclasses.replace(config.loss, label_smoothing=False))


def with_found_anchors(config: TrainConfig, data: Dataset, weights: Found | None, resume: Checkpoint | None) -> TrainConfig:
    """Puts in the anchors that the recipe does not know: those of the run's first start, of its weights, or of its boxes.

    Args:
        config: of the run.
        data: to train on.
        weights: that the run starts from; the heads of a detector predict relative to its own anchors.
        resume: checkpoint of the run, which has them.

    Raises:
        InputError: the boxes are of too few shapes.
    """
    source, model = config.anchor_source, config.model
    if resume:
        begun = resume.config
        is_found = (source, begun.anchor_source) in ((AUTO, AUTO), ("recipe", "weights"))
        anchors = begun.model.anchors
        if not is_found or len(anchors) != len(model.anchors):
            return config
        return config.replace(anchor_source=begun.anchor_source, model=dataclasses.replace(model, anchors=anchors))
    if source == AUTO:
        shapes = box_shapes(data, config.size, config.resize)
        anchors = fit_anchors(shapes, len(model.anchors))
        before, after = (measure_fit(shapes, each).mean_iou for each in (model.anchors, anchors))
        log.info("anchors fitted to %d boxes: mean shape IoU %.3f, the recipe's %.3f", len(shapes), after, before)
        return config.replace(model=dataclasses.replace(model, anchors=anchors))
    other = detector_config(weights)
    if source != "recipe" or not other or other.detector != model.detector or other.anchors == model.anchors:
        return config
    if model.detector != "yolov3" or (other.guided, len(other.anchors)) != (model.guided, len(model.anchors)):
        return config  # whose heads do not fit either
    log.info("anchors are those of the weights to start from; --anchors chooses others")
    return config.replace(anchor_source="weights", model=dataclasses.replace(model, anchors=other.anchors))


def check_same_run(resume: Checkpoint, config: TrainConfig, data: dict[str, str], options: RunOptions) -> None:
    """Checks that a checkpoint is continued as it was begun.

    Raises:
        InputError: with another recipe, or on other data; the message names what differs.
    """
    begun, wanted = (_flat(json.loads(each.to_json())) for each in (resume.config, config))
    different = [name for name in begun | wanted if begun.get(name) != wanted.get(name)]
    if different:
        shown = ", ".join(f"{name} {wanted.get(name)}, not {begun.get(name)}" for name in different[:3])
        raise InputError(
            f"{options.output} holds a run of another recipe or other options ({shown}{', ...' if different[3:] else ''}); give"
            " those that it was begun with, or use another --output"
        )
    saved = resume.progress.data if resume.progress else {}
    changed = [name for name, value in data.items() if saved.get(name, value) != value]
    if changed:
        raise InputError(
            f"{options.data}: its {' and '.join(changed)} are not those that {options.output} was trained on so far; restore"
            f" them, or start a new run from its weights with --init {options.output / 'last.pt'} and another --output"
        )


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Joins the names of nested values by dots."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        parts = _flat(value) if isinstance(value, dict) else {"": value}
        flat.update({f"{name}.{inner}".rstrip("."): part for inner, part in parts.items()})
    return flat
