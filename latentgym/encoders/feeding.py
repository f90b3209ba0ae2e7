"""How frames are fed to a video encoder: its native clip, each frame duplicated, or causal sliding windows."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from latentgym.encoders.contract import Encoder, Latents
from latentgym.errors import UnknownNameError

FEEDINGS = ("native", "duplicated", "causal")


def feed(encoder: Encoder, feeding: str) -> Encoder:
    """``encoder`` with its frames fed in another way.

    Args:
        encoder: the encoder; one that looks at single frames is returned as it is.
        feeding: ``"native"``: whole clips. ``"duplicated"``: every frame by itself, repeated to fill the clip, tokens
            averaged over token times: what a video encoder knows without motion. ``"causal"``: for every frame t the
            window of the last L frames up to t, the first one repeated on the left, read at its last token time.
            With the latter two a clip may have any number T of frames, and T' = T.

    Raises:
        UnknownNameError: if there is no such feeding.
    """
    if feeding not in FEEDINGS:
        raise UnknownNameError("feeding", feeding, FEEDINGS)
    if feeding == "native" or encoder.spec.clip_length == 1:
        return encoder
    return FedEncoder(encoder, feeding)


def split_feeding(source: str) -> tuple[str, str]:
    """A source without the feeding at its end, and that feeding; a folder or file of the whole name comes first.

    >>> split_feeding("videomae-b+duplicated")
    ('videomae-b', 'duplicated')
    >>> split_feeding("encoders/image_ssl+id")
    ('encoders/image_ssl+id', 'native')
    """
    base, _, feeding = source.rpartition("+")
    if not base or feeding not in FEEDINGS or Path(source).expanduser().exists():
        return source, "native"
    return base, feeding


class FedEncoder(Encoder):
    """An encoder that is given one clip per frame; see :func:`feed`."""

    def __init__(self, encoder: Encoder, feeding: str) -> None:
        self.encoder, self.feeding = encoder, feeding
        self.device, self.concurrent = encoder.device, encoder.concurrent
        self.label_episodes = dict(encoder.label_episodes)
        spec = encoder.spec
        causal = feeding == "causal"
        self.spec = dataclasses.replace(
            spec,
            name=f"{spec.name}+{feeding}",
            clip_length=spec.clip_length if causal else 1,
            tubelet=1,
            temporal=spec.temporal and causal,
            weights_digest=hashlib.sha256(f"{feeding} {spec.weights_digest}".encode()).hexdigest(),
        )

    def to(self, device: str | torch.device) -> Encoder:
        """Move the encoder to ``device`` and return it."""
        self.encoder.to(device)
        return super().to(device)

    def forward(self, clip: torch.Tensor, layer: int) -> Latents:
        """Latents of ``(B, T, 3, S, S)``, any T; T' = T."""
        return self.forward_layers(clip, (layer,))[0]

    def forward_layers(self, clip: torch.Tensor, layers: Sequence[int]) -> list[Latents]:
        """Latents of several blocks from one pass per frame."""
        length, times = self.encoder.spec.clip_length, torch.arange(clip.shape[1])
        found: list[list[Latents]] = []
        for t in range(clip.shape[1]):
            past = (
                torch.arange(t - length + 1, t + 1).clamp(min=0)
                if self.feeding == "causal"
                else torch.full((length,), t)
            )
            found.append(self.encoder.forward_layers(clip[:, past], layers))
        results = []
        for index, layer in enumerate(layers):
            steps = [latents[index] for latents in found]
            prefixes = [self._read(step.prefix) for step in steps if step.prefix is not None]
            tokens = torch.stack([self._read(step.tokens) for step in steps], dim=1)
            results.append(Latents(tokens, times, layer, torch.stack(prefixes, dim=1) if prefixes else None))
        return results

    def _read(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens[:, -1] if self.feeding == "causal" else tokens.mean(dim=1)
