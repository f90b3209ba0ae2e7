"""Image encoders pretrained for robots, R3M and VC-1, by their published state dicts, in timm's network classes.

Sources: R3M (arXiv 2203.12601; https://github.com/facebookresearch/r3m), a ResNet of torchvision's layout whose
feature is the mean over the last map; VC-1 (arXiv 2303.18240; https://github.com/facebookresearch/eai-vc), a ViT
pretrained as a masked autoencoder, decoder left out, whose feature is the CLS token behind the final norm.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from torch import nn

from latentgym.encoders.checkpoints import State, block_count, fill, part_with, require_names
from latentgym.encoders.contract import EncoderSpec
from latentgym.encoders.frozen import weights_digest
from latentgym.encoders.timm_models import TimmEncoder
from latentgym.encoders.torchvision_fallback import ensure_torchvision
from latentgym.encoders.transformers_folder import IMAGENET_MEAN, IMAGENET_STD
from latentgym.errors import LatentGymError, require

R3M, VC1 = "R3M", "VC-1"
R3M_ANCHOR, VC1_ANCHOR = "layer1.0.conv1.weight", "patch_embed.proj.weight"
IMAGE_SIZE = 224
RESNET_STRIDE = 32
HEAD_WIDTH = 64
IMAGE_KERNEL_NDIM = 4
EPSILON = 1e-6


def build_r3m(state: State, options: Mapping[str, Any], *, name: str, image_size: int | None = None) -> TimmEncoder:
    """Make R3M of a state dict, in float32 on the CPU; depth and kind of blocks are read off the weights.

    Args:
        state: weights, named as published.
        options: ``image_size`` (224).
        name: name of the encoder.
        image_size: side of the frames, 32 pixels at least.

    Raises:
        LatentGymError: if the weights are those of another architecture or the frames are too small.
    """
    part = part_with(state, R3M_ANCHOR)
    require_names(part, R3M, R3M_ANCHOR, "conv1.weight", "layer4.0.conv1.weight")
    size = image_size or int(options.get("image_size", IMAGE_SIZE))
    if size < RESNET_STRIDE:
        raise LatentGymError(f"image_size {size} is too small: {R3M} needs {RESNET_STRIDE} pixels at least")
    ensure_torchvision()
    resnet = require("timm.models.resnet", "timm")
    block = resnet.Bottleneck if "layer1.0.conv3.weight" in part else resnet.BasicBlock
    depths = tuple(block_count(part, rf"layer{stage}\.(\d+)\.") for stage in range(1, 5))
    model = resnet.ResNet(block, depths, num_classes=0)
    fill(model, part, R3M, unused=("fc.",))
    return _encoder(name, "time_contrastive", size, model, "mean")


def build_vc1(state: State, options: Mapping[str, Any], *, name: str, image_size: int | None = None) -> TimmEncoder:
    """Make VC-1 of a state dict, in float32 on the CPU; its sizes are read off the weights.

    Args:
        state: weights, named as published.
        options: ``num_attention_heads`` (a head for every 64 channels).
        name: name of the encoder.
        image_size: side of the frames, a multiple of the patch; the position embeddings are resampled.

    Raises:
        LatentGymError: if the weights are those of another architecture or the size does not fit.
    """
    part = part_with(state, VC1_ANCHOR)
    require_names(part, VC1, VC1_ANCHOR, "cls_token", "pos_embed", "blocks.0.mlp.fc1.weight")
    if part[VC1_ANCHOR].ndim != IMAGE_KERNEL_NDIM:
        raise LatentGymError(f"the checkpoint is not of {VC1}: its patches span several frames")
    ensure_torchvision()
    transformer = require("timm.models.vision_transformer", "timm")
    width, _, patch, _ = part[VC1_ANCHOR].shape
    own = round(float(part["pos_embed"].shape[1] - 1) ** 0.5) * patch
    size = image_size or own
    if size < patch or size % patch:
        raise LatentGymError(f"image_size {size} does not fit: expected a multiple of its patches of {patch} pixels")
    model = transformer.VisionTransformer(
        img_size=own,
        patch_size=patch,
        num_classes=0,
        embed_dim=width,
        depth=block_count(part, r"blocks\.(\d+)\."),
        num_heads=int(options.get("num_attention_heads", max(1, width // HEAD_WIDTH))),
        mlp_ratio=part["blocks.0.mlp.fc1.weight"].shape[0] / width,
        norm_layer=functools.partial(nn.LayerNorm, eps=EPSILON),
        weight_init="skip",
    )
    fill(model, part, VC1, unused=("decoder", "mask_token", "head."))
    if size != own:
        model.set_input_size(img_size=(size, size))
    return _encoder(name, "masked_image", size, model, "cls")


def _encoder(name: str, family: str, size: int, model: nn.Module, pooling: str) -> TimmEncoder:
    spec = EncoderSpec(
        name=name,
        family=family,
        image_size=size,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        pooling=pooling,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        weights_digest=weights_digest(model, {"robot_image": family}),
    )
    return TimmEncoder(spec, model)
