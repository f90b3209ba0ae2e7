"""Pretraining objectives, one per family, on one shared trunk."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from latentgym.encoders.objectives.diffusion import Diffusion
from latentgym.encoders.objectives.image_ssl import ImageSSL
from latentgym.encoders.objectives.inverse_dynamics import InverseDynamics
from latentgym.encoders.objectives.masked_image import MaskedImage
from latentgym.encoders.objectives.masked_video import MaskedVideo
from latentgym.encoders.objectives.masked_video_latent import MaskedVideoLatent
from latentgym.encoders.objectives.next_latent import NextLatent
from latentgym.encoders.objectives.objective import CLIP_FRAMES, Batch, Objective
from latentgym.encoders.objectives.pixel_autoencoder import PixelAutoencoder
from latentgym.encoders.objectives.shortcut_forcing import ShortcutForcing

OBJECTIVES: Mapping[str, type[Objective]] = MappingProxyType(
    {
        objective.name: objective
        for objective in (
            PixelAutoencoder,
            MaskedImage,
            ImageSSL,
            MaskedVideo,
            MaskedVideoLatent,
            NextLatent,
            Diffusion,
            ShortcutForcing,
            InverseDynamics,
        )
    }
)

__all__ = ["CLIP_FRAMES", "OBJECTIVES", "Batch", "Objective"]
