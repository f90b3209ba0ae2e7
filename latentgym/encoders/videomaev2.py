"""VideoMAE V2 by its published state dicts, in the VideoMAE class of transformers, which is the same architecture.

Source: VideoMAE V2 (arXiv 2303.16727; https://github.com/OpenGVLab/VideoMAEv2). Read are the distilled and fine-tuned
checkpoints, which normalise only the mean over tokens (so that the last block's tokens are taken as they are, as
transformers does), and pretraining checkpoints, whose decoder is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from latentgym.encoders.checkpoints import State, block_count, fill, part_with, rename, require_names
from latentgym.encoders.contract import EncoderSpec
from latentgym.encoders.frozen import weights_digest
from latentgym.encoders.huggingface import HuggingFaceEncoder
from latentgym.encoders.torchvision_fallback import ensure_torchvision
from latentgym.encoders.transformers_folder import IMAGENET_MEAN, IMAGENET_STD
from latentgym.errors import LatentGymError, require

TITLE = "VideoMAE V2"
ANCHOR = "patch_embed.proj.weight"
IMAGE_SIZE, FRAMES = 224, 16
EPSILON = 1e-6
# Heads by width where they are not a head for every 64 channels (huge and giant).
HEADS = {1280: 16, 1408: 16}
HEAD_WIDTH = 64
VIDEO_KERNEL_NDIM = 5
# The classifier, the norm of the mean over tokens, and the decoder of pretraining.
UNUSED = ("head.", "fc_norm.", "pos_embed", "mask_token", "decoder.", "encoder_to_decoder.")
# Published name -> transformers' name.
RENAMED = (
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^blocks\.", "encoder.layer."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.attn\.q_bias$", ".attention.attention.query.bias"),
    (r"\.attn\.v_bias$", ".attention.attention.value.bias"),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"^norm\.", "layernorm."),
)


def build_videomaev2(
    state: State, options: Mapping[str, Any], *, name: str, image_size: int | None = None
) -> HuggingFaceEncoder:
    """Make the encoder of a state dict, in float32 on the CPU; its sizes are read off the weights.

    Args:
        state: weights, named as published.
        options: those of the hub's ``model_config`` that weights do not tell: ``img_size`` (224), ``num_frames`` (16)
            and ``num_heads``.
        name: name of the encoder.
        image_size: side of the frames; only the checkpoint's own.

    Raises:
        LatentGymError: if the weights are those of another architecture or a size does not fit.
    """
    ensure_torchvision()
    transformers = require("transformers", "hf")
    part = part_with(state, ANCHOR)
    require_names(part, TITLE, ANCHOR, "blocks.0.attn.q_bias", "blocks.0.mlp.fc1.weight")
    if part[ANCHOR].ndim != VIDEO_KERNEL_NDIM:
        raise LatentGymError(f"the checkpoint is not of {TITLE}: its patches are of images, not of videos")
    options = {**options, **options.get("model_config", {})}
    width, _, tubelet, patch, _ = part[ANCHOR].shape
    size, frames = int(options.get("img_size", IMAGE_SIZE)), int(options.get("num_frames", FRAMES))
    _check_sizes(size, frames, patch, tubelet, image_size)
    depth = block_count(part, r"blocks\.(\d+)\.")
    config = transformers.VideoMAEConfig(
        image_size=size,
        patch_size=patch,
        num_frames=frames,
        tubelet_size=tubelet,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=int(options.get("num_heads", HEADS.get(width, max(1, width // HEAD_WIDTH)))),
        intermediate_size=part["blocks.0.mlp.fc1.weight"].shape[0],
        layer_norm_eps=EPSILON,
        use_mean_pooling="norm.weight" not in part,
        attn_implementation="sdpa",
    )
    with torch.device("meta"):
        model = transformers.VideoMAEModel(config)
    fill(model, _key_biases(model) | _renamed(part), TITLE, unused=UNUSED)
    spec = EncoderSpec(
        name=name,
        family="masked_video",
        image_size=size,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        clip_length=frames,
        tubelet=tubelet,
        temporal=True,
        embed_dim=width,
        grid=(size // patch, size // patch),
        layers=depth,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        weights_digest=weights_digest(model, {"videomaev2": [size, frames, config.num_attention_heads]}),
    )
    return HuggingFaceEncoder(spec, model, prefix_tokens=0)


def _check_sizes(size: int, frames: int, patch: int, tubelet: int, requested: int | None) -> None:
    if requested not in (None, size):
        raise LatentGymError(
            f"{TITLE} only takes frames of {size} pixels, its position embeddings fit no other size; image_size was "
            f"{requested}"
        )
    if size < patch or size % patch or frames < tubelet or frames % tubelet:
        raise LatentGymError(
            f"clips of {frames} frames of {size} pixels do not fit tubelets of {tubelet} frames and {patch} pixels"
        )


def _renamed(part: State) -> dict[str, torch.Tensor]:
    """The state by transformers' names, with the joint projection cut into query, key and value."""
    renamed = {}
    for published, value in part.items():
        name = rename(published, RENAMED)
        layer, joint, _ = name.partition("attn.qkv.weight")
        if joint:
            for target, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
                renamed[f"{layer}attention.attention.{target}.weight"] = piece
        else:
            renamed[name] = value
    return renamed


def _key_biases(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Zero biases of keys, which some releases of transformers have and the architecture has not."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    return {name: torch.zeros(shape) for name, shape in shapes.items() if name.endswith(".attention.key.bias")}
