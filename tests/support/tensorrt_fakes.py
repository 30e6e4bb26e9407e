"""Libraries with the names that each TensorRT has and no more, which record what is asked of them.

They prove which calls are made, not what a real library makes of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

VERSIONS = ("8.6.1", "10.12.0", "11.4.0", "1.7.1")  # the last is TensorRT-RTX


class Logger:
    """The base class of loggers."""

    Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)


class ProgressMonitor:
    """The base class of monitors."""


class Config:
    """Remembers its flags and the timing cache; accepts a cache only if its bytes say so."""

    builder_optimization_level = 3

    def __init__(self) -> None:
        self.flags: list[str] = ["TF32"]  # as the library sets it
        self.pools: dict[str, int] = {}
        self.cache: Any = None

    def set_flag(self, flag: str) -> None:
        self.flags.append(flag)

    def clear_flag(self, flag: str) -> None:
        self.flags.remove(flag)

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        self.pools[pool] = size

    def create_timing_cache(self, content: bytes) -> Any:
        return None if content == b"garbage" else SimpleNamespace(content=content, serialize=lambda: content + b"+more")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return ignore_mismatch or cache.content != b"other GPU"

    def get_timing_cache(self) -> Any:
        return self.cache

    def can_run_on_DLA(self, layer: Any) -> bool:  # noqa: N802 - the library's name
        return bool(layer.type == "CONVOLUTION")


class DType(str):
    """A member of the library's enumeration of types."""

    @property
    def name(self) -> str:
        return str(self)


class Layer:
    """Layer with one input and one output, which records the precision it is given; `follows` is the layer before it.

    `is_typed` is False for TensorRT 8.6, which calls floating-point and int8 tensors FLOAT whatever they are (seen on a GPU).
    """

    is_typed = True

    def __init__(self, name: str, kind: str, taken: str, given: str, follows: str = "images") -> None:
        self.name, self.type, self.precision, self.follows = name, kind, "", follows
        self.num_inputs, self.num_outputs = int(kind != "CONSTANT"), 1
        self._taken, self._given, self.output_types = taken, given, {}  # type: ignore[var-annotated]

    def _shown(self, kind: str) -> DType:
        return DType(kind if self.is_typed or kind not in ("HALF", "INT8") else "FLOAT")

    def get_input(self, index: int) -> Any:
        return SimpleNamespace(dtype=self._shown(self._taken), name=self.follows)

    def get_output(self, index: int) -> Any:
        return SimpleNamespace(dtype=self._shown(self._given), name=self.name)

    def set_output_type(self, index: int, dtype: str) -> None:
        self.output_types[index] = dtype


class CastLayer(Layer):
    """What a Cast layer has beyond `ILayer`."""

    @property
    def to_type(self) -> DType:
        return DType(self._given)


class ConstantLayer(Layer):
    """What a Constant layer has beyond `ILayer`."""

    @property
    def weights(self) -> Any:
        return SimpleNamespace(dtype={"FLOAT": "float32", "HALF": "float16", "INT8": "int8"}[self._given])


def network(layers: Sequence[Layer], batch: int = 1) -> Any:
    """A parsed network of these layers, whose input is called `images`."""
    images = SimpleNamespace(name="images", shape=(batch, 3, 64, 64), dtype=DType("FLOAT"))
    return SimpleNamespace(num_inputs=1, num_layers=len(layers), get_layer=layers.__getitem__, get_input=lambda index: images)


class Builder:
    """Remembers the flags of its network."""

    num_DLA_cores = 2  # noqa: N815 - the library's name

    def __init__(self, logger: Any) -> None:
        self.logger, self.network_flags, self.config = logger, 0, Config()

    def create_network(self, flags: int) -> Any:
        self.network_flags = flags
        return SimpleNamespace(num_layers=0)

    def create_builder_config(self) -> Config:
        return self.config


def library(version: str) -> Any:
    """A module with the names of this version."""
    old, new = version.startswith("8"), version.startswith(("11", "1."))
    flags = {name: name for name in ("VERSION_COMPATIBLE", "TF32", "GPU_FALLBACK")}
    levels = ("AMPERE_PLUS",) if old else ("AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY")
    if new:
        flags["STRICT_NANS"] = "STRICT_NANS"
    if not new:
        flags.update({name: name for name in ("FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS")})
    network_flags = {} if new else {"EXPLICIT_BATCH": 0}
    if not old:
        network_flags["STRONGLY_TYPED"] = 1
    module = SimpleNamespace(
        __version__=version,
        ILogger=Logger,
        Builder=Builder,
        BuilderFlag=SimpleNamespace(**flags),
        NetworkDefinitionCreationFlag=SimpleNamespace(**network_flags),
        ProfilingVerbosity=SimpleNamespace(DETAILED="DETAILED", NONE="NONE"),
        MemoryPoolType=SimpleNamespace(WORKSPACE="WORKSPACE"),
        HardwareCompatibilityLevel=SimpleNamespace(**{name: name for name in levels}),
        DeviceType=SimpleNamespace(DLA="DLA"),
        LayerInformationFormat=SimpleNamespace(JSON="JSON"),
        float32="FLOAT",
        uint8="UINT8",
        int32="INT32",
        bool="BOOL",
    )
    names = (
        "ACTIVATION CAST CONCATENATION CONSTANT CONVOLUTION DEQUANTIZE ELEMENTWISE GATHER GRID_SAMPLE MATRIX_MULTIPLY POOLING"
        " QUANTIZE REDUCE RESIZE SCALE SELECT SHUFFLE SLICE SOFTMAX TOPK UNARY"
    )
    module.ICastLayer, module.IConstantLayer = CastLayer, ConstantLayer
    module.LayerType = SimpleNamespace(**{name: name for name in names.split()})
    if not old:
        module.IProgressMonitor = ProgressMonitor
    return module
