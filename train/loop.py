"""Trains a detector: from a configuration and a dataset to the best and the last checkpoint."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from runtime.console import signals
from runtime.detector import Detector
from runtime.errors import InputError
from runtime.evaluation.coco import Evaluation, predict_share, score_predictions
from runtime.evaluation.operating_point import measure_curve
from runtime.ops.image import Image
from runtime.viz.annotate import draw
from train.checkpoint import Checkpoint
from train.config import TrainConfig
from train.data.device_feed import DeviceBatch, to_device
from train.data.epoch import SampleIndex, shared_batches
from train.data.normalizer import Normalizer
from train.distributed import World
from train.finite import StepMonitor
from train.model import DetectorModel
from train.model.blocks import DropBlock
from train.optim import learning_rate
from train.parts import frozen_parts
from train.run.folder import BEST, surviving
from train.run.options import RunOptions
from train.run.prepare import Run, prepare
from train.run.step import step_seed
from train.run_log import show_batch, tile
from train.torch_backend import TorchBackend

log = logging.getLogger(__name__)


def train(config: TrainConfig, options: RunOptions, resume: Checkpoint | None = None, world: World | None = None) -> Path:
    """Trains to the end and returns the best checkpoint's path.

    Args:
        config: of the run; with `resume` the checkpoint's own.
        options: data, folders and machine.
        resume: checkpoint to continue from, the same on all ranks.
        world: the processes that train together; None for this one alone.

    Raises:
        InputError: the data cannot be used, `resume` is of other data or another recipe, or the ranks differ in them.
        OutputError: the output cannot be written, or another run is writing it.
        CheckFailed: the loss is not finite; the message names the batch.
    """
    run = prepare(config, options, resume, world or World())
    state, training_set = run.state, run.training_set
    with contextlib.ExitStack() as stack:
        if run.world.is_main:
            run.open_folder(stack, begin=resume is None)
        stack.enter_context(run.feed)
        log.info(
            "training %s on %d images of %s (%s), %s",
            *(state.spec.name, len(training_set), options.data, training_set.dataset.split, run.title),
        )
        while not state.is_complete:
            _run_epoch(run)
    if state.stopping.ends:
        log.info("ended after epoch %d: %d evaluations gained nothing worth having", state.epoch, state.stopping.stale)
    if training_set.unreadable:
        log.warning("%d of %d images could not be read and were left out", len(training_set.unreadable), len(training_set))
    if run.world.is_main and not (options.output / BEST).is_file():
        raise InputError(
            f"{options.output}: the run is complete but has no best.pt: no evaluation gave an AP, or the file was removed;"
            " train again into another --output, on validation images that can be read"
        )
    return options.output / BEST


def _run_epoch(run: Run) -> None:
    """Trains one epoch, or the rest of it, evaluates if it is due, and writes metrics and checkpoints."""
    state, config = run.state, run.state.config
    number = state.epoch + 1
    speed = train_epoch(run)
    losses = {name: total / state.step for name, total in state.sums.items() if name != "gradient"}
    values = {"learning_rate": learning_rate(number, config, state.step), **losses}
    message = f"epoch {number}/{config.epochs}  loss {losses['total']:.2f}  {speed:.1f} images/s"
    if number % config.evaluate_every == 0 or number == config.epochs:
        try:
            with state.averaged():
                message += _evaluate_epoch(run, number, values)
        except KeyboardInterrupt:
            if run.folder:
                run.folder.save(state)  # trained, and to be evaluated
            raise
    with signals.held(most=1):  # an epoch that is complete is not lost
        state.complete_epoch(values)
        _write_epoch(run, {**values, "images_per_second": speed})
    log.info(message)


def _evaluate_epoch(run: Run, number: int, values: dict[str, float]) -> str:
    """Evaluates the model as it is, adds its metrics to `values`, keeps it if it is the best, and says so."""
    state, result = run.state, _evaluate(run)
    is_best = bool(result and result.ap >= max(state.best_ap, 0))
    state.stopping.judge(result.matches if result else None, is_best)
    state.stopping.agree(run.world)
    figures = run.world.from_main(lambda: {"AP": result.ap, "AP50": result.ap50} if result else {})
    values.update((name, value) for name, value in figures.items() if value >= 0)  # -1: no readable image has an object
    message = "".join(f"  {name} {value * 100:.1f}" if value >= 0 else f"  {name} –" for name, value in figures.items())
    if result and run.logger and run.folder:
        with surviving():
            run.logger.add_image("validation", _show_detections(run), number)
        if is_best:
            state.best_ap = result.ap
            best = measure_curve(result.matches.by_area["all"]).best_f1()
            message += f"  F1 {best.f1 * 100:.1f} from a score of {best.threshold:.2f}" if best else ""
            run.folder.save_best(state.checkpoint_for_use(number, best.threshold if best else None))
    return message


def _write_epoch(run: Run, values: dict[str, float]) -> None:
    """Writes what an epoch leaves, the checkpoint last: until then, a run that is killed does the rest once more."""
    state = run.state
    if not run.logger or not run.folder:
        return
    is_last = state.is_complete
    with surviving():
        run.logger.add_scalars(state.epoch, values)
    with contextlib.nullcontext() if is_last else surviving():
        run.logger.write_table(state.rows)
    (run.folder.finish if is_last else run.folder.save)(state)


def train_epoch(run: Run) -> float:
    """Makes the steps of an epoch that are not done yet; returns the images a second of all ranks.

    A signal to end takes effect after a step, with a checkpoint.
    """
    state, config, world, epoch = run.state, run.state.config, run.world, run.state.epoch
    plan = run.plan_epoch()
    shares = shared_batches(plan[state.step :], world.rank, world.size, run.step.parts)
    monitor = StepMonitor(state.names, state.precision.scales, world, state.sums)
    normalizer = Normalizer(state.spec, run.device, state.precision.channels_last)
    set_dropblock(state.model, config, epoch)
    run.step.freeze(frozen_parts(config, epoch))
    start, images = time.perf_counter(), 0
    with signals.held(most=1) as received:
        batches = _grouped(to_device(run.feed.batches(shares), normalizer, run.device), run.step.parts)
        for parts in _progress(batches, len(plan), run):
            if run.logger and state.step == 0 and epoch % 10 == 0:
                with surviving():
                    run.logger.add_image("training", show_batch(parts[0].batch, state.spec), epoch + 1)
            rate = learning_rate(epoch + (state.step + 1) / len(plan), config, len(plan))
            values = run.step(parts, rate, step_seed(config, epoch, state.step * config.batch + world.rank))
            planned = plan[state.step]
            state.step += 1
            where, sources = f"epoch {epoch + 1}, batch {state.step}", [name for part in parts for name in part.batch.sources]
            files = functools.partial(_files, run, planned)
            stop = monitor.add(values, where, sources, files, stop=bool(received))
            images += len(planned)
            if stop:
                break
            if run.folder and run.folder.count_step():
                monitor.flush()  # what is not finite never gets into a checkpoint
                run.folder.save(state)
        monitor.flush()
        if monitor.asked and run.folder:
            run.folder.save(state)
    if monitor.asked:  # by another rank: what this one received is raised above
        raise signals.Terminated
    return images / (time.perf_counter() - start)


def _files(run: Run, positions: Sequence[SampleIndex]) -> list[str]:
    """Lists the images that a batch was planned with."""
    return [run.training_set.source(position.image) for position in positions]


def set_dropblock(model: DetectorModel, config: TrainConfig, epoch: int) -> None:
    """Sets the block sizes that the schedule has reached at this epoch, counted from 0."""
    sizes = next((sizes for start, sizes in reversed(config.dropblock) if epoch >= start), (0, 0, 0))
    for block, size in zip((m for m in model.modules() if isinstance(m, DropBlock)), sizes):
        block.size = size


def _grouped(batches: Iterator[DeviceBatch], size: int) -> Iterator[list[DeviceBatch]]:
    """Groups the parts of each step."""
    while parts := list(itertools.islice(batches, size)):
        yield parts


def _progress(batches: Iterator[list[DeviceBatch]], steps: int, run: Run) -> Iterator[list[DeviceBatch]]:
    done, title = run.state.step, f"epoch {run.state.epoch + 1}/{run.state.config.epochs}"
    disable = None if run.options.progress and run.world.is_main else True
    bar: Any = tqdm(batches, total=steps, initial=done, desc=title, unit="batch", leave=False, disable=disable)
    yield from bar


def _evaluate(run: Run) -> Evaluation | None:
    """Scores the validation images, each rank's share of them by that rank; the result is rank 0's."""
    state, world, options = run.state, run.world, run.options
    detector = Detector(TorchBackend(state.model, state.spec), score_threshold=state.spec.score_threshold)
    share = predict_share(
        *(detector, run.val_data, state.spec.class_names),
        batch=min(state.config.batch, 8),
        strict=options.strict,
        progress=options.progress and world.is_main,
        share=(world.rank, world.size),
    )
    shares = world.gather(share)
    return score_predictions(run.val_data, shares) if world.is_main else None


def _show_detections(run: Run, most: int = 8) -> Image:
    """Draws the first readable validation images with the model's detections."""
    detector = Detector(TorchBackend(run.state.model, run.state.spec), score_threshold=0.25)
    images: list[Image] = []
    for entry in run.val_data.images:
        if len(images) == most:
            break
        try:
            image = entry.read()
        except InputError:
            continue  # the evaluation has named it
        images.append(draw(image, detector(image), run.state.spec.class_names))
    return tile(images)
