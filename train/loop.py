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
from runtime.detector import DEFAULT_SCORE, Detector
from runtime.errors import InputError
from runtime.evaluation.coco import Evaluation, predict_share, score_predictions
from runtime.evaluation.operating_point import measure_curve
from train.checkpoint import Checkpoint
from train.config import TrainConfig
from train.data.device_feed import DeviceBatch, to_device
from train.data.epoch import SampleIndex, shared_batches
from train.data.normalizer import Normalizer
from train.distributed import World
from train.finite import StepMonitor
from train.logs.data_wait import Wait, timed
from train.logs.fusion_weights import FusionWeights, watched_weights
from train.logs.step_log import Step
from train.logs.summary import conclude, describe_evaluation
from train.logs.validation_images import draw_validation
from train.model import DetectorModel
from train.model.blocks import DropBlock
from train.optim import learning_rate
from train.parts import frozen_parts
from train.run.folder import BEST, BEST_VALIDATION, TRAINING, VALIDATION, surviving
from train.run.options import RunOptions
from train.run.prepare import Run, prepare
from train.run.step import step_seed
from train.run_log import class_column, show_batch
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
    started = time.perf_counter()
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
        _conclude(run, time.perf_counter() - started)
    return options.output / BEST


def _conclude(run: Run, seconds: float) -> None:
    """Says how a complete run ended and what it came to.

    Raises:
        InputError: it has no best weights.
    """
    state, training_set, output = run.state, run.training_set, run.options.output
    if state.stopping.ends:
        log.info("ended after epoch %d: %d evaluations gained nothing worth having", state.epoch, state.stopping.stale)
    if training_set.unreadable:
        log.warning("%d of %d images could not be read and were left out", len(training_set.unreadable), len(training_set))
    if not run.world.is_main:
        return
    if not (output / BEST).is_file():
        raise InputError(
            f"{output}: the run is complete but has no best.pt: no evaluation gave an AP, or the file was removed;"
            " train again into another --output, on validation images that can be read"
        )
    for line in conclude(run, seconds):
        log.info("%s", line)


def _run_epoch(run: Run) -> None:
    """Trains one epoch, or the rest of it, evaluates if it is due, and writes metrics and checkpoints."""
    state, config = run.state, run.state.config
    number = state.epoch + 1
    train_epoch(run)
    means = {name: total / state.step for name, total in state.sums.items()}
    gradient = means.pop("gradient")
    values = {"learning_rate": learning_rate(number, config, state.step), **means, "gradient_norm": gradient}
    made = run.step_log.epoch
    message = f"epoch {number}/{config.epochs}  loss {means['total']:.2f}  gradient {gradient:.3g}{made.speed()}"
    if number % config.evaluate_every == 0 or number == config.epochs:
        try:
            with state.averaged():
                message += _evaluate_epoch(run, number, values)
        except KeyboardInterrupt:
            _save(run)  # trained, and to be evaluated
            raise
    with signals.held(most=1):  # an epoch that is complete is not lost
        state.complete_epoch(values)
        _write_epoch(run, {**values, **made.rates()})
    log.info(message)


def _evaluate_epoch(run: Run, number: int, values: dict[str, float]) -> str:
    """Evaluates the model as it is, adds its metrics to `values`, keeps it if it is the best, and says so."""
    state = run.state
    with watched_weights(state.model) as fusion:
        result = _evaluate(run)
    fusion.gather(run.world)
    is_best = bool(result and result.ap >= max(state.best_ap, 0))
    state.stopping.judge(result.matches if result else None, is_best)
    state.stopping.agree(run.world)
    found = run.world.from_main(lambda: (_figures(result), fusion.means()))
    values.update((name, value) for name, value in found[0].items() if value >= 0)  # -1: no readable image has an object
    values.update(found[1])
    if result and run.logger and run.folder:
        best = measure_curve(result.matches.by_area["all"]).best_f1()
        with surviving():
            _show(run, number, best.threshold if best else DEFAULT_SCORE, is_best, fusion)
        if is_best:
            state.best_ap = result.ap
            run.folder.save_best(state.checkpoint_for_use(number, best.threshold if best else None))
        return describe_evaluation(result, best if is_best else None, found[1])
    return ""


def _figures(result: Evaluation | None) -> dict[str, float]:
    """Returns the values of `metrics.csv` that an evaluation gives, -1 for none."""
    if not result:
        return {}
    by_class = {class_column(name): value for name, value in result.per_class.items()}
    return {"AP": result.ap, "AP50": result.ap50, **by_class}


def _show(run: Run, number: int, threshold: float, is_best: bool, fusion: FusionWeights) -> None:
    """Writes what TensorBoard and the folder show of an evaluation besides its metrics."""
    assert run.logger
    run.logger.add_fusion(number, fusion.samples)
    detector = Detector(TorchBackend(run.state.model, run.state.spec), score_threshold=threshold)
    image = draw_validation(detector, threshold, run.val_data)
    if image is not None:
        run.logger.add_image("validation", image, number, *((VALIDATION, BEST_VALIDATION) if is_best else (VALIDATION,)))


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
    run.step_log.write()
    (run.folder.finish if is_last else run.folder.save)(state)


def _save(run: Run) -> None:
    """Writes a checkpoint, before it a row of the steps so far: a run that continues from it logs those behind it."""
    run.step_log.write()
    if run.folder:
        run.folder.save(run.state)


def train_epoch(run: Run) -> None:
    """Makes the steps of an epoch that are not done yet.

    A signal to end takes effect after a step, with a checkpoint.
    """
    state, config, world, epoch = run.state, run.state.config, run.world, run.state.epoch
    plan = run.plan_epoch()
    shares = shared_batches(plan[state.step :], world.rank, world.size, run.step.parts)
    monitor = StepMonitor(state.names, state.precision.scales, world, state.sums)
    normalizer = Normalizer(state.spec, run.device, state.precision.channels_last)
    set_dropblock(state.model, config, epoch)
    run.step.freeze(frozen_parts(config, epoch))
    run.step_log.begin_epoch()
    with signals.held(most=1) as received:
        batches = _grouped(to_device(run.feed.batches(shares), normalizer, run.device), run.step.parts)
        bar = _progress(timed(batches, run.device), len(plan), run)
        for parts, wait in bar:
            if run.logger and state.step == 0 and epoch % 10 == 0:
                with surviving():
                    run.logger.add_image("training", show_batch(parts[0].batch, state.spec), epoch + 1, TRAINING)
            rate = learning_rate(epoch + (state.step + 1) / len(plan), config, len(plan))
            values = run.step(parts, rate, step_seed(config, epoch, state.step * config.batch + world.rank))
            planned = plan[state.step]
            state.step += 1
            where, sources = f"epoch {epoch + 1}, batch {state.step}", [name for part in parts for name in part.batch.sources]
            files = functools.partial(_files, run, planned)
            step = Step(epoch * len(plan) + state.step, epoch + 1, rate, len(planned), wait)
            then = functools.partial(run.step_log.add, step)
            stop = monitor.add(values, where, sources, files, stop=bool(received), then=then)
            bar.set_postfix_str(run.step_log.status, refresh=False)
            if stop:
                break
            if run.folder and run.folder.count_step():
                monitor.flush()  # what is not finite never gets into a checkpoint
                _save(run)
        monitor.flush()
        if monitor.asked:
            _save(run)
    if monitor.asked:  # by another rank: what this one received is raised above
        raise signals.Terminated


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


def _progress(items: Iterator[tuple[list[DeviceBatch], Wait]], steps: int, run: Run) -> Any:
    done, title = run.state.step, f"epoch {run.state.epoch + 1}/{run.state.config.epochs}"
    disable = None if run.options.progress and run.world.is_main else True
    return tqdm(items, total=steps, initial=done, desc=title, unit="batch", leave=False, disable=disable)


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
