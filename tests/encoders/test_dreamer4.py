"""Dreamer 4 against latents kept from its public code (nicklashansen/dreamer4 at bdeddfe), on one set of weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from latentgym.encoders import View, check_encoder, encode_view, find_encoders, load_encoder
from latentgym.encoders.dreamer4 import DYNAMICS, TOKENIZER
from latentgym.errors import CorruptDataError, LatentGymError


def clip():
    return np.random.default_rng(2).integers(0, 256, (2, 4, 16, 16, 3), dtype=np.uint8)


@pytest.fixture
def folder(save_dreamer4, tmp_path):
    return save_dreamer4(tmp_path / "models" / "dmcontrol")


def test_tokenizer_equals_the_public_code(folder):
    encoder = load_encoder(folder, device="cpu")
    inner, latents = encoder.encode_layers(clip(), [1, -1])
    assert latents.tokens.shape == (2, 4, 4, 4) and inner.tokens.shape == (2, 4, 4, 8)
    assert_near(latents.tokens[1, 3, 2], [0.997501, 0.999336, -0.999556, -0.992744])
    assert_near(inner.tokens[1, 2, 3, :4], [0.880854, 2.740385, -0.858529, 3.979960])


def test_dynamics_equal_the_public_code(folder):
    encoder = load_encoder(f"dreamer4-dynamics:{folder}", device="cpu")
    # The public code draws other noise.
    encoder.model.noise.copy_(torch.linspace(-1, 1, 16).view(2, 8))
    inner, latents = encoder.encode_layers(clip(), [0, 1])
    assert latents.tokens.shape == (2, 4, 2, 12) and latents.prefix.shape == (2, 4, 2, 12)
    assert_near(latents.tokens[1, 3, 1, :4], [-0.842835, -4.334862, 2.229616, -1.461854])
    assert_near(inner.tokens[0, 2, 0, :4], [0.412796, 0.391101, 0.552078, 3.683163])
    assert_near(latents.prefix[1, 2, 1, :4], [-0.444527, -1.657920, 0.989684, -3.715010])


def assert_near(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["dreamer4", "dreamer4-dynamics"])
def test_keeps_the_contract_and_is_causal(folder, name):
    encoder = load_encoder(f"{name}:{folder}", device="cpu")
    assert check_encoder(encoder) == []
    spec = encoder.spec
    assert (spec.family, spec.clip_length, spec.image_size) == ("shortcut_forcing", 4, 16)
    assert load_encoder(spec.source, device="cpu", layer=0).spec.grid == spec.grid
    frames = clip()
    whole = encoder.encode(frames).tokens
    torch.testing.assert_close(encoder.encode(frames[:, :2]).tokens, whole[:, :2], atol=1e-5, rtol=0)
    frames[:, 3] = 0
    assert torch.equal(encoder.encode(frames).tokens[:, :3], whole[:, :3])
    assert encode_view(encoder, frames[0], View("causal")).shape == (4, spec.embed_dim)


def test_bad_checkpoints(folder, save_dreamer4, tmp_path):
    with pytest.raises(LatentGymError, match="only takes frames of 16 pixels"):
        load_encoder(folder, image_size=32)
    with pytest.raises(LatentGymError, match="at most 4 frames, found 5"):
        load_encoder(folder, device="cpu").encode(np.zeros((1, 5, 16, 16, 3), np.uint8))
    assert find_encoders(folder.parent)[0] == {"dmcontrol": str(folder)}
    state = torch.load(folder / TOKENIZER, weights_only=True)["model"]
    del state["encoder.transformer.layers.1.mlp.fc_in.bias"]
    with pytest.raises(LatentGymError, match=r"1 tensors are missing.*transformer\.layers\.1\.mlp\.fc_in\.bias"):
        load_encoder(save_dreamer4(tmp_path / "missing", tokenizer=state))
    state = torch.load(folder / DYNAMICS, weights_only=True)["dynamics"]
    state["spatial_proj.weight"] = state["spatial_proj.weight"][:, :7]
    with pytest.raises(LatentGymError, match="do not belong together"):
        load_encoder(f"dreamer4-dynamics:{save_dreamer4(tmp_path / 'odd', dynamics=state)}")
    whole = (folder / TOKENIZER).read_bytes()
    cut = save_dreamer4(tmp_path / "cut")
    (cut / TOKENIZER).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptDataError, match="truncated"):
        load_encoder(cut)
    torch.save({"weights": {}}, cut / TOKENIZER)
    with pytest.raises(CorruptDataError, match="holds no 'model'"):
        load_encoder(f"dreamer4:{cut}")
    (cut / TOKENIZER).unlink()
    with pytest.raises(LatentGymError, match=r"there is no checkpoint at .*tokenizer_ckpt\.pt"):
        load_encoder(f"dreamer4:{cut}")


def test_files_may_have_the_names_that_the_hub_gives_them(folder, save_dreamer4, tmp_path):
    renamed = save_dreamer4(tmp_path / "hub")
    for name in (TOKENIZER, DYNAMICS):
        (renamed / name).rename(renamed / name.replace("_ckpt", ""))
    assert find_encoders(tmp_path)[0] == {"hub": str(renamed)}
    for source in ("", "dreamer4:", "dreamer4-dynamics:"):
        found, expected = (load_encoder(f"{source}{place}", device="cpu").spec for place in (renamed, folder))
        assert found.weights_digest == expected.weights_digest


def test_no_network_says_which_files_to_get(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(LatentGymError, match=r"fetch tokenizer_ckpt\.pt and dynamics_ckpt\.pt of https"):
        load_encoder("dreamer4:nicklashansen/dreamer4")
