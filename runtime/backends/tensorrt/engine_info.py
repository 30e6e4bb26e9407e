"""Reads an engine's manifest and checks it against this machine, before the engine is loaded."""

from __future__ import annotations

import logging
import re
import reprlib
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from runtime.backends.gpu import Gpu, platform_name
from runtime.backends.tensorrt.library import FLAVORS, TensorRT
from runtime.console.terminal import printable
from runtime.errors import InputError, ModelError
from runtime.files import sha256
from runtime.manifest import Manifest, manifest_path, read_manifest
from runtime.spec import ModelSpec

log = logging.getLogger(__name__)

_LARGEST_BATCH = 1 << 16  # beyond what any GPU has memory for
_LONGEST = 200  # characters of a message that quotes the manifest
_AMPERE = (8, 0)
_RTX_GPUS, _RTX_FROM = ((8, 0), (8, 6), (8, 9)), (12, 0)  # compute capabilities, by its message on an H100
RTX_GPUS = "x86-64 with GPUs of compute capability 8.0, 8.6, 8.9, 12.0 and later, not on a Jetson"
_LOADS_OLDER = {10: 8, 11: 10}
"""Older major version whose version-compatible engines each one loads too, from NVIDIA's support matrix."""


@dataclass(frozen=True)
class EngineInfo:
    """An engine as described by its manifest.

    Attributes:
        path: of the engine.
        spec: of the model.
        flavor: of the library that built it, one of `FLAVORS`.
        version: of the library that built it.
        gpu: of the machine that built it, None if it had none.
        platform: of that machine, see `platform_name`; None in manifests that do not say.
        batch: the smallest, most frequent and largest batch size.
        version_compatible: whether later versions of the library can load it.
        hardware_compatible: whether it runs on every GPU from Ampere on.
        same_compute_capability: whether it runs on every GPU of that compute capability.
        dla_core: the DLA core that it uses, None if it runs on the GPU alone.
        onnx: path of the file it was built from.
    """

    path: Path
    spec: ModelSpec
    flavor: str
    version: str
    gpu: Optional[Gpu]
    platform: Optional[str]
    batch: tuple[int, int, int]
    version_compatible: bool
    hardware_compatible: bool
    same_compute_capability: bool
    dla_core: Optional[int]
    onnx: str

    @property
    def remedy(self) -> str:
        """Instruction to build the engine again, for messages."""
        asked = {
            " --version-compatible": self.version_compatible,
            " --hardware-compatible": self.hardware_compatible,
            " --same-compute-capability": self.same_compute_capability,
            f" --dla {self.dla_core}": self.dla_core is not None,
        }
        flags = "".join(flag for flag, given in asked.items() if given)
        batch = ",".join(map(str, self.batch))
        return (
            f"build it again here with `python -m export.engine --onnx {shlex.quote(self.onnx)}"
            f" --output {shlex.quote(str(self.path))}"
            f" --flavor {self.flavor} --batch {batch}{flags}`"
        )


def read_engine_info(path: Path) -> EngineInfo:
    """Reads the manifest beside an engine and checks that it belongs to this file.

    Raises:
        ModelError: there is no manifest, or it is unreadable, of another file, or not of an engine.
    """
    beside = manifest_path(path)
    try:
        manifest = read_manifest(beside)
    except ModelError as error:
        raise ModelError(f"{error}; build the engine again with `python -m export.engine`") from error
    except InputError as error:
        raise ModelError(
            f"{path}: without its manifest {beside.name}; put that beside it, or build it again with `python -m export.engine`"
        ) from error
    if sha256(path) != manifest.sha256:
        raise ModelError(
            f"{path}: is not the file that {beside.name} describes; copy both again, or build it again with"
            " `python -m export.engine`"
        )
    try:
        return _parse(path, manifest)
    except (KeyError, TypeError, ValueError) as error:
        problem = printable(f"{type(error).__name__}: {error}", _LONGEST)
        raise ModelError(
            f"{beside}: does not describe an engine ({problem}); build it again with `python -m export.engine`"
        ) from error


def _parse(path: Path, manifest: Manifest) -> EngineInfo:
    engine: Any = manifest.details["engine"]
    smallest, usual, largest = batch = tuple(engine["batch"][key] for key in ("min", "opt", "max"))
    if any(type(size) is not int for size in batch) or not 1 <= smallest <= usual <= largest <= _LARGEST_BATCH:
        raise ValueError(f"batch {reprlib.repr(engine['batch'])}")
    flavor, version, name, capability = (engine[key] for key in ("flavour", "version", "gpu", "compute_capability"))
    if flavor not in FLAVORS or not _numbers(version) or (capability is not None and len(_numbers(capability)) != 2):
        found = ", ".join(map(reprlib.repr, (flavor, version, capability)))
        raise ValueError(f"flavour, version and compute capability {found}")
    onnx = [item.name for item in manifest.made_from if item.role == "onnx"]
    return EngineInfo(
        path=path,
        spec=manifest.spec,
        flavor=flavor,
        version=version,
        gpu=None if capability is None else Gpu(str(name), capability, _count(engine, "multiprocessors")),
        platform=None if engine.get("platform") is None else str(engine["platform"]),
        batch=(smallest, usual, largest),
        version_compatible=engine["version_compatible"] is True,
        hardware_compatible=engine["hardware_compatible"] is True,
        same_compute_capability=engine.get("same_compute_capability") is True,
        dla_core=_count(engine, "dla_core"),
        onnx=str(path.parent / onnx[0]) if onnx else "MODEL.onnx",
    )


def _count(engine: Any, key: str) -> Optional[int]:
    count = engine.get(key)  # manifests of earlier versions do not say
    return count if type(count) is int and count >= 0 else None


def check_library(info: EngineInfo, trt: TensorRT) -> None:
    """Raises ModelError unless this library can load the engine."""
    if info.platform not in (None, platform_name()):
        raise ModelError(f"{info.path}: built on {info.platform!r}, this is {platform_name()}; {info.remedy}")
    built, installed = _numbers(info.version), _numbers(trt.version)
    loads = built[:1] in (installed[:1], (_LOADS_OLDER.get(installed[0]),))
    if installed == built or (info.version_compatible and installed > built and loads):
        return
    raise ModelError(f"{info.path}: built by version {info.version}, installed is {trt.title}; {info.remedy}")


def check_gpu(info: EngineInfo, gpu: Gpu) -> None:
    """Raises ModelError if the engine cannot run on this GPU; warns if that is unknown."""
    here = _numbers(gpu.compute_capability)
    if info.flavor == "rtx":
        if not runs_rtx(gpu):
            log.warning(
                "%s: NVIDIA does not list %s (compute capability %s) for TensorRT-RTX engines; it may not load",
                info.path,
                gpu.name,
                gpu.compute_capability,
            )
        return
    if info.gpu is None or (info.hardware_compatible and here >= _AMPERE):
        return
    if info.gpu.compute_capability == gpu.compute_capability:
        count = info.gpu.multiprocessors or gpu.multiprocessors  # of a part of a GPU it is lower, under the same name
        is_same = (info.gpu.name, count) == (gpu.name, gpu.multiprocessors or count)
        if not is_same and not info.same_compute_capability:
            log.warning("%s: built for %s; on %s it may be slower or not load", info.path, info.gpu.title, gpu.title)
        return
    raise ModelError(
        f"{info.path}: built for {info.gpu.name} (compute capability {info.gpu.compute_capability}), this machine has"
        f" {gpu.name} ({gpu.compute_capability}); {info.remedy}"
    )


def runs_rtx(gpu: Gpu) -> bool:
    """Tells whether NVIDIA lists a GPU for the engines of TensorRT-RTX."""
    here = _numbers(gpu.compute_capability)
    return here in _RTX_GPUS or here >= _RTX_FROM


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))
