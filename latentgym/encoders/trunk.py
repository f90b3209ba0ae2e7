"""The small trunk that every pretrained family shares: two stacked frames in, an 8 × 8 grid of 64 channels out."""

from __future__ import annotations

import abc
from collections.abc import Sequence

import torch
from torch import nn

from latentgym.seeding import torch_generator

IMAGE_SIZE = 64
GRID = 8
WIDTH = 64
CHANNELS = (24, 48, 64, 64, 64)
_STRIDES = (2, 2, 2, 1, 1)
_NORM_GROUPS = 8
_MOTION_GAIN = 2.0


def _layout() -> torch.memory_format:
    """Channels last, which convolves a third faster, except in training: GroupNorm's CPU backward crashes on it."""
    return torch.contiguous_format if torch.is_grad_enabled() else torch.channels_last


class ConvBlock(nn.Module):
    """3 × 3 convolution, group normalisation and, unless it is the last block, a SiLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, activate: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm = nn.GroupNorm(_NORM_GROUPS, outputs)
        self.activation: nn.Module = nn.SiLU() if activate else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, C, H, W)`` to ``(B, C', H / stride, W / stride)``."""
        layout = _layout()
        convolved = self.conv(x.contiguous(memory_format=layout)).contiguous(memory_format=layout)
        features: torch.Tensor = self.activation(self.norm(convolved))
        return features


class Trunk(nn.Module):
    """Five convolution blocks (24-48-64-64-64) on a stack of two frames; the last block's output is signed.

    The stem is given the newer frame and twice the difference to the older one, an invertible change of basis: motion
    is a small part of two nearly equal frames, and short runs would spend their steps on finding it. A frame stacked
    with itself has a difference of zero.
    """

    def __init__(self) -> None:
        super().__init__()
        inputs = (6, *CHANNELS[:-1])
        last = len(CHANNELS) - 1
        self.blocks = nn.ModuleList(
            ConvBlock(inputs[i], CHANNELS[i], _STRIDES[i], activate=i != last) for i in range(len(CHANNELS))
        )

    def forward(self, stack: torch.Tensor, layer: int = -1) -> torch.Tensor:
        """Features ``(B, C, 8, 8)`` of one block; see :meth:`read`."""
        return self.read(stack, (layer,))[0]

    def read(self, stack: torch.Tensor, layers: Sequence[int]) -> list[torch.Tensor]:
        """Features of a stack of two frames at several blocks, from one pass.

        Args:
            stack: ``(B, 6, 64, 64)`` normalised frames, the older one first.
            layers: blocks to read, 0 … 4, or -1 for the last.

        Returns:
            ``(B, C, 8, 8)`` per layer; finer grids of early blocks are averaged onto 8 × 8.
        """
        wanted = [layer % len(self.blocks) for layer in layers]
        read: dict[int, torch.Tensor] = {}
        features = stack
        for index in range(max(wanted) + 1):
            features = self.blocks[index](features) if index else self._stem(stack)
            if index in wanted:
                fits = features.shape[-1] == GRID
                read[index] = features if fits else nn.functional.adaptive_avg_pool2d(features, GRID)
        return [read[layer] for layer in wanted]

    def _stem(self, stack: torch.Tensor) -> torch.Tensor:
        """The first block; its change of basis is applied to the weights, which is cheaper than to the frames."""
        block = self.blocks[0]
        assert isinstance(block, ConvBlock)
        newer, motion = block.conv.weight.chunk(2, dim=1)
        weight = torch.cat([-_MOTION_GAIN * motion, newer + _MOTION_GAIN * motion], dim=1)
        stack = stack.contiguous(memory_format=_layout())
        convolved = nn.functional.conv2d(stack, weight, stride=block.conv.stride, padding=1)
        features: torch.Tensor = block.activation(block.norm(convolved))
        return features


def still(frame: torch.Tensor) -> torch.Tensor:
    """Stack a frame ``(B, 3, S, S)`` with itself: what an image family feeds to the two-frame stem."""
    return torch.cat([frame, frame], dim=1)


def pair(older: torch.Tensor, newer: torch.Tensor) -> torch.Tensor:
    """Stack two frames ``(B, 3, S, S)`` to ``(B, 6, S, S)``."""
    return torch.cat([older, newer], dim=1)


class EncodingNetwork(nn.Module, abc.ABC):
    """What is kept of a pretraining run: the trunk and whatever else encoding needs."""

    layers: int = len(CHANNELS)
    temporal: bool = True

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk()

    @abc.abstractmethod
    def read(self, clip: torch.Tensor, layers: Sequence[int]) -> list[torch.Tensor]:
        """Features ``(B, C, 8, 8)`` of a normalised clip ``(B, 2, 3, 64, 64)`` per layer, from one pass.

        Layers count from 0; -1 is the last.
        """

    def forward(self, clip: torch.Tensor, layer: int = -1) -> torch.Tensor:
        """Features ``(B, C, 8, 8)`` of one layer; see :meth:`read`."""
        return self.read(clip, (layer,))[0]


class PairNetwork(EncodingNetwork):
    """The trunk on both frames of the clip."""

    def read(self, clip: torch.Tensor, layers: Sequence[int]) -> list[torch.Tensor]:
        """See :meth:`EncodingNetwork.read`."""
        return self.trunk.read(clip.flatten(1, 2), layers)


class StillNetwork(EncodingNetwork):
    """The trunk on the clip's last frame, twice."""

    temporal = False

    def read(self, clip: torch.Tensor, layers: Sequence[int]) -> list[torch.Tensor]:
        """See :meth:`EncodingNetwork.read`."""
        return self.trunk.read(still(clip[:, -1]), layers)


@torch.no_grad()
def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Draw every parameter from ``generator``: uniform ±1/√fan-in for weights, normal 0.02 for free parameters."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d | nn.Linear):
            bound = child.weight[0].numel() ** -0.5
            nn.init.uniform_(child.weight, -bound, bound, generator=generator)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        elif isinstance(child, nn.GroupNorm | nn.LayerNorm | nn.RMSNorm):
            for name, parameter in child.named_parameters(recurse=False):
                nn.init.constant_(parameter, 1.0 if name == "weight" else 0.0)
        else:
            for _, parameter in child.named_parameters(recurse=False):
                nn.init.normal_(parameter, std=0.02, generator=generator)


def initialise_trunk(trunk: Trunk, seed: int) -> None:
    """Give ``trunk`` the start that every family and the random twin share at one ``seed``."""
    initialise(trunk, torch_generator(seed, "trunk"))
