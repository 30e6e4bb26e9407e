"""`python -m export.demo`: the whole road on a synthetic set: train, export, quantize, build, with one table at the end."""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

from calibration.budget import BUDGETS
from calibration.pipeline import Request, calibrate
from export.accuracy.gate import Verification, verify
from export.engine import build_engine, read_spec
from export.onnx import Export, export_onnx
from export.report import write_report
from export.trt.builder import BuildOptions
from export.verify import summary
from runtime import cli
from runtime.backends.ort import OrtBackend
from runtime.backends.tensorrt.library import open_tensorrt
from runtime.datasets.dataset import Dataset
from runtime.datasets.open import open_dataset
from runtime.detector import Detector
from runtime.errors import CheckFailed, MissingComponentError
from runtime.files import output_folder
from runtime.media.image import Image, write_image
from runtime.viz.annotate import draw
from train.data.synthetic import make_synthetic
from train.loop import RunOptions, train
from train.recipes import recipe
from train.run_log import tile

log = logging.getLogger("demo")

MIN_AP50 = 0.85
_CALIBRATED = 64
"""Training images that INT8 is calibrated on, at most."""
_INT8_DROP = 0.3
"""Points of AP that INT8 may lose before layers go back to float16; the gate allows more."""
_SHOWN = 12


def run(folder: Path, *, train_images: int, val_images: int, epochs: int | None, seed: int, min_ap50: float) -> Verification:
    """Walk the road in `folder` and return what the gate measured.

    Raises:
        CheckFailed: the model did not learn, or an exported file does not compute what the checkpoint does.
    """
    data, weights = folder / "data", folder / "run" / "best.pt"
    log.info("1/6 making %d + %d synthetic images in %s", train_images, val_images, data)
    make_synthetic(data, train=train_images, val=val_images, seed=seed)
    config = recipe("demo").replace(seed=seed)
    if epochs:
        config = config.replace(epochs=epochs)
    # One evaluation, after the last epoch: nothing is ever chosen by the split that is then scored.
    config = config.replace(evaluate_every=config.epochs)
    log.info("2/6 training %s, %d epochs at %d px", config.recipe, config.epochs, config.size)
    train(config, RunOptions(data=data, output=output_folder(folder / "run")))
    log.info("3/6 exporting FP32 and FP16, quantizing INT8")
    files = export(weights, data, folder, calibrated=min(_CALIBRATED, train_images))
    log.info("4/6 building a TensorRT engine")
    files += build(files[-1], folder / "model.int8.engine")
    log.info("5/6 measuring accuracy on the held-out images")
    held_out = open_dataset(data, "val")
    found = verify(weights, files, held_out, BUDGETS)
    if found.reference.evaluation.ap50 < min_ap50:
        reached = found.reference.evaluation.ap50
        raise CheckFailed(f"the trained model reached AP50 {reached:.3f}, expected at least {min_ap50}")
    write_report(folder, found)
    log.info("6/6 drawing what it finds in them")
    with OrtBackend(files[0]) as exported:
        _draw(Detector(exported), held_out, folder / "images")
    return found


def export(weights: Path, data: Path, folder: Path, calibrated: int) -> list[Path]:
    """The ONNX files of a checkpoint: float32, float16, and INT8 calibrated on so many images."""
    full, half, quantized = (folder / f"model{part}.onnx" for part in ("", ".fp16", ".int8"))
    for precision, output in (("fp32", full), ("fp16", half)):
        for what, difference in export_onnx(
            Export(weights=weights, output=output, precision=precision, images=str(data / "val"))
        ):
            log.info("    %s, %s: differs by %.1e of its scale", precision, what, difference.measure(precision))
    calibrate(
        Request(
            model=full,
            output=quantized,
            data=data,
            method="auto",
            images=calibrated,
            max_ap_drop=_INT8_DROP,
            sensitivity=True,
        )
    )
    return [full, half, quantized]


def build(model: Path, output: Path) -> list[Path]:
    """A TensorRT-RTX engine of an ONNX file, which needs no GPU to be built; nothing where the library is not installed."""
    try:
        build_engine(open_tensorrt("rtx"), model, read_spec(model), output, BuildOptions())
    except MissingComponentError as error:
        log.warning("no engine: %s", error)
        return []
    return [output]


def _draw(detector: Detector, held_out: Dataset, folder: Path) -> None:
    """Annotate every held-out image, and some of them together on one sheet."""
    sheet: list[Image] = []
    for entry in held_out.images:
        image = entry.read()
        annotated = draw(image, detector(image), detector.spec.class_names)
        write_image(folder / entry.path.name, annotated)
        if len(sheet) < _SHOWN:
            sheet.append(annotated)
    write_image(folder.parent / "detections.jpg", tile(sheet))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command's arguments."""
    parser = cli.parser(
        "export.demo",
        "Train a small YOLOv3+ASFF on a synthetic set, export it in every precision, prove that it kept its accuracy.",
        "python -m export.demo --output demo",
    )
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for everything (default: demo)")
    parser.add_argument("--train", type=cli.positive, default=400, help="training images (default: 400)")
    parser.add_argument("--val", type=cli.positive, default=100, help="held-out images (default: 100)")
    parser.add_argument("--epochs", type=cli.positive, help="default: the recipe's")
    parser.add_argument("--min-ap50", type=cli.probability, default=MIN_AP50, help=f"fail below (default: {MIN_AP50})")
    parser.add_argument("--seed", type=int, default=0, help="of data and training (default: 0)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
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
    print(f"\nimages: {folder / 'detections.jpg'} (all of them: {folder / 'images'})")
    print(f"models:   {folder}/model*.onnx, model.int8.engine")
    print(f"report:   {folder / 'report.html'}")
    log.info("done in %.0f s", time.perf_counter() - start)
    return 0 if found.passed else CheckFailed.exit_code


if __name__ == "__main__":
    cli.run(main)
