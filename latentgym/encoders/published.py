"""Published encoders under short names; each is opened by its real class from the hub, the hub's cache or a folder.

Parameters are those of the part that encodes, in millions, as published. A short name opens the revision that is pinned
here, ``owner/name`` whichever is newest or in the hub's cache, ``owner/name@revision`` another; ``spec.revision`` says
which it was.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any

from latentgym.encoders.hub import cached_repository

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

    @property
    def revision(self) -> str:
        """Commit or reference that is fetched; empty where none is known, and then the newest is."""
        return REVISIONS.get(self.hub_id, "")

    @property
    def pinned(self) -> str:
        """``owner/name@revision``."""
        return f"{self.hub_id}@{self.revision}" if self.revision else self.hub_id


_DINO = ("image_ssl", "Apache-2.0")
_VJEPA = ("VJEPA2Model", "masked_video_latent", "MIT")
_VIDEOMAE = ("VideoMAEModel", "masked_video", NON_COMMERCIAL)
# Pretrained likewise, then fine-tuned on Kinetics-400's labels.
_KINETICS = ("VideoMAEModel", "supervised_video", NON_COMMERCIAL)
_VAE = ("pixel_autoencoder", "MIT")
_DREAMER = ("Dreamer4Network", "shortcut_forcing", "MIT")

# Commits as public projects pin them; where the newest holds no safetensors, the hub's own conversion.
REVISIONS = {
    "facebook/vjepa2-vitl-fpc64-256": "b3c1679b7c34d3255ef3547f27c7b226aefab26f",
    "facebook/vjepa2-vith-fpc64-256": "b5eac8703e3efdc1547fbb6ddfbeb133dc0bdee5",
    "facebook/vjepa2-vitg-fpc64-256": "875c192b7b704b87d1e1d99345769632dd5f739a",
    "facebook/vjepa2-vitg-fpc64-384": "12ca91694b230e0d4b5b0078af6f4ae1d51e933d",
    "MCG-NJU/videomae-base": "dc740ceda42fce44faed2ea03c6d447db72f6af9",
    "MCG-NJU/videomae-large": "12da269a02d3e1fbbb7011e610e591fea8061dca",
    "MCG-NJU/videomae-small-finetuned-kinetics": "240e9734611173accbbf74cbdf4b641e4c431264",
    "facebook/dinov2-small": "ed25f3a31f01632728cabb09d1542f84ab7b0056",
    "facebook/dinov2-base": "f9e44c814b77203eaa57a6bdbbd535f21ede1415",
    "facebook/dinov2-large": "47b73eefe95e8d44ec3623f8890bd894b6ea2d6c",
    "facebook/dinov2-giant": "611a9d42f2335e0f921f1e313ad3c1b7178d206d",
    "facebook/dinov2-with-registers-small": "0d9846e56b43a21fa46d7f3f5070f0506a5795a9",
    "facebook/dinov2-with-registers-base": "a1d738ccfa7ae170945f210395d99dde8adb1805",
    "facebook/dinov2-with-registers-large": "e4c89a4e05589de9b3e188688a303d0f3c04d0f3",
    "facebook/webssl-dino300m-full2b-224": "8529cdb3fb75014932af3b896455fc21c386168e",
    "facebook/dinov3-vits16-pretrain-lvd1689m": "114c1379950215c8b35dfcd4e90a5c251dde0d32",
    "facebook/dinov3-vitb16-pretrain-lvd1689m": "5931719e67bbdb9737e363e781fb0c67687896bc",
    "facebook/dinov3-vitl16-pretrain-lvd1689m": "ea8dc2863c51be0a264bab82070e3e8836b02d51",
    "facebook/ijepa_vith14_1k": "f157467ea509bc356ff9f61fd3c0d840eec5e04e",
    "facebook/vit-mae-large": "142cb8c25e1b1bc1769997a919aa1b5a2345a6b8",
    "facebook/vit-mae-base": "25b184bea5538bf5c4c852c79d221195fdd2778d",
    "google/siglip2-base-patch16-224": "75de2d55ec2d0b4efc50b3e9ad70dba96a7b2fa2",
    "google/siglip2-base-patch16-naflex": "b53b807d3a2d5e2b3911292f2d69e5341cdc064c",
    "openai/clip-vit-base-patch32": "c237dc49a33fc61debc9276459120b7eac67e7ef",
    "openai/clip-vit-base-patch16": "5ef227a78de3f75873f373246dac80def63b0003",
    "openai/clip-vit-large-patch14": "32bd64288804d66eefd0ccbe215aa642df71cc41",
    "stabilityai/sd-vae-ft-mse": "31f26fdeee1355a5c34592e401dd41e45d25a493",
    "stabilityai/sdxl-vae": "6f5909a7e596173e25d4e97b07fd19cdf9611c76",
    "facebook/DiT-XL-2-256": "refs/pr/1",
    "madebyollin/taesd": "614f76814bbe30edbe2e627ace1c2234c81a2c0e",
    "madebyollin/taesdxl": "b20258aaef75ef61e659c1e0f14f251cf0ad153e",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
    "nicklashansen/dreamer4": "10e04fce900745e266ab68925b6779831551f157",
}

PUBLISHED = {
    "vjepa2-l-256": Published("facebook/vjepa2-vitl-fpc64-256", *_VJEPA, 304, 256),
    "vjepa2-h-256": Published("facebook/vjepa2-vith-fpc64-256", *_VJEPA, 632, 256),
    "vjepa2-g-256": Published("facebook/vjepa2-vitg-fpc64-256", *_VJEPA, 1012, 256),
    "vjepa2-g-384": Published("facebook/vjepa2-vitg-fpc64-384", *_VJEPA, 1012, 384),
    "videomae-s": Published("MCG-NJU/videomae-small", *_VIDEOMAE, 22, 224),
    "videomae-b": Published("MCG-NJU/videomae-base", *_VIDEOMAE, 86, 224),
    "videomae-l": Published("MCG-NJU/videomae-large", *_VIDEOMAE, 304, 224),
    "videomae-s-kinetics": Published("MCG-NJU/videomae-small-finetuned-kinetics", *_KINETICS, 22, 224),
    "videomae-h-kinetics": Published("MCG-NJU/videomae-huge-finetuned-kinetics", *_KINETICS, 632, 224),
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
            "revision": entry.revision,
            "licence": entry.licence,
            "parameters": round(entry.parameters_m * 1e6),
            "image_size": entry.image_size,
            "weights": "here" if weights_are_here(entry.pinned) else "to download",
            "description": f"Opened as {entry.model_class}.",
        }
        for name, entry in PUBLISHED.items()
    ]
    return sorted(rows, key=lambda row: str(row["family"]))


def weights_are_here(hub_id: str) -> bool:
    """Whether the hub's local cache holds weights of ``owner/name`` or ``owner/name@revision``."""
    if importlib.util.find_spec("huggingface_hub") is None:
        return False
    repository, _, revision = hub_id.partition("@")
    snapshots = cached_repository(repository) / "snapshots"
    patterns = ("*.safetensors", "*/*.safetensors", "tokenizer*.pt")
    commit = "*" if not revision or revision.startswith("refs/") else revision
    conversion = cached_repository(repository) / "refs" / "safetensors-of" / commit
    if conversion.is_file():
        commit = conversion.read_text()
    return any(any(snapshots.glob(f"{commit}/{pattern}")) for pattern in patterns)
