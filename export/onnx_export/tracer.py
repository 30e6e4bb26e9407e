"""Writes a PyTorch model as an ONNX file, with either of torch's exporters; the only torch importer of this package."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.onnx_export.exporters import DEFAULT_EXPORTER, TORCH_EXPORT, choose_opset
from export.onnx_export.layer_names import name_by_module
from runtime import components
from runtime.backends.inspection import inspection_shapes
from runtime.backends.signature import INPUT_NAME
from runtime.errors import CheckFailed
from runtime.ops.preprocess import normalization
from runtime.spec import ModelSpec
from train.model import DetectorModel
from train.model.deform_conv import DeformConv
from train.model.folding import fold_batch_norm

TOOLS = (f"torch {torch.__version__}", f"onnx {onnx.__version__}")

# It is the older exporter, and sizes and constants become part of the graph: all of this is intended.
_TRACER_WARNINGS = (
    ("You are using the legacy TorchScript-based ONNX export", DeprecationWarning),
    ("The feature will be removed. Please remove usage of this function", DeprecationWarning),
    ("Converting a tensor to a Python integer might cause the trace to be incorrect", torch.jit.TracerWarning),
    (r"torch\.(tensor|from_numpy) results are registered as constants in the trace", torch.jit.TracerWarning),
)
_TORCH_EXPORT_WARNINGS = ((r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning),)  # torch warns of itself

_LOGS = {
    "onnxscript": logging.WARNING,  # each step of simplifying the graph
    "onnx_ir": logging.WARNING,
    "torch.onnx._internal.exporter._registration": logging.ERROR,  # that torchvision, which is not needed, is missing
}


class _ExportedModule(nn.Module):
    """Model with the inputs and outputs of its spec; `inspect` adds the fusion weights and activations.

    The inputs are images and the outputs are float32. With `top_k` the maps come last, so that the file can name them.
    """

    def __init__(self, model: DetectorModel, spec: ModelSpec, inspect: bool) -> None:
        super().__init__()
        self.model, self.spec, self.inspect = model, spec, inspect

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        if self.spec.input_type == "uint8":
            images = _normalize(images, self.spec)
        maps, fused = _run(self.model, images, self.inspect)
        return (_top_boxes(self.model, maps, self.spec), *fused, *maps) if self.spec.top_k else (*maps, *fused)


def _run(model: DetectorModel, images: Tensor, inspect: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Runs a model on normalized images `[N, 3, H, W]`.

    Returns:
        The maps, and with `inspect` the fusion weights and activations.
    """
    dtype = next(model.parameters()).dtype
    if dtype != images.dtype:
        images = images.to(dtype)
    if not inspect:
        return model.maps(images), []
    maps, weights, activations = model.inspect(images)
    return maps, [*weights, *activations]


def _normalize(pixels: Tensor, spec: ModelSpec) -> Tensor:
    """Normalizes uint8 `[N, H, W, 3]` to float32 `[N, 3, H, W]`, bit for bit as `runtime.ops.preprocess.normalize` does."""
    offset, scale = (torch.from_numpy(values).reshape(1, 3, 1, 1) for values in normalization(spec))
    # TensorRT takes bytes only if the first layer casts them.
    return (pixels.to(torch.float32).permute(0, 3, 1, 2) - offset) / scale


def _top_boxes(model: DetectorModel, maps: Sequence[Tensor], spec: ModelSpec) -> Tensor:
    """Decodes the maps and selects the K boxes with the highest scores, best first.

    The model's own `decode` does the arithmetic. It gets the best class only, so that it works on one class, not on all.

    Returns:
        float32 `[N, K, 7]`, see `runtime.spec.CANDIDATE_COLUMNS`.
    """
    reduced, classes = [], []
    for raw, anchors in zip(maps, spec.anchors):
        height, width = (int(side) for side in raw.shape[2:])
        cells = raw.reshape(-1, len(anchors), spec.class_channel + spec.num_classes, height, width)
        logits, ids = cells[:, :, spec.class_channel :].max(dim=2, keepdim=True)
        reduced.append(torch.cat([cells[:, :, : spec.class_channel], logits], dim=2).flatten(1, 2))
        classes.append(ids.flatten(1).float())
    boxes = model.decode(reduced)  # [N, all, 6]
    scores = boxes[..., 4] * boxes[..., 5]
    rows = torch.cat([boxes[..., :4], torch.stack([scores, torch.cat(classes, dim=1)], dim=2)], dim=2)
    anchor_indices = scores.topk(spec.top_k, dim=1).indices[..., None]
    best = torch.cat([rows.gather(1, anchor_indices.expand(-1, -1, rows.shape[2])), anchor_indices.float()], dim=2)
    # Maxima and selections skip NaN, so an image with NaN in its maps gets NaN in every row.
    has_nan = torch.stack([torch.isnan(raw).flatten(1).float().amax(dim=1) for raw in maps]).amax(dim=0)
    return torch.where(has_nan[:, None, None] > 0, torch.tensor(float("nan")), best)


def to_fp16(folded: DetectorModel) -> DetectorModel:
    """Converts a folded model to FP16, in place.

    What the model itself computes in float32 stays float32: the sampling of the deformable convolution and its grid, the
    addition of the guiding to the box logits, and the maps it gives out.

    Raises:
        CheckFailed: a weight is beyond the range of FP16; the message names the layer.
    """
    for name, value in folded.state_dict().items():
        if not torch.isfinite(value.half()).all():
            largest = float(value.abs().max())
            raise CheckFailed(f"FP16 does not hold {name}: its largest weight is {largest:.3g}; export with fp32")
    folded.half()
    return folded


@torch.no_grad()
def exact_outputs(model: DetectorModel, images: NDArray[np.float32], inspect: bool) -> list[NDArray[np.float64]]:
    """Runs a model in float64, where rounding does not matter, on float32 images `[N, 3, H, W]`.

    Returns:
        The maps, and with `inspect` the fusion weights and activations.
    """
    maps, fused = _run(copy.deepcopy(model).eval().double(), torch.from_numpy(images), inspect)
    return [output.numpy() for output in (*maps, *fused)]


def output_shapes(spec: ModelSpec, inspect: bool) -> dict[str, tuple[int, ...]]:
    """Returns the name and shape, without the batch, of each output of the file, in order."""
    return {**spec.outputs, **inspection_shapes(spec.input_size)} if inspect else spec.outputs


def write_onnx(
    model: DetectorModel,
    spec: ModelSpec,
    path: Path,
    *,
    batch: int | None = None,
    opset: int | None = None,
    inspect: bool = False,
    exporter: str = DEFAULT_EXPORTER,
) -> None:
    """Writes a model as an ONNX file with its spec as metadata, and checks the file.

    The same weights and spec give the same bytes. Both exporters give inputs, outputs and layers the same names, except that
    they number the layers of modules that run more than once (RetinaNet's head) in different ways.

    Args:
        model: the model to export; it is not changed.
        spec: gives the precision (`fp32`, or `fp16` with FP16 tensors inside), the input and the outputs of the file.
        path: the file to write.
        batch: fixed batch size; None for a dynamic one.
        opset: ONNX operator set; None for the exporter's default.
        inspect: whether to add outputs that show how the levels were fused (see `runtime.backends.inspection`).
        exporter: one of `export.onnx_export.exporters.EXPORTERS`.

    Raises:
        InputError: `inspect` of a model without ASFF, or an opset that the exporter does not write.
        MissingComponentError: `torch-export` without onnxscript.
        CheckFailed: the file is not valid ONNX or uses other operators, or a weight exceeds the range of FP16.
    """
    opset = choose_opset(exporter, opset)
    folded = fold_batch_norm(model)
    if spec.precision == "fp16":
        folded = to_fp16(folded)
    images = torch.zeros(batch or 2, *spec.input_shape, dtype=getattr(torch, spec.input_type))
    shapes = output_shapes(spec, inspect)
    names = [*shapes, *(spec.map_names if spec.top_k else ())]
    module = _ExportedModule(folded, spec, inspect).eval()
    with torch.no_grad():
        if exporter == TORCH_EXPORT:
            proto = _with_torch_export(module, images, names, opset, dynamic=batch is None)
        else:
            proto = _with_tracer(module, images, names, opset, path, dynamic=batch is None)
    del proto.graph.output[len(shapes) :]  # the maps keep their names inside the graph, for layer_diff and calibration
    _declare_shapes(proto, shapes, batch)
    for key, value in sorted(spec.to_metadata().items()):
        proto.metadata_props.add(key=key, value=value)
    _check(proto, path)
    onnx.save(proto, str(path))


def _with_tracer(
    module: nn.Module, images: Tensor, names: list[str], opset: int, path: Path, *, dynamic: bool
) -> onnx.ModelProto:
    """Runs the model once and records its operators: torch's older exporter, which needs a file to write to."""
    axes = {name: {0: "N"} for name in (INPUT_NAME, *names)} if dynamic else {}
    with _without_warnings(_TRACER_WARNINGS):
        torch.onnx.export(
            module,
            (images,),
            str(path),
            dynamo=False,
            opset_version=opset,
            input_names=[INPUT_NAME],
            output_names=names,
            dynamic_axes=axes,
        )
    return onnx.load(str(path))


def _with_torch_export(module: nn.Module, images: Tensor, names: list[str], opset: int, *, dynamic: bool) -> onnx.ModelProto:
    """Captures the model with `torch.export` and translates its graph: torch's newer exporter."""
    components.load("onnxscript")
    for part in module.modules():
        if isinstance(part, (nn.LeakyReLU, nn.ReLU, nn.ReLU6)):
            part.inplace = False  # captured in three quarters of the time
        if isinstance(part, DeformConv):  # torch leaves the reshaping of large weights to whoever runs the file
            part.weight = nn.Parameter(part.weight.flatten(1)[..., None, None])
    with _without_warnings(_TORCH_EXPORT_WARNINGS), _quiet_logs(_LOGS):
        program = torch.onnx.export(
            module,
            (images,),
            dynamo=True,
            verbose=False,
            opset_version=opset,
            input_names=[INPUT_NAME],
            output_names=names,
            dynamic_shapes={"images": {0: torch.export.Dim("N")}} if dynamic else None,
        )
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    name_by_module(proto)
    return proto


@contextlib.contextmanager
def _without_warnings(meant: Sequence[tuple[str, type[Warning]]]) -> Iterator[None]:
    """Ignores the warnings whose messages begin as given (a regular expression), and no other."""
    with warnings.catch_warnings():
        for message, category in meant:
            warnings.filterwarnings("ignore", message, category)
        yield


@contextlib.contextmanager
def _quiet_logs(levels: Mapping[str, int]) -> Iterator[None]:
    """Lets loggers say nothing below a level."""
    loggers = {logging.getLogger(name): level for name, level in levels.items()}
    before = {logger: logger.level for logger in loggers}
    for logger, level in loggers.items():
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, level in before.items():
            logger.setLevel(level)


def _declare_shapes(proto: onnx.ModelProto, shapes: dict[str, tuple[int, ...]], batch: int | None) -> None:
    """Writes the outputs' shapes into the graph, because the tracer loses them with a dynamic batch."""
    for output in proto.graph.output:
        shape = [batch or "N", *shapes[output.name]]
        output.CopyFrom(onnx.helper.make_tensor_value_info(output.name, onnx.TensorProto.FLOAT, shape))


def _check(proto: onnx.ModelProto, path: Path) -> None:
    foreign = sorted({f"{node.domain}.{node.op_type}" for node in proto.graph.node if node.domain not in ("", "ai.onnx")})
    if foreign:
        raise CheckFailed(f"{path.name}: uses operators that are not standard ONNX: {', '.join(foreign)}")
    try:
        onnx.checker.check_model(proto, full_check=True)
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CheckFailed(f"{path.name}: not valid ONNX ({str(error).splitlines()[0]})") from error
