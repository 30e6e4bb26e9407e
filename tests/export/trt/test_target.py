"""Targets of engines (other GPUs, DLA), with fake libraries: checks the calls that they get, not what a Jetson does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from export.trt.target import check_dla, dla_batch, use_dla, workspace_limit
from runtime.backends.gpu import Gpu
from runtime.backends.tensorrt.library import TensorRT
from runtime.errors import DetectorError, InputError, MissingComponentError
from tests.support.tensorrt_fakes import Builder, Config, library

GIB = 2**30


@pytest.mark.parametrize(
    ("asked", "gpu", "limit"),
    [
        (None, None, None),
        (None, Gpu("GPU", "9.0", memory=80 * GIB), None),
        (None, Gpu("Jetson", "8.7", is_integrated=True, memory=8 * GIB), 4.0),
        (None, Gpu("Jetson", "8.7", is_integrated=True), None),
        (6.0, Gpu("Jetson", "8.7", is_integrated=True, memory=8 * GIB), 6.0),
    ],
)
def test_scratch_memory_leaves_room_for_the_host_where_both_share_it(asked: Any, gpu: Any, limit: Any) -> None:
    assert workspace_limit(asked, gpu) == limit


def test_a_dla_core_takes_one_batch_size() -> None:
    assert dla_batch(None) == (1, 1, 1) and dla_batch((4, 4, 4)) == (4, 4, 4)
    with pytest.raises(InputError, match="--batch 1,1,8: a DLA core takes one batch size"):
        dla_batch((1, 1, 8))


@pytest.mark.parametrize(
    ("flavor", "precision", "core", "count", "kind", "message"),
    [
        ("tensorrt", "fp16", 1, 2, None, ""),
        ("tensorrt", "int8", 0, 1, None, ""),
        ("tensorrt", "fp32", 0, 2, InputError, "the file is fp32; export it with --precision fp16"),
        ("tensorrt", "fp16", 2, 2, MissingComponentError, "DLA cores 0 to 1 on this machine"),
        ("tensorrt", "fp16", 0, 0, MissingComponentError, "no DLA core on this machine"),
        ("rtx", "fp16", 0, 2, InputError, "does not use DLA cores; leave it out"),
    ],
)
def test_what_a_dla_core_needs(
    flavor: str, precision: str, core: int, count: int, kind: type[DetectorError] | None, message: str
) -> None:
    trt = TensorRT(flavor, library("1.7.1" if flavor == "rtx" else "10.12.0"))
    builder = Builder(None)
    builder.num_DLA_cores = count
    if kind is None:
        check_dla(trt, builder, core, precision)
        return
    with pytest.raises(kind, match=f"--dla.*{message}"):
        check_dla(trt, builder, core, precision)


@pytest.mark.parametrize("version", ["8.6.1", "10.12.0"])
def test_layers_that_a_dla_core_cannot_run_are_named(version: str, caplog: pytest.LogCaptureFixture) -> None:
    trt, config = TensorRT("tensorrt", library(version)), Config()
    layers = [SimpleNamespace(name=f"{kind}{number}", type=kind) for number in range(6) for kind in ("CONVOLUTION", "RESIZE")]
    network = SimpleNamespace(num_layers=len(layers), get_layer=layers.__getitem__)
    with caplog.at_level("INFO"):
        assert use_dla(trt, network, config, 1) == [f"RESIZE{number}" for number in range(6)]
    assert "DLA core 1: 6 of 12 layers run on the GPU (RESIZE0, RESIZE1, RESIZE2, RESIZE3, RESIZE4, …)" in caplog.text
    assert (config.default_device_type, config.DLA_core) == ("DLA", 1)  # type: ignore[attr-defined]
    assert "GPU_FALLBACK" in config.flags
