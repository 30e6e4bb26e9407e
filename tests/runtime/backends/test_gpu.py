"""find_gpu and memory_used with a fake driver: they prove the calls, not that a GPU answers."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import pytest

from runtime import cli
from runtime.backends.gpu import Gpu, driver_version, find_gpu, memory_used, pci_bus_id


class Driver:
    """A libcuda with one device, or one whose calls fail."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.contexts = 0  # retained and not released
        self.current = 0  # pushed and not popped

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: 1 if name == self.failing else self.answer(name, arguments)

    def answer(self, name: str, arguments: tuple[Any, ...]) -> int:
        if name == "cuDeviceGetName":
            arguments[0].value = b"Some GPU"
        elif name == "cuDeviceGetAttribute":
            arguments[0]._obj.value = {16: 28, 18: 1, 75: 8, 76: 6}[arguments[1]]
        elif name == "cuDeviceGetPCIBusId":
            arguments[0].value = b"0000:3B:00.0"
        elif name == "cuDeviceTotalMem_v2":
            arguments[0]._obj.value = 40 << 30  # more than 32 bits
        elif name == "cuDriverGetVersion":
            arguments[0]._obj.value = 12080
        elif name == "cuDevicePrimaryCtxRetain":
            self.contexts += 1
        elif name == "cuDevicePrimaryCtxRelease_v2":
            self.contexts -= 1
        elif name == "cuCtxPushCurrent_v2":
            assert self.contexts
            self.current += 1
        elif name == "cuCtxPopCurrent_v2":
            self.current -= 1
        elif name == "cuMemGetInfo_v2":
            assert self.current
            free, total = arguments
            free._obj.value, total._obj.value = 30 << 30, 40 << 30  # more than 32 bits
        return 0


def test_name_and_compute_capability_come_from_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    assert find_gpu() == Gpu("Some GPU", "8.6", 28, is_integrated=True, memory=40 << 30)
    assert driver_version() == "12.8"


@pytest.mark.parametrize("failing", ["cuInit", "cuDeviceGet", "cuDeviceGetName"])
def test_a_driver_without_a_gpu_is_no_gpu(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(failing))
    assert find_gpu() is None


def test_nvidia_smi_knows_it_by_its_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    assert pci_bus_id() == "0000:3B:00.0"
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver("cuDeviceGetPCIBusId"))
    assert pci_bus_id() is None


def test_no_driver_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert driver_version() is None
    assert find_gpu() is None


def test_memory_in_use_is_what_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert memory_used() == 10 << 30
    assert (driver.contexts, driver.current) == (0, 0)


@pytest.mark.parametrize("failing", ["cuInit", "cuDevicePrimaryCtxRetain", "cuCtxPushCurrent_v2", "cuMemGetInfo_v2"])
def test_memory_that_cannot_be_asked_for_is_not_known(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(failing)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert memory_used() is None
    assert (driver.contexts, driver.current) == (0, 0)


@pytest.mark.parametrize(
    ("visible", "number", "shown"),
    [
        (None, 0, "0"),
        (None, 3, "3"),
        ("2,5", 0, "2"),
        ("2,5", 1, "5"),
        ("2,5", 2, ""),
        ("", 0, ""),
        ("GPU-8932f937", 0, "GPU-8932f937"),
    ],
)
def test_one_gpu_is_shown(visible: str | None, number: int, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("CUDA_VISIBLE_DEVICES", visible), ("CUDA_DEVICE_ORDER", None)):
        monkeypatch.setenv(name, "")  # so that it is as before afterwards
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    parser = cli.parser("runtime.detect", "", "")
    cli.add_model(parser)
    given = parser.parse_args(["--engine", "m.engine", "--device", str(number)])
    assert sorted(vars(given)) == ["backend", "engine"]
    assert (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["CUDA_DEVICE_ORDER"]) == (shown, "PCI_BUS_ID")
