"""The authors' published networks, slow and readable, straight from the paper's description and their checkpoints' names.

Nothing here knows our modules. Every tensor is asked for by the name it has in the published files and with its shape, so
that one walk through a network both computes it and tells what its checkpoint holds. Arithmetic is in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

VARIANTS = ("asff", "asff_star", "baseline", "baseline_rfb", "mobile", "mobile_asff")
DARKNET_BASE = [(10, 13), (16, 30), (33, 23), (30, 61), (62, 45), (42, 119), (116, 90), (156, 198), (121, 240)]
MOBILE_BASE = [*DARKNET_BASE[:-1], (373, 326)]


class Tensors:
    """A state dict that is read by name and shape; while `creating`, random tensors are made up on the way.

    Batch norms made up take the statistics of what they meet, so that activations keep a real network's size.
    """

    def __init__(self, state: dict[str, Tensor] | None = None) -> None:
        self.creating = state is None
        self.state: dict[str, Tensor] = {} if state is None else state

    def get(self, name: str, *shape: int, scale: float = 1.0, around: float = 0.0) -> Tensor:
        if self.creating:
            self.state[name] = around + scale * torch.randn(shape)
        assert self.state[name].shape == shape, name
        return self.state[name].double()

    def convolution(self, x: Tensor, name: str, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> Tensor:
        inputs = x.shape[1] // groups
        weight = self.get(f"{name}.weight", outputs, inputs, kernel, kernel, scale=(inputs * kernel**2) ** -0.5)
        return functional.conv2d(x, weight, None, stride, kernel // 2, 1, groups)

    def plain(
        self, x: Tensor, name: str, outputs: int, kernel: int = 1, dilation: int = 1, groups: int = 1, scale: float = 1.0
    ) -> Tensor:
        """A convolution with bias."""
        inputs = x.shape[1] // groups
        weight = self.get(f"{name}.weight", outputs, inputs, kernel, kernel, scale=scale * (inputs * kernel**2) ** -0.5)
        bias = self.get(f"{name}.bias", outputs, scale=0.2)
        return functional.conv2d(x, weight, bias, 1, dilation * (kernel // 2), dilation, groups)

    def batch_norm(self, x: Tensor, name: str) -> Tensor:
        channels = x.shape[1]
        if self.creating:
            seen = x.transpose(0, 1).flatten(1)
            self.state[f"{name}.running_mean"] = (seen.mean(dim=1) + 0.1 * torch.randn(channels)).float()
            self.state[f"{name}.running_var"] = (seen.var(dim=1).clamp(min=0.1) * (0.5 + torch.rand(channels))).float()
            self.state[f"{name}.num_batches_tracked"] = torch.tensor(7)
        mean, var = (self.state[f"{name}.{part}"].double().reshape(1, -1, 1, 1) for part in ("running_mean", "running_var"))
        gamma = self.get(f"{name}.weight", channels, scale=0.2, around=1.0).reshape(1, -1, 1, 1)
        beta = self.get(f"{name}.bias", channels, scale=0.2).reshape(1, -1, 1, 1)
        return gamma * (x - mean) / torch.sqrt(var + 1e-5) + beta


def darknet_block(t: Tensors, x: Tensor, name: str, outputs: int, kernel: int, stride: int = 1) -> Tensor:
    x = t.batch_norm(t.convolution(x, f"{name}.conv", outputs, kernel, stride), f"{name}.batch_norm")
    return torch.where(x > 0, x, 0.1 * x)


def mobile_block(t: Tensors, x: Tensor, name: str, outputs: int, kernel: int, stride: int = 1) -> Tensor:
    """The same with ReLU6: what stands behind MobileNetV2's backbone."""
    return t.batch_norm(t.convolution(x, f"{name}.conv", outputs, kernel, stride), f"{name}.batch_norm").clamp(0, 6)


def darknet53(t: Tensors, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = darknet_block(t, x, "module_list.0", 32, 3)
    features = []
    for stage, (channels, count) in enumerate([(64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)]):
        x = darknet_block(t, x, f"module_list.{2 * stage + 1}", channels, 3, stride=2)
        for index in range(count):
            name = f"module_list.{2 * stage + 2}.module_list.{index}"
            x = x + darknet_block(t, darknet_block(t, x, f"{name}.0", channels // 2, 1), f"{name}.1", channels, 3)
        features.append(x)
    return features[2], features[3], features[4]


def mobilenet_v2(t: Tensors, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    def relu6(x: Tensor, name: str, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> Tensor:
        return t.batch_norm(t.convolution(x, f"{name}.0", outputs, kernel, stride, groups), f"{name}.1").clamp(0, 6)

    x = relu6(x, "module_list.0", 32, 3, 2)
    number, features = 0, []
    stages = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expansion, outputs, count, first_stride in stages:
        for index in range(count):
            number += 1
            stride, inputs = first_stride if index == 0 else 1, x.shape[1]
            hidden, part, y = inputs * expansion, 0, x
            if expansion > 1:
                y = relu6(y, f"module_list.{number}.conv.0", hidden, 1)
                part = 1
            y = relu6(y, f"module_list.{number}.conv.{part}", hidden, 3, stride, groups=hidden)
            y = t.convolution(y, f"module_list.{number}.conv.{part + 1}", outputs, 1)
            y = t.batch_norm(y, f"module_list.{number}.conv.{part + 2}")
            x = x + y if stride == 1 and inputs == outputs else y
        features.append(x)
    return features[2], features[4], relu6(x, "module_list.18", 1280, 1)


def doubled(x: Tensor, times: int = 2) -> Tensor:
    return x.repeat_interleave(times, dim=2).repeat_interleave(times, dim=3)


class Network:
    """One variant of the published networks.

    Args:
        state: its checkpoint's tensors by name; None makes some up, which `run` leaves in `tensors.state`.
    """

    def __init__(self, variant: str, state: dict[str, Tensor] | None = None, classes: int = 80) -> None:
        self.mobile, self.asff = variant.startswith("mobile"), "asff" in variant
        self.rfb, self.classes = variant in ("asff_star", "baseline_rfb"), classes
        self.block = mobile_block if self.mobile else darknet_block
        self.tensors = Tensors(state)
        self.number = 0  # of the next entry of module_list

    def entry(self, x: Tensor, outputs: int, kernel: int) -> Tensor:
        self.number += 1
        return self.block(self.tensors, x, f"module_list.{self.number - 1}", outputs, kernel)

    def unit(self, x: Tensor, hidden: int, outputs: int) -> Tensor:
        self.number += 1
        name = f"module_list.{self.number - 1}.module_list.0"
        x = self.block(self.tensors, x, f"{name}.0", hidden, 1)
        return self.block(self.tensors, x, f"{name}.1", outputs, 3)

    def run(self, images: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, anchors, 5 + C]`: cx, cy, w, h in pixels, objectness and class probabilities."""
        c3, c4, c5 = (mobilenet_v2 if self.mobile else darknet53)(self.tensors, images.double())
        self.number = 19 if self.mobile else 11
        inside = not self.mobile and not self.asff  # the baselines' heads stand inside module_list
        found = []
        x = self.unit(c5, 512, 1024)
        x = self.entry(x, 512, 1)
        x = torch.cat([x, *(functional.max_pool2d(x, k, 1, k // 2) for k in (5, 9, 13))], dim=1)
        self.number += 1  # the pooling takes a number
        x = self.entry(x, 512, 1)
        x = self.entry(x, 1024, 3)
        self.number += 1  # DropBlock, nothing in evaluation
        pyramid = [self.entry(x, 512, 1)]
        if inside:
            found.append(self.inside_head(pyramid[0], 0))
        for lateral, channels in ((c4, 256), (c3, 128)):
            x = self.entry(pyramid[-1], channels, 1)
            self.number += 1  # up-sampling
            x = self.entry(torch.cat([doubled(x), lateral], dim=1), channels, 1)
            x = self.entry(x, 2 * channels, 3)
            self.number += 1  # DropBlock
            x = self.unit(x, channels, 2 * channels)
            pyramid.append(self.entry(x, channels, 1))
            if inside:
                found.append(self.inside_head(pyramid[-1], len(found)))
        if self.asff and not self.mobile:
            pyramid[2] = self.entry(pyramid[2], 256, 3)
        if not inside:
            for level in range(3):
                name = f"level_{level}_{'conv' if self.mobile else 'fusion'}"
                x = self.fuse(pyramid, level, name) if self.asff else pyramid[level]
                expand = f"{name}.expand" if self.asff else name
                x = self.block(self.tensors, x, expand, 1024 >> level, 3)
                found.append(self.head(x, f"level_{level}_header", level))
        return torch.cat(found, dim=1)

    def inside_head(self, x: Tensor, level: int) -> Tensor:
        x = self.entry(x, 1024 >> level, 3)
        self.number += 1
        return self.head(x, f"module_list.{self.number - 1}", level)

    def fuse(self, pyramid: list[Tensor], level: int, name: str) -> Tensor:
        t, channels = self.tensors, pyramid[level].shape[1]
        resized = []
        for source, x in enumerate(pyramid):
            if source < level:  # coarser
                if x.shape[1] != channels:
                    x = self.block(t, x, f"{name}.compress_level_{source}", channels, 1)
                x = doubled(x, 2 ** (level - source))
            elif source > level:  # finer
                if source - level == 2:
                    x = functional.max_pool2d(x, 3, 2, 1)
                x = self.block(t, x, f"{name}.stride_level_{source}", channels, 3, 2)
            resized.append(x)
        few = 8 if self.rfb else 16
        told = [self.block(t, x, f"{name}.weight_level_{source}", few, 1) for source, x in enumerate(resized)]
        scores = t.plain(torch.cat(told, dim=1), f"{name}.weight_levels", 3, scale=1.5)
        shares = torch.exp(scores) / torch.exp(scores).sum(dim=1, keepdim=True)
        return sum(shares[:, i : i + 1] * resized[i] for i in range(3))  # type: ignore[return-value]

    def head(self, x: Tensor, name: str, level: int) -> Tensor:
        t = self.tensors
        guide = t.plain(x, f"{name}.guide_wh", 8, scale=0.3)
        if not self.mobile:
            adaption = f"{name}.Feature_adaption"
            if self.rfb:
                x = rfb(t, x, f"{adaption}.rfb")
            offsets = t.plain(guide, f"{adaption}.conv_offset", 72, groups=4, scale=3.0)
            channels = x.shape[1]
            weight = t.get(f"{adaption}.dconv.weight", channels, channels, 3, 3, scale=(9 * channels) ** -0.5)
            x = deformable(x, offsets, weight, t.get(f"{adaption}.dconv.bias", channels, scale=0.2))
        raw = t.plain(x, f"{name}.conv", 4 * (5 + self.classes), scale=0.7)
        base = (MOBILE_BASE if self.mobile else DARKNET_BASE)[6 - 3 * level : 9 - 3 * level]
        return decode(raw, guide, base, 32 >> level, self.classes)


def rfb(t: Tensors, x: Tensor, name: str) -> Tensor:
    """Four branches of plain convolutions: (kernel, dilation) one after the other."""
    reaches = [[(1, 1)], [(1, 1), (3, 1)], [(1, 1), (3, 1), (3, 2)], [(1, 1), (5, 1), (3, 3)]]
    outputs, found = x.shape[1] // 4, []
    for branch, steps in enumerate(reaches):
        y = x
        for step, (kernel, dilation) in enumerate(steps):
            y = t.plain(y, f"{name}.branch_{branch}.{step}", outputs, kernel, dilation)
        found.append(y)
    return torch.cat(found, dim=1)


def deformable(x: Tensor, offsets: Tensor, weight: Tensor, bias: Tensor, groups: int = 4) -> Tensor:
    """3x3 deformable convolution: tap by tap, four pixels around each displaced position by plain indexing."""
    images, channels, height, width = x.shape
    rows = torch.arange(height).reshape(1, -1, 1)
    columns = torch.arange(width).reshape(1, 1, -1)
    image = torch.arange(images).reshape(-1, 1, 1)
    out = bias.reshape(1, -1, 1, 1).repeat(images, 1, height, width)
    size = channels // groups
    for group in range(groups):
        part = x[:, group * size : (group + 1) * size]
        for tap in range(9):
            at = 2 * (9 * group + tap)
            y, z = rows + tap // 3 - 1 + offsets[:, at], columns + tap % 3 - 1 + offsets[:, at + 1]  # [N, H, W]
            top, left = torch.floor(y).long(), torch.floor(z).long()
            value = torch.zeros_like(part)
            for row in (top, top + 1):
                for column in (left, left + 1):
                    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                    share = (1 - (y - row).abs()) * (1 - (z - column).abs()) * inside
                    pixel = part[image, :, row.clamp(0, height - 1), column.clamp(0, width - 1)]  # [N, H, W, C / groups]
                    value += (pixel * share[..., None]).permute(0, 3, 1, 2)
            matrix = weight[:, group * size : (group + 1) * size, tap // 3, tap % 3]
            out += torch.einsum("oc,nchw->nohw", matrix, value)
    return out


def decode(raw: Tensor, guide: Tensor, base: list[tuple[int, int]], stride: int, classes: int) -> Tensor:
    """One level, anchor by anchor: 3 anchors from the base, then the anchor-free one."""
    height, width = raw.shape[2:]
    found = []
    for index, (w, h) in enumerate([*base, (4 * stride, 4 * stride)]):
        t = raw[:, index * (5 + classes) : (index + 1) * (5 + classes)]
        x = (torch.sigmoid(t[:, 0]) + torch.arange(width)) * stride
        y = (torch.sigmoid(t[:, 1]) + torch.arange(height).reshape(-1, 1)) * stride
        wide = w * torch.exp(guide[:, 2 * index]) * torch.exp(t[:, 2])
        high = h * torch.exp(guide[:, 2 * index + 1]) * torch.exp(t[:, 3])
        boxes = torch.cat([torch.stack([x, y, wide, high], dim=1), torch.sigmoid(t[:, 4:])], dim=1)
        found.append(boxes.flatten(2).transpose(1, 2))
    return torch.cat(found, dim=1)
