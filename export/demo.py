"""`python -m export.demo`: the whole road on a synthetic set: train, export, compare, detect, with one table at the end."""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

from export.onnx import Export, export_onnx
from export.steps import Step, measure_step, table
from runtime import cli
from runtime.dataset import Dataset
from runtime.detector import Detector
from runtime.draw import draw
from runtime.errors import CheckFailed
from runtime.files import output_folder, write_json
from runtime.images import Image, write_image
from runtime.layouts import open_dataset
from runtime.ort_backend import OrtBackend
from train.backend import open_torch_backend
from train.data.synthetic import make_synthetic
from train.journal import tile
from train.loop import RunOptions, train
from train.recipes import recipe

log = logging.getLogger("demo")

MIN_AP50 = 0.85
MAX_DROP = 0.0005
"""AP that the export may cost: 0.05 points."""
_SHOWN = 12


def run(folder: Path, *, train_images: int, val_images: int, epochs: int | None, seed: int) -> list[Step]:
    """Walk the road in `folder` and return what each step measured.

    Raises:
        CheckFailed: the exported file does not compute what the checkpoint does.
    """
    data, weights, model = folder / "data", folder / "run" / "best.pt", folder / "model.onnx"
    log.info("1/5 making %d + %d synthetic pictures in %s", train_images, val_images, data)
    make_synthetic(data, train=train_images, val=val_images, seed=seed)
    config = recipe("demo").replace(seed=seed)
    if epochs:
        config = config.replace(epochs=epochs)
    # One evaluation, after the last epoch: nothing is ever chosen by the split that is then scored.
    config = config.replace(evaluate_every=config.epochs)
    log.info("2/5 training %s, %d epochs at %d px", config.recipe, config.epochs, config.size)
    train(config, RunOptions(data=data, output=output_folder(folder / "run")))
    log.info("3/5 exporting and comparing with PyTorch")
    for what, difference in export_onnx(Export(weights=weights, output=model, images=str(data / "val"))):
        log.info("    %s: largest difference %.1e (%.1e of the scale)", what, difference.absolute, difference.relative)
    log.info("4/5 measuring accuracy on the held-out pictures")
    held_out = open_dataset(data, "val")
    pytorch = open_torch_backend(weights)
    with OrtBackend(model) as exported:
        steps = [
            measure_step("PyTorch", pytorch, weights, held_out),
            measure_step("ONNX FP32", exported, model, held_out, pytorch),
        ]
        log.info("5/5 drawing what it finds in them")
        _draw(Detector(exported), held_out, folder / "pictures")
    return steps


def _draw(detector: Detector, held_out: Dataset, folder: Path) -> None:
    """Annotate every held-out picture, and some of them together on one sheet."""
    sheet: list[Image] = []
    for entry in held_out.images:
        picture = entry.read()
        annotated = draw(picture, detector(picture), detector.spec.class_names)
        write_image(folder / entry.path.name, annotated)
        if len(sheet) < _SHOWN:
            sheet.append(annotated)
    write_image(folder.parent / "detections.jpg", tile(sheet))


def check(steps: list[Step], min_ap50: float) -> None:
    """Refuse a model that did not learn, or a step that lost accuracy.

    Raises:
        CheckFailed: naming the step and the figure.
    """
    first = steps[0].evaluation
    if first.ap50 < min_ap50:
        raise CheckFailed(f"the trained model reached AP50 {first.ap50:.3f}, expected at least {min_ap50}")
    for step in steps[1:]:
        drop = first.ap - step.evaluation.ap
        if drop > MAX_DROP:
            raise CheckFailed(f"{step.name} lost {drop * 100:.3f} points of AP, the budget is {MAX_DROP * 100:.2f}")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command's arguments."""
    parser = cli.parser(
        "export.demo",
        "Train a small YOLOv3+ASFF on a synthetic set, export it, prove the export, and draw what it finds.",
        "python -m export.demo --output demo",
    )
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for everything (default: demo)")
    parser.add_argument("--train", type=cli.positive, default=400, help="training pictures (default: 400)")
    parser.add_argument("--val", type=cli.positive, default=100, help="held-out pictures (default: 100)")
    parser.add_argument("--epochs", type=cli.positive, help="default: the recipe's")
    parser.add_argument("--min-ap50", type=cli.probability, default=MIN_AP50, help=f"fail below (default: {MIN_AP50})")
    parser.add_argument("--seed", type=int, default=0, help="of data and training (default: 0)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parse(arguments)
    start = time.perf_counter()
    folder = output_folder(options.output)
    steps = run(folder, train_images=options.train, val_images=options.val, epochs=options.epochs, seed=options.seed)
    summary = [{"step": s.name, "bytes": s.size, "milliseconds": s.milliseconds, **s.evaluation.to_dict()} for s in steps]
    write_json(folder / "steps.json", summary)
    print(table(steps))
    print(f"\npictures: {folder / 'detections.jpg'} (all of them: {folder / 'pictures'})")
    print(f"model:    {folder / 'model.onnx'}")
    log.info("done in %.0f s", time.perf_counter() - start)
    check(steps, options.min_ap50)
    return 0


if __name__ == "__main__":
    cli.run(main)
