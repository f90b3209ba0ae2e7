"""Features of latent diffusion models: a frozen denoiser's blocks on slightly noised latents of each frame.

Sources: latent diffusion (arXiv 2112.10752), DiT (2212.09748), features of a UNet's blocks at a chosen noise level as
in *Emergent Correspondence from Image Diffusion* (2306.03881), whose block and step for Stable Diffusion are the
defaults here. Opened are folders that a pipeline of diffusers was saved to: the denoiser, its autoencoder, its noise
schedule and, for text-conditioned ones, the text encoder, which is asked once for the empty text.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import torch
from torch import nn

from latentgym.artifacts import read_json
from latentgym.encoders.autoencoders import WEIGHTS, encode_maps, load_diffusers_model
from latentgym.encoders.contract import EncoderSpec, Latents
from latentgym.encoders.frozen import AllRead, FrozenEncoder, weights_digest
from latentgym.encoders.hub import fetch_snapshot
from latentgym.encoders.torchvision_fallback import ensure_torchvision
from latentgym.encoders.transformers_folder import HALF, check_weights
from latentgym.errors import LatentGymError, UnknownNameError, require
from latentgym.seeding import torch_generator

# Subfolder of a pipeline -> class of its denoiser.
DENOISERS = {"unet": "UNet2DConditionModel", "transformer": "DiTTransformer2DModel"}
# Every subfolder that is read.
PARTS = (*DENOISERS, "vae", "scheduler", "text_encoder", "tokenizer")
STEP = 261
_FILES = (
    "model_index.json",
    "*/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/*",
    "text_encoder/model.safetensors",
    f"vae/{WEIGHTS}",
    f"unet/{WEIGHTS}",
    f"transformer/{WEIGHTS}",
)
# Conditions of a UNet, by configuration entry, that nothing stands in for.
_UNSUPPORTED = ("addition_embed_type", "class_embed_type", "num_class_embeds", "time_cond_proj_dim")


@dataclasses.dataclass(frozen=True)
class Reading:
    """What is read of a denoiser.

    Attributes:
        block: submodule whose output is the encoder's, such as ``"mid_block"``, ``"up_blocks.1"`` or
            ``"transformer_blocks.13"``; by default the second up block of a UNet and the middle block of a transformer.
        step: noise level, a step of the training schedule from 0 (none to speak of).
        seed: seed of the noise, which is one and the same for every frame of every clip.
    """

    block: str = ""
    step: int = STEP
    seed: int = 0


def parse_reading(options: str) -> Reading:
    """A reading from ``"block=up_blocks.1&step=261&seed=0"``, any of them left out.

    Raises:
        LatentGymError: on an unknown option or a value that is no whole number.

    >>> parse_reading("block=mid_block&step=50")
    Reading(block='mid_block', step=50, seed=0)
    """
    values: dict[str, Any] = dict(parse_qsl(options, keep_blank_values=True))
    for name, value in values.items():
        if name not in ("block", "step", "seed"):
            raise UnknownNameError("diffusion option", name, ("block", "step", "seed"))
        if name != "block":
            if not value.isdecimal():
                raise LatentGymError(f"diffusion option {name}: expected a whole number, found {value!r}")
            values[name] = int(value)
    return Reading(**values)


class Denoiser(nn.Module):
    """Autoencoder and denoiser up to the block that is read, with the noise and conditions that never change.

    Args:
        vae: an ``AutoencoderKL``; its decoder is dropped.
        network: the denoiser, cut off after the block.
        schedule: noise schedule with ``add_noise``.
        text: embedding ``(1, L, D)`` of the empty text, ``None`` for class-conditioned denoisers.
        noise: ``(1, C, h, w)``.
        step: noise level.
    """

    noise: torch.Tensor
    text: torch.Tensor | None

    def __init__(
        self, vae: Any, network: Any, schedule: Any, text: torch.Tensor | None, noise: torch.Tensor, step: int
    ) -> None:
        super().__init__()
        vae.decoder, vae.post_quant_conv = nn.Identity(), nn.Identity()
        self.vae, self.network, self.schedule, self.step = vae, network, schedule, step
        self.register_buffer("noise", noise)
        self.register_buffer("text", text)

    def latents(self, pixels: torch.Tensor) -> torch.Tensor:
        """Noised latents ``(B, C, h, w)`` of pixels ``(B, 3, S, S)`` in [−1, 1]."""
        config = self.vae.config
        clean = (encode_maps(self.vae, pixels) - (config.shift_factor or 0.0)) * config.scaling_factor
        steps = torch.full((len(pixels),), self.step, device=pixels.device)
        noised: torch.Tensor = self.schedule.add_noise(clean, self.noise.expand_as(clean), steps)
        return noised

    def forward(self, pixels: torch.Tensor) -> None:
        """Run the denoiser on noised latents; blocks are read by hooks."""
        latents = self.latents(pixels)
        if self.text is not None:
            self.network(latents, self.step, encoder_hidden_states=self.text.expand(len(latents), -1, -1))
            return
        labels = torch.full((len(latents),), self.network.config.num_embeds_ada_norm, device=latents.device)
        steps = torch.full((len(latents),), self.step, device=latents.device)
        self.network(latents, timestep=steps, class_labels=labels)


class DiffusionEncoder(FrozenEncoder):
    """Each frame's features at a denoiser's block; layers are the blocks up to the one that was chosen.

    Args:
        spec: the spec; width, grid and number of layers are filled in from a first pass.
        model: the denoiser.
        blocks: names of the blocks in the order of computation.
    """

    model: Denoiser

    def __init__(self, spec: EncoderSpec, model: Denoiser, blocks: Sequence[str]) -> None:
        self.blocks = tuple(blocks)
        super().__init__(dataclasses.replace(spec, layers=len(blocks)), model)
        with torch.inference_mode():
            (latents,) = self.forward_layers(torch.zeros(1, 1, 3, spec.image_size, spec.image_size), (-1,))
        count, width = latents.tokens.shape[2:]
        side = round(count**0.5)
        self.spec = dataclasses.replace(self.spec, embed_dim=width, grid=(side, side))

    def forward(self, clip: torch.Tensor, layer: int) -> Latents:
        """Tokens of ``(B, T, 3, S, S)``, T' = T."""
        return self.forward_layers(clip, (layer,))[0]

    def forward_layers(self, clip: torch.Tensor, layers: Sequence[int]) -> list[Latents]:
        """Tokens of several blocks from one pass."""
        batch, time = clip.shape[:2]
        outputs: dict[str, torch.Tensor] = {}
        wanted = [self.blocks[layer] for layer in layers]

        def keep(name: str) -> Any:
            def hook(_module: nn.Module, _inputs: object, output: Any) -> None:
                # Down blocks return what they hand to the up blocks besides.
                outputs[name] = output[0] if isinstance(output, tuple) else output
                if len(outputs) == len(handles):
                    raise AllRead

            return hook

        network = self.model.network
        handles = [network.get_submodule(name).register_forward_hook(keep(name)) for name in set(wanted)]
        try:
            with contextlib.suppress(AllRead):
                self.model(clip.flatten(0, 1).to(self.dtype))
        finally:
            for handle in handles:
                handle.remove()
        found = []
        for layer, name in zip(layers, wanted, strict=True):
            output = outputs[name].float()
            tokens = output.flatten(2).transpose(1, 2) if output.ndim == 4 else output
            found.append(Latents(tokens.reshape(batch, time, *tokens.shape[1:]), torch.arange(time), layer))
        return found


def denoiser_of(folder: Path) -> str | None:
    """Subfolder that holds the denoiser of a pipeline's folder, ``None`` if it is no such folder."""
    for name, model_class in DENOISERS.items():
        path = folder / name / "config.json"
        config = read_json(path) if path.is_file() else {}
        if isinstance(config, dict) and config.get("_class_name") == model_class:
            return name
    return None


def load_diffusion(source: str, *, reading: Reading | None = None, image_size: int | None = None) -> DiffusionEncoder:
    """Open the denoiser of a pipeline, in float32 on the CPU.

    Args:
        source: a folder that a pipeline's ``save_pretrained`` wrote, with ``unet`` or ``transformer``, ``vae``,
            ``scheduler`` and, for a UNet, ``text_encoder`` and ``tokenizer``; or a hub id.
        reading: block, noise level and seed.
        image_size: side that frames are resized to; the denoiser's ``sample_size`` in pixels by default.

    Raises:
        LatentGymError: if the folder is incomplete or damaged, its denoiser is not supported, or block, step or size
            do not fit.
    """
    folder, revision = Path(source).expanduser(), ""
    if not folder.is_dir():
        advice = "fetch the pipeline's folders (unet or transformer, vae, scheduler, text_encoder, tokenizer) of "
        repository = source.partition("@")[0]
        folder = fetch_snapshot(
            source, f"{advice}https://huggingface.co/{repository} elsewhere and pass theirs", _FILES
        )
        revision = folder.name
    part = denoiser_of(folder)
    if part is None:
        expected = " or ".join(f"{name}/ with a {model_class}" for name, model_class in DENOISERS.items())
        raise LatentGymError(f"{folder} holds no diffusion model: expected {expected}")
    for subfolder in (part, "vae"):
        if not (folder / subfolder / "config.json").is_file():
            raise LatentGymError(f"{folder} lacks {subfolder}/config.json; save the whole pipeline")
        check_weights(folder / subfolder, WEIGHTS)
    network = load_diffusers_model(folder / part, DENOISERS[part])
    vae = load_diffusers_model(folder / "vae", "AutoencoderKL")
    reading = reading or Reading()
    blocks = _cut(network, reading.block or _default_block(network), folder)
    reading = dataclasses.replace(reading, block=blocks[-1])
    side = 2 ** (len(vae.config.block_out_channels) - 1)
    size = _size(network, side, image_size, folder)
    noise = torch.randn(
        (1, vae.config.latent_channels, size // side, size // side),
        generator=torch_generator(reading.seed, "diffusion features", "noise"),
    )
    text = _empty_text(folder) if part == "unet" else None
    model = Denoiser(vae, network, _schedule(folder, reading.step), text, noise, reading.step)
    spec = EncoderSpec(
        name=f"{folder.name if not revision else source.partition('/')[2]}:{blocks[-1]}@{reading.step}",
        family="latent_diffusion",
        source=f"diffusion:{source}?block={blocks[-1]}&step={reading.step}&seed={reading.seed}",
        revision=revision,
        image_size=size,
        mean=HALF,
        std=HALF,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        weights_digest=weights_digest(model, {"reading": reading, "network": _facts(network), "vae": _facts(vae)}),
    )
    return DiffusionEncoder(spec, model, blocks)


def _facts(model: Any) -> dict[str, Any]:
    return {key: value for key, value in dict(model.config).items() if not key.startswith("_")}


def _block_names(network: Any) -> list[str]:
    if hasattr(network, "transformer_blocks"):
        return [f"transformer_blocks.{number}" for number in range(len(network.transformer_blocks))]
    down = [f"down_blocks.{number}" for number in range(len(network.down_blocks))]
    return [*down, "mid_block", *(f"up_blocks.{number}" for number in range(len(network.up_blocks)))]


def _default_block(network: Any) -> str:
    names = _block_names(network)
    ups = [name for name in names if name.startswith("up_blocks")]
    return ups[min(1, len(ups) - 1)] if ups else names[(len(names) - 1) // 2]


def _cut(network: Any, block: str, folder: Path) -> list[str]:
    """Drop everything after ``block``, so that it is neither computed nor kept; the blocks that are left."""
    names = _block_names(network)
    if block not in names:
        raise UnknownNameError(f"block of {folder.name}", block, names)
    kept = names[: names.index(block) + 1]
    if hasattr(network, "transformer_blocks"):
        network.transformer_blocks = network.transformer_blocks[: len(kept)]
        return kept
    conditions = [key for key in _UNSUPPORTED if network.config.get(key) is not None]
    if conditions:
        raise LatentGymError(
            f"{folder}: a UNet conditioned by {', '.join(conditions)} is not supported, only one on text alone"
        )
    network.down_blocks = network.down_blocks[: sum(name.startswith("down") for name in kept)]
    network.up_blocks = network.up_blocks[: sum(name.startswith("up") for name in kept)]
    if "mid_block" not in kept:
        network.mid_block = None
    network.conv_norm_out, network.conv_out = None, nn.Identity()
    return kept


def _size(network: Any, side: int, requested: int | None, folder: Path) -> int:
    """Side of the frames: latents must fill patches, or halve as often as the UNet does."""
    config = network.config
    multiple = side * (config.patch_size if "patch_size" in config else 2 ** (len(config.block_out_channels) - 1))
    size = requested or int(config.sample_size or 64) * side
    if size % multiple:
        raise LatentGymError(
            f"{folder.name}: image_size {size} is no multiple of {multiple} pixels; the nearest is "
            f"{max(1, round(size / multiple)) * multiple}"
        )
    return size


def _schedule(folder: Path, step: int) -> Any:
    """The training noise schedule, by diffusers' own arithmetic whatever sampler the pipeline names."""
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        raise LatentGymError(f"{folder} lacks scheduler/scheduler_config.json; save the whole pipeline")
    known = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
    config = {key: value for key, value in read_json(path).items() if key in known}
    schedule = require("diffusers", "diffusers").DDPMScheduler.from_config(config)
    if not 0 <= step < schedule.config.num_train_timesteps:
        raise LatentGymError(f"{folder.name}: steps are 0 … {schedule.config.num_train_timesteps - 1}, not {step}")
    return schedule


def _empty_text(folder: Path) -> torch.Tensor:
    """Embedding ``(1, L, D)`` of the empty text by the pipeline's own text encoder."""
    if not (folder / "text_encoder" / "config.json").is_file() or not (folder / "tokenizer").is_dir():
        raise LatentGymError(
            f"{folder} lacks text_encoder/ or tokenizer/, which give the embedding of the empty text; save the whole "
            "pipeline"
        )
    check_weights(folder / "text_encoder")
    ensure_torchvision()
    transformers = require("transformers", "hf")
    try:
        tokenizer = transformers.CLIPTokenizer.from_pretrained(str(folder / "tokenizer"), local_files_only=True)
        model = transformers.CLIPTextModel.from_pretrained(
            str(folder / "text_encoder"), local_files_only=True, use_safetensors=True, dtype=torch.float32
        ).eval()
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise LatentGymError(f"transformers cannot open the text encoder of {folder}: {error}") from error
    length = model.config.max_position_embeddings
    tokens = tokenizer("", padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        embedding: torch.Tensor = model(tokens.input_ids).last_hidden_state
    return embedding.clone()
