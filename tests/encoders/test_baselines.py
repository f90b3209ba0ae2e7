from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentgym.encoders import View, check_encoder, encode_view, load_encoder
from latentgym.errors import LatentGymError


def test_pixels_are_the_resized_frame():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    features = encode_view(load_encoder("pixels", device="cpu"), frames, View("single"))
    images = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    small = torch.nn.functional.interpolate(images, (16, 16), mode="bilinear", antialias=True) / 127.5 - 1
    assert features.shape == (5, 16 * 16 * 3)
    np.testing.assert_allclose(features, small.permute(0, 2, 3, 1).reshape(5, -1).numpy(), atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(size=st.integers(1, 24))
def test_pixels_at_any_size_keep_the_contract(size):
    encoder = load_encoder("pixels", image_size=size, device="cpu")
    assert encoder.spec.grid == (size, size)
    assert check_encoder(encoder) == []


@pytest.mark.parametrize("name", ["proprio", "state"])
def test_vectors_pass_unchanged(name):
    vectors = np.random.default_rng(0).standard_normal((7, 4)).astype(np.float32)
    encoder = load_encoder(name, device="cpu")
    assert encoder.spec.modality == name
    np.testing.assert_array_equal(encode_view(encoder, vectors, View("causal")), vectors)
    np.testing.assert_array_equal(encode_view(encoder, vectors, View("clip", 3)), vectors[3:])


def test_wrong_input_is_refused():
    with pytest.raises(LatentGymError, match=r"expected \(B, T, P\)"):
        load_encoder("state").encode(np.zeros((2, 3), np.float32))
    with pytest.raises(LatentGymError, match="dtype uint8"):
        load_encoder("pixels").encode(np.zeros((1, 1, 8, 8, 3), np.float32))
    with pytest.raises(LatentGymError, match="expected a clip"):
        load_encoder("pixels").encode(np.zeros((1, 1, 0, 8, 3), np.uint8))
    with pytest.raises(LatentGymError, match="NaN or infinite"):
        load_encoder("state").encode(np.full((1, 1, 2), np.nan, np.float32))
