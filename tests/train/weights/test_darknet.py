"""Darknet's files: read as OpenCV reads them, with Darknet's arithmetic, and refused where their length fits nothing."""

from __future__ import annotations

import functools
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from runtime.errors import InputError, ModelError
from train.weights import load_model, open_weights, read_weights
from train.weights.backbone import Backbone
from train.weights.darknet import expected_sizes
from train.weights.darknet_cfg import read_cfg
from train.weights.names import COCO_CLASSES

Layer = tuple[str, dict[str, object]]
"""A section of a cfg: its name and options."""


def conv(filters: int, size: int, stride: int = 1, detect: bool = False) -> Layer:
    options = {"filters": filters, "size": size, "stride": stride, "pad": 1}
    return "convolutional", {**options, "activation": "linear"} if detect else {
        "batch_normalize": 1,
        **options,
        "activation": "leaky",
    }


def darknet53() -> list[Layer]:
    layers = [conv(32, 3)]
    for channels, count in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        layers.append(conv(channels, 3, 2))
        for _ in range(count):
            layers += [conv(channels // 2, 1), conv(channels, 3), ("shortcut", {"from": -3, "activation": "linear"})]
    return layers


def yolov3(spp: bool, classes: int = 80) -> list[Layer]:
    """The network of yolov3.cfg or yolov3-spp.cfg up to its [yolo] sections, which hold no weights."""
    layers = darknet53()
    for channels, lateral in ((512, None), (256, 61), (128, 36)):
        if lateral is not None:  # from the convolution three before the last, as `route -4` in front of [yolo] means
            layers += [("route", {"layers": -3}), conv(channels, 1), ("upsample", {"stride": 2})]
            layers += [("route", {"layers": f"-1, {lateral}"})]
        layers += [conv(channels, 1), conv(2 * channels, 3), conv(channels, 1)]
        if spp and lateral is None:
            layers += [("maxpool", {"stride": 1, "size": 5}), ("route", {"layers": -2}), ("maxpool", {"stride": 1, "size": 9})]
            layers += [("route", {"layers": -4}), ("maxpool", {"stride": 1, "size": 13}), ("route", {"layers": "-1,-3,-5,-6"})]
            layers += [conv(channels, 1)]
        layers += [conv(2 * channels, 3), conv(channels, 1), conv(2 * channels, 3)]
        layers.append(conv(3 * (5 + classes), 1, detect=True))
    return layers


def cfg(layers: list[Layer], height: int, width: int) -> str:
    sections = [("net", {"channels": 3, "height": height, "width": width}), *layers]
    return "\n".join(
        f"[{kind}]\n" + "".join(f"{key}={value}\n" for key, value in options.items()) for kind, options in sections
    )


def values(layers: list[Layer], rng: np.random.Generator) -> NDArray[np.float32]:
    """Random values of every convolution in a file's order, such that activations keep their size through the network."""
    parts: list[NDArray[np.float32]] = []
    channels: list[int] = []  # of each layer's output
    for index, (kind, options) in enumerate(layers):
        inputs = channels[-1] if channels else 3
        if kind == "route":
            sources = [int(source) for source in str(options["layers"]).split(",")]
            channels.append(sum(channels[source if source >= 0 else index + source] for source in sources))
        elif kind != "convolutional":
            channels.append(inputs)
        else:
            filters, size = int(str(options["filters"])), int(str(options["size"]))
            norm = "batch_normalize" in options
            scale = (1.6 if norm else 1.0) / (inputs * size**2)
            parts.append(rng.normal(0, 0.2, filters))  # beta, or bias
            if norm:
                residual = index + 1 < len(layers) and layers[index + 1][0] == "shortcut"
                parts.append(rng.uniform(0.5, 1.5, filters) * (0.4 if residual else 1))  # gamma
                parts.append(rng.normal(0, 0.2, filters))  # mean
                parts.append(rng.uniform(0.5, 1.5, filters))  # variance
            parts.append(rng.standard_normal(filters * inputs * size**2, dtype=np.float32) * np.float32(scale**0.5))
            channels.append(filters)
    return np.concatenate(parts, dtype=np.float32)


def file_bytes(content: NDArray[np.float32], version: tuple[int, int] = (0, 2)) -> bytes:
    """A file as Darknet writes it; the count of images seen grew from 4 to 8 bytes in version 0.2."""
    return struct.pack("<3iq" if version >= (0, 2) else "<4i", *version, 5, 32013312) + content.astype("<f4").tobytes()


@pytest.mark.parametrize(("recipe", "length"), [("yolov3", 248007048), ("yolov3-spp", 252209544)])
def test_outputs_are_those_of_opencv(recipe: str, length: int, tmp_path: Path) -> None:
    layers = yolov3(spp=recipe == "yolov3-spp")
    content = file_bytes(values(layers, np.random.default_rng(0)))
    assert len(content) == length  # of the published file
    images = np.random.default_rng(1).normal(size=(1, 3, 64, 96)).astype(np.float32)
    network = cv2.dnn.readNetFromDarknet(*(np.frombuffer(data, np.uint8) for data in (cfg(layers, 64, 96).encode(), content)))
    network.setInput(images)
    expected = network.forward(network.getUnconnectedOutLayersNames())
    path = tmp_path / "random.weights"
    path.write_bytes(content)
    model = load_model(path)
    path.unlink()
    with torch.no_grad():
        found = [level.numpy() for level in model.maps(torch.from_numpy(images))]
    assert [level.shape for level in found] == [level.shape for level in expected]
    for ours, theirs in zip(found, expected):
        scale = np.abs(theirs).max()
        assert 0.5 < scale < 100
        assert np.abs(ours - theirs).max() < 1e-4 * scale


def test_batch_norm_is_darknets_even_for_tiny_variances(tmp_path: Path) -> None:
    """gamma * (x - mean) / (sqrt(variance) + 1e-6) + beta; at ordinary variances OpenCV could not tell this from ours."""
    rng = np.random.default_rng(0)
    content = values(darknet53(), rng)
    beta, gamma, mean, variance = content[:128].reshape(4, 32)
    variance[:] = np.geomspace(1e-12, 1, 32)
    weight = content[128 : 128 + 32 * 27].astype(np.float64).reshape(32, 27)
    path = tmp_path / "darknet53.conv.74"
    path.write_bytes(file_bytes(content))
    backbone = read_weights(path)
    assert isinstance(backbone, Backbone)
    x = rng.normal(size=27)
    expected = gamma * (weight @ x - mean) / (np.sqrt(variance.astype(np.float64)) + 1e-6) + beta
    ours = {name: value.double().numpy() for name, value in backbone.weights.items() if name.startswith("stem.")}
    found = ours["stem.conv.weight"].reshape(32, 27) @ x - ours["stem.norm.running_mean"]
    found = ours["stem.norm.weight"] * found / np.sqrt(ours["stem.norm.running_var"] + 1e-5) + ours["stem.norm.bias"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@functools.cache
def floats(spp: bool, classes: int) -> int:
    """Values in a file, from the published length: 3 heads of 3 anchors see 1024, 512 and 256 channels and have a bias."""
    return ((252209544 if spp else 248007048) - 20) // 4 + (classes - 80) * 3 * (1024 + 512 + 256 + 3)


def sparse(path: Path, count: int, version: tuple[int, int] = (0, 2)) -> Path:
    """A file of that many zeros which takes no room on the disk."""
    header = file_bytes(np.zeros(0, np.float32), version)
    path.write_bytes(header)
    with path.open("r+b") as file:
        file.truncate(len(header) + 4 * count)
    return path


@pytest.mark.parametrize("version", [(0, 1), (0, 2), (1, 0)])
@pytest.mark.parametrize(("spp", "classes"), [(False, 80), (True, 80), (False, 1), (True, 20)])
def test_network_and_classes_follow_from_the_length(
    spp: bool, classes: int, version: tuple[int, int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = open_weights(sparse(tmp_path / "w", floats(spp, classes), version), "yolov3-spp" if spp else "yolov3")
    assert loaded.spec.num_classes == classes
    assert f" of {classes} classes with the anchors of the published file (10x13, " in caplog.text
    assert "--cfg FILE.cfg" in caplog.text
    assert loaded.spec.class_names == COCO_CLASSES or classes != 80
    assert (loaded.spec.resize, loaded.spec.pad_value) == ("letterbox", 127.5)
    assert (loaded.spec.mean, loaded.spec.std) == ((0, 0, 0), (1, 1, 1))
    assert loaded.weights["heads.2.predict.bias"].shape == (3 * (5 + classes),)


@pytest.mark.parametrize(
    "count",
    [
        1 << 38,
        floats(False, 20_000),
        floats(True, 10_001),
        0,
        1,
        1000,
        floats(False, 80) - 1,
        floats(False, 80) + 1,
        floats(False, -5),
        40620641,
    ],
)
def test_a_length_that_fits_no_network_is_refused(count: int, tmp_path: Path) -> None:
    message = f"Darknet weights of {20 + 4 * count} bytes, which fit no network known here; expected yolov3 "
    with pytest.raises(ModelError, match=message):
        read_weights(sparse(tmp_path / "w", count))


def test_the_lengths_told_are_the_published_ones() -> None:
    assert all(size in expected_sizes() for size in ("248007048", "252209544", "162482580"))


def test_a_backbone_is_no_detector(tmp_path: Path) -> None:
    path = sparse(tmp_path / "w", (162482580 - 20) // 4)
    assert isinstance(read_weights(path, model="darknet53"), Backbone)
    with pytest.raises(ModelError, match=r"darknet53 backbone alone.*python -m train --init"):
        open_weights(path)


# --- the cfg

ANCHORS = "8,9, 12,11, 10,18, 20,15, 16,30, 28,24, 35,40, 60,33, 50,70"
PAIRS = ((8, 9), (12, 11), (10, 18), (20, 15), (16, 30), (28, 24), (35, 40), (60, 33), (50, 70))


def described(classes: int = 1, spp: bool = False, kind: str = "yolo", height: int = 96, width: int = 96) -> str:
    """The cfg of a network as Darknet writes it, with its [yolo] sections."""
    layers: list[Layer] = []
    masks = iter(("6,7,8", "3,4,5", "0,1,2"))
    for layer in yolov3(spp, classes):
        layers.append(layer)
        if layer[1].get("activation") == "linear" and layer[0] == "convolutional":
            layers.append((kind, {"mask": next(masks), "anchors": ANCHORS, "classes": classes, "num": 9}))
    return f"\ufeff# made by hand\n; old\n{cfg(layers, height, width)}"


def test_anchors_and_size_are_those_of_the_cfg(tmp_path: Path) -> None:
    weights, text = sparse(tmp_path / "w", floats(False, 1)), tmp_path / "one.cfg"
    text.write_text(described().replace("mask=0,1,2", "mask = 0, 1, 2 # finest"), encoding="utf-8")
    spec = read_weights(weights, cfg=text).spec  # type: ignore[union-attr]
    assert (spec.anchors, spec.input_size, spec.num_classes) == ((PAIRS[6:], PAIRS[3:6], PAIRS[:3]), (96, 96), 1)
    text.write_text(described(spp=True))
    with pytest.raises(InputError, match=r"one\.cfg: describes yolov3-spp of 1 classes, but .*w has the length of yolov3 of 1"):
        read_weights(weights, cfg=text)
    text.write_text(described(kind="Gaussian_yolo"))
    with pytest.raises(ModelError, match="Gaussian YOLOv3 is not read"):
        read_weights(weights, cfg=text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (described(kind="Gaussian_yolo"), "Gaussian YOLOv3 is not read"),
        (described().replace("[yolo]", "[none]", 1), "yolov3-tiny is not read"),
        (described().replace("[yolo]", "[region]"), r"expected \[net\] first and 3 \[yolo\] sections, found 0"),
        (described().replace("leaky", "mish", 3), "its convolutions use mish"),
        (described().replace("classes=1", "classes=2"), r"contradicts itself: classes=\[2\] need filters=21"),
        (described().replace("classes=1", "classes=one"), "no number"),
        (described().replace("mask=0,1,2", "mask=0,1"), "expected 3 positive anchors in each mask"),
        (described().replace("mask=0,1,2", "mask=0,1,9"), "no number"),
        (described().replace("8,9, 12", "0,9, 12"), "expected 3 positive anchors"),
        ("", r"expected \[net\] first"),
        ("\0", r"expected \[net\] first"),
    ],
)
def test_a_cfg_of_another_network_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "w.cfg"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=rf"w\.cfg: .*{message}"):
        read_cfg(path)


@pytest.mark.parametrize("size", [35434956, 34704996])  # of 80 classes, as published, and of one
def test_tiny_weights_are_named(size: int, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="yolov3-tiny is not read: it detects on two levels"):
        read_weights(sparse(tmp_path / "w", (size - 20) // 4))


def test_only_darknets_weights_have_a_cfg(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"PK no weights at all, but long enough")
    (tmp_path / "w.cfg").write_text(described(), encoding="utf-8")
    with pytest.raises(InputError, match="leave out --cfg"):
        read_weights(tmp_path / "w", cfg=tmp_path / "w.cfg")
