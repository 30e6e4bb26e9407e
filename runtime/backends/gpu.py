"""Name, compute capability, size and memory use of the first NVIDIA GPU, from the driver; needs no package."""

from __future__ import annotations

import ctypes
import os
import platform
from dataclasses import dataclass
from typing import Any, Optional

DRIVER_LIBRARY = "libcuda.so.1"
# Values of CUdevice_attribute in cuda.h.
_MULTIPROCESSORS, _INTEGRATED, _CAPABILITY_MAJOR, _CAPABILITY_MINOR = 16, 18, 75, 76


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU.

    Attributes:
        name: as the driver calls it.
        compute_capability: `major.minor`, such as `8.6`.
        multiprocessors: how many it has; None if unknown.
        is_integrated: whether it has no memory of its own and uses the host's, as on a Jetson.
        memory: bytes; None if unknown.
    """

    name: str
    compute_capability: str
    multiprocessors: Optional[int] = None
    is_integrated: bool = False
    memory: Optional[int] = None

    @property
    def title(self) -> str:
        """Name and size, for messages."""
        return self.name if self.multiprocessors is None else f"{self.name} ({self.multiprocessors} multiprocessors)"


def find_gpu() -> Optional[Gpu]:
    """Returns the first GPU that the driver shows, or None without a GPU or a driver; respects CUDA_VISIBLE_DEVICES."""
    try:
        cuda = ctypes.CDLL(DRIVER_LIBRARY)
    except OSError:
        return None
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0) or cuda.cuDeviceGetName(name, len(name), device):
        return None
    wanted = (_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _MULTIPROCESSORS, _INTEGRATED)
    major, minor, multiprocessors, integrated = (_attribute(cuda, device, number) for number in wanted)
    size = ctypes.c_size_t()
    memory = None if cuda.cuDeviceTotalMem_v2(ctypes.byref(size), device) else size.value
    return Gpu(name.value.decode(errors="replace"), f"{major}.{minor}", multiprocessors, bool(integrated), memory)


def _attribute(cuda: Any, device: ctypes.c_int, number: int) -> int:
    value = ctypes.c_int()
    cuda.cuDeviceGetAttribute(ctypes.byref(value), number, device)
    return value.value


def pci_bus_id() -> Optional[str]:
    """Returns the address by which `nvidia-smi` too knows the first GPU; None without a GPU or a driver."""
    if find_gpu() is None:
        return None
    cuda, name = ctypes.CDLL(DRIVER_LIBRARY), ctypes.create_string_buffer(32)
    return None if cuda.cuDeviceGetPCIBusId(name, len(name), 0) else name.value.decode()


def show_only(number: int) -> None:
    """Makes a GPU the first and only one of this process and of those that it starts; call it before any other use of CUDA.

    Args:
        number: of the GPU as `nvidia-smi` shows it, or among those in CUDA_VISIBLE_DEVICES where that is set.
    """
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # as nvidia-smi counts
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else []
    # A number beyond them hides them all.
    os.environ["CUDA_VISIBLE_DEVICES"] = str(number) if visible is None else "".join(names[number : number + 1])


def driver_version() -> Optional[str]:
    """Returns the newest CUDA version that the driver supports, such as `13.0`; None without a driver."""
    try:
        cuda = ctypes.CDLL(DRIVER_LIBRARY)
    except OSError:
        return None
    version = ctypes.c_int()
    return None if cuda.cuDriverGetVersion(ctypes.byref(version)) else f"{version.value // 1000}.{version.value % 1000 // 10}"


def platform_name() -> str:
    """Returns the operating system and the processor's architecture, such as `Linux x86_64`."""
    return f"{platform.system()} {platform.machine()}"


def memory_used() -> Optional[int]:
    """Returns the bytes in use on the first GPU, by all programs and CUDA itself; None without a GPU or a driver."""
    if find_gpu() is None:
        return None
    cuda, device, context = ctypes.CDLL(DRIVER_LIBRARY), ctypes.c_int(), ctypes.c_void_p()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    if cuda.cuDeviceGet(ctypes.byref(device), 0) or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device):
        return None
    try:
        if cuda.cuCtxPushCurrent_v2(context):
            return None
        failed = cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        cuda.cuCtxPopCurrent_v2(ctypes.byref(context))
        return None if failed else total.value - free.value
    finally:
        cuda.cuDevicePrimaryCtxRelease_v2(device)
