"""A small space-time transformer on frame latents, told the signal level, the step size and an action.

Source: Hafner, Yan, Lillicrap, *Dreamer 4*, arXiv 2509.24527, section 3.2. Backbone as there: pre-norm RMSNorm, rotary
positions, SwiGLU, normalised queries and keys, register tokens, layers that attend within a frame and layers that
attend causally over time. With four layers only, every second one attends over time instead of every fourth.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from latentgym.encoders.trunk import GRID

K_MAX = 8
LATENT_CHANNELS = 16
MODEL_WIDTH = 64
DEPTH = 4
HEADS = 4
REGISTERS = 2
TIME_EVERY = 2
_PREFIX = REGISTERS + 2


def rotary_angles(positions: torch.Tensor, width: int, base: float = 100.0) -> torch.Tensor:
    """Angles of rotary position embeddings (Su et al., RoFormer, arXiv 2104.09864, equation 34), axes side by side.

    Args:
        positions: ``(axes, N)`` positions.
        width: channels of an attention head, shared equally by the axes.
        base: wavelength base; small because sequences are short.

    Returns:
        ``(N, width / 2)``.
    """
    pairs = width // 2 // len(positions)
    frequencies = base ** (-torch.arange(pairs, dtype=torch.float32, device=positions.device) / pairs)
    return (positions[:, :, None] * frequencies).transpose(0, 1).flatten(1)


def rotate(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotate channel pairs (i, i + C / 2) of ``(..., N, C)`` by ``(N, C / 2)`` angles."""
    first, second = x.chunk(2, dim=-1)
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1)


class Attention(nn.Module):
    """Multi-head self-attention with normalised, rotated queries and keys."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        head = MODEL_WIDTH // HEADS
        self.causal = causal
        self.qkv = nn.Linear(MODEL_WIDTH, 3 * MODEL_WIDTH, bias=False)
        self.query_norm = nn.RMSNorm(head)
        self.key_norm = nn.RMSNorm(head)
        self.output = nn.Linear(MODEL_WIDTH, MODEL_WIDTH, bias=False)

    def forward(self, x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        """``(B, N, C)`` to ``(B, N, C)``; ``angles`` is ``(N, C / heads / 2)``."""
        batch, count, width = x.shape
        query, key, value = self.qkv(x).view(batch, count, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        query = rotate(self.query_norm(query), angles)
        key = rotate(self.key_norm(key), angles)
        attended = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        mixed: torch.Tensor = self.output(attended.transpose(1, 2).reshape(batch, count, width))
        return mixed


class SwiGLU(nn.Module):
    """Gated feed-forward layer (Shazeer, arXiv 2002.05202)."""

    def __init__(self) -> None:
        super().__init__()
        hidden = 2 * MODEL_WIDTH
        self.gate = nn.Linear(MODEL_WIDTH, 2 * hidden, bias=False)
        self.output = nn.Linear(hidden, MODEL_WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(..., C)`` to ``(..., C)``."""
        value, gate = self.gate(x).chunk(2, dim=-1)
        out: torch.Tensor = self.output(value * nn.functional.silu(gate))
        return out


class Layer(nn.Module):
    """Attention within each frame, or causally over time at each place, then a feed-forward layer."""

    def __init__(self, over_time: bool) -> None:
        super().__init__()
        self.over_time = over_time
        self.attention_norm = nn.RMSNorm(MODEL_WIDTH)
        self.attention = Attention(causal=over_time)
        self.feed_forward_norm = nn.RMSNorm(MODEL_WIDTH)
        self.feed_forward = SwiGLU()

    def forward(self, x: torch.Tensor, space: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """``(B, T, N, C)`` to the same shape; ``space`` and ``time`` are the rotary angles."""
        batch, frames, count, width = x.shape
        normed = self.attention_norm(x)
        if self.over_time:
            sequences = normed.transpose(1, 2).reshape(batch * count, frames, width)
            mixed = self.attention(sequences, time).view(batch, count, frames, width).transpose(1, 2)
        else:
            mixed = self.attention(normed.reshape(batch * frames, count, width), space).view(x.shape)
        x = x + mixed
        out: torch.Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return out


class Dynamics(nn.Module):
    """Predicts clean latents from corrupted ones; every frame has its own signal level and step size."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs = nn.Linear(LATENT_CHANNELS, MODEL_WIDTH)
        self.level = nn.Embedding(K_MAX, MODEL_WIDTH // 2)
        self.step = nn.Embedding(K_MAX.bit_length(), MODEL_WIDTH // 2)
        self.null_action = nn.Parameter(torch.zeros(1, 1, 1, MODEL_WIDTH))
        self.registers = nn.Parameter(torch.zeros(1, 1, REGISTERS, MODEL_WIDTH))
        self.layers = nn.ModuleList(Layer((i + 1) % TIME_EVERY == 0) for i in range(DEPTH))
        self.output_norm = nn.RMSNorm(MODEL_WIDTH)
        self.output = nn.Linear(MODEL_WIDTH, LATENT_CHANNELS)

    def hidden(self, latents: torch.Tensor, tau: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """Hidden grid tokens ``(B, T, 64, C)`` after the last layer; arguments as in :meth:`read`."""
        return self.read(latents, tau, step, (-1,))[0]

    def read(
        self, latents: torch.Tensor, tau: torch.Tensor, step: torch.Tensor, layers: Sequence[int]
    ) -> list[torch.Tensor]:
        """Hidden grid tokens ``(B, T, 64, C)`` after each of ``layers``, always under the null action.

        Args:
            latents: ``(B, T, 64, 16)`` corrupted latents.
            tau: ``(B, T)`` signal levels, multiples of 1 / K_max below 1.
            step: ``(B, T)`` step sizes 2⁻ᵉ, from 1 to 1 / K_max.
            layers: layers to read, counted from 0; -1 is the last.
        """
        batch, frames = tau.shape
        level = self.level((tau * K_MAX).round().long())
        size = self.step((-step.log2()).round().long())
        control = torch.cat([level, size], dim=-1)[:, :, None]
        prefix = [control, self.null_action.expand(batch, frames, 1, -1), self.registers.expand(batch, frames, -1, -1)]
        tokens = torch.cat([*prefix, self.inputs(latents)], dim=2)
        axis = torch.arange(1.0, GRID + 1, device=latents.device)
        rows, columns = axis.repeat_interleave(GRID), axis.repeat(GRID)
        # Registers and the like stand at the origin, outside the grid.
        space = rotary_angles(nn.functional.pad(torch.stack([rows, columns]), (_PREFIX, 0)), MODEL_WIDTH // HEADS)
        time = rotary_angles(torch.arange(float(frames), device=latents.device)[None], MODEL_WIDTH // HEADS)
        wanted = [layer % DEPTH for layer in layers]
        found: dict[int, torch.Tensor] = {}
        for index in range(max(wanted) + 1):
            tokens = self.layers[index](tokens, space, time)
            if index in wanted:
                found[index] = tokens[:, :, _PREFIX:]
        return [found[layer] for layer in wanted]

    def forward(self, latents: torch.Tensor, tau: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """Clean latents ``(B, T, 64, 16)`` predicted from corrupted ones; arguments as in :meth:`read`."""
        prediction: torch.Tensor = self.output(self.output_norm(self.hidden(latents, tau, step)))
        return prediction
