"""V-JEPA 2.1: a video transformer that also takes single images, by its published state dicts.

Source: V-JEPA 2.1 (arXiv 2603.14482; https://github.com/facebookresearch/vjepa2, app/vjepa_2_1). It differs from V-JEPA
2 in that tubelets of two frames and single frames have patch embeddings and modality embeddings of their own, that
neighbouring channels are rotated together, and that the rotation's spatial positions are scaled to the grid of 16 × 16
patches it was pretrained on, so that frames of any size keep their geometry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from latentgym.encoders.checkpoints import State, block_count, fill, part_with, require_names
from latentgym.encoders.contract import EncoderSpec, Latents
from latentgym.encoders.frozen import FrozenEncoder, weights_digest
from latentgym.encoders.transformers_folder import IMAGENET_MEAN, IMAGENET_STD
from latentgym.errors import LatentGymError

TITLE = "V-JEPA 2.1"
ANCHOR = "patch_embed_img.proj.weight"
IMAGE_SIZE = 384
# Pretrained on 16 frames and cooled down on up to 64; rotary positions serve any even number.
FRAMES = 16
PRETRAINED_GRID = 16
# Of every published model.
HEAD_WIDTH = 64
ROPE_BASE = 10000.0
EPSILON = 1e-6

# Cosine and sine of the angle of every channel, each (N, C).
Rotation = tuple[torch.Tensor, torch.Tensor]


class PatchEmbedding(nn.Module):
    """Tubelets of ``(B, 3, T, S, S)`` to ``(B, N, D)``, token time first, then row by row."""

    def __init__(self, width: int, patch: int, tubelet: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(3, width, kernel_size=(tubelet, patch, patch), stride=(tubelet, patch, patch))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """``(B, N, D)``."""
        tokens: torch.Tensor = self.proj(pixels)
        return tokens.flatten(2).transpose(1, 2)


class RotaryAttention(nn.Module):
    """Self-attention whose queries and keys are rotated by their position in time, height and width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        """``(B, N, D)`` to the same; the rotation is ``(N, D / heads)``, see :func:`rotary_angles`."""
        query, key, value = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(rotate(query, rotation), rotate(key, rotation), value)
        output: torch.Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return output


class Feedforward(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """``(B, N, D)`` to the same."""
        output: torch.Tensor = self.fc2(nn.functional.gelu(self.fc1(tokens)))
        return output


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPSILON)
        self.attn = RotaryAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=EPSILON)
        self.mlp = Feedforward(width, hidden)

    def forward(self, tokens: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        """``(B, N, D)`` to the same."""
        tokens = tokens + self.attn(self.norm1(tokens), rotation)
        output: torch.Tensor = tokens + self.mlp(self.norm2(tokens))
        return output


class VJEPA21(nn.Module):
    """The encoder; names of weights are the published ones.

    Args:
        width: D.
        depth: number of blocks.
        heads: attention heads.
        hidden: width between the linear layers of a block.
        patch: side of a patch in pixels.
        tubelet: frames of a video that share a token time.
        norms: number of layer norms behind blocks that pretraining reads; the last is that of the output.
    """

    def __init__(
        self, *, width: int, depth: int, heads: int, hidden: int, patch: int, tubelet: int, norms: int
    ) -> None:
        super().__init__()
        self.patch, self.tubelet, self.head_width = patch, tubelet, width // heads
        self.patch_embed = PatchEmbedding(width, patch, tubelet)
        self.patch_embed_img = PatchEmbedding(width, patch, 1)
        self.video_mod_embed = nn.Parameter(torch.zeros(1, 1, width))
        self.img_mod_embed = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList([Block(width, heads, hidden) for _ in range(depth)])
        self.norms_block = nn.ModuleList([nn.LayerNorm(width, eps=EPSILON) for _ in range(norms)])

    def forward(self, pixels: torch.Tensor, layers: Sequence[int]) -> list[torch.Tensor]:
        """Outputs of several blocks.

        Args:
            pixels: ``(B, T, 3, S, S)``, normalised; T = 1 is an image, otherwise a multiple of the tubelet.
            layers: blocks to read, as they are; ``-1`` and the last are the output, behind the last norm.

        Returns:
            ``(B, T' · N, D)`` each, token time first.
        """
        image = pixels.shape[1] == 1
        times = 1 if image else pixels.shape[1] // self.tubelet
        rows, columns = pixels.shape[3] // self.patch, pixels.shape[4] // self.patch
        embed, modality = (
            (self.patch_embed_img, self.img_mod_embed) if image else (self.patch_embed, self.video_mod_embed)
        )
        tokens = embed(pixels.transpose(1, 2)) + modality
        angles = rotary_angles(times, rows, columns, self.head_width)
        rotation = (angles.cos().to(tokens), angles.sin().to(tokens))
        last = len(self.blocks) - 1
        wanted = [layer % len(self.blocks) for layer in layers]
        outputs = {}
        for index in range(max(wanted) + 1):
            tokens = self.blocks[index](tokens, rotation)
            if index in wanted:
                outputs[index] = self.norms_block[-1](tokens) if index == last else tokens
        return [outputs[layer] for layer in wanted]


def rotary_angles(times: int, rows: int, columns: int, head_width: int) -> torch.Tensor:
    """Angle in radians by which each channel of a head is rotated: ``(times · rows · columns, head_width)`` float32.

    A third of the channels, rounded down to an even number, follows each of time, height and width; the rest stay.
    """
    pairs = (head_width // 3) // 2
    frequencies = ROPE_BASE ** -(torch.arange(pairs) / pairs)
    positions = torch.cartesian_prod(
        torch.arange(times, dtype=torch.float32), _scaled_positions(rows), _scaled_positions(columns)
    )
    angles = (positions[:, :, None] * frequencies).repeat_interleave(2, dim=-1).flatten(1)
    return nn.functional.pad(angles, (0, head_width - angles.shape[1]))


def _scaled_positions(count: int) -> torch.Tensor:
    return torch.arange(count) * ((PRETRAINED_GRID - 1) / (count - 1))


def rotate(tokens: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """``(B, heads, N, C)`` with every pair of neighbouring channels rotated, by the cosine and sine of its angle."""
    cosine, sine = rotation
    even, odd = tokens.reshape(*tokens.shape[:-1], -1, 2).unbind(-1)
    return tokens * cosine + torch.stack((-odd, even), dim=-1).flatten(-2) * sine


class VJEPA21Encoder(FrozenEncoder):
    """V-JEPA 2.1 on videos or, with ``spec.clip_length`` 1, on every frame as an image; patch tokens only."""

    def forward(self, clip: torch.Tensor, layer: int) -> Latents:
        """Tokens of ``(B, T, 3, S, S)``, see :meth:`forward_layers`."""
        return self.forward_layers(clip, (layer,))[0]

    def forward_layers(self, clip: torch.Tensor, layers: Sequence[int]) -> list[Latents]:
        """Tokens of several blocks in one pass.

        Args:
            clip: ``(B, T, 3, S, S)``; T a multiple of the tubelet, or 1 for an image.
            layers: blocks.

        Raises:
            LatentGymError: if a video's frames do not fill its tubelets.
        """
        batch, time = clip.shape[:2]
        tubelet = self.spec.tubelet
        if time > 1 and time % tubelet:
            raise LatentGymError(
                f"encoder {self.spec.name!r}: expected one frame or a multiple of its tubelet of {tubelet} frames, "
                f"found {time}"
            )
        clip = clip.to(self.dtype)
        outputs = self.model(clip.flatten(0, 1)[:, None] if self.spec.clip_length == 1 else clip, layers)
        times = torch.arange(1, max(1, time // tubelet) + 1) * (tubelet if time > 1 else 1) - 1
        return [
            Latents(output.float().reshape(batch, len(times), -1, output.shape[-1]), times, layer)
            for layer, output in zip(layers, outputs, strict=True)
        ]


def build_vjepa21(
    state: State, options: Mapping[str, Any], *, name: str, image_size: int | None = None
) -> VJEPA21Encoder:
    """Make the encoder of a state dict, in float32 on the CPU; its sizes are read off the weights.

    Args:
        state: weights, named as published.
        options: ``num_frames``, frames of a clip (16 by default; 1 encodes every frame as an image);
            ``image_size`` (384) and ``num_attention_heads`` (a head for every 64 channels).
        name: name of the encoder.
        image_size: side of the frames, a multiple of the patch; at least two patches.

    Raises:
        LatentGymError: if the weights are those of another architecture or a size does not fit.
    """
    part = part_with(state, ANCHOR)
    require_names(part, TITLE, ANCHOR, "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "norms_block.0.weight")
    width, _, tubelet, patch, _ = part["patch_embed.proj.weight"].shape
    size, frames = image_size or int(options.get("image_size", IMAGE_SIZE)), int(options.get("num_frames", FRAMES))
    if size % patch or size < 2 * patch:
        raise LatentGymError(
            f"image_size {size} does not fit: expected a multiple of its patches of {patch} pixels, two at least"
        )
    if frames < 1 or (frames > 1 and frames % tubelet):
        raise LatentGymError(f"clips of {frames} frames do not fit: expected 1 or a multiple of {tubelet}")
    depth = block_count(part, r"blocks\.(\d+)\.")
    with torch.device("meta"):
        model = VJEPA21(
            width=width,
            depth=depth,
            heads=int(options.get("num_attention_heads", max(1, width // HEAD_WIDTH))),
            hidden=part["blocks.0.mlp.fc1.weight"].shape[0],
            patch=patch,
            tubelet=tubelet,
            norms=block_count(part, r"norms_block\.(\d+)\."),
        )
    fill(model, part, TITLE, unused=("pos_embed",))
    spec = EncoderSpec(
        name=name,
        family="masked_video_latent",
        image_size=size,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        clip_length=frames,
        tubelet=tubelet if frames > 1 else 1,
        temporal=frames > 1,
        embed_dim=width,
        grid=(size // patch, size // patch),
        layers=depth,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        weights_digest=weights_digest(model, {"vjepa2_1": "image" if frames == 1 else "video"}),
    )
    return VJEPA21Encoder(spec, model)
