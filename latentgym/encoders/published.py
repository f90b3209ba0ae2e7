"""Published encoders under short names; each is opened by its real class from the hub, the hub's cache or a folder.

Parameters are those of the part that encodes, in millions, as published. No revision is pinned: the one that was
opened is recorded in ``spec.revision``; ``owner/name@revision`` pins one.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

NON_COMMERCIAL = "CC-BY-NC-4.0"


@dataclasses.dataclass(frozen=True)
class Published:
    """One published encoder.

    Attributes:
        hub_id: repository on the Hugging Face hub.
        model_class: class of transformers or diffusers that opens it.
        family: pretraining family.
        licence: licence of the weights.
        parameters_m: parameters used when encoding, in millions.
        image_size: side of the frames in pixels.
        opener: registered name that opens it as ``<opener>:<hub_id>``; ``""`` for a folder of a single model.
    """

    hub_id: str
    model_class: str
    family: str
    licence: str
    parameters_m: float
    image_size: int
    opener: str = ""


_DINO = ("image_ssl", "Apache-2.0")
_VJEPA = ("VJEPA2Model", "masked_video_latent", "MIT")
_VIDEOMAE = ("VideoMAEModel", "masked_video", NON_COMMERCIAL)
_VAE = ("pixel_autoencoder", "MIT")
_DREAMER = ("Dreamer4Network", "shortcut_forcing", "MIT")

PUBLISHED = {
    "vjepa2-l-256": Published("facebook/vjepa2-vitl-fpc64-256", *_VJEPA, 304, 256),
    "vjepa2-h-256": Published("facebook/vjepa2-vith-fpc64-256", *_VJEPA, 632, 256),
    "vjepa2-g-256": Published("facebook/vjepa2-vitg-fpc64-256", *_VJEPA, 1012, 256),
    "vjepa2-g-384": Published("facebook/vjepa2-vitg-fpc64-384", *_VJEPA, 1012, 384),
    "videomae-s": Published("MCG-NJU/videomae-small", *_VIDEOMAE, 22, 224),
    "videomae-b": Published("MCG-NJU/videomae-base", *_VIDEOMAE, 86, 224),
    "videomae-l": Published("MCG-NJU/videomae-large", *_VIDEOMAE, 304, 224),
    "dinov2-s": Published("facebook/dinov2-small", "Dinov2Model", *_DINO, 22, 224),
    "dinov2-b": Published("facebook/dinov2-base", "Dinov2Model", *_DINO, 86, 224),
    "dinov2-l": Published("facebook/dinov2-large", "Dinov2Model", *_DINO, 304, 224),
    "dinov2-g": Published("facebook/dinov2-giant", "Dinov2Model", *_DINO, 1136, 224),
    "dinov2-registers-s": Published(
        "facebook/dinov2-with-registers-small", "Dinov2WithRegistersModel", *_DINO, 22, 224
    ),
    "dinov2-registers-b": Published("facebook/dinov2-with-registers-base", "Dinov2WithRegistersModel", *_DINO, 86, 224),
    "dinov2-registers-l": Published(
        "facebook/dinov2-with-registers-large", "Dinov2WithRegistersModel", *_DINO, 304, 224
    ),
    "web-dino-300m": Published(
        "facebook/webssl-dino300m-full2b-224", "Dinov2Model", "image_ssl", NON_COMMERCIAL, 304, 224
    ),
    "dinov3-s": Published(
        "facebook/dinov3-vits16-pretrain-lvd1689m", "DINOv3ViTModel", "image_ssl", "DINOv3 (gated)", 22, 224
    ),
    "dinov3-b": Published(
        "facebook/dinov3-vitb16-pretrain-lvd1689m", "DINOv3ViTModel", "image_ssl", "DINOv3 (gated)", 86, 224
    ),
    "dinov3-l": Published(
        "facebook/dinov3-vitl16-pretrain-lvd1689m", "DINOv3ViTModel", "image_ssl", "DINOv3 (gated)", 303, 224
    ),
    "ijepa-h": Published("facebook/ijepa_vith14_1k", "IJepaModel", "image_ssl", NON_COMMERCIAL, 631, 224),
    "vit-mae-b": Published("facebook/vit-mae-base", "ViTMAEModel", "masked_image", "Apache-2.0", 86, 224),
    "vit-mae-l": Published("facebook/vit-mae-large", "ViTMAEModel", "masked_image", "Apache-2.0", 304, 224),
    "vit-mae-h": Published("facebook/vit-mae-huge", "ViTMAEModel", "masked_image", "Apache-2.0", 631, 224),
    "siglip2-b": Published("google/siglip2-base-patch16-224", "SiglipVisionModel", "image_text", "Apache-2.0", 93, 224),
    "siglip2-b-naflex": Published(
        "google/siglip2-base-patch16-naflex", "Siglip2VisionModel", "image_text", "Apache-2.0", 93, 256
    ),
    "clip-b32": Published("openai/clip-vit-base-patch32", "CLIPVisionModel", "image_text", "MIT", 88, 224),
    "clip-b16": Published("openai/clip-vit-base-patch16", "CLIPVisionModel", "image_text", "MIT", 86, 224),
    "clip-l14": Published("openai/clip-vit-large-patch14", "CLIPVisionModel", "image_text", "MIT", 304, 224),
    "sd-vae": Published("stabilityai/sd-vae-ft-mse", "AutoencoderKL", *_VAE, 34, 256),
    "sdxl-vae": Published("stabilityai/sdxl-vae", "AutoencoderKL", *_VAE, 34, 1024),
    "taesd": Published("madebyollin/taesd", "AutoencoderTiny", *_VAE, 1.2, 256),
    "taesdxl": Published("madebyollin/taesdxl", "AutoencoderTiny", *_VAE, 1.2, 256),
    "sd15-unet": Published(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "UNet2DConditionModel",
        "latent_diffusion",
        "CreativeML OpenRAIL-M",
        860,
        512,
        "diffusion",
    ),
    "dit-xl-256": Published(
        "facebook/DiT-XL-2-256", "DiTTransformer2DModel", "latent_diffusion", NON_COMMERCIAL, 675, 256, "diffusion"
    ),
    "dreamer4-dmcontrol": Published("nicklashansen/dreamer4", *_DREAMER, 10.5, 128, "dreamer4"),
    "dreamer4-dmcontrol-dynamics": Published("nicklashansen/dreamer4", *_DREAMER, 52, 128, "dreamer4-dynamics"),
}


def published_rows() -> list[dict[str, Any]]:
    """One mapping per published encoder, by family: its facts and whether its weights are in the hub's cache."""
    rows = [
        {
            "name": name,
            "family": entry.family,
            "source": entry.hub_id,
            "licence": entry.licence,
            "parameters": round(entry.parameters_m * 1e6),
            "image_size": entry.image_size,
            "weights": "here" if weights_are_here(entry.hub_id) else "to download",
            "description": f"Opened as {entry.model_class}.",
        }
        for name, entry in PUBLISHED.items()
    ]
    return sorted(rows, key=lambda row: str(row["family"]))


def weights_are_here(hub_id: str) -> bool:
    """Whether the hub's local cache holds weights of ``hub_id``."""
    if importlib.util.find_spec("huggingface_hub") is None:
        return False
    from huggingface_hub import constants

    folder = f"models--{hub_id.replace('/', '--')}"
    snapshots = Path(constants.HF_HUB_CACHE) / folder / "snapshots"
    return any(any(snapshots.glob(pattern)) for pattern in ("*/*.safetensors", "*/*/*.safetensors", "*/*_ckpt.pt"))
