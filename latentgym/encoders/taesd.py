"""The TAESD family of tiny autoencoders, from the state dicts of its own repository.

Source: https://github.com/madebyollin/taesd: distilled from the autoencoders of Stable Diffusion 1 to 3, SDXL, FLUX 1
and 2 (whose last blocks normalise over the whole image) and Sana (stride 32). Frames go in as [0, 1]; latents are not
rescaled. diffusers' ``AutoencoderTiny`` opens the converted form of those without such blocks.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path

import torch
from torch import nn

from latentgym.encoders.checkpoints import load_exactly, read_checkpoint
from latentgym.encoders.contract import EncoderSpec, Latents
from latentgym.encoders.frozen import FrozenEncoder, weights_digest
from latentgym.errors import LatentGymError

IMAGE_SIZE = 256
WIDTH = 64
_GROUPS = 4
# Width of the first convolution where the stride is 32 instead of 8.
_NARROW = 32
_ZERO, _ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


class Block(nn.Module):
    """Three 3 × 3 convolutions with a skip connection; ``pool`` adds a branch normalised over the whole image."""

    def __init__(self, pooled: bool = False) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), convolutions[2])
        self.pool: nn.Sequential | None = None
        if pooled:
            wide = 4 * WIDTH
            self.pool = nn.Sequential(
                nn.Conv2d(WIDTH, wide, 1, bias=False),
                nn.GroupNorm(_GROUPS, wide),
                nn.ReLU(),
                nn.Conv2d(wide, WIDTH, 1, bias=False),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, 64, H, W)`` to the same shape."""
        if self.pool is not None:
            # GroupNorm wants its channels together; its CPU kernel is slow on other layouts.
            x = x + self.pool(x)
        features: torch.Tensor = self.conv(x) + x
        return features.relu()


class TinyEncoder(nn.Sequential):
    """The encoder half, its modules numbered as in the published state dicts.

    Args:
        latent_channels: channels of a latent.
        stride: 8, or 32 for Sana's.
        pooled: whether the blocks of the last stage have the pooled branch.
    """

    def __init__(self, latent_channels: int, stride: int = 8, pooled: bool = False) -> None:
        def down() -> nn.Conv2d:
            return nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1, bias=False)

        stages = [[down(), *(Block(pooled and stage == 2) for _ in range(3))] for stage in range(3)]
        start: list[nn.Module] = [nn.Conv2d(3, WIDTH, 3, padding=1)]
        if stride > 8:
            first, second = (nn.Conv2d(*pair, 3, stride=2, padding=1) for pair in ((3, _NARROW), (_NARROW, WIDTH)))
            start = [first, nn.ReLU(), second, nn.ReLU()]
        last = nn.Conv2d(WIDTH, latent_channels, 3, padding=1)
        super().__init__(*start, Block(), *(module for stage in stages for module in stage), last)
        self.outputs = [number for number, module in enumerate(self) if isinstance(module, Block)] + [len(self) - 1]

    def read(self, pixels: torch.Tensor, layers: Sequence[int]) -> list[torch.Tensor]:
        """Maps ``(B, C, h, w)`` after blocks, counted from 0, or as latents (-1), of pixels ``(B, 3, S, S)``."""
        wanted = [self.outputs[layer] for layer in layers]
        maps: dict[int, torch.Tensor] = {}
        x = pixels
        for number, module in enumerate(self):
            x = module(x)
            if number in wanted:
                maps[number] = x
            if number == max(wanted):
                break
        return [maps[number] for number in wanted]


class TaesdEncoder(FrozenEncoder):
    """Each frame's latent pixels; layers are the blocks and, last, the latents."""

    concurrent = True
    model: TinyEncoder

    def forward(self, clip: torch.Tensor, layer: int) -> Latents:
        """Tokens of ``(B, T, 3, S, S)``, T' = T."""
        return self.forward_layers(clip, (layer,))[0]

    def forward_layers(self, clip: torch.Tensor, layers: Sequence[int]) -> list[Latents]:
        """Tokens after several blocks from one pass."""
        batch, time = clip.shape[:2]
        found = []
        for layer, maps in zip(layers, self.model.read(clip.flatten(0, 1).to(self.dtype), layers), strict=True):
            tokens = maps.float().flatten(2).transpose(1, 2)
            found.append(Latents(tokens.reshape(batch, time, *tokens.shape[1:]), torch.arange(time), layer))
        return found


def is_taesd(names: Container[str]) -> bool:
    """Whether tensors of these names are the encoder half of one of the family."""
    return "0.weight" in names and ("1.conv.0.weight" in names or "4.conv.0.weight" in names)


def load_taesd(path: Path, *, image_size: int | None = None) -> TaesdEncoder:
    """Open the encoder's state dict, in float32 on the CPU; latent channels and variant follow from its tensors.

    Args:
        path: such as ``taef2_encoder.pth`` or ``encoder.safetensors``.
        image_size: side that frames are resized to, a multiple of the stride; 256 by default.

    Raises:
        LatentGymError: if tensors are missing, left over or of another shape, or the size does not fit.
    """
    state = read_checkpoint(path)
    stride = 32 if state["0.weight"].shape[0] == _NARROW else 8
    pooled = any(".pool." in name for name in state)
    tops = [int(name.removesuffix(".bias")) for name in state if name.removesuffix(".bias").isdecimal()]
    channels = state[f"{max(tops)}.bias"].numel() if tops else 0
    size = image_size or IMAGE_SIZE
    if size % stride:
        raise LatentGymError(
            f"{path.parent.name}: image_size {size} is no multiple of its stride of {stride} pixels; the nearest is "
            f"{max(1, round(size / stride)) * stride}"
        )
    with torch.random.fork_rng(devices=[]):
        model = TinyEncoder(channels, stride, pooled)
    load_exactly(model, state, path)
    spec = EncoderSpec(
        name=path.parent.name if path.stem == "encoder" else path.stem.removesuffix("_encoder"),
        family="pixel_autoencoder",
        source=str(path),
        licence="MIT",
        image_size=size,
        mean=_ZERO,
        std=_ONE,
        embed_dim=channels,
        grid=(size // stride, size // stride),
        layers=len(model.outputs),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        weights_digest=weights_digest(model, {"network": "taesd"}),
    )
    return TaesdEncoder(spec, model)
