"""Fixtures: a small spec, and an ONNX model of it that finds one known object. Nothing here needs torch or onnx."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.backends.inspection import inspection_shapes
from runtime.spec import ModelSpec
from tests.support.onnx_writer import FLOAT, node, port, tensor, write_model

ANCHORS = (
    ((24.0, 20.0), (30.0, 60.0), (60.0, 30.0), (150.0, 150.0)),
    ((10.0, 14.0), (16.0, 24.0), (16.0, 12.0), (70.0, 70.0)),
    ((4.0, 4.0), (8.0, 6.0), (6.0, 8.0), (36.0, 36.0)),
)


@pytest.fixture(scope="session")
def make_spec() -> Callable[..., ModelSpec]:
    """A valid spec of a 64x64 model with two classes; keywords change it."""

    def build(**changes: Any) -> ModelSpec:
        base: dict[str, Any] = {
            "name": "tiny",
            "class_names": ("dot", "ring"),
            "input_size": (64, 64),
            "anchors": ANCHORS,
            "mean": (0.0, 0.0, 0.0),
            "std": (1.0, 1.0, 1.0),
        }
        return ModelSpec(**{**base, **changes})

    return build


@pytest.fixture(scope="session")
def known_maps() -> Callable[[ModelSpec], list[np.ndarray]]:
    """Raw maps `[C, H, W]` of a black image. 20 x the mean brightness (0-1) is to be added to every objectness; so a
    white image holds one `ring` at level 1, anchor 2, row 1, column 2: in input pixels (32, 18, 48, 30), score 0.9999."""

    def build(spec: ModelSpec) -> list[np.ndarray]:
        maps = []
        for level in range(len(spec.strides)):
            _, height, width = spec.map_shape(level)
            raw = np.zeros((len(spec.anchors[level]), 5 + spec.num_classes, height, width), np.float32)
            raw[:, 4] = -40
            maps.append(raw)
        maps[1][2, 4:, 1, 2] = -10
        maps[1][2, 6, 1, 2] = 10
        return [raw.reshape(-1, *raw.shape[2:]) for raw in maps]

    return build


@pytest.fixture(scope="session")
def known_fusion() -> Callable[[ModelSpec], dict[str, np.ndarray]]:
    """Further outputs `[C, H, W]` of a model that is inspected: shares 0.5, 0.3, 0.2, but all from level 3 in the cell of
    row 1, column 0; activation 0.25, but 2 in the cell of row 0, column 1."""

    def build(spec: ModelSpec) -> dict[str, np.ndarray]:
        outputs = {name: np.full(shape, 0.25, np.float32) for name, shape in inspection_shapes(spec.input_size).items()}
        for name in ("w5", "w4", "w3"):
            outputs[name][:] = np.array([0.5, 0.3, 0.2], np.float32).reshape(3, 1, 1)
            outputs[name][:, 1, 0] = (0, 0, 1)
        for name in ("f5", "f4", "f3"):
            outputs[name][0, 0, 1] = 2
        return outputs

    return build


WriteOnnx = Callable[..., Path]


@pytest.fixture(scope="session")
def write_onnx(
    make_spec: Callable[..., ModelSpec],
    known_maps: Callable[[ModelSpec], list[np.ndarray]],
    known_fusion: Callable[[ModelSpec], dict[str, np.ndarray]],
) -> WriteOnnx:
    """Write the model of `known_maps` as ONNX; `metadata` replaces the spec's own, `batch` fixes the batch size, `inspect`
    adds the outputs of `known_fusion`, `changed` replaces maps."""

    def write(
        path: Path,
        spec: ModelSpec | None = None,
        batch: int | None = None,
        metadata: dict[str, str] | None = None,
        input_name: str = "images",
        cast: int = FLOAT,
        inspect: bool = False,
        changed: dict[str, np.ndarray] | None = None,
    ) -> Path:
        spec = spec or make_spec()
        nodes = [node("GlobalAveragePool", [input_name], "mean")]
        weights, outputs = [], []
        maps = dict(zip(spec.map_names, known_maps(spec)))
        for name, raw in {**maps, **(known_fusion(spec) if inspect else {}), **(changed or {})}.items():
            gain = np.zeros((len(raw), 3, 1, 1), np.float32)
            if name in spec.map_names:
                gain[4 :: 5 + spec.num_classes] = 20 / 3
            weights += [tensor(f"{name}_w", gain), tensor(f"{name}_b", raw[None])]
            nodes += [
                node("Conv", ["mean", f"{name}_w"], f"{name}_c"),
                node("Add", [f"{name}_c", f"{name}_b"], f"{name}_a"),
                node("Cast", [f"{name}_a"], name, to=cast),
            ]
            outputs.append(port(name, cast, [batch or "N", *raw.shape]))
        images = port(input_name, FLOAT, [batch or "N", 3, *spec.input_size])
        write_model(path, nodes, [images], outputs, weights, spec.to_metadata() if metadata is None else metadata)
        return path

    return write


@pytest.fixture(scope="session")
def tiny_onnx(tmp_path_factory: pytest.TempPathFactory, write_onnx: WriteOnnx) -> Path:
    return write_onnx(tmp_path_factory.mktemp("model") / "tiny.onnx")
