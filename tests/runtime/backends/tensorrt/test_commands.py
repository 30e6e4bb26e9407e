"""Commands with an engine on a fake GPU: detections, missing components, refused engines."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime import detect, evaluate
from runtime.backends.tensorrt import cuda
from runtime.spec import ModelSpec
from tests.support.trt_machine import RTX, Command, Machine, MakeMachine, edit, swap


def test_detect_runs_an_engine(
    machine: MakeMachine, command: Command, make_spec: Callable[..., ModelSpec], tmp_path: Path
) -> None:
    here = machine(spec=make_spec())
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((20, 30, 3), np.uint8))
    arguments = ("--engine", here.path, "--source", tmp_path / "black.png", "--json", "--conf", "0.9")
    code, out, err = command(detect.main, *arguments)
    assert (code, json.loads(out)["detections"]) == (0, []), err
    assert here.gpu.calls["execute"] == 2 and here.gpu.live == []  # the warm-up and the image


@pytest.mark.parametrize(
    ("lacking", "remedy"),
    [
        ("driver", "install it, and check with `nvidia-smi`"),
        ("package", "pip install cuda-bindings"),
        ("gpu", "check `nvidia-smi`"),
    ],
)
def test_commands_say_in_one_line_what_is_missing(
    lacking: str, remedy: str, machine: MakeMachine, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = machine(**RTX)

    def no_driver(name: str) -> None:
        raise OSError("no such library")

    if lacking == "driver":
        monkeypatch.setattr("ctypes.CDLL", no_driver)
    elif lacking == "package":
        monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    else:
        monkeypatch.setattr(cuda, "find_gpu", lambda: None)
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((20, 30, 3), np.uint8))
    for main, arguments in [
        (detect.main, ("--source", tmp_path / "black.png", "--json")),
        (evaluate.main, ("--data", tmp_path)),
    ]:
        code, out, err = command(main, "--engine", here.path, *arguments)
        assert (code, out) == (3, "") and remedy in err
        assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda here: swap(here.path), "is not the file that tiny.engine.json describes"),
        (lambda here: edit(version="10.13.0")(here.path), "built by version 10.13.0"),
        (lambda here: edit(compute_capability="9.0")(here.path), "built for Fake GPU (compute capability 9.0)"),
        (lambda here: setattr(here.engine, "is_loadable", False), "not an engine for TensorRT 10.12.0 here"),
        (lambda here: here.engine.shapes.update(p4=(-1, 5, 2, 2)), "output p4 is float32 [N, 5, 2, 2], its spec says"),
        (lambda here: setattr(here.engine, "offset", float("nan")), "holds NaN"),
    ],
    ids=["another plan", "version", "GPU", "not loadable", "shapes", "NaN"],
)
def test_commands_refuse_a_bad_engine_in_one_line_and_leave_nothing(
    break_it: Callable[[Machine], None],
    message: str,
    machine: MakeMachine,
    command: Command,
    make_spec: Callable[..., ModelSpec],
    make_coco: Callable[..., Path],
) -> None:
    here = machine(spec=make_spec())
    data = make_coco(images=[(1, 64, 48, 200)], boxes=[(1, 3, (1, 2, 30, 40))])
    break_it(here)
    for main, arguments in [
        (detect.main, ("--source", data / "val2017" / "1.png", "--json")),
        (evaluate.main, ("--data", data)),
    ]:
        code, out, err = command(main, "--engine", here.path, *arguments)
        assert (code, out) == (2, "") and message in err and len(err.splitlines()) == 1
        assert here.gpu.live == [] and here.gpu.graphs == {}
