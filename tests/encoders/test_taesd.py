from __future__ import annotations

import numpy as np
import pytest
import torch

from latentgym.encoders import check_encoder, load_encoder
from latentgym.encoders.adapted import copy_base
from latentgym.encoders.taesd import Block, TinyEncoder
from latentgym.encoders.torchvision_fallback import ensure_torchvision

ensure_torchvision()

# Latent channels, stride and pooled branch of taesd, taef1, taef2 and taesana.
VARIANTS = {"taesd": (4, 8, False), "taef1": (16, 8, False), "taef2": (32, 8, True), "taesana": (32, 32, False)}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_told_from_its_tensors(tmp_path, name):
    channels, stride, pooled = VARIANTS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = TinyEncoder(channels, stride, pooled).eval()
    torch.save(network.state_dict(), tmp_path / f"{name}_encoder.pth")
    encoder = load_encoder(tmp_path, device="cpu", image_size=64)
    spec = encoder.spec
    assert (spec.name, spec.embed_dim, spec.grid, spec.layers) == (name, channels, (64 // stride, 64 // stride), 11)
    clip = np.random.default_rng(0).integers(0, 256, (1, 2, 64, 64, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = network(torch.from_numpy(clip)[0].permute(0, 3, 1, 2).float() / 255)
    torch.testing.assert_close(encoder.encode(clip).tokens[0], expected.flatten(2).transpose(1, 2), atol=1e-5, rtol=0)
    assert check_encoder(encoder) == []
    copy_base(tmp_path, tmp_path / "adapted")
    assert load_encoder(tmp_path / "adapted" / "base").spec.weights_digest == spec.weights_digest


def test_diffusers_class_gives_the_same_latents(tmp_path):
    """The converted form of a plain member holds the same tensors in the same order."""
    diffusers = pytest.importorskip("diffusers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = TinyEncoder(4).eval()
        model = diffusers.AutoencoderTiny().eval()
    state = dict(zip(model.encoder.state_dict(), network.state_dict().values(), strict=True))
    model.encoder.load_state_dict(state)
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        theirs = model.encode(pixels * 2 - 1).latents
        torch.testing.assert_close(network(pixels), theirs, atol=1e-5, rtol=0)


def test_blocks_are_read_in_one_pass():
    with torch.random.fork_rng(devices=[]):
        network = TinyEncoder(4).eval()
    pixels = torch.zeros(1, 3, 16, 16)
    assert sum(isinstance(module, Block) for module in network) == len(network.outputs) - 1
    with torch.inference_mode():
        sides = [maps.shape[-1] for maps in network.read(pixels, [0, 1, 4, 7, -1])]
    assert sides == [16, 8, 4, 2, 2]
