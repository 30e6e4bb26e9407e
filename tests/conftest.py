"""Small models and sets that several tests share."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from runtime import cli
from runtime.files import write_json
from runtime.media.image import write_image
from tests.support.small_models import CLASSES, settled, tiny
from train import checkpoint
from train.checkpoint import Checkpoint
from train.spec import model_spec

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # as command lines do; FFmpeg reads it with the first video
torch.set_num_threads(1)  # the models are so small that threads mostly wait for each other


@pytest.fixture(autouse=True)
def _steady() -> None:
    """Every test starts from the same random state."""
    torch.manual_seed(0)
    cv2.setRNGSeed(0)
    return


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Writes a checkpoint of a settled tiny model; arguments change its `ModelConfig`."""

    def make(name: str = "model.pt", **changes: object) -> Path:
        config = tiny(**changes)
        model = settled(config)
        saved = Checkpoint(config, model_spec(config, CLASSES), model.state_dict(), None, 0, -1.0)
        checkpoint.save(tmp_path / name, saved)
        return tmp_path / name

    return make


@pytest.fixture
def coco_set(tmp_path: Path) -> Path:
    """A COCO-layout set of 8 + 4 small images with one bright rectangle each, class told by its color; one is empty."""
    rng = np.random.default_rng(0)
    root = tmp_path / "set"
    for split, count in (("train", 8), ("val", 4)):
        images, annotations = [], []
        for index in range(count):
            image = rng.integers(0, 60, (72, 96, 3), dtype=np.uint8)
            if index:
                kind, (x, y) = index % 3, rng.integers(0, 40, 2).tolist()
                image[y : y + 30, x : x + 40, kind] = 230
                box = {"bbox": [x, y, 40, 30], "area": 1200, "iscrowd": 0}
                annotations.append({"id": index, "image_id": index, "category_id": kind * 7 + 3, **box})
            write_image(root / split / f"{index}.png", image)
            images.append({"id": index, "file_name": f"{index}.png", "width": 96, "height": 72})
        categories = [{"id": i * 7 + 3, "name": name} for i, name in enumerate(CLASSES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_json(root / "annotations" / f"instances_{split}.json", content)
    return root


@pytest.fixture
def full_disk() -> Callable[..., AbstractContextManager[None]]:
    """`with full_disk(size):` no file can grow beyond `size` bytes (2048); it holds for pytest's own output too."""

    @contextlib.contextmanager
    def limited(size: int = 2048) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Callable[..., tuple[int, str, str]]:
    """Run a command's `main` as the command line does; its exit code, stdout, and stderr with the log lines.

    The line that says what a model runs in is left out: it has tests of its own.
    """

    def call(main: Callable[[list[str]], int], *arguments: object) -> tuple[int, str, str]:
        caplog.clear()
        with caplog.at_level(logging.INFO), pytest.raises(SystemExit) as exit_:
            cli.run(lambda: main([str(item) for item in arguments]))
        out, err = capfd.readouterr()
        said = [record.getMessage() for record in caplog.records if record.name != "runtime.backends.open"]
        return int(exit_.value.code or 0), out, err + "".join(f"{line}\n" for line in said)

    return call
