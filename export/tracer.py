"""Traces a PyTorch model into an ONNX file. The only torch importer of this package."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from runtime.errors import CheckFailed
from runtime.inspection import inspection_shapes
from runtime.onnx_backend import INPUT_NAME
from runtime.spec import ModelSpec
from train.model import DetectorModel
from train.model.blocks import ConvBlock

TOOLS = (f"torch {torch.__version__}", f"onnx {onnx.__version__}")
OPSET = 17


class _Maps(nn.Module):
    """The model as the contract has it: float32 images in, float32 raw maps out, and to inspect it how they were fused."""

    def __init__(self, model: DetectorModel, inspect: bool) -> None:
        super().__init__()
        self.model, self.inspect = model, inspect

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        dtype = next(self.model.parameters()).dtype
        if dtype != images.dtype:
            images = images.to(dtype)
        if self.inspect:
            maps, weights, activations = self.model.inspect(images)
            return (*maps, *weights, *activations)
        return tuple(self.model.maps(images))


def fold_batch_norm(model: DetectorModel) -> DetectorModel:
    """A copy whose convolutions have absorbed their batch norms; it computes the same in evaluation mode."""
    folded = copy.deepcopy(model).eval()
    for block in folded.modules():
        if isinstance(block, ConvBlock):
            block.conv = _absorb(block.conv, block.norm)
            block.norm = nn.Identity()  # type: ignore[assignment]
    return folded


def _absorb(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """A convolution with bias equal to `norm(conv(x))`; the arithmetic is done in float64 and rounded once."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    conv.bias = nn.Parameter((norm.bias.double() - norm.running_mean.double() * scale).float())
    conv.weight = nn.Parameter((conv.weight.double() * scale.reshape(-1, 1, 1, 1)).float())
    return conv


def halve(folded: DetectorModel) -> DetectorModel:
    """A folded model in half precision, in place.

    What the model itself computes in float32 stays so: the sampling of the deformable convolution and its grid, the addition
    of the guiding to the box logits, and the maps it gives out.

    Raises:
        CheckFailed: a weight is beyond half precision's range; the message names the layer.
    """
    for name, value in folded.state_dict().items():
        if not torch.isfinite(value.half()).all():
            largest = float(value.abs().max())
            raise CheckFailed(f"half precision does not hold {name}: its largest weight is {largest:.3g}; export with fp32")
    folded.half()
    return folded


@torch.no_grad()
def exact_outputs(model: DetectorModel, images: NDArray[np.float32], inspect: bool) -> list[NDArray[np.float64]]:
    """What the model computes on float32 `[N, 3, H, W]` images in float64, where rounding is no matter; see `output_shapes`."""
    outputs = _Maps(copy.deepcopy(model).eval().double(), inspect)(torch.from_numpy(images))
    return [output.numpy() for output in outputs]


def output_shapes(spec: ModelSpec, inspect: bool) -> dict[str, tuple[int, int, int]]:
    """Names of the file's outputs, in order, and each one's (channels, height, width)."""
    shapes = {name: spec.output_shape(level) for level, name in enumerate(spec.output_names)}
    return {**shapes, **inspection_shapes(spec.input_size)} if inspect else shapes


def write_onnx(
    model: DetectorModel, spec: ModelSpec, path: Path, *, batch: int | None = None, opset: int = OPSET, inspect: bool = False
) -> None:
    """Trace a model into an ONNX file with its description, and check the file.

    The description's precision says which file it becomes: `fp32`, or `fp16` with half-precision tensors inside. The same
    weights and description give the same bytes.

    Args:
        batch: the fixed batch size, or None for a dynamic one.
        inspect: let it also give out how the levels were fused (see `runtime.inspection`).

    Raises:
        InputError: a model without ASFF is to be inspected.
        CheckFailed: the file is not valid ONNX, not what the contract promises, or half precision does not hold its weights.
    """
    folded = fold_batch_norm(model)
    if spec.precision == "fp16":
        folded = halve(folded)
    images = torch.zeros(batch or 2, 3, *spec.input_size)
    shapes = output_shapes(spec, inspect)
    names = list(shapes)
    axes = {} if batch else {name: {0: "N"} for name in (INPUT_NAME, *names)}
    with warnings.catch_warnings(), torch.no_grad():
        # The tracer warns that sizes become constants, which is the contract, and that it is the older of two exporters:
        # the newer one writes opset 18 and more.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Maps(folded, inspect),
            (images,),
            str(path),
            dynamo=False,
            opset_version=opset,
            input_names=[INPUT_NAME],
            output_names=names,
            dynamic_axes=axes,
        )
    proto = onnx.load(str(path))
    _declare_shapes(proto, shapes, batch)
    for key, value in sorted(spec.to_metadata().items()):
        proto.metadata_props.add(key=key, value=value)
    _check(proto, path)
    onnx.save(proto, str(path))


def _declare_shapes(proto: onnx.ModelProto, shapes: dict[str, tuple[int, int, int]], batch: int | None) -> None:
    """Write the outputs' shapes into the graph: the tracer loses them behind a dynamic batch."""
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
