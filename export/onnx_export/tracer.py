"""Traces a PyTorch model into an ONNX file. The only torch importer of this package."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from runtime.backends.inspection import inspection_shapes
from runtime.backends.signature import INPUT_NAME
from runtime.errors import CheckFailed
from runtime.ops.preprocess import normalization
from runtime.spec import ModelSpec
from train.model import DetectorModel
from train.model.blocks import ConvBlock

TOOLS = (f"torch {torch.__version__}", f"onnx {onnx.__version__}")
OPSET = 17


class _Contract(nn.Module):
    """The model as its description has it: images in, float32 outputs out, and to inspect it how its levels were fused.

    Where the outputs are not the maps, those come last, so that they can be named.
    """

    def __init__(self, model: DetectorModel, spec: ModelSpec, inspect: bool) -> None:
        super().__init__()
        self.model, self.spec, self.inspect = model, spec, inspect

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        if self.spec.input_type == "uint8":
            images = _normalized(images, self.spec)
        maps, fused = _run(self.model, images, self.inspect)
        return (_best(self.model, maps, self.spec), *fused, *maps) if self.spec.top_k else (*maps, *fused)


def _run(model: DetectorModel, images: Tensor, inspect: bool) -> tuple[list[Tensor], list[Tensor]]:
    """The maps of normalized images `[N, 3, H, W]`, and with `inspect` how the levels were fused for them."""
    dtype = next(model.parameters()).dtype
    if dtype != images.dtype:
        images = images.to(dtype)
    if not inspect:
        return model.maps(images), []
    maps, weights, activations = model.inspect(images)
    return maps, [*weights, *activations]


def _normalized(pixels: Tensor, spec: ModelSpec) -> Tensor:
    """uint8 `[N, H, W, 3]` to what `runtime.ops.preprocess.normalize` makes of them, float32 `[N, 3, H, W]`, bit by bit."""
    offset, scale = (torch.from_numpy(values).reshape(1, 3, 1, 1) for values in normalization(spec))
    # TensorRT takes bytes only if they are cast at once.
    return (pixels.to(torch.float32).permute(0, 3, 1, 2) - offset) / scale


def _best(model: DetectorModel, maps: Sequence[Tensor], spec: ModelSpec) -> Tensor:
    """The K boxes of the highest score, best first: float32 `[N, K, 7]`, see `runtime.spec.CANDIDATE_COLUMNS`.

    The model's own `decode` does the arithmetic, on maps in which the best class stands for all: so it is done for one class.
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
    places = scores.topk(spec.top_k, dim=1).indices[..., None]
    best = torch.cat([rows.gather(1, places.expand(-1, -1, rows.shape[2])), places.float()], dim=2)
    # Maxima and selections pass over what is not a number: an image whose maps hold such says so in every row.
    broken = torch.stack([torch.isnan(raw).flatten(1).float().amax(dim=1) for raw in maps]).amax(dim=0)
    return torch.where(broken[:, None, None] > 0, torch.tensor(float("nan")), best)


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
    """The maps of float32 `[N, 3, H, W]` images in float64, where rounding is no matter, and with `inspect` the fusion."""
    maps, fused = _run(copy.deepcopy(model).eval().double(), torch.from_numpy(images), inspect)
    return [output.numpy() for output in (*maps, *fused)]


def output_shapes(spec: ModelSpec, inspect: bool) -> dict[str, tuple[int, ...]]:
    """Names of the file's outputs, in order, and each one's shape, without the batch."""
    return {**spec.outputs, **inspection_shapes(spec.input_size)} if inspect else spec.outputs


def write_onnx(
    model: DetectorModel, spec: ModelSpec, path: Path, *, batch: int | None = None, opset: int = OPSET, inspect: bool = False
) -> None:
    """Trace a model into an ONNX file with its description, and check the file.

    The description says which file it becomes: its precision (`fp32`, or `fp16` with half-precision tensors inside), what it
    takes and what it gives out. The same weights and description give the same bytes.

    Args:
        batch: the fixed batch size, or None for a dynamic one.
        inspect: let it also give out how the levels were fused (see `runtime.backends.inspection`).

    Raises:
        InputError: a model without ASFF is to be inspected.
        CheckFailed: the file is not valid ONNX, not what the contract promises, or half precision does not hold its weights.
    """
    folded = fold_batch_norm(model)
    if spec.precision == "fp16":
        folded = halve(folded)
    images = torch.zeros(batch or 2, *spec.input_shape, dtype=getattr(torch, spec.input_type))
    shapes = output_shapes(spec, inspect)
    names = [*shapes, *(spec.map_names if spec.top_k else ())]
    axes = {} if batch else {name: {0: "N"} for name in (INPUT_NAME, *names)}
    with warnings.catch_warnings(), torch.no_grad():
        # The tracer warns that sizes become constants, which is the contract, and that it is the older of two exporters:
        # the newer one writes opset 18 and more.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Contract(folded, spec, inspect),
            (images,),
            str(path),
            dynamo=False,
            opset_version=opset,
            input_names=[INPUT_NAME],
            output_names=names,
            dynamic_axes=axes,
        )
    proto = onnx.load(str(path))
    del proto.graph.output[len(shapes) :]  # maps inside keep their names: what looks into a file finds them
    _declare_shapes(proto, shapes, batch)
    for key, value in sorted(spec.to_metadata().items()):
        proto.metadata_props.add(key=key, value=value)
    _check(proto, path)
    onnx.save(proto, str(path))


def _declare_shapes(proto: onnx.ModelProto, shapes: dict[str, tuple[int, ...]], batch: int | None) -> None:
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
