"""Number formats of a step, loss scaling, layout, compilation, and the average of the weights."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from runtime.errors import CheckFailed, InputError, MissingComponentError, ModelError
from runtime.ops.preprocess import normalize
from tests.support.small_models import CLASSES, noise, tiny
from train import checkpoint
from train.__main__ import configure, parse
from train.config import TrainConfig
from train.data import AugmentConfig
from train.data.normalizer import Normalizer
from train.ema import WeightAverage
from train.loop import RunOptions, train
from train.model import build_model
from train.optim import build_optimizer
from train.precision import Precision, set_up
from train.spec import model_spec
from train.torch_backend import TorchBackend

CPU = torch.device("cpu")


def build(config: TrainConfig, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_model(config.model, len(CLASSES), config.loss)


@pytest.mark.parametrize(
    ("name", "native", "dtype"),
    [
        ("auto", True, torch.bfloat16),
        ("auto", False, torch.float32),
        ("fp32", True, torch.float32),
        ("fp16", True, torch.float16),
        ("bf16", False, torch.bfloat16),  # emulated, since it was asked for
    ],
)
def test_a_format_is_chosen_by_name_or_device(
    name: str, native: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    precision = Precision(name, CPU)
    assert precision.dtype == dtype
    assert precision.scales == (dtype == torch.float16)


def test_a_gpu_without_bf16_refuses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    with pytest.raises(MissingComponentError, match=r"use --precision fp16 or fp32$"):
        Precision("bf16", torch.device("cuda"))


def test_what_was_chosen_is_one_line() -> None:
    config = tiny().replace(precision="fp16", optimizer="adamw")
    model = build(config)
    precision = set_up(config, model, CPU, None)
    assert precision.describe(build_optimizer(model, config)) == (
        "fp16 with loss scaling, channels first, fused AdamW, not compiled"
    )


def test_an_overflow_leaves_the_step_out_and_lowers_the_scale() -> None:
    config = tiny().replace(precision="fp16")
    model = build(config)
    precision, optimizer = set_up(config, model, CPU, None), build_optimizer(model, config)
    before = {name: value.clone() for name, value in model.named_parameters()}
    first = next(model.parameters())
    precision.backward((first * float("inf")).sum())
    precision.clip(optimizer, model.parameters(), 0.0)
    precision.step(optimizer)
    assert all(torch.equal(before[name], value) for name, value in model.named_parameters())
    scale = precision.state_dict()["scale"]
    assert scale == 32768.0
    resumed = set_up(config, build(config), CPU, None)
    resumed.load_state_dict(precision.state_dict())
    assert resumed.state_dict() == precision.state_dict()


@pytest.mark.parametrize("color", ["rgb", "bgr"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_device_normalizes_to_the_bits_of_the_runtime(color: str, channels_last: bool) -> None:
    spec = model_spec(tiny(), CLASSES).replace(color=color)
    images = torch.randint(0, 256, (2, 32, 64, 3), dtype=torch.uint8)
    made = Normalizer(spec, CPU, channels_last)(images)
    assert made.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    for row, image in zip(made, images):
        assert torch.equal(row, torch.from_numpy(normalize(image.numpy(), spec)))


@pytest.mark.parametrize("detector", ["yolov3", "retinanet"])
def test_the_loss_and_its_gradients_do_not_depend_on_the_layout(detector: str) -> None:
    config = tiny() if detector == "yolov3" else tiny(detector=detector)
    labels = torch.tensor([[[0.0, 30, 30, 20, 20]], [[1.0, 50, 40, 30, 16]]])
    images, results = torch.from_numpy(noise(0, 2, config.size)), []
    for layout in (torch.contiguous_format, torch.channels_last):
        model = build(config).double().to(memory_format=layout)
        loss = model.loss(images.double().contiguous(memory_format=layout), labels)["total"]
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-9)


class OneConvolution(torch.nn.Module):
    """What `Precision.compile` needs of a detector."""

    compiled = None

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, 2, 1)

    def outputs(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(self.conv(images), scale_factor=2.0).flatten(2)


def count_forms(model: Any, call: Callable[[Any, torch.Tensor], torch.Tensor]) -> int:
    """Compiles a model, checks it at ten sizes against itself, and returns how many forms it was compiled to."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    plain = copy.deepcopy(model)
    Precision("fp32", CPU).compile(model, counter)
    with torch.no_grad():
        for side in range(64, 384, 32):
            images = torch.from_numpy(noise(side, 2, side))
            torch.testing.assert_close(call(model, images), call(plain, images), rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()
    assert list(model.state_dict()) == list(plain.state_dict())
    return counter.frame_count


def test_ten_sizes_are_compiled_once() -> None:
    """The default limit is 8 compiled forms; behind it, torch falls back to no compilation without a word."""
    assert count_forms(OneConvolution(), lambda model, images: (model.compiled or model.outputs)(images)) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("detector", ["yolov3", "retinanet"])
def test_a_detector_is_compiled_once_for_ten_sizes(detector: str) -> None:
    config = tiny() if detector == "yolov3" else tiny(detector=detector)
    labels = torch.tensor([[[0.0, 30, 30, 20, 20]], [[1.0, 50, 40, 30, 16]]])
    assert count_forms(build(config), lambda model, images: model.loss(images, labels)["total"]) <= 3


def test_an_average_follows_and_is_put_back() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.BatchNorm1d(1))
    average, weight = WeightAverage(model, 0.5), model[0].weight
    with torch.no_grad():
        weight.fill_(8.0)
        average._average["0.weight"].fill_(0.0)
        average.update()  # (1 + 1) / (10 + 1) is below the end value
        assert float(average.state_dict()["0.weight"]) == pytest.approx(8 * 9 / 11)
        for _ in range(60):
            average.update()
        weight.fill_(0.0)
        average.update()
    expected = float(average.state_dict()["0.weight"])
    assert expected == pytest.approx(8 * 0.5, rel=1e-3)
    with contextlib.suppress(KeyboardInterrupt), average.applied():
        assert weight.item() == expected
        raise KeyboardInterrupt
    assert weight.item() == 0.0
    assert average.state_dict()["steps"] == 62
    other = WeightAverage(model, 0.5)
    other.load_state_dict(average.state_dict())
    assert float(other.state_dict()["0.weight"]) == expected and other.steps == 62
    with pytest.raises(ModelError, match="does not fit"):
        other.load_state_dict({"steps": torch.tensor(1)})


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_run_in_16_bits_keeps_its_average_and_resumes(precision: str, coco_set: Path, tmp_path: Path) -> None:
    plain = tiny().replace(augment=AugmentConfig.none(), mixup=False, tail_epochs=0, fixed_epochs=0, plain_epochs=0)
    config = plain.replace(precision=precision, ema=0.9, epochs=1)

    def options(name: str) -> RunOptions:
        return RunOptions(data=coco_set, output=tmp_path / name, workers=0, progress=False)

    best = train(config, options("run"))
    last, kept = checkpoint.load(tmp_path / "run" / "last.pt"), checkpoint.load(best)
    assert bool(last.scaler) == (precision == "fp16")
    for name, value in kept.weights.items():
        if value.is_floating_point():
            assert torch.equal(value, last.average[name]), name
    assert any(not torch.equal(value, last.weights[name]) for name, value in kept.weights.items())
    TorchBackend(checkpoint.restore(best, kept), kept.spec.plain()).infer(noise(0))
    longer = dataclasses.replace(last, config=config.replace(epochs=2))
    train(longer.config, options("run"), longer)
    assert checkpoint.load(tmp_path / "run" / "last.pt").average["steps"] == 2 * int(last.average["steps"])


def test_a_diverging_run_stops_and_names_its_batch(coco_set: Path, tmp_path: Path) -> None:
    config = tiny().replace(augment=AugmentConfig.none(), mixup=False, learning_rate=1e9, final_learning_rate=1e9, epochs=8)
    with pytest.raises(CheckFailed, match=r"is not finite in epoch \d+, batch \d+: .*png; the last checkpoint is intact"):
        train(config, RunOptions(data=coco_set, output=tmp_path / "run", workers=0, progress=False))
    checkpoint.restore("last.pt", checkpoint.load(tmp_path / "run" / "last.pt"))


def test_the_command_line_chooses() -> None:
    chosen = configure(parse(["--precision", "fp16", "--ema", "--decay-all"]))
    assert (chosen.precision, chosen.ema, chosen.decay_all) == ("fp16", 0.9998, True)
    assert configure(parse(["--ema", "0.99"])).ema == 0.99
    default = configure(parse([]))
    assert (default.precision, default.ema, default.decay_all) == ("auto", 0.0, False)
    with pytest.raises(InputError, match="ema"):
        configure(parse(["--ema", "1"]))


@pytest.mark.parametrize(("bfloat16", "precision"), [("true", "auto"), ("false", "fp32")])
def test_configurations_of_earlier_versions_are_read(bfloat16: str, precision: str) -> None:
    text = tiny().to_json().replace('"precision": "auto"', f'"bfloat16": {bfloat16}')
    assert TrainConfig.from_json(text).precision == precision


def test_norms_and_biases_decay_if_asked() -> None:
    config = tiny().replace(decay_all=True)
    model = build(config)
    groups = build_optimizer(model, config).param_groups
    assert len(groups[0]["params"]) == len(list(model.parameters()))
    assert groups[0]["weight_decay"] == config.weight_decay
