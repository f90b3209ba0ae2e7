from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from latentgym.encoders import check_encoder, find_encoders, load_encoder
from latentgym.encoders.adapted import copy_base
from latentgym.encoders.diffusion import Reading, parse_reading
from latentgym.encoders.torchvision_fallback import ensure_torchvision
from latentgym.errors import CorruptDataError, LatentGymError, UnknownNameError

ensure_torchvision()
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}


@pytest.fixture
def folders(pipelines):
    return pipelines


@pytest.fixture
def models(tiny_pipeline_models):
    return tiny_pipeline_models()


def clip(frames=2):
    return np.random.default_rng(0).integers(0, 256, (1, frames, 32, 32, 3), dtype=np.uint8)


def noised(vae, noise, step):
    """Latents by the library: scaled posterior mode, noised by its own schedule."""
    pixels = torch.from_numpy(clip())[0].float().permute(0, 3, 1, 2) / 127.5 - 1
    latents = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    schedule = diffusers.DDPMScheduler(**SCHEDULE)
    return schedule.add_noise(latents, noise.expand_as(latents), torch.tensor([step] * len(latents)))


def kept_output(model, name):
    kept = []
    model.get_submodule(name).register_forward_hook(
        lambda _m, _a, out: kept.append(out[0] if isinstance(out, tuple) else out)
    )
    return kept


@pytest.mark.parametrize("block", ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"])
def test_unet_equals_the_whole_model_of_the_library(folders, models, block):
    encoder = load_encoder(f"diffusion:{folders / 'sd'}?block={block}&step=100", device="cpu")
    vae, unet, _, text = models
    kept = kept_output(unet, block)
    with torch.inference_mode():
        # The empty text is a start token and end tokens up to the full length.
        empty = text(torch.tensor([[0, 1, 1, 1, 1]])).last_hidden_state
        unet(noised(vae, encoder.model.noise, 100), 100, encoder_hidden_states=empty.expand(2, -1, -1))
    tokens = encoder.encode(clip()).tokens
    torch.testing.assert_close(tokens[0], kept[0].flatten(2).transpose(1, 2), atol=1e-4, rtol=0)
    assert encoder.spec.image_size == 32 and encoder.blocks[-1] == block


@pytest.mark.parametrize("layer", [0, 2, -1])
def test_dit_equals_the_whole_model_of_the_library(folders, models, layer):
    encoder = load_encoder(f"diffusion:{folders / 'dit'}?block=transformer_blocks.3&step=50", device="cpu")
    vae, _, dit, _ = models
    kept = kept_output(dit, f"transformer_blocks.{layer % 4}")
    with torch.inference_mode():
        dit(
            noised(vae, encoder.model.noise, 50),
            timestep=torch.tensor([50, 50]),
            class_labels=torch.tensor([10, 10]),
        )
    torch.testing.assert_close(encoder.encode(clip(), layer).tokens[0], kept[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["sd", "dit"])
def test_keeps_the_contract(folders, name):
    encoder = load_encoder(folders / name, device="cpu")
    assert check_encoder(encoder) == []
    assert (encoder.spec.family, encoder.spec.layers) == ("latent_diffusion", {"sd": 5, "dit": 2}[name])
    again = load_encoder(encoder.spec.source, device="cpu")
    assert again.spec.weights_digest == encoder.spec.weights_digest
    smaller = load_encoder(folders / name, device="cpu", image_size=16)
    assert smaller.spec.grid == ((8, 8) if name == "sd" else (4, 4))
    assert find_encoders(folders)[0] == {"dit": str(folders / "dit"), "sd": str(folders / "sd")}


def test_noise_is_the_seed_s_and_the_same_for_every_clip(folders):
    def digest(options):
        return load_encoder(f"diffusion:{folders / 'dit'}?{options}").spec.weights_digest

    assert len({digest(options) for options in ("", "seed=1", "step=3", "block=transformer_blocks.0")}) == 4
    encoder = load_encoder(folders / "dit", device="cpu")
    frames = np.repeat(clip(1), 2, axis=1)
    tokens = encoder.encode(frames).tokens
    torch.testing.assert_close(tokens[:, 0], tokens[:, 1], atol=1e-5, rtol=0)


def test_options():
    assert parse_reading("") == Reading()
    with pytest.raises(UnknownNameError, match="diffusion option 'steps'; did you mean 'step'"):
        parse_reading("steps=3")
    with pytest.raises(LatentGymError, match=r"step: expected a whole number, found '0\.5'"):
        parse_reading("step=0.5")


def test_bad_input(folders, tmp_path):
    with pytest.raises(UnknownNameError, match=r"block of sd 'up_block.1'; did you mean 'up_blocks.1'"):
        load_encoder(f"diffusion:{folders / 'sd'}?block=up_block.1")
    with pytest.raises(LatentGymError, match="steps are 0 … 999, not 1000"):
        load_encoder(f"diffusion:{folders / 'dit'}?step=1000")
    with pytest.raises(LatentGymError, match="image_size 34 is no multiple of 4 pixels; the nearest is 32"):
        load_encoder(folders / "sd", image_size=34)
    with pytest.raises(LatentGymError, match="holds no diffusion model"):
        load_encoder(f"diffusion:{tmp_path}")
    for part, message in [
        ("vae", "lacks vae/config.json"),
        ("scheduler", "lacks scheduler/scheduler_config.json"),
        ("tokenizer", "lacks text_encoder/ or tokenizer/"),
    ]:
        folder = shutil.copytree(folders / "sd", tmp_path / part)
        shutil.rmtree(folder / part)
        with pytest.raises(LatentGymError, match=message):
            load_encoder(folder)
    weights = tmp_path / "vae" / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copytree(folders / "sd" / "vae", tmp_path / "vae" / "vae")
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(CorruptDataError, match="truncated"):
        load_encoder(tmp_path / "vae")
    config = tmp_path / "scheduler" / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_class_embeds": 3}))
    with pytest.raises(LatentGymError, match=r"missing|conditioned by num_class_embeds"):
        load_encoder(tmp_path / "scheduler")


def test_no_network_says_what_to_get(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(LatentGymError, match=r"fetch the pipeline's folders .* of https://huggingface\.co/owner/name"):
        load_encoder("diffusion:owner/name")


def test_a_copied_base_opens_as_the_original(folders, tmp_path):
    copy_base(folders / "sd", tmp_path)
    original, copied = (load_encoder(place, device="cpu") for place in (folders / "sd", tmp_path / "base"))
    assert copied.spec.weights_digest == original.spec.weights_digest
