"""Trains a detector: from a configuration and a dataset to the best and the last checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from runtime.datasets.dataset import Dataset, MadeSplit
from runtime.detector import Detector
from runtime.errors import InputError, MissingComponentError, ModelError
from runtime.evaluation.coco import Evaluation, evaluate
from runtime.evaluation.operating_point import measure_curve
from runtime.files import locked_folder
from runtime.ops.image import Image
from runtime.spec import ModelSpec
from runtime.viz.annotate import draw
from train import checkpoint
from train.checkpoint import Checkpoint
from train.config import TrainConfig
from train.data.device_feed import DeviceBatch, to_device
from train.data.epoch import epoch_batches
from train.data.loader import Feed, default_workers
from train.data.normalizer import Normalizer
from train.data.splits import check_splits, open_splits, save_made_split
from train.data.training_set import TrainingSet
from train.ema import WeightAverage
from train.finite import StepMonitor
from train.model import DetectorModel, build_model
from train.model.blocks import DropBlock
from train.optim import build_optimizer, learning_rate
from train.precision import Precision, set_up
from train.run_log import RunLogger, show_batch, tile
from train.spec import model_spec
from train.step import take_step
from train.torch_backend import TorchBackend
from train.weights.initial import start_from

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Data, folders and machine of a run, besides its configuration."""

    data: Path
    """Dataset folder, of any layout in `runtime.datasets`."""
    output: Path
    """Folder for checkpoints, metrics and images."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, ..."""
    init: Path | None = None
    """Weights to start from: anything `train.weights.read_weights` takes; a resumed run has its own."""
    workers: int | None = None
    """Processes that prepare batches; 0 prepares them in this one, None chooses by the cores."""
    compile_with: str | None = None
    """Backend of `torch.compile`; None to not compile."""
    strict: bool = False
    """Fail on the first unreadable image."""
    progress: bool = True
    """Show progress bars on a terminal."""
    made_split: MadeSplit | None = None
    """How data without validation images is divided; None for the default."""
    follow_links: bool = False
    """Read files to which symbolic links lead out of the data."""


def train(config: TrainConfig, options: RunOptions, resume: Checkpoint | None = None) -> Path:
    """Trains to the end and returns the best checkpoint's path.

    Raises:
        InputError: the data cannot be used.
        OutputError: the output cannot be written, or another run is writing it.
        CheckFailed: the loss is not finite; the message names the batch.
    """
    train_data, val_data = open_splits(
        options.data, (config.train_split, config.val_split), options.made_split, options.follow_links
    )
    config = _without_pointless_smoothing(config, len(train_data.class_names))
    spec = resume.spec.replace(operating_threshold=None) if resume else model_spec(config, train_data.class_names)
    spec = spec.replace(made_split=val_data.made_split and tuple(val_data.made_split))
    check_splits(spec, train_data, val_data)
    training_set = TrainingSet(train_data, spec, config.augment, config.seed, cache=True, strict=options.strict)
    device = choose_device(options.device)
    torch.manual_seed(config.seed)
    model = build_model(config.model, spec.num_classes, config.loss)
    if options.init and not resume:
        start_from(options.init, model, spec)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = config.norm_momentum
    precision = set_up(config, model, device, options.compile_with)
    training_set.matcher = model.matcher
    workers = default_workers(device) if options.workers is None else options.workers
    most_pixels = config.batch * max(config.size, *config.sizes) ** 2
    with (
        locked_folder(options.output) as folder,
        Feed(training_set, workers, most_pixels, pinned=device.type == "cuda") as feed,
    ):
        optimizer = build_optimizer(model, config)
        state = _State(config, spec, model, optimizer, precision)
        if resume:
            state.restore(resume)
        else:
            _remove_earlier_run(folder)
            save_made_split(folder, train_data, val_data)
            state.save(folder / "last.pt")  # so that there is something to resume from at any moment
        run_logger = RunLogger(folder, state.epoch, model.components)
        log.info("training %s on %d images of %s (%s), %s", spec.name, len(train_data), options.data, train_data.split, device)
        log.info("computing in %s, %d workers", precision.describe(optimizer), workers)
        try:
            while state.epoch < config.epochs:
                _run_epoch(state, feed, val_data, run_logger, folder, options)
        finally:
            run_logger.close()
        if training_set.unreadable:
            log.warning("%d of %d images could not be read and were left out", len(training_set.unreadable), len(train_data))
        if not (folder / "best.pt").is_file():
            raise InputError(
                f"{folder}: the run is complete but has no best.pt: no evaluation gave an AP, or the file was removed;"
                " train again into another --output, on validation images that can be read"
            )
        return folder / "best.pt"


def _remove_earlier_run(folder: Path) -> None:
    """Removes the files of an earlier run, which would pass for this one's."""
    for name in ("best.pt", "metrics.csv", "split.json"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)


def _without_pointless_smoothing(config: TrainConfig, num_classes: int) -> TrainConfig:
    """Turns label smoothing off where it hides the class.

    Its targets are 1 - 1/C for the true class and 1/C for the others (section 2 of the paper): 0 for an only class, and 1/2
    for both of two.
    """
    if not config.loss.label_smoothing or num_classes > 2:
        return config
    log.warning("label smoothing is off: it needs at least 3 classes, the data has %d", num_classes)
    return config.replace(loss=dataclasses.replace(config.loss, label_smoothing=False))


class _State:
    """State of a run that a checkpoint keeps."""

    def __init__(
        self,
        config: TrainConfig,
        spec: ModelSpec,
        model: DetectorModel,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
    ) -> None:
        self.config, self.spec, self.model, self.optimizer, self.precision = config, spec, model, optimizer, precision
        self.average = WeightAverage(model, config.ema) if config.ema else None
        self.epoch, self.best_ap = 0, -1.0

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Puts the moving average, if there is one, into the model until the end of the block."""
        return self.average.applied() if self.average else contextlib.nullcontext()

    def restore(self, saved: Checkpoint) -> None:
        checkpoint.load_weights("the checkpoint", self.model, saved.weights)
        if saved.optimizer is None:
            raise InputError("the checkpoint has no optimizer state to resume from; use last.pt")
        try:
            self.optimizer.load_state_dict(saved.optimizer)
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            raise ModelError(f"the checkpoint's optimizer state does not fit its model ({error})") from error
        self.epoch, self.best_ap = saved.epoch, saved.best_ap
        self.precision.load_state_dict(saved.scaler)
        if self.average:
            self.average.load_state_dict(saved.average)

    def save(self, path: Path) -> None:
        """Writes everything that resuming needs."""
        average = self.average.state_dict() if self.average else {}
        self._save(path, self.spec, self.optimizer.state_dict(), average=average, scaler=self.precision.state_dict())

    def save_for_use(self, path: Path, threshold: float | None) -> None:
        """Writes the model alone, with the operating threshold that these weights were measured to have."""
        self._save(path, self.spec.replace(operating_threshold=threshold), None)

    def _save(self, path: Path, spec: ModelSpec, optimizer: dict[str, Any] | None, **state: Any) -> None:
        weights = self.model.state_dict()
        checkpoint.save(path, Checkpoint(self.config, spec, weights, optimizer, self.epoch, self.best_ap, **state))


def _run_epoch(state: _State, feed: Feed, val_data: Dataset, run_logger: RunLogger, folder: Path, options: RunOptions) -> None:
    """Trains one epoch, evaluates if it is due, and writes metrics and checkpoints."""
    config, number = state.config, state.epoch + 1
    values = _train_epoch(state, feed, run_logger, options)
    state.epoch = number
    message = f"epoch {number}/{config.epochs}  loss {values['total']:.2f}  {values['images_per_second']:.1f} images/s"
    if number % config.evaluate_every == 0 or number == config.epochs:
        with state.averaged():
            message += _evaluate_epoch(state, val_data, run_logger, folder, options, values)
    state.save(folder / "last.pt")
    run_logger.record(number, values)
    log.info(message)


def _evaluate_epoch(
    state: _State, val_data: Dataset, run_logger: RunLogger, folder: Path, options: RunOptions, values: dict[str, float]
) -> str:
    """Evaluates the model as it is, adds its metrics to `values`, keeps it if it is the best, and says so."""
    result = _evaluate(state, val_data, options)
    figures = {"AP": result.ap, "AP50": result.ap50}  # -1: no readable image has an object
    values.update((name, value) for name, value in figures.items() if value >= 0)
    message = "".join(f"  {name} {value * 100:.1f}" if value >= 0 else f"  {name} –" for name, value in figures.items())
    run_logger.add_image("validation", _show_detections(state, val_data), state.epoch)
    if result.ap >= max(state.best_ap, 0):
        state.best_ap = result.ap
        best = measure_curve(result.matches.by_area["all"]).best_f1()
        message += f"  F1 {best.f1 * 100:.1f} from a score of {best.threshold:.2f}" if best else ""
        state.save_for_use(folder / "best.pt", best.threshold if best else None)
    return message


def _train_epoch(state: _State, feed: Feed, run_logger: RunLogger, options: RunOptions) -> dict[str, float]:
    """Makes one pass over the training set; returns mean losses a step, the last learning rate, and images a second."""
    config, model, optimizer, epoch = state.config, state.model, state.optimizer, state.epoch
    device, precision = next(model.parameters()).device, state.precision
    left = config.epochs - epoch
    sizes = (config.size,) if left <= config.fixed_epochs else config.sizes
    mixup = config.mixup and left > config.plain_epochs
    plan = epoch_batches(len(feed), epoch, config.seed, config.batch, sizes, mixup)
    monitor = StepMonitor((*model.components, "total", "gradient"), precision.scales)
    normalizer = Normalizer(state.spec, device, precision.channels_last)
    _set_dropblock(model, config, epoch)
    model.train()
    start, images, rate = time.perf_counter(), 0, 0.0
    batches = to_device(feed.batches(plan), normalizer, device)
    for step, found in enumerate(_progress(batches, len(plan), f"epoch {epoch + 1}/{config.epochs}", options)):
        if step == 0 and epoch % 10 == 0:
            run_logger.add_image("training", show_batch(found.batch, state.spec), epoch + 1)
        rate = learning_rate(epoch + (step + 1) / len(plan), config)
        for group in optimizer.param_groups:
            group["lr"] = rate
        values = take_step(model, optimizer, precision, state.average, found, config)
        monitor.add(values, f"epoch {epoch + 1}, batch {step + 1}", found.batch.sources)
        images += len(found.images)
    means = monitor.means()
    means.pop("gradient")
    return {"learning_rate": rate, **means, "images_per_second": images / (time.perf_counter() - start)}


def _set_dropblock(model: DetectorModel, config: TrainConfig, epoch: int) -> None:
    """Sets the block sizes that the schedule has reached at this epoch, counted from 0."""
    sizes = next((sizes for start, sizes in reversed(config.dropblock) if epoch >= start), (0, 0, 0))
    for block, size in zip((m for m in model.modules() if isinstance(m, DropBlock)), sizes):
        block.size = size


def _progress(batches: Iterator[DeviceBatch], steps: int, title: str, options: RunOptions) -> Iterator[DeviceBatch]:
    bar: Any = tqdm(batches, total=steps, desc=title, unit="batch", leave=False, disable=None if options.progress else True)
    yield from bar


def _evaluate(state: _State, val_data: Dataset, options: RunOptions) -> Evaluation:
    detector = Detector(TorchBackend(state.model, state.spec), score_threshold=state.spec.score_threshold)
    batch = min(state.config.batch, 8)
    names = state.spec.class_names
    return evaluate(detector, val_data, names, batch=batch, strict=options.strict, progress=options.progress)


def _show_detections(state: _State, val_data: Dataset, most: int = 8) -> Image:
    """Draws the first readable validation images with the model's detections."""
    detector = Detector(TorchBackend(state.model, state.spec), score_threshold=0.25)
    images: list[Image] = []
    for entry in val_data.images:
        if len(images) == most:
            break
        try:
            image = entry.read()
        except InputError:
            continue  # the evaluation has named it
        images.append(draw(image, detector(image), state.spec.class_names))
    return tile(images)


def choose_device(name: str) -> torch.device:
    """Returns the torch device of that name; `auto` is a GPU where there is one.

    Raises:
        MissingComponentError: it is not on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise MissingComponentError(f"device {name!r} is not available here; use --device cpu") from error
    return device
