"""`python -m export.demo`: trains on a synthetic set, exports in every precision, and prints one table of accuracy."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import time
from pathlib import Path

from calibration.request import Request
from export.accuracy.gate import Verification, verify
from export.accuracy.limits import Limits
from export.chain import calibration_step, engine_step, export_step, run_steps
from export.report import write_report
from export.verify import summary
from runtime import cli
from runtime.backends.ort import OrtBackend
from runtime.datasets.dataset import Dataset
from runtime.datasets.open import open_dataset
from runtime.detector import Detector
from runtime.errors import CheckFailed, MissingComponentError
from runtime.files import output_folder
from runtime.media.image import write_image
from runtime.ops.image import Image
from runtime.viz.annotate import draw
from train.data.synthetic import make_synthetic
from train.loop import train
from train.recipes import recipe
from train.run.folder import METRICS
from train.run.options import RunOptions
from train.run_log import read_metrics, tile

log = logging.getLogger("demo")

MIN_AP50 = 0.85
_CALIBRATED = 64
"""Number of training images that INT8 is calibrated on, at most."""
_SHOWN = 12
"""Number of images on the sheet."""


def run(folder: Path, *, train_images: int, val_images: int, epochs: int | None, seed: int, min_ap50: float) -> Verification:
    """Trains a model in `folder`, exports it, and returns what the gate measured.

    Raises:
        CheckFailed: the model did not learn, or an exported file does not compute what the checkpoint does.
    """
    data, weights = folder / "data", folder / "run" / "best.pt"
    log.info("1/5 making %d + %d synthetic images in %s", train_images, val_images, data)
    make_synthetic(data, train=train_images, val=val_images, seed=seed)
    config = recipe("demo").replace(seed=seed)
    if epochs:
        config = config.replace(epochs=epochs)
    # Evaluate once, after the last epoch: no epoch is chosen by the split that the gate scores.
    config = config.replace(evaluate_every=config.epochs)
    log.info("2/5 training %s, %d epochs at %d px", config.recipe, config.epochs, config.size)
    train(config, RunOptions(data=data, output=output_folder(folder / "run")))
    reached = float(read_metrics(folder / "run" / METRICS)[-1]["AP50"])
    if reached < min_ap50:
        raise CheckFailed(f"the trained model reached AP50 {reached:.3f}, expected at least {min_ap50}; raise --epochs")
    log.info("3/5 exporting FP32, FP16, INT8 and a TensorRT engine")
    files = export(weights, data, folder, calibrated=min(_CALIBRATED, max(1, train_images // 3)))
    log.info("4/5 measuring accuracy on the held-out images")
    held_out = open_dataset(data, "val")
    found = verify(weights, files, held_out, Limits())
    write_report(folder, found)
    log.info("5/5 drawing detections on them")
    with OrtBackend(files[0]) as exported:
        _draw(Detector(exported), held_out, folder / "pictures")
    return found


def export(weights: Path, data: Path, folder: Path, calibrated: int) -> list[Path]:
    """Makes the exported files that are not up to date; returns all of them.

    Without TensorRT-RTX, which builds engines without a GPU, there is no engine.

    Args:
        weights: the checkpoint.
        data: the data set.
        folder: for the files.
        calibrated: number of training images to calibrate on.
    """
    fp32, fp16, int8 = (folder / f"model{part}.onnx" for part in ("", ".fp16", ".int8"))
    images = str(data / "val")
    files = [fp32, fp16, int8]
    with contextlib.redirect_stdout(sys.stderr):  # the commands print results of their own, stdout is for the table
        run_steps([export_step(weights, fp32, "fp32", images=images), export_step(weights, fp16, "fp16", images=images)])
        run_steps([calibration_step(Request(fp32, int8, data, images=calibrated, sensitivity=True))])
        try:
            engine = int8.with_suffix(".engine")
            run_steps([engine_step(int8, engine, "rtx")])
            files.append(engine)
        except MissingComponentError as error:
            log.warning("no engine: %s", error)
    return files


def _draw(detector: Detector, held_out: Dataset, folder: Path) -> None:
    """Annotates every held-out image, and tiles some of them on one sheet."""
    sheet: list[Image] = []
    for entry in held_out.images:
        image = entry.read()
        annotated = draw(image, detector(image), detector.spec.class_names)
        write_image(folder / entry.path.name, annotated)
        if len(sheet) < _SHOWN:
            sheet.append(annotated)
    write_image(folder.parent / "detections.jpg", tile(sheet))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(
        "export.demo",
        "Train a small YOLOv3+ASFF on a synthetic set, export it in every precision, prove that it kept its accuracy.",
        "python -m export.demo --output demo",
    )
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for everything (default: demo)")
    parser.add_argument("--train", type=cli.positive, default=400, help="training images (default: 400)")
    parser.add_argument("--val", type=cli.positive, default=400, help="held-out images (default: 400)")
    parser.add_argument("--epochs", type=cli.positive, help="default: the recipe's")
    parser.add_argument("--min-ap50", type=cli.probability, default=MIN_AP50, help=f"fail below (default: {MIN_AP50})")
    parser.add_argument("--seed", type=int, default=0, help="of data and training (default: 0)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    start = time.perf_counter()
    folder = output_folder(options.output)
    found = run(
        folder,
        train_images=options.train,
        val_images=options.val,
        epochs=options.epochs,
        seed=options.seed,
        min_ap50=options.min_ap50,
    )
    print(summary(found))
    print(f"\nimages:   {folder / 'detections.jpg'} (all of them: {folder / 'pictures'})")
    print(f"models:   {folder}/model*.onnx, model.int8.engine")
    print(f"report:   {folder / 'report.html'}")
    log.info("done in %.0f s", time.perf_counter() - start)
    return 0 if found.passed else CheckFailed.exit_code


if __name__ == "__main__":
    cli.run(main)
