"""Backbones alone, and trainings that start from weights of any kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from runtime.errors import InputError, ModelError
from tests.support.small_models import CLASSES, settled, tiny
from train import checkpoint
from train.__main__ import main as train_command
from train.checkpoint import Checkpoint
from train.config import TrainConfig
from train.model import YOLOv3, build_model
from train.model.backbones.mobilenet import MobileNetV2
from train.model.backbones.resnet import ResNet
from train.recipes import recipe
from train.spec import model_spec
from train.weights import load_model, read_weights
from train.weights.__main__ import main as weights_command
from train.weights.backbone import Backbone, empty_backbone, save_backbone
from train.weights.initial import start_from

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def in_torchvisions_words(name: str) -> str:
    """A tensor of our MobileNetV2 as torchvision's mobilenet_v2 calls it."""
    part, *rest = name.split(".")
    if part in ("stem", "top"):
        kind, field = rest
        return f"features.{0 if part == 'stem' else 18}.{0 if kind == 'conv' else 1}.{field}"
    stage, index, _, place, kind, field = rest
    first = [1, 2, 4, 7, 11, 14, 17][int(stage)]
    last = int(place) == (1 if first == 1 else 2)  # the linear convolution and its norm are not grouped
    inner = f"{int(place) + (kind == 'norm')}" if last else f"{place}.{0 if kind == 'conv' else 1}"
    return f"features.{first + int(index)}.conv.{inner}.{field}"


def torchvision_file(path: Path) -> dict[str, Tensor]:
    """Writes a random mobilenet_v2 as torchvision would; returns the same tensors by our names."""
    ours = MobileNetV2().state_dict()
    ours = {name: torch.rand_like(value) if value.is_floating_point() else value for name, value in ours.items()}
    theirs = {in_torchvisions_words(name): value for name, value in ours.items()}
    torch.save({**theirs, "classifier.1.weight": torch.zeros(1000, 1280), "classifier.1.bias": torch.zeros(1000)}, path)
    return ours


def test_torchvisions_backbone_is_read_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = tmp_path / "mobilenet_v2.pth", tmp_path / "backbone.pt"
    ours = torchvision_file(source)
    assert {"features.1.conv.1.weight", "features.17.conv.3.running_var"} <= set(torch.load(source))  # torchvision's own names
    assert weights_command([str(source), "--output", str(output), "--model", "mobilenetv2"]) == 0
    assert capsys.readouterr().out.strip() == str(output)
    for file in (source, output):
        backbone = read_weights(file)
        assert isinstance(backbone, Backbone)
        assert (backbone.name, {"mean": backbone.mean, "std": backbone.std}) == ("mobilenetv2", IMAGENET)
        assert ours.keys() == backbone.weights.keys()
        assert all(torch.equal(value, backbone.weights[name]) for name, value in ours.items())
    with pytest.raises(ModelError, match=r"mobilenetv2 backbone alone, which detects nothing; .* --init"):
        load_model(output)
    with pytest.raises(InputError, match="no classes to name"):
        read_weights(output, classes=("cat",))


@pytest.mark.parametrize(("name", "blocks"), [("resnet50", (3, 4, 6, 3)), ("resnet101", (3, 4, 23, 3))])
def test_torchvisions_resnets_are_read(name: str, blocks: tuple[int, ...], tmp_path: Path) -> None:
    """A file in torchvision's layout gives a network that computes the same features as its tensors do, step by step."""
    state = resnet_of_torchvision(blocks)
    torch.save({**state, "fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}, tmp_path / "r.pth")
    backbone = read_weights(tmp_path / "r.pth")
    assert isinstance(backbone, Backbone) and backbone.name == name
    network = ResNet(blocks).eval()
    network.load_state_dict(backbone.weights)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found = network(x)
        for ours, theirs in zip(found, run_resnet(state, blocks, x)):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def resnet_of_torchvision(blocks: tuple[int, ...]) -> dict[str, Tensor]:
    """Random weights under torchvision's names."""
    state: dict[str, Tensor] = {}

    def add(conv: str, norm: str, outputs: int, inputs: int, kernel: int) -> None:
        state[f"{conv}.weight"] = torch.randn(outputs, inputs, kernel, kernel) / (inputs * kernel**2) ** 0.5
        state.update({f"{norm}.{field}": torch.rand(outputs) + 0.5 for field in ("weight", "running_var")})
        state.update({f"{norm}.{field}": torch.randn(outputs) / 4 for field in ("bias", "running_mean")})
        state[f"{norm}.num_batches_tracked"] = torch.tensor(1)

    add("conv1", "bn1", 64, 3, 7)
    inputs = 64
    for stage, count in enumerate(blocks, 1):
        channels = 32 * 2**stage
        for index in range(count):
            for part, shape in enumerate([(channels, inputs, 1), (channels, channels, 3), (4 * channels, channels, 1)], 1):
                add(f"layer{stage}.{index}.conv{part}", f"layer{stage}.{index}.bn{part}", *shape)
            if index == 0:
                add(f"layer{stage}.0.downsample.0", f"layer{stage}.0.downsample.1", 4 * channels, inputs, 1)
            inputs = 4 * channels
    return state


def run_resnet(state: dict[str, Tensor], blocks: tuple[int, ...], x: Tensor) -> list[Tensor]:
    """Features at strides 8, 16 and 32 from tensors under torchvision's names."""

    def layer(x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        weight = state[f"{conv}.weight"]
        fields = (state[f"{norm}.{field}"] for field in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(functional.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2), *fields)

    x = functional.max_pool2d(layer(x, "conv1", "bn1", 2).relu(), 3, 2, 1)
    features = []
    for stage, count in enumerate(blocks, 1):
        for index in range(count):
            name, stride = f"layer{stage}.{index}", 2 if stage > 1 and index == 0 else 1
            out = layer(x, f"{name}.conv1", f"{name}.bn1").relu()
            out = layer(layer(out, f"{name}.conv2", f"{name}.bn2", stride).relu(), f"{name}.conv3", f"{name}.bn3")
            x = (out + (layer(x, f"{name}.downsample.0", f"{name}.downsample.1", stride) if index == 0 else x)).relu()
        features.append(x)
    return features[1:]


def test_a_backbone_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    torchvision_file(tmp_path / "m.pth")
    state = torch.load(tmp_path / "m.pth")
    del state["features.3.conv.2.weight"]
    torch.save(state, tmp_path / "m.pth")
    with pytest.raises(ModelError, match=r"torchvision's mobilenetv2, .* 1 missing \(features\.3\.conv\.2\.weight\)$"):
        read_weights(tmp_path / "m.pth")


def start(file: Path, config: TrainConfig, classes: tuple[str, ...] = CLASSES) -> YOLOv3:
    model = build_model(config.model, len(classes), config.loss)
    start_from(file, model, model_spec(config, classes))
    assert isinstance(model, YOLOv3)
    return model.eval()


def test_a_backbone_is_taken_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    ours = torchvision_file(tmp_path / "m.pth")
    model = start(tmp_path / "m.pth", recipe("yolov3-mobilenetv2-asff"))
    assert all(torch.equal(value, model.backbone.state_dict()[name]) for name, value in ours.items())
    assert f"took {len(ours)} of {len(model.state_dict())} tensors, first backbone.stem.conv.weight, " in caplog.text
    assert f"{len(model.state_dict()) - len(ours)} tensors start fresh: neck.p5.0.0.conv.weight, " in caplog.text
    for other in (recipe("yolov3-mobilenetv2-asff-small"), tiny()):
        with pytest.raises(InputError, match=f"a mobilenetv2 backbone, which {other.recipe} does not have"):
            start(tmp_path / "m.pth", other)


@pytest.mark.parametrize(("old", "new"), [(PLAIN, IMAGENET), (IMAGENET, PLAIN), (IMAGENET, IMAGENET)])
def test_another_normalization_is_absorbed(old: dict[str, Tensor], new: dict[str, Tensor], tmp_path: Path) -> None:
    """One image, normalized in either way, gives the same features away from its border."""
    config = tiny().replace(**old)
    trained = settled(config)
    checkpoint.save(tmp_path / "m.pt", Checkpoint(config, model_spec(config, CLASSES), trained.state_dict(), None, 0, -1.0))
    model = start(tmp_path / "m.pt", config.replace(**new))
    image = torch.rand(2, 3, 32, 40)  # pixel / 255

    def stem(network: YOLOv3, mean: Tensor, std: Tensor) -> Tensor:
        x = (image - torch.tensor(mean).reshape(3, 1, 1)) / torch.tensor(std).reshape(3, 1, 1)
        with torch.no_grad():
            return network.backbone.stem(x)[:, :, 1:-1, 1:-1]

    torch.testing.assert_close(stem(model, **new), stem(trained, **old), rtol=1e-4, atol=1e-5)
    assert torch.equal(model.backbone.stem.conv.weight, trained.backbone.stem.conv.weight) == (old == new)


def test_heads_of_another_class_count_stay_fresh(
    make_checkpoint: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    file = make_checkpoint()
    trained = load_model(file).state_dict()
    model = start(file, tiny(), classes=("one", "two"))
    fresh = [name for name, value in model.state_dict().items() if not torch.equal(value, trained[name])]
    assert fresh == [f"heads.{level}.predict.{part}" for level in range(3) for part in ("weight", "bias")]
    assert "6 tensors start fresh: heads.0.predict.weight, " in caplog.text


def test_heads_of_another_meaning_stay_fresh_even_where_their_shape_fits(make_checkpoint: Callable[..., Path]) -> None:
    """3 anchors of 3 classes have as many channels as 4 anchors of 1."""
    file = make_checkpoint(guided=False, adaption=False)
    trained = load_model(file)
    model = start(file, tiny(), classes=("one",))
    assert model.heads[0].predict.weight.shape == trained.heads[0].predict.weight.shape  # type: ignore[union-attr]
    assert not torch.equal(model.heads[0].predict.weight, trained.heads[0].predict.weight)  # type: ignore[union-attr]
    assert torch.equal(model.neck.to_p4.conv.weight, trained.neck.to_p4.conv.weight)  # type: ignore[union-attr]


def test_nothing_that_fits_is_an_error(make_checkpoint: Callable[..., Path]) -> None:
    file = make_checkpoint(backbone="mobilenetv2", fusion="none", guided=False)
    loaded = checkpoint.load(file)
    names = [name for name in loaded.weights if name.startswith("backbone.stages")]
    kept = {name: loaded.weights[name] for name in names}  # our DarkNet has some of these names, in other shapes
    checkpoint.save(file, Checkpoint(loaded.config, loaded.spec, kept, None, 0, -1.0))
    with pytest.raises(InputError, match=r"none of its [0-9]+ tensors fits tiny; choose another"):
        start(file, tiny())


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    weights = {name: torch.full(value.shape, np.nan) for name, value in empty_backbone("mobilenetv2").state_dict().items()}
    save_backbone(tmp_path / "b.pt", Backbone("mobilenetv2", **IMAGENET, weights=weights))
    with pytest.raises(ModelError, match="not finite"):
        read_weights(tmp_path / "b.pt")


def test_the_training_command_starts_from_a_file(
    coco_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    config = tiny().replace(recipe="demo", epochs=1, learning_rate=1e-9, final_learning_rate=0)
    monkeypatch.setattr("train.__main__.recipe", lambda name: config)
    torch.manual_seed(5)
    saved = Checkpoint(config, model_spec(config, CLASSES), settled(config).state_dict(), None, 0, -1.0)
    checkpoint.save(tmp_path / "m.pt", saved)
    common = ["--data", str(coco_set), "--device", "cpu", "--workers", "0"]
    assert train_command([*common, "--init", str(tmp_path / "m.pt"), "--output", str(tmp_path / "run")]) == 0
    trained = checkpoint.load(tmp_path / "run" / "best.pt").weights
    for name in ("neck.p5.1.conv.weight", "heads.1.predict.weight"):
        torch.testing.assert_close(trained[name], saved.weights[name], rtol=0, atol=1e-4)
    assert f"took {len(trained)} of {len(trained)} tensors" in caplog.text
    with pytest.raises(InputError, match="leave out --init"):
        train_command([*common, "--init", str(tmp_path / "m.pt"), "--resume", str(tmp_path / "run")])
    (tmp_path / "bad.pt").write_bytes(b"")
    with pytest.raises(ModelError, match="an empty file"):
        train_command([*common, "--init", str(tmp_path / "bad.pt"), "--output", str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()
