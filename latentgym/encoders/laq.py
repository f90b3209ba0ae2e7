"""LAPA's latent-action quantiser: what happened between two frames, by its published state dict.

Source: LAPA (arXiv 2410.11758; https://github.com/LatentActionPretraining/LAPA, laq). Patches of both frames pass
through a spatial and a temporal transformer; both frames are then shrunk to a few vectors by a small convolutional
network, whose difference is the latent action. Its nearest vectors of a code book are the discrete action, see
:meth:`LatentActionEncoder.codes`; the decoder that predicts the second frame is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from latentgym.encoders.checkpoints import State, block_count, fill, part_with, rename, require_names
from latentgym.encoders.contract import EncoderSpec, Latents
from latentgym.encoders.frozen import FrozenEncoder, weights_digest
from latentgym.encoders.transformers_folder import ONE, ZERO
from latentgym.errors import LatentGymError

TITLE = "LAPA's LAQ"
ANCHOR = "vq.codebooks"
IMAGE_SIZE = 256
SIMILARITY_SCALE = 8.0
LEAK = 0.1
FRAMES = 2
# Sizes and strides of the network that shrinks a frame, by the number of vectors that it leaves.
SHRINKING: dict[int, tuple[dict[str, Any], ...]] = {
    1: ({"kernel_size": 3, "stride": 2, "padding": 1}, {"kernel_size": 4}),
    2: ({"kernel_size": 3, "stride": 2, "padding": 1}, {"kernel_size": (3, 4)}),
    4: ({"kernel_size": 3, "stride": 2, "padding": 1}, {"kernel_size": 3}),
    16: ({"kernel_size": 3, "stride": 2, "padding": 1}, {"kernel_size": 3, "stride": 2, "padding": 1}),
    64: ({"kernel_size": 3, "stride": 2, "padding": 1},),
    256: ({"kernel_size": 3, "stride": 2, "padding": 1},),
}
# Published name -> ours, in order.
RENAMED = (
    (r"^enc_(spatial|temporal)_transformer\.", r"\1."),
    (r"\.norm_out\.", ".norm."),
    (r"\.layers\.(\d+)\.0\.dsconv\.", r".blocks.\1.neighbours."),
    (r"\.layers\.(\d+)\.1\.", r".blocks.\1.attention."),
    (r"\.layers\.(\d+)\.3\.0\.", r".blocks.\1.feedforward_norm."),
    (r"\.layers\.(\d+)\.3\.1\.", r".blocks.\1.widen."),
    (r"\.layers\.(\d+)\.3\.4\.", r".blocks.\1.narrow."),
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
    (r"^to_patch_emb_first_frame\.", "embed."),
    (r"^spatial_rel_pos_bias\.net\.(\d)\.0\.", r"distance_bias.\1.0."),
    (r"^spatial_rel_pos_bias\.net\.", "distance_bias."),
    (r"^vq\.", ""),
    (r"^cnn_encoder\.", "shrink."),
)
# The decoder, and what the encoder's attention has for the decoder's sake.
UNUSED = (r"^dec_", r"^to_pixels", r"^vq\.project_out\.", r"\.null_kv$", r"\.context_norm\.")


class Attention(nn.Module):
    """Self-attention by cosine similarity; keys and values are read before the norm, as published."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, heads * head_width, bias=False)
        self.to_kv = nn.Linear(width, 2 * heads * head_width, bias=False)
        self.q_scale = nn.Parameter(torch.ones(head_width))
        self.k_scale = nn.Parameter(torch.ones(head_width))
        self.to_out = nn.Linear(heads * head_width, width, bias=False)

    def forward(self, tokens: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """``(B, N, D)`` to the same; ``bias`` is ``(heads, N, N)``, added to the similarities."""
        query = self._heads(self.to_q(self.norm(tokens)))
        key, value = (self._heads(part) for part in self.to_kv(tokens).chunk(2, dim=-1))
        query = nn.functional.normalize(query, dim=-1) * self.q_scale
        key = nn.functional.normalize(key, dim=-1) * self.k_scale
        mask = None if bias is None else bias.to(query.dtype)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=SIMILARITY_SCALE)
        output: torch.Tensor = self.to_out(mixed.transpose(1, 2).flatten(2))
        return output

    def _heads(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.reshape(*tokens.shape[:2], self.heads, -1).transpose(1, 2)


class Block(nn.Module):
    """A depth-wise convolution over neighbours in space and the past, attention, and a gated feed-forward layer."""

    def __init__(self, width: int, heads: int, head_width: int, hidden: int) -> None:
        super().__init__()
        self.neighbours = nn.Conv3d(width, width, 3, groups=width)
        self.attention = Attention(width, heads, head_width)
        self.feedforward_norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 2 * hidden, bias=False)
        self.narrow = nn.Linear(hidden, width, bias=False)

    def forward(self, tokens: torch.Tensor, shape: tuple[int, ...], bias: torch.Tensor | None) -> torch.Tensor:
        """``(B', N, D)`` to the same.

        Args:
            tokens: all tokens of all clips.
            shape: ``(B, T, rows, columns)`` as which they are laid out for the convolution. In the temporal
                transformer that is not their order; the published weights were trained so.
            bias: see :class:`Attention`.
        """
        maps = tokens.reshape(*shape, -1).movedim(-1, 1)
        maps = self.neighbours(nn.functional.pad(maps, (1, 1, 1, 1, 2, 0)))
        tokens = tokens + maps.movedim(1, -1).reshape(tokens.shape)
        tokens = tokens + self.attention(tokens, bias)
        value, gate = self.widen(self.feedforward_norm(tokens)).chunk(2, dim=-1)
        output: torch.Tensor = tokens + self.narrow(nn.functional.gelu(gate) * value)
        return output


class Transformer(nn.Module):
    """Blocks and a final norm."""

    def __init__(self, depth: int, width: int, heads: int, head_width: int, hidden: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(width, heads, head_width, hidden) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)

    def forward(
        self, tokens: torch.Tensor, shape: tuple[int, ...], bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The normalised output and every block's; see :class:`Block`."""
        outputs = []
        for block in self.blocks:
            tokens = block(tokens, shape, bias)
            outputs.append(tokens)
        return self.norm(tokens), outputs


class LatentActionModel(nn.Module):
    """The quantiser without its decoder.

    Args:
        width: D of a patch token.
        heads: attention heads.
        head_width: width of a head.
        hidden: width of the feed-forward layer.
        depths: blocks of the spatial and of the temporal transformer.
        patch: side of a patch in pixels.
        action_width: width of a vector of the latent action.
        codebook_size: number of vectors in the code book.
        code_count: vectors that make a latent action.
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        head_width: int,
        hidden: int,
        depths: tuple[int, int],
        patch: int,
        action_width: int,
        codebook_size: int,
        code_count: int,
    ) -> None:
        super().__init__()
        self.patch = patch
        pixels = 3 * patch * patch
        self.embed = nn.Sequential(nn.Identity(), nn.LayerNorm(pixels), nn.Linear(pixels, width), nn.LayerNorm(width))
        self.distance_bias = nn.Sequential(
            nn.Sequential(nn.Linear(2, width), nn.LeakyReLU(LEAK)),
            nn.Sequential(nn.Linear(width, width), nn.LeakyReLU(LEAK)),
            nn.Linear(width, heads),
        )
        self.spatial = Transformer(depths[0], width, heads, head_width, hidden)
        self.temporal = Transformer(depths[1], width, heads, head_width, hidden)
        self.project_in = nn.Linear(width, action_width)
        layers: list[nn.Module] = []
        for sizes in SHRINKING[code_count]:
            layers += [nn.Conv2d(action_width, action_width, **sizes), nn.ReLU()]
        self.shrink = nn.Sequential(*layers[:-1])
        self.codebooks = nn.Parameter(torch.zeros(codebook_size, action_width))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The latent action, and the tokens behind every block.

        Args:
            pixels: ``(B, 2, 3, S, S)`` in [0, 1].

        Returns:
            ``(B, rows, columns, action_width)``, and ``(B, 2, N, D)`` for each block, spatial ones first.
        """
        patches = pixels.unfold(3, self.patch, self.patch).unfold(4, self.patch, self.patch)
        tokens = self.embed(patches.permute(0, 1, 3, 4, 2, 5, 6).flatten(4))
        shape = tuple(tokens.shape[:4])
        batch, time, rows, columns = shape
        count = rows * columns
        tokens, spatial = self.spatial(tokens.reshape(batch * time, count, -1), shape, self._bias(rows, columns))
        tokens = tokens.reshape(batch, time, count, -1).transpose(1, 2).reshape(batch * count, time, -1)
        tokens, temporal = self.temporal(tokens, shape, None)
        blocks = [output.reshape(batch, time, count, -1) for output in spatial]
        blocks += [self._by_time(output, batch, count) for output in temporal]
        maps = self.project_in(self._by_time(tokens, batch, count)).transpose(2, 3)
        maps = self.shrink(maps.reshape(batch * time, -1, rows, columns))
        first, last = maps.unflatten(0, (batch, time)).unbind(1)
        return (last - first).movedim(1, -1), blocks

    def _by_time(self, tokens: torch.Tensor, batch: int, count: int) -> torch.Tensor:
        return tokens.reshape(batch, count, *tokens.shape[1:]).transpose(1, 2)

    def _bias(self, rows: int, columns: int) -> torch.Tensor:
        """``(heads, N, N)`` from the signed logarithm of distances in patches."""
        weight = self.project_in.weight
        places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).to(weight.device)
        distances = places[:, None] - places[None]
        scaled = distances.sign() * (distances.abs() + 1).log()
        bias: torch.Tensor = self.distance_bias(scaled.to(weight.dtype))
        return bias.movedim(-1, 0)


class LatentActionEncoder(FrozenEncoder):
    """The latent action between the first and the last frame of a clip, one token time.

    The last layer is the latent action before quantisation. Inner layers are the blocks of the spatial and then of the
    temporal transformer, with the first and the last frame's token of a patch side by side.
    """

    def forward(self, clip: torch.Tensor, layer: int) -> Latents:
        """Tokens of ``(B, T, 3, S, S)``, T = ``spec.clip_length``."""
        return self.forward_layers(clip, (layer,))[0]

    def forward_layers(self, clip: torch.Tensor, layers: Sequence[int]) -> list[Latents]:
        """Tokens of several blocks in one pass; see :meth:`forward`."""
        if clip.shape[1] != self.spec.clip_length:
            raise LatentGymError(
                f"encoder {self.spec.name!r}: expected clips of {self.spec.clip_length} frames, found {clip.shape[1]}"
            )
        action, blocks = self.model(clip[:, [0, -1]].to(self.dtype))
        times = torch.tensor([self.spec.clip_length - 1])
        found = []
        for layer in layers:
            if layer in (-1, self.spec.layers - 1):
                tokens = action.flatten(1, 2)
            else:
                tokens = torch.cat(blocks[layer].unbind(1), dim=-1)
            found.append(Latents(tokens[:, None].float(), times, layer))
        return found

    @torch.inference_mode()
    def codes(self, clip: torch.Tensor) -> torch.Tensor:
        """The discrete action: ``(B, code_count)`` indices into the code book.

        Args:
            clip: ``(B, T, H, W, 3)`` uint8, T = ``spec.clip_length``.

        Raises:
            LatentGymError: as :meth:`encode`.
        """
        action = self.encode(clip, -1).tokens[:, 0]
        model: Any = self.model
        return torch.cdist(action, model.codebooks.float()).argmin(dim=-1)


def build_laq(
    state: State, options: Mapping[str, Any], *, name: str, image_size: int | None = None
) -> LatentActionEncoder:
    """Make the encoder of a state dict, in float32 on the CPU; its sizes are read off the weights.

    Args:
        state: weights, named as published.
        options: ``num_frames``, frames from the first to the last that are compared (2 by default: neighbours);
            ``image_size`` (256); ``code_seq_len``, vectors of a latent action where weights do not tell (4).
        name: name of the encoder.
        image_size: side of the frames; only the checkpoint's own.

    Raises:
        LatentGymError: if the weights are those of another architecture or a size does not fit.
    """
    part = part_with(state, ANCHOR)
    spatial, temporal = "enc_spatial_transformer.layers", "enc_temporal_transformer.layers"
    needed = ("0.1.q_scale", "0.1.to_q.weight", "0.3.4.weight")
    names = [f"{spatial}.{one}" for one in needed] + [f"{temporal}.0.1.q_scale", "to_patch_emb_first_frame.2.weight"]
    require_names(part, TITLE, ANCHOR, *names, "vq.project_in.weight", "vq.cnn_encoder.0.weight")
    size, frames = int(options.get("image_size", IMAGE_SIZE)), int(options.get("num_frames", FRAMES))
    width, pixels = part["to_patch_emb_first_frame.2.weight"].shape
    patch = round((pixels / 3) ** 0.5)
    _check_sizes(size, frames, patch, image_size)
    head_width = part[f"{spatial}.0.1.q_scale"].shape[0]
    depths = (block_count(part, rf"{spatial}\.(\d+)\."), block_count(part, rf"{temporal}\.(\d+)\."))
    codebook_size, action_width = part[ANCHOR].shape
    with torch.device("meta"):
        model = LatentActionModel(
            width=width,
            heads=part[f"{spatial}.0.1.to_q.weight"].shape[0] // head_width,
            head_width=head_width,
            hidden=part[f"{spatial}.0.3.4.weight"].shape[1],
            depths=depths,
            patch=patch,
            action_width=action_width,
            codebook_size=codebook_size,
            code_count=_code_count(part, options),
        )
    fill(model, _renamed(part), TITLE)
    grid = _grid(model, size)
    spec = EncoderSpec(
        name=name,
        family="latent_action",
        image_size=size,
        mean=ZERO,
        std=ONE,
        clip_length=frames,
        tubelet=frames,
        temporal=True,
        embed_dim=action_width,
        grid=grid,
        layers=sum(depths) + 1,
        pooling=_pooling(grid),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        weights_digest=weights_digest(model, {"laq": size}),
    )
    return LatentActionEncoder(spec, model)


def _check_sizes(size: int, frames: int, patch: int, requested: int | None) -> None:
    if requested not in (None, size):
        raise LatentGymError(f"{TITLE} only takes frames of {size} pixels; image_size was {requested}")
    if size < patch or size % patch:
        raise LatentGymError(f"image_size {size} does not fit: expected a multiple of its patches of {patch} pixels")
    if frames < FRAMES:
        raise LatentGymError(f"{TITLE} compares two frames; clips of {frames} frames are too short")


def _code_count(part: State, options: Mapping[str, Any]) -> int:
    """Vectors of a latent action: stated, or told by the last convolution's kernel; 4 rather than 16."""
    if "code_seq_len" in options:
        count = int(options["code_seq_len"])
    else:
        kernel = part.get("vq.cnn_encoder.2.weight")
        count = 64 if kernel is None else {(4, 4): 1, (3, 4): 2}.get((kernel.shape[2], kernel.shape[3]), 4)
    if count not in SHRINKING:
        raise LatentGymError(f"code_seq_len {count} is not supported; expected one of {', '.join(map(str, SHRINKING))}")
    return count


def _renamed(part: State) -> dict[str, torch.Tensor]:
    kept = {name: value for name, value in part.items() if not any(re.search(pattern, name) for pattern in UNUSED)}
    return {rename(name, RENAMED): value for name, value in kept.items()}


def _grid(model: LatentActionModel, size: int) -> tuple[int, int]:
    """Rows and columns of the latent action."""
    try:
        with torch.inference_mode():
            action, _ = model(torch.zeros(1, FRAMES, 3, size, size))
    except RuntimeError as error:
        raise LatentGymError(f"frames of {size} pixels are too small for {TITLE}: {error}") from error
    return action.shape[1], action.shape[2]


def _pooling(grid: tuple[int, int]) -> str:
    """Keep the vectors apart: each says what happened elsewhere in the frame."""
    if grid == (1, 1):
        return "mean"
    return f"grid:{grid[0]}" if grid[0] == grid[1] else "tokens"
