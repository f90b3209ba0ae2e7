"""A folder that the library saved, processor included, gives the library's own features of the same frames.

Here the library does everything itself, normalisation too: ``processor(frames)`` into ``model(...)``.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from latentgym.encoders import load_encoder
from latentgym.encoders.torchvision_fallback import ensure_torchvision

ensure_torchvision()
transformers = pytest.importorskip("transformers")

ODD = {"image_mean": [0.3, 0.4, 0.5], "image_std": [0.2, 0.25, 0.3]}


def square(side):
    return {"height": side, "width": side}


# Class -> processor, its options, prefix tokens.
IMAGE = {
    "Dinov2Model": ("BitImageProcessor", {"size": {"shortest_edge": 42}, "crop_size": square(42)}, 1),
    "Dinov2WithRegistersModel": ("BitImageProcessor", {"size": {"shortest_edge": 42}, "crop_size": square(42)}, 5),
    "DINOv3ViTModel": ("DINOv3ViTImageProcessor", {"size": square(32)}, 5),
    "IJepaModel": ("ViTImageProcessor", {"size": square(32)}, 0),
    "ViTMAEModel": ("ViTImageProcessor", {"size": square(32)}, 1),
    "SiglipVisionModel": ("SiglipImageProcessor", {"size": square(32)}, 0),
    "Siglip2VisionModel": ("Siglip2ImageProcessor", {"patch_size": 8, "max_num_patches": 16}, 0),
    "CLIPVisionModel": ("CLIPImageProcessor", {"size": {"shortest_edge": 32}, "crop_size": square(32)}, 1),
}
VIDEO = {
    "VideoMAEModel": ("VideoMAEImageProcessor", {"size": {"shortest_edge": 32}, "crop_size": square(32)}),
    "VJEPA2Model": ("VJEPA2VideoProcessor", {"crop_size": square(32), "do_resize": False, "do_center_crop": False}),
}


def frames(encoder, batch=2):
    side = encoder.spec.image_size
    shape = (batch, encoder.spec.clip_length, side, side, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("combined", [False, True])
@pytest.mark.parametrize("name", IMAGE)
def test_images(tiny, tmp_path, name, combined):
    processor_class, options, prefix = IMAGE[name]
    model, processor = tiny(name), getattr(transformers, processor_class)(**options, **ODD)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    if combined:
        # As a processor of several parts, CLIP's or SigLIP's, is saved.
        alone = tmp_path / "preprocessor_config.json"
        (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": json.loads(alone.read_text())}))
        alone.unlink()
    encoder = load_encoder(tmp_path, device="cpu")
    clip = frames(encoder)
    inputs = dict(processor(images=list(clip[:, 0]), return_tensors="pt"))
    if name == "ViTMAEModel":
        model.config.mask_ratio = 0.0
        inputs["noise"] = torch.arange(16.0).expand(2, -1)
    with torch.inference_mode():
        expected = model(**inputs).last_hidden_state
    latents = encoder.encode(clip)
    torch.testing.assert_close(latents.tokens[:, 0], expected[:, prefix:], atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.pooled[:, 0], expected[:, prefix:].mean(dim=1), atol=1e-4, rtol=0)
    if prefix:
        torch.testing.assert_close(latents.prefix[:, 0], expected[:, :prefix], atol=1e-4, rtol=0)
    else:
        assert latents.prefix is None


@pytest.mark.parametrize("name", VIDEO)
def test_videos(tiny, tmp_path, name):
    processor_class, options = VIDEO[name]
    model, processor = tiny(name), getattr(transformers, processor_class)(**options, **ODD)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path, device="cpu")
    clip = frames(encoder)
    with torch.inference_mode():
        if name == "VJEPA2Model":
            videos = [torch.from_numpy(video).permute(0, 3, 1, 2) for video in clip]
            pixels = processor(videos=videos, return_tensors="pt")["pixel_values_videos"]
            expected = model.get_vision_features(pixels)
        else:
            pixels = processor([list(video) for video in clip], return_tensors="pt")["pixel_values"]
            expected = model(pixels).last_hidden_state
    torch.testing.assert_close(encoder.encode(clip).tokens.flatten(1, 2), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["CLIPVisionModel", "SiglipVisionModel", "ViTMAEModel", "Dinov2Model"])
def test_positions_decide_where_a_processor_states_a_larger_size(tiny, tmp_path, name):
    tiny(name).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": square(224), "crop_size": square(224)}))
    assert load_encoder(tmp_path).spec.image_size == (42 if name == "Dinov2Model" else 32)
