"""Shortcut forcing: a masked autoencoder as tokenizer and, on its latents, a few-step diffusion-forcing dynamics model.

Source: Hafner, Yan, Lillicrap, *Dreamer 4*, arXiv 2509.24527, sections 3.1 and 3.2, equations 5 to 8; shortcut models
after Frans et al., arXiv 2410.12557; diffusion forcing after Chen et al., arXiv 2407.01392.

Small where Dreamer 4 is large: the tokenizer is the shared trunk with a 16-channel tanh bottleneck, K_max is 8 instead
of 64, there is no perceptual loss, and tokenizer and dynamics are trained at the same time, the dynamics on detached
latents, so that both see every step. No action is ever seen: the dynamics always gets the learned null action.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from latentgym.encoders.objectives.dynamics import DEPTH, K_MAX, LATENT_CHANNELS, Dynamics
from latentgym.encoders.objectives.objective import Batch, Objective
from latentgym.encoders.objectives.pixels import PixelDecoder, hide, random_mask
from latentgym.encoders.trunk import CHANNELS, GRID, WIDTH, EncodingNetwork, still
from latentgym.seeding import torch_generator

Denoiser = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

READ_TAU = 1 - 1 / K_MAX
BOOTSTRAP_SHARE = 0.25
MAX_MASK_RATIO = 0.9
RMS_MOMENTUM = 0.99
DYNAMICS_SHARE = 8


def draw_levels(rows: int, frames: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Step sizes and signal levels, one per frame; the first quarter of the rows, rounded up, bootstraps.

    Args:
        rows: number of rows B.
        frames: frames per row T.
        generator: source of randomness.

    Returns:
        step ``(B, T)``, 1 / K_max, or one of 2 / K_max … 1 in bootstrap rows, each equally likely; and
        tau ``(B, T)``, uniform on 0, step, …, 1 − step.
    """
    exponents = K_MAX.bit_length() - 1
    step = torch.full((rows, frames), 1 / K_MAX)
    bootstrap = math.ceil(BOOTSTRAP_SHARE * rows)
    drawn = torch.randint(exponents, (bootstrap, frames), generator=generator)
    step[:bootstrap] = 0.5**drawn
    tau = torch.floor(torch.rand(rows, frames, generator=generator) / step) * step
    return step, tau


def shortcut_loss(
    denoise: Denoiser, clean: torch.Tensor, noise: torch.Tensor, tau: torch.Tensor, step: torch.Tensor
) -> torch.Tensor:
    """The shortcut-forcing loss (Dreamer 4, equations 6 to 8), averaged over rows, frames and latent numbers.

    With z̃ = (1 − τ) z₀ + τ z₁ and ẑ₁ = f(z̃, τ, d), a frame at the smallest step has the error ‖ẑ₁ − z₁‖², a larger
    step has (1 − τ)² ‖(ẑ₁ − z̃)/(1 − τ) − sg((b′ + b″)/2)‖², where b′ and b″ are the velocities of two half steps; both
    are weighted by 0.9 τ + 0.1.

    Args:
        denoise: f, from corrupted latents ``(B, T, N, C)``, tau and step to clean latents.
        clean: z₁, ``(B, T, N, C)``.
        noise: z₀, of the same shape.
        tau: ``(B, T)`` signal levels.
        step: ``(B, T)`` step sizes; every row is all 1 / K_max or all larger.
    """
    level = tau[..., None, None]
    corrupted = (1 - level) * noise + level * clean
    prediction = denoise(corrupted, tau, step)
    error = (prediction - clean).square().mean(dim=(2, 3))
    rows = (step > 1 / K_MAX).all(dim=1)
    if bool(rows.any()):
        target = _half_steps(denoise, corrupted[rows], tau[rows], step[rows])
        remaining = 1 - level[rows]
        velocity = (prediction[rows] - corrupted[rows]) / remaining
        bootstrap = (remaining.square() * (velocity - target).square()).mean(dim=(2, 3))
        error = error.masked_scatter(rows[:, None].expand_as(error), bootstrap)
    return ((0.9 * tau + 0.1) * error).mean()


@torch.no_grad()
def _half_steps(denoise: Denoiser, corrupted: torch.Tensor, tau: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Mean velocity of two steps of half the size, (b′ + b″) / 2, without gradient."""
    half = step / 2
    first = (denoise(corrupted, tau, half) - corrupted) / (1 - tau)[..., None, None]
    moved = corrupted + first * half[..., None, None]
    second = (denoise(moved, tau + half, half) - moved) / (1 - tau - half)[..., None, None]
    return (first + second) / 2


class ShortcutNetwork(EncodingNetwork):
    """Tokenizer latents of both frames, lightly corrupted, through the dynamics; its tokens for the last frame.

    Read at τ = 1 − 1 / K_max and the smallest step, with one fixed draw of noise for every clip and every run, under
    the null action. Layers 0 to 4 are the trunk's on the last frame twice, the following ones the dynamics'.
    """

    layers = len(CHANNELS) + DEPTH
    noise: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.bottleneck = nn.Conv2d(WIDTH, LATENT_CHANNELS, 1)
        self.dynamics = Dynamics()
        shape = (1, 1, GRID * GRID, LATENT_CHANNELS)
        self.register_buffer("noise", torch.randn(shape, generator=torch_generator(0, "shortcut", "read noise")))

    def latents(self, frames: torch.Tensor) -> torch.Tensor:
        """Tokenizer latents ``(B, 16, 8, 8)`` in (−1, 1) of frames ``(B, 3, 64, 64)``."""
        return torch.tanh(self.bottleneck(self.trunk(still(frames))))

    def sequence(self, clip: torch.Tensor) -> torch.Tensor:
        """Tokenizer latents ``(B, T, 64, 16)`` of every frame of a clip ``(B, T, 3, 64, 64)``."""
        batch, frames = clip.shape[:2]
        latents = self.latents(clip.flatten(0, 1)).flatten(2).transpose(1, 2)
        return latents.reshape(batch, frames, GRID * GRID, LATENT_CHANNELS)

    def read(self, clip: torch.Tensor, layers: Sequence[int]) -> list[torch.Tensor]:
        """See :meth:`EncodingNetwork.read`; the trunk reads the last frame once more where its layers are wanted."""
        wanted = [layer % self.layers for layer in layers]
        read: dict[int, torch.Tensor] = {}
        if early := [layer for layer in wanted if layer < len(CHANNELS)]:
            read |= zip(early, self.trunk.read(still(clip[:, -1]), early), strict=True)
        if late := [layer for layer in wanted if layer >= len(CHANNELS)]:
            corrupted = (1 - READ_TAU) * self.noise + READ_TAU * self.sequence(clip)
            tau = torch.full(clip.shape[:2], READ_TAU, device=clip.device)
            step = torch.full(clip.shape[:2], 1 / K_MAX, device=clip.device)
            hidden = self.dynamics.read(corrupted, tau, step, [layer - len(CHANNELS) for layer in late])
            grids = [tokens[:, -1].transpose(1, 2).reshape(len(clip), -1, GRID, GRID) for tokens in hidden]
            read |= zip(late, grids, strict=True)
        return [read[layer] for layer in wanted]


class ShortcutForcing(Objective):
    """Masked-autoencoding tokenizer loss plus shortcut-forcing loss, each divided by its running RMS.

    The tokenizer reconstructs one frame per clip with p ~ U(0, 0.9) of its patches hidden; the dynamics, which costs
    more, trains on all four frames of every eighth clip.
    """

    name = "shortcut_forcing"
    source = "Hafner, Yan, Lillicrap, Dreamer 4, arXiv 2509.24527, equations 5 to 8"
    network_type = ShortcutNetwork
    network: ShortcutNetwork
    running: torch.Tensor

    def __init__(self, action_size: int = 0) -> None:
        super().__init__(action_size)
        self.decoder = PixelDecoder(inputs=LATENT_CHANNELS)
        # Running mean squares of the two losses and the number of steps behind them.
        self.register_buffer("running", torch.zeros(3))
        self._latest = torch.zeros(2)

    def loss(self, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """See :meth:`Objective.loss`."""
        tokenizer = self._tokenizer_loss(batch.frames[:, 1], generator)
        losses = torch.stack([tokenizer, self._dynamics_loss(batch, generator)])
        self._latest = losses.detach()
        return (losses / self._scale().clamp(min=1e-8)).sum()

    def after_step(self, progress: float) -> None:
        """Update the running mean squares of the losses."""
        self.running = torch.cat([self._mean_squares(), self.running[2:] + 1])

    def _mean_squares(self) -> torch.Tensor:
        return RMS_MOMENTUM * self.running[:2] + (1 - RMS_MOMENTUM) * self._latest.square()

    def _scale(self) -> torch.Tensor:
        """Running RMS of both losses, the present ones included, corrected for the average's start at zero."""
        return (self._mean_squares() / (1 - RMS_MOMENTUM ** (self.running[2] + 1))).sqrt()

    def _tokenizer_loss(self, frame: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        ratio = MAX_MASK_RATIO * torch.rand(len(frame), generator=generator)
        hidden = hide(frame, random_mask(len(frame), ratio, generator, frame.device))
        return nn.functional.mse_loss(self.decoder(self.network.latents(hidden)), frame)

    def _dynamics_loss(self, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        clips = batch.frames[: max(1, len(batch.frames) // DYNAMICS_SHARE)]
        with torch.no_grad():
            clean = self.network.sequence(clips)
        noise = torch.randn(clean.shape, generator=generator).to(clean.device)
        step, tau = (drawn.to(clean.device) for drawn in draw_levels(clean.shape[0], clean.shape[1], generator))
        return shortcut_loss(self.network.dynamics, clean, noise, tau, step)
