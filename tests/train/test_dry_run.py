"""`--dry-run` says what a run would be and leaves nothing but an image of its first batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from runtime.media.image import read_image
from tests.support.small_models import CLASSES, tiny
from train.__main__ import main
from train.dry_run import saved_bytes
from train.model import build_model

Command = Callable[..., tuple[int, str, str]]


def test_the_lines_and_the_image(command: Command, coco_set: Path, tmp_path: Path) -> None:
    output = tmp_path / "runs" / "new"
    given = ["--data", coco_set, "--recipe", "demo", "--size", 64, "--epochs", 4, "--batch", 4, "--workers", 0]
    code, out, err = command(main, *given, "--output", output, "--dry-run")
    assert code == 0, err
    assert f"data:      8 images to train on, 4 to validate, {len(CLASSES)} classes\n" in err
    assert "schedule:  4 epochs of 2 steps, 4 images a step; " in err and "rising for 2 steps" in err
    assert "4 images of " in err and "the same command without --dry-run starts it" in err
    image = Path(out.strip())
    assert image == tmp_path / "runs" / "new-first-batch.jpg" and read_image(image).any()
    assert list(image.parent.iterdir()) == [image]


def test_in_the_working_folder_and_of_a_run_that_continues_with_an_evaluation(
    command: Command, coco_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["--data", coco_set, "--recipe", "demo", "--size", 64, "--epochs", 2, "--batch", 4, "--workers", 0]
    monkeypatch.setattr("train.loop._evaluate_epoch", interrupt)
    assert command(main, *given, "--evaluate-every", 1, "--output", tmp_path / "run")[0] == 130
    monkeypatch.chdir(tmp_path / "run")
    code, out, err = command(main, *given, "--output", ".", "--overwrite", "--dry-run")
    assert code == 0 and Path(out.strip()) == tmp_path / "run-first-batch.jpg", err
    assert command(main, "--data", coco_set, "--resume", ".", "--workers", 0, "--dry-run")[0] == 0


def interrupt(*_: object) -> str:
    raise KeyboardInterrupt


@pytest.mark.parametrize("fusion", ["none", "asff"])
def test_the_activations_are_those_that_the_backward_pass_holds(fusion: str) -> None:
    model = build_model(tiny(fusion=fusion).model, len(CLASSES)).train()
    convolutions: dict[int, int] = {}

    def count(_: nn.Module, inputs: tuple[torch.Tensor, ...], __: Any) -> None:
        storage = inputs[0].untyped_storage()
        convolutions[storage.data_ptr()] = storage.nbytes()
        held.append(inputs[0])  # so that no address is used twice

    held: list[torch.Tensor] = []
    few = saved_bytes(model, torch.rand(2, 3, 64, 64))
    # Joined weights are kept too, whatever the number of images; on inputs of any use they are nothing beside the images.
    assert saved_bytes(model, torch.rand(6, 3, 64, 64)) == pytest.approx(3 * few, rel=0.02)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    model.outputs(torch.rand(2, 3, 64, 64))
    assert sum(convolutions.values()) < few < 6 * sum(convolutions.values())
