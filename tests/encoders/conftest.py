"""Tiny models of every published class, with random weights, saved by their own library."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from latentgym.encoders.published_files import KINDS
from latentgym.encoders.torchvision_fallback import ensure_torchvision

_SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
_DINO = {**_SMALL, "image_size": 42, "patch_size": 14, "mlp_ratio": 2}
_IMAGE = {**_SMALL, "intermediate_size": 24, "image_size": 32, "patch_size": 8}
# Class -> class of its configuration and the configuration.
TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Dinov2Model": ("Dinov2Config", _DINO),
    "Dinov2WithRegistersModel": ("Dinov2WithRegistersConfig", {**_DINO, "num_register_tokens": 4}),
    "DINOv3ViTModel": ("DINOv3ViTConfig", {**_IMAGE, "num_register_tokens": 4}),
    "IJepaModel": ("IJepaConfig", _IMAGE),
    "ViTMAEModel": ("ViTMAEConfig", {**_IMAGE, "mask_ratio": 0.75}),
    "SiglipVisionModel": ("SiglipVisionConfig", _IMAGE),
    "Siglip2VisionModel": (
        "Siglip2VisionConfig",
        {**_SMALL, "intermediate_size": 24, "patch_size": 8, "num_patches": 16},
    ),
    "CLIPVisionModel": ("CLIPVisionConfig", _IMAGE),
    "VideoMAEModel": (
        "VideoMAEConfig",
        {**_SMALL, "image_size": 32, "patch_size": 16, "num_frames": 4, "tubelet_size": 2, "intermediate_size": 24},
    ),
    "VJEPA2Model": (
        "VJEPA2Config",
        {
            **_SMALL,
            "hidden_size": 24,
            "crop_size": 32,
            "patch_size": 16,
            "frames_per_clip": 4,
            "tubelet_size": 2,
            "pred_hidden_size": 24,
            "pred_num_attention_heads": 2,
            "pred_num_hidden_layers": 1,
        },
    ),
    "VideoPrismVisionModel": (
        "VideoPrismVisionConfig",
        {
            "hidden_size": 16,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "image_size": 36,
            "num_frames": 4,
            "num_spatial_layers": 2,
            "num_temporal_layers": 1,
        },
    ),
}
DIFFUSERS: dict[str, dict[str, Any]] = {
    "AutoencoderKL": {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 4,
        "sample_size": 32,
    },
    "AutoencoderTiny": {
        "encoder_block_out_channels": (8, 8),
        "decoder_block_out_channels": (8, 8),
        "num_encoder_blocks": (1, 1),
        "num_decoder_blocks": (1, 1),
    },
    "AutoencoderKLCosmos": {
        "latent_channels": 4,
        "encoder_block_out_channels": (8, 8, 8, 8),
        "decode_block_out_channels": (8, 8, 8, 8),
        "attention_resolutions": (8,),
        "resolution": 64,
        "num_layers": 1,
        "patch_size": 4,
        "spatial_compression_ratio": 4,
        "temporal_compression_ratio": 4,
    },
    "AutoencoderKLWan": {
        "base_dim": 4,
        "z_dim": 4,
        "dim_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True, True],
    },
    "AutoencoderKLLTXVideo": {
        "latent_channels": 8,
        "block_out_channels": (8, 8, 8, 8),
        "decoder_block_out_channels": (8, 8, 8, 8),
        "layers_per_block": (1, 1, 1, 1, 1),
        "decoder_layers_per_block": (1, 1, 1, 1, 1),
        "spatio_temporal_scaling": (True, True, False, False),
        "decoder_spatio_temporal_scaling": (True, True, False, False),
        "decoder_inject_noise": (False,) * 5,
        "patch_size": 1,
    },
}

Tiny = Callable[..., Any]


def make_tiny(name: str, **changes: Any) -> Any:
    """A real model with random weights; in a transformer all of them are away from zero and from one another."""
    ensure_torchvision()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name in DIFFUSERS:
            diffusers = pytest.importorskip("diffusers")
            return getattr(diffusers, name)(**{**DIFFUSERS[name], **changes}).eval()
        transformers = pytest.importorskip("transformers")
        config_name, config = TRANSFORMERS[name]
        model = getattr(transformers, name)(getattr(transformers, config_name)(**{**config, **changes})).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    """``tiny(name, **changes)``: the tiny model of a class, its configuration changed by keywords."""
    return make_tiny


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder per class, as its ``save_pretrained`` writes it."""
    root = tmp_path_factory.mktemp("tiny")
    for name in (*TRANSFORMERS, *DIFFUSERS):
        make_tiny(name).save_pretrained(root / name)
    return root


VAE = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "scaling_factor": 0.5,
}
UNET = {
    "sample_size": 16,
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
    "layers_per_block": 1,
}
DIT = {
    **{"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 4, "sample_size": 16},
    **{"norm_num_groups": 4, "num_embeds_ada_norm": 10},
}
TEXT = {
    **{"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"vocab_size": 4, "max_position_embeddings": 5, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
}
SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}


def make_pipeline_models():
    """Random weights away from zero, because DiT's gates start there."""
    ensure_torchvision()
    diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae, unet = diffusers.AutoencoderKL(**VAE), diffusers.UNet2DConditionModel(**UNET)
        dit = diffusers.DiTTransformer2DModel(**DIT)
        text = transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT))
        for parameter in dit.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return vae.eval(), unet.eval(), dit.eval(), text.eval()


@pytest.fixture(scope="session")
def tiny_pipeline_models():
    """Makes the models of :func:`pipelines`: autoencoder, UNet, DiT and text encoder."""
    return make_pipeline_models


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory):
    """Folders ``sd`` and ``dit``, as the pipelines' own ``save_pretrained`` writes them."""
    diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("pipelines")
    vae, unet, dit, text = make_pipeline_models()
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "b</w>": 3}
    (root / "words").mkdir()
    (root / "words" / "vocab.json").write_text(json.dumps(words))
    (root / "words" / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(root / "words")
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=diffusers.PNDMScheduler(skip_prk_steps=True, **SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(root / "sd")
    diffusers.DiTPipeline(transformer=dit, vae=vae, scheduler=diffusers.DDIMScheduler(**SCHEDULE)).save_pretrained(
        root / "dit"
    )
    shutil.rmtree(root / "words")
    return root


DREAMER_ARGS = {"H": 16, "W": 16, "C": 3, "patch": 4, "n_heads": 2, "depth": 3, "time_every": 2, "seq_len": 4}
TOKENIZER_ARGS = {**DREAMER_ARGS, "d_model": 8, "n_latents": 4, "d_bottleneck": 4, "mlp_ratio": 2.0, "mae_p_max": 0.9}
DYNAMICS_ARGS = {
    **{name: DREAMER_ARGS[name] for name in ("n_heads", "time_every")},
    **{"d_model_dyn": 12, "dyn_depth": 2, "mlp_ratio": 2.0, "packing_factor": 2, "n_register": 2, "n_agent": 1},
    **{"k_max": 4, "seq_len": 32, "space_mode": "wm_agent_isolated", "scale_pos_embeds": False},
}


def layers(prefix, width, depth, time_every, hidden):
    """Names and shapes of a transformer in the published layout."""
    shapes = {}
    for number in range(depth):
        over_time = (number + 1) % time_every == 0
        for name in ("space", "time") if over_time else ("space",):
            part = f"{prefix}.layers.{number}.{name}.attn"
            shapes |= {f"{part}.qkv.weight": (3 * width, width), f"{part}.qkv.bias": (3 * width,)}
            shapes |= {f"{part}.out.weight": (width, width), f"{part}.out.bias": (width,)}
        for norm in ("norm1", "norm2", "norm3") if over_time else ("norm1", "norm3"):
            shapes[f"{prefix}.layers.{number}.{norm}.scale"] = (width,)
        part = f"{prefix}.layers.{number}.mlp"
        shapes |= {f"{part}.fc_in.weight": (2 * hidden, width), f"{part}.fc_in.bias": (2 * hidden,)}
        shapes |= {f"{part}.fc_out.weight": (width, hidden), f"{part}.fc_out.bias": (width,)}
    return shapes


def tokenizer_shapes():
    shapes = {"encoder.latents": (4, 8), "encoder.mae.mask_token": (8,)}
    shapes |= {"encoder.patch_proj.weight": (8, 48), "encoder.patch_proj.bias": (8,)}
    shapes |= {"encoder.bottleneck_proj.weight": (4, 8), "encoder.bottleneck_proj.bias": (4,)}
    shapes |= {"decoder.patch_queries": (16, 8), "decoder.up_proj.weight": (8, 4), "decoder.up_proj.bias": (8,)}
    shapes |= {"decoder.patch_head.weight": (48, 8), "decoder.patch_head.bias": (48,)}
    return shapes | layers("encoder.transformer", 8, 3, 2, 16) | layers("decoder.transformer", 8, 3, 2, 16)


def dynamics_shapes():
    shapes = {"spatial_proj.weight": (12, 8), "spatial_proj.bias": (12,), "register_tokens": (2, 12)}
    shapes |= {"action_encoder.base": (12,), "action_encoder.fc1.weight": (24, 16), "action_encoder.fc1.bias": (24,)}
    shapes |= {"action_encoder.fc2.weight": (12, 24), "action_encoder.fc2.bias": (12,)}
    shapes |= {"step_embed.weight": (3, 12), "signal_embed.weight": (5, 12)}
    shapes |= {"flow_x_head.weight": (8, 12), "flow_x_head.bias": (8,)}
    return shapes | layers("transformer", 12, 2, 2, 24)


def random_state(shapes, seed):
    rng = np.random.default_rng(seed)
    return {name: torch.from_numpy(rng.normal(0, 0.5, shapes[name])).float() for name in sorted(shapes)}


def write_dreamer4(folder, tokenizer=None, dynamics=None):
    """Checkpoints in the published layout, with random tensors where none are given."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = random_state(tokenizer_shapes(), 0) if tokenizer is None else tokenizer
    dynamics = random_state(dynamics_shapes(), 1) if dynamics is None else dynamics
    rest = {"step": 3, "epoch": 0, "opt": {"state": {}, "param_groups": []}, "scaler": None}
    torch.save({**rest, "model": tokenizer, "args": TOKENIZER_ARGS}, folder / "tokenizer_ckpt.pt")
    torch.save({**rest, "dynamics": dynamics, "args": DYNAMICS_ARGS}, folder / "dynamics_ckpt.pt")
    return folder


@pytest.fixture(scope="session")
def save_dreamer4():
    """``save_dreamer4(folder)`` writes tiny checkpoints of Dreamer 4 and returns the folder."""
    return write_dreamer4


GOLDEN = Path(__file__).with_name("golden")
# What published checkpoints call the file, nest the weights in and prefix them with; and what the weights do not tell.
LAYOUTS = {
    "vjepa2_1": ("vjepa2_1_vitb_dist_vitG_384.pt", "ema_encoder", "module.backbone.", {"num_frames": 4}),
    "videomaev2_distilled": ("vit_b_k710_dl_from_giant.pth", "module", "", {"img_size": 32, "num_frames": 4}),
    "videomaev2_pretrained": ("pretrained.pth", "model", "", {"img_size": 32, "num_frames": 4}),
    "r3m_18": ("pytorch_model.bin", "", "convnet.", {}),
    "r3m_50": ("model.pt", "r3m", "", {}),
    "vc1": ("vc1_vitb.pth", "model", "", {}),
    "laq_4": ("laq_openx.pt", "", "module.", {"image_size": 64}),
    "laq_1": ("model.safetensors", "", "", {"image_size": 64}),
}


def golden_state(shapes, seed):
    """The state dict of a golden file; moments of activations stay near one."""
    rng = np.random.default_rng(seed)
    state = {}
    for name in sorted(shapes):
        shape = tuple(shapes[name])
        noise = torch.from_numpy(rng.standard_normal(shape or (1,), dtype=np.float32)).reshape(shape)
        if name.endswith("num_batches_tracked"):
            state[name] = torch.zeros(shape, dtype=torch.int64)
        elif name.endswith("running_var"):
            state[name] = 1.0 + noise.abs()
        elif len(shape) == 1 and name.endswith(("weight", "gamma", "_scale")):
            state[name] = 1.0 + 0.1 * noise
        elif name.endswith(("_embed", "_token", "codebooks")):
            state[name] = 0.5 * noise
        elif len(shape) < 2:
            state[name] = 0.1 * noise
        else:
            state[name] = noise * (2.0 / max(1, np.prod(shape[1:]))) ** 0.5
    return state


def read_golden(name):
    """What the public code was given and gave, and its state dict."""
    with safe_open(GOLDEN / f"{name}.safetensors", framework="pt") as file:
        facts = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return tensors, golden_state(json.loads(facts["shapes"]), int(facts["seed"]))


def write_published(folder, name, state=None, *, config=True, extra=None):
    """A folder with ``name``'s checkpoint as it is published; its path."""
    file, nest, prefix, options = LAYOUTS[name]
    state = read_golden(name)[1] if state is None else state
    if name == "vc1":
        state = {**state, "mask_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.zeros(8, 128)}
    bare = name.startswith("r3m_18")
    state = {prefix + key.removeprefix("module.convnet." if bare else ""): value for key, value in state.items()}
    folder.mkdir(parents=True, exist_ok=True)
    if file.endswith(".safetensors"):
        save_file(state, folder / file)
    else:
        torch.save({nest: state, "epoch": 3, **(extra or {})} if nest else state, folder / file)
    if config and options:
        kind = next(kind for kind in KINDS if name.startswith(kind))
        (folder / "config.json").write_text(json.dumps({"model_type": kind, **options}))
    return folder


@pytest.fixture(scope="session")
def golden():
    """``golden(name)``: what the public code was given and gave, and its state dict."""
    return read_golden


@pytest.fixture(scope="session")
def save_published():
    """``save_published(folder, name)`` writes a tiny checkpoint as it is published and returns the folder."""
    return write_published
