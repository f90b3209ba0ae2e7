"""Dreamer 4: latents of its tokenizer and features of its dynamics, from published PyTorch checkpoints.

Source: Hafner, Yan, Lillicrap, *Dreamer 4*, arXiv 2509.24527, as trained on DMControl by
https://github.com/nicklashansen/dreamer4 (128 pixels, 16 latents of 32 numbers per frame). That reimplementation adds
sinusoidal positions where the paper rotates, and has no QK normalisation; the checkpoints decide what is computed here.

The dynamics is read under the null action at τ = 1 − 1 / K_max and the smallest step: it sees latents with that much
noise, one fixed draw for every frame of every clip.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from latentgym.encoders.checkpoints import load_exactly, read_file
from latentgym.encoders.contract import EncoderSpec, Latents
from latentgym.encoders.frozen import FrozenEncoder, weights_digest
from latentgym.encoders.hub import fetch_snapshot
from latentgym.errors import CorruptDataError, LatentGymError
from latentgym.seeding import torch_generator

# As their authors' page names the files, and as the hub has them.
TOKENIZER, DYNAMICS = "tokenizer_ckpt.pt", "dynamics_ckpt.pt"
_OTHER_NAMES = {TOKENIZER: "tokenizer.pt", DYNAMICS: "dynamics.pt"}
_FILES = (*_OTHER_NAMES, *_OTHER_NAMES.values())


def checkpoint_in(folder: Path, name: str = TOKENIZER) -> Path:
    """Where a checkpoint of ``folder`` is, under either of its names; under ``name`` where there is none."""
    other = folder / _OTHER_NAMES[name]
    return other if other.is_file() and not (folder / name).is_file() else folder / name


# Frames per training clip of the tokenizer where the checkpoint states none; the dynamics saw longer ones as well.
CLIP_LENGTH = 8
_ZERO, _ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
_EPSILON = 1e-6
_SIGNS = ("action", "signal", "step")


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a block-causal transformer.

    Attributes:
        width: channels of a token.
        heads: attention heads.
        hidden: channels inside the feed-forward layers.
        over_time: for every layer, whether it also attends over time.
        scaled_positions: whether position embeddings are divided by √width.
    """

    width: int
    heads: int
    hidden: int
    over_time: tuple[bool, ...]
    scaled_positions: bool


class RMSNorm(nn.Module):
    """Division by the root mean square, ε inside the root, and a learned scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(..., D)`` to the same shape."""
        return nn.functional.rms_norm(x, (x.shape[-1],), self.scale, _EPSILON)


class Attention(nn.Module):
    """Multi-head self-attention over the second to last axis."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, *, causal: bool = False, private: int = 0) -> torch.Tensor:
        """``(B, N, D)`` to the same shape.

        Args:
            x: the tokens.
            causal: whether a token sees only itself and earlier ones.
            private: number of leading tokens that the others do not see.
        """
        batch, count, width = x.shape
        parts = self.qkv(x).view(batch, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = parts
        attend = nn.functional.scaled_dot_product_attention
        if private:
            rest = slice(private, None)
            others = attend(query[:, :, rest], key[:, :, rest], value[:, :, rest])
            mixed = torch.cat([attend(query[:, :, :private], key, value), others], dim=2)
        else:
            mixed = attend(query, key, value, is_causal=causal)
        output: torch.Tensor = self.out(mixed.transpose(1, 2).reshape(batch, count, width))
        return output


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202); the second half of the inner channels gates the first."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc_in = nn.Linear(width, 2 * hidden)
        self.fc_out = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(..., D)`` to the same shape."""
        value, gate = self.fc_in(x).chunk(2, dim=-1)
        output: torch.Tensor = self.fc_out(value * nn.functional.silu(gate))
        return output


class Layer(nn.Module):
    """Attention within each frame, in some layers attention over time, and a feed-forward layer.

    Args:
        shape: sizes.
        over_time: whether it attends over time.
        latents: in the tokenizer, number of leading tokens that patches do not see and that alone attend over time.
    """

    def __init__(self, shape: Shape, over_time: bool, latents: int) -> None:
        super().__init__()
        self.latents = latents
        self.norm1, self.space = RMSNorm(shape.width), Attention(shape.width, shape.heads)
        self.time: Attention | None = None
        if over_time:
            self.norm2, self.time = RMSNorm(shape.width), Attention(shape.width, shape.heads)
        self.norm3, self.mlp = RMSNorm(shape.width), FeedForward(shape.width, shape.hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, T, S, D)`` to the same shape."""
        batch, frames, count, width = x.shape
        mixed = self.space(self.norm1(x).reshape(batch * frames, count, width), private=self.latents)
        x = x + mixed.view(x.shape)
        if self.time is not None:
            normalised = self.norm2(x)
            moving = normalised[:, :, : self.latents or count]
            sequences = moving.transpose(1, 2).reshape(-1, frames, width)
            over_time = self.time(sequences, causal=True).view(batch, -1, frames, width).transpose(1, 2)
            # What does not attend over time is added to itself, normalised: the published networks learned with that.
            x = x + torch.cat([over_time, normalised[:, :, moving.shape[2] :]], dim=2)
        output: torch.Tensor = x + self.mlp(self.norm3(x))
        return output


def positions(count: int, width: int) -> torch.Tensor:
    """Sinusoidal embeddings ``(count, width)``: sine in even channels, cosine in odd ones."""
    channel = torch.arange(width)
    frequency = torch.exp(-(2.0 * (channel // 2)) / width * math.log(10_000.0))
    angle = torch.arange(count, dtype=torch.float32)[:, None] * frequency
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos())


class BlockCausalTransformer(nn.Module):
    """Layers on tokens ``(B, T, S, D)`` with the positions of their frame and of their place in it."""

    def __init__(self, shape: Shape, latents: int = 0) -> None:
        super().__init__()
        self.shape = shape
        self.layers = nn.ModuleList(Layer(shape, over_time, latents) for over_time in shape.over_time)

    def read(self, tokens: torch.Tensor, layers: Sequence[int]) -> list[torch.Tensor]:
        """Tokens after each of ``layers``, counted from 0."""
        frames, count, width = tokens.shape[1:]
        place = positions(frames, width)[:, None] + positions(count, width)
        if self.shape.scaled_positions:
            place = place / math.sqrt(width)
        x = tokens + place.to(tokens)
        read: dict[int, torch.Tensor] = {}
        for number in range(max(layers) + 1):
            x = self.layers[number](x)
            read[number] = x
        return [read[layer] for layer in layers]


class Tokenizer(nn.Module):
    """The encoder half of the tokenizer.

    Args:
        shape: sizes.
        patch: side of a patch in pixels.
        latents: latent tokens per frame.
        bottleneck: numbers per latent.
    """

    def __init__(self, shape: Shape, patch: int, latents: int, bottleneck: int) -> None:
        super().__init__()
        self.patch, self.depth = patch, len(shape.over_time)
        self.patch_proj = nn.Linear(3 * patch * patch, shape.width)
        self.latents = nn.Parameter(torch.zeros(latents, shape.width))
        self.transformer = BlockCausalTransformer(shape, latents)
        self.bottleneck_proj = nn.Linear(shape.width, bottleneck)

    def read(self, frames: torch.Tensor, layers: Sequence[int]) -> list[torch.Tensor]:
        """Latent tokens of frames ``(B, T, 3, S, S)`` in [0, 1] after each of ``layers``.

        Layers 0 … depth − 1 give ``(B, T, L, D)``, the last one, depth or −1, latents ``(B, T, L, bottleneck)`` in
        (−1, 1).
        """
        batch, time = frames.shape[:2]
        patches = nn.functional.unfold(frames.flatten(0, 1), self.patch, stride=self.patch).transpose(1, 2)
        tokens = self.patch_proj(patches).view(batch, time, patches.shape[1], -1)
        latents = self.latents.expand(batch, time, -1, -1)
        numbers = [layer % (self.depth + 1) for layer in layers]
        hidden = self.transformer.read(torch.cat([latents, tokens], 2), [min(n, self.depth - 1) for n in numbers])
        read = [one[:, :, : len(self.latents)] for one in hidden]
        return [
            torch.tanh(self.bottleneck_proj(one)) if number == self.depth else one
            for one, number in zip(read, numbers, strict=True)
        ]


class Dynamics(nn.Module):
    """The denoiser of latents, always under the null action.

    Args:
        shape: sizes.
        spatial: latent tokens per frame, several of the tokenizer's side by side.
        channels: numbers per spatial token.
        registers: register tokens per frame.
        agents: agent tokens that the others see; where they are isolated, they change nothing and are left out.
        k_max: number of the finest steps.
    """

    def __init__(self, shape: Shape, spatial: int, channels: int, registers: int, agents: int, k_max: int) -> None:
        super().__init__()
        self.spatial, self.agents, self.k_max = spatial, agents, k_max
        self.spatial_proj = nn.Linear(channels, shape.width)
        self.register_tokens = nn.Parameter(torch.zeros(registers, shape.width))
        self.null_action = nn.Parameter(torch.zeros(shape.width))
        self.step_embed = nn.Embedding(k_max.bit_length(), shape.width)
        self.signal_embed = nn.Embedding(k_max + 1, shape.width)
        self.transformer = BlockCausalTransformer(shape)

    def read(self, latents: torch.Tensor, layers: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Spatial and register tokens after each of ``layers``, of latents corrupted to τ = 1 − 1 / K_max.

        Args:
            latents: ``(B, T, spatial, channels)``.
            layers: layers counted from 0, −1 for the last.
        """
        batch, time = latents.shape[:2]
        # The signal level K_max − 1 of K_max, and the smallest step, 2 to the power of minus its index.
        signal, step = self.signal_embed.weight[self.k_max - 1], self.step_embed.weight[self.k_max.bit_length() - 1]
        signs = torch.stack([self.null_action, signal, step]).expand(batch, time, -1, -1)
        registers = self.register_tokens.expand(batch, time, -1, -1)
        agents = registers.new_zeros(batch, time, self.agents, registers.shape[-1])
        tokens = torch.cat([signs, self.spatial_proj(latents), registers, agents], dim=2)
        depth, start = len(self.transformer.layers), len(_SIGNS)
        middle, end = start + self.spatial, start + self.spatial + len(self.register_tokens)
        hidden = self.transformer.read(tokens, [layer % depth for layer in layers])
        return [(one[:, :, start:middle], one[:, :, middle:end]) for one in hidden]


class Dreamer4Network(nn.Module):
    """Tokenizer and, where its features are read, dynamics with the fixed noise."""

    noise: torch.Tensor

    def __init__(self, tokenizer: Tokenizer, dynamics: Dynamics | None) -> None:
        super().__init__()
        self.tokenizer, self.dynamics = tokenizer, dynamics
        if dynamics is not None:
            shape = (dynamics.spatial, dynamics.spatial_proj.in_features)
            noise = torch.randn(shape, generator=torch_generator(0, "dreamer4", "read noise"))
            self.register_buffer("noise", noise)

    def read(self, frames: torch.Tensor, layers: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """Tokens and register tokens after each of ``layers`` of the part that is read."""
        if self.dynamics is None:
            return [(tokens, None) for tokens in self.tokenizer.read(frames, layers)]
        (latents,) = self.tokenizer.read(frames, (-1,))
        packed = latents.reshape(*latents.shape[:2], *self.noise.shape)
        tau = 1 - 1 / self.dynamics.k_max
        return list(self.dynamics.read((1 - tau) * self.noise + tau * packed, layers))


class Dreamer4Encoder(FrozenEncoder):
    """Latent tokens of every frame; both parts are causal in time, so that a clip may be shorter than trained on."""

    concurrent = True
    model: Dreamer4Network

    def forward(self, clip: torch.Tensor, layer: int) -> Latents:
        """Tokens of ``(B, T, 3, S, S)``, T' = T, T at most ``spec.clip_length``."""
        return self.forward_layers(clip, (layer,))[0]

    def forward_layers(self, clip: torch.Tensor, layers: Sequence[int]) -> list[Latents]:
        """Tokens of several layers from one pass.

        Raises:
            LatentGymError: if the clip is longer than the clips that it was trained on.
        """
        frames = clip.shape[1]
        if frames > self.spec.clip_length:
            raise LatentGymError(
                f"encoder {self.spec.name!r}: expected clips of at most {self.spec.clip_length} frames, found {frames}"
            )
        read = self.model.read(clip.to(self.dtype), layers)
        return [
            Latents(tokens.float(), torch.arange(frames), layer, None if prefix is None else prefix.float())
            for layer, (tokens, prefix) in zip(layers, read, strict=True)
        ]


def load_dreamer4(
    source: str | Path, *, part: Literal["tokenizer", "dynamics"] = "tokenizer", image_size: int | None = None
) -> Dreamer4Encoder:
    """Open published checkpoints in float32 on the CPU.

    Args:
        source: folder with ``tokenizer_ckpt.pt`` or ``tokenizer.pt`` and, for the dynamics, ``dynamics_ckpt.pt`` or
            ``dynamics.pt``, read with ``weights_only=True``; or a hub id.
        part: ``"tokenizer"``: layers are the encoder's and, last, the latents. ``"dynamics"``: layers are the
            dynamics'; its registers are the prefix.
        image_size: only the size that it was trained at.

    Raises:
        LatentGymError: if a file is missing, damaged or does not fit.
    """
    folder, revision = Path(source).expanduser(), ""
    if not folder.is_dir():
        address = f"https://huggingface.co/{str(source).partition('@')[0]}"
        advice = f"fetch {TOKENIZER} and {DYNAMICS} of {address} elsewhere, put them into one "
        folder = fetch_snapshot(str(source), f"{advice}folder and pass dreamer4:<folder>", _FILES)
        revision = folder.name
    tokenizer, facts = _tokenizer(checkpoint_in(folder))
    dynamics, more = _dynamics(checkpoint_in(folder, DYNAMICS), tokenizer) if part == "dynamics" else (None, {})
    network = Dreamer4Network(tokenizer, dynamics)
    side = int(facts["size"])
    if image_size not in (None, side):
        raise LatentGymError(f"{folder.name} only takes frames of {side} pixels; image_size was {image_size}")
    count = len(tokenizer.latents) if dynamics is None else dynamics.spatial
    width = tokenizer.bottleneck_proj if dynamics is None else dynamics.spatial_proj
    spec = EncoderSpec(
        name=f"dreamer4-{part}" if revision else f"{folder.name}-{part}",
        family="shortcut_forcing",
        source=f"{'dreamer4' if dynamics is None else 'dreamer4-dynamics'}:{source}",
        revision=revision,
        image_size=side,
        mean=_ZERO,
        std=_ONE,
        clip_length=min(int(facts["frames"]), int(more.get("frames", facts["frames"]))),
        temporal=True,
        embed_dim=width.out_features,
        grid=(1, count),
        layers=tokenizer.depth + 1 if dynamics is None else len(dynamics.transformer.layers),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        weights_digest=weights_digest(network, {"tokenizer": facts, "dynamics": more}),
    )
    return Dreamer4Encoder(spec, network)


def _tokenizer(path: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """The network and what its checkpoint states besides tensors; sizes follow from the tensors."""
    state, stated = _published(path, "model")
    state = {name.removeprefix("encoder."): tensor for name, tensor in state.items() if name.startswith("encoder.")}
    state.pop("mae.mask_token", None)
    shape = _shape(state, stated, "patch_proj.weight", path)
    if not stated.get("latents_only_time", True):
        raise LatentGymError(f"{path}: patches that attend over time are not supported")
    patch = round(math.sqrt(state["patch_proj.weight"].shape[1] / 3))
    latents, bottleneck = state["latents"].shape[0], state["bottleneck_proj.weight"].shape[0]
    with torch.random.fork_rng(devices=[]):
        network = Tokenizer(shape, patch, latents, bottleneck)
    load_exactly(network, state, path)
    side = int(stated.get("H", 128))
    if int(stated.get("W", side)) != side or side % patch:
        raise LatentGymError(f"{path}: frames of {side} × {stated.get('W')} pixels in patches of {patch}")
    return network, {"size": side, "frames": int(stated.get("seq_len", CLIP_LENGTH)), "shape": shape}


def _dynamics(path: Path, tokenizer: Tokenizer) -> tuple[Dynamics, dict[str, Any]]:
    state, stated = _published(path, "dynamics")
    state["null_action"] = state.pop("action_encoder.base", torch.empty(0))
    unused = ("action_encoder.", "flow_x_head.")
    state = {name: tensor for name, tensor in state.items() if not name.startswith(unused)}
    shape = _shape(state, stated, "spatial_proj.weight", path)
    channels = state["spatial_proj.weight"].shape[1]
    numbers = tokenizer.latents.shape[0] * tokenizer.bottleneck_proj.out_features
    if numbers % channels:
        raise LatentGymError(
            f"{path}: spatial tokens of {channels} numbers do not hold the tokenizer's {numbers} per frame; "
            "tokenizer and dynamics do not belong together"
        )
    mode = stated.get("space_mode", stated.get("agent_space_mode", "wm_agent_isolated"))
    agents = int(stated.get("n_agent", 0)) if mode == "wm_agent" else 0
    k_max, registers = state["signal_embed.weight"].shape[0] - 1, state["register_tokens"].shape[0]
    with torch.random.fork_rng(devices=[]):
        network = Dynamics(shape, numbers // channels, channels, registers, agents, k_max)
    load_exactly(network, state, path)
    return network, {"frames": int(stated.get("seq_len", 32)), "shape": shape, "agents": agents}


def _published(path: Path, key: str) -> tuple[dict[str, torch.Tensor], Mapping[str, Any]]:
    """Tensors under the names used here, and the training arguments that were saved beside them."""
    loaded = read_file(path)
    checkpoint = loaded if isinstance(loaded, Mapping) else {}
    state = next((checkpoint[name] for name in (key, "state_dict") if isinstance(checkpoint.get(name), Mapping)), None)
    if state is None:
        raise CorruptDataError(f"{path} holds no {key!r}; expected a checkpoint of nicklashansen/dreamer4")
    own = {name.removeprefix("module.").removeprefix("_orig_mod."): tensor for name, tensor in state.items()}
    for attention in ("space", "time"):
        own = {name.replace(f".{attention}.attn.", f".{attention}."): tensor for name, tensor in own.items()}
    return own, dict(checkpoint.get("args") or {})


def _shape(state: Mapping[str, torch.Tensor], stated: Mapping[str, Any], first: str, path: Path) -> Shape:
    """Sizes of the transformer, from its tensors; the number of heads leaves no trace in them."""
    depth = 1 + max((int(name.split(".")[2]) for name in state if name.startswith("transformer.layers.")), default=-1)
    if first not in state or not depth or "transformer.layers.0.mlp.fc_out.weight" not in state:
        raise CorruptDataError(f"{path} lacks {first!r} or its layers; expected a checkpoint of nicklashansen/dreamer4")
    return Shape(
        width=state[first].shape[0],
        heads=int(stated.get("n_heads", 4)),
        hidden=state["transformer.layers.0.mlp.fc_out.weight"].shape[1],
        over_time=tuple(f"transformer.layers.{layer}.norm2.scale" in state for layer in range(depth)),
        scaled_positions=bool(stated.get("scale_pos_embeds", True)),
    )
