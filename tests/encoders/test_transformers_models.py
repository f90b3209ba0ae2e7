from __future__ import annotations

import numpy as np
import pytest
import torch

from latentgym.encoders import check_encoder, load_encoder
from latentgym.encoders.torchvision_fallback import ensure_torchvision
from latentgym.errors import LatentGymError, UnknownNameError

ensure_torchvision()
transformers = pytest.importorskip("transformers")

# Class -> number of prefix tokens and grid.
MODELS = {
    "DINOv3ViTModel": (5, (4, 4)),
    "IJepaModel": (0, (4, 4)),
    "ViTMAEModel": (1, (4, 4)),
    "SiglipVisionModel": (0, (4, 4)),
    "Siglip2VisionModel": (0, (4, 4)),
    "CLIPVisionModel": (1, (4, 4)),
    "VideoPrismVisionModel": (0, (2, 2)),
}


def clip_for(encoder, batch=2, frames=None):
    size = encoder.spec.image_size
    shape = (batch, frames or encoder.spec.clip_length, size, size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def library_output(name, model, pixels, **options):
    """The library's documented forward on normalised pixels, every hidden state included where it has them."""
    with torch.inference_mode():
        if name == "VideoPrismVisionModel":
            return model(pixel_values_videos=pixels).last_hidden_state
        images = pixels[:, 0]
        if name == "ViTMAEModel":
            model.config.mask_ratio = 0.0
            options["noise"] = torch.linspace(0, 1, 16).repeat(len(images), 1)
        if name == "Siglip2VisionModel":
            return _siglip2(model, images)
        return model(pixel_values=images, **options).last_hidden_state


def _siglip2(model, images):
    """Patches row by row, cut with loops: an independent statement of the layout."""
    cut = [
        images[:, :, r : r + 8, c : c + 8].permute(0, 2, 3, 1).reshape(len(images), -1)
        for r in range(0, 32, 8)
        for c in range(0, 32, 8)
    ]
    return model(
        pixel_values=torch.stack(cut, dim=1),
        pixel_attention_mask=torch.ones(len(images), 16, dtype=torch.int64),
        spatial_shapes=torch.tensor([[4, 4]] * len(images)),
    ).last_hidden_state


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_library(folders, tiny, name):
    encoder = load_encoder(folders / name, device="cpu")
    latents = encoder.encode(clip_for(encoder))
    expected = library_output(name, tiny(name), encoder.prepare(torch.as_tensor(clip_for(encoder))))
    prefix, grid = MODELS[name]
    ours = latents.tokens if latents.prefix is None else torch.cat([latents.prefix, latents.tokens], dim=2)
    torch.testing.assert_close(ours.flatten(1, 2), expected, atol=1e-4, rtol=0)
    assert (0 if latents.prefix is None else latents.prefix.shape[2]) == prefix
    assert encoder.spec.grid == grid
    torch.testing.assert_close(latents.pooled, latents.tokens.mean(2))


@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("VideoPrism")])
def test_blocks_equal_the_hidden_states_of_the_library(folders, tiny, name):
    encoder = load_encoder(folders / name, device="cpu")
    model, kept = tiny(name), []
    blocks = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 3)
    blocks[1].register_forward_hook(lambda _m, _a, out: kept.append(out[0] if isinstance(out, tuple) else out))
    library_output(name, model, encoder.prepare(torch.as_tensor(clip_for(encoder))))
    latents, last = encoder.encode_layers(clip_for(encoder), [1, -1])
    torch.testing.assert_close(latents.tokens[:, 0], kept[0][:, MODELS[name][0] :], atol=1e-4, rtol=0)
    assert torch.equal(last.tokens, encoder.encode(clip_for(encoder)).tokens)


@pytest.mark.parametrize("name", MODELS)
def test_keeps_the_contract(folders, name):
    assert check_encoder(load_encoder(folders / name, device="cpu")) == []


@pytest.mark.parametrize("name", ["IJepaModel", "ViTMAEModel", "SiglipVisionModel", "CLIPVisionModel"])
def test_other_sizes_resample_positions_as_the_library_does(folders, tiny, name):
    encoder = load_encoder(folders / name, device="cpu", image_size=48)
    pixels = encoder.prepare(torch.as_tensor(clip_for(encoder)))
    options = {"interpolate_pos_encoding": True}
    model = tiny(name)
    if name == "ViTMAEModel":
        model.config.mask_ratio = 0.0
        options["noise"] = torch.linspace(0, 1, 36).repeat(2, 1)
    with torch.inference_mode():
        expected = model(pixel_values=pixels[:, 0], **options).last_hidden_state
    tokens = encoder.encode(clip_for(encoder)).tokens[:, 0]
    torch.testing.assert_close(tokens, expected[:, MODELS[name][0] :], atol=1e-4, rtol=0)
    assert encoder.spec.grid == (6, 6)


def test_the_vision_tower_of_a_two_tower_checkpoint(tiny, tmp_path):
    vision = tiny("CLIPVisionModel").config
    text = {**vision.to_dict(), "vocab_size": 20, "max_position_embeddings": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        both = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision.to_dict())).eval()
    both.save_pretrained(tmp_path / "clip")
    encoder = load_encoder(tmp_path / "clip", device="cpu")
    with torch.inference_mode():
        expected = both.vision_model(encoder.prepare(torch.as_tensor(clip_for(encoder)))[:, 0]).last_hidden_state
    torch.testing.assert_close(encoder.encode(clip_for(encoder)).tokens[:, 0], expected[:, 1:], atol=1e-4, rtol=0)


def test_feeding(folders):
    folder = folders / "VideoPrismVisionModel"
    native = load_encoder(folder, device="cpu")
    frames = clip_for(native, batch=1, frames=6)
    causal = load_encoder(folder, device="cpu", feeding="causal")
    alone = load_encoder(folder, device="cpu", feeding="duplicated")
    assert check_encoder(causal) == check_encoder(alone) == []
    latents = causal.encode(frames)
    assert latents.times.tolist() == list(range(6))
    torch.testing.assert_close(latents.tokens[:, 5], native.encode(frames[:, 2:]).tokens[:, -1])
    torch.testing.assert_close(latents.tokens[:, 1], native.encode(frames[:, [0, 0, 0, 1]]).tokens[:, -1])
    still = native.encode(np.repeat(frames[:, 3:4], 4, axis=1)).tokens.mean(1)
    torch.testing.assert_close(alone.encode(frames).tokens[:, 3], still)
    assert len({e.spec.weights_digest for e in (native, causal, alone)}) == 3
    assert load_encoder(f"{folder}+duplicated", device="cpu").spec == alone.spec
    with pytest.raises(LatentGymError, match="name one"):
        load_encoder(f"{folder}+duplicated", feeding="causal")
    image = folders / "CLIPVisionModel"
    assert load_encoder(image, feeding="causal").spec == load_encoder(image).spec
    with pytest.raises(UnknownNameError, match="feeding"):
        load_encoder(image, feeding="sideways")
