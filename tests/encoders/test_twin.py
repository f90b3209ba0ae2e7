from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from latentgym.encoders import check_encoder, load_encoder
from latentgym.encoders.frozen import FrozenEncoder
from latentgym.encoders.small import random_small
from latentgym.encoders.timm_models import TimmEncoder
from latentgym.encoders.torchvision_fallback import ensure_torchvision
from latentgym.encoders.twin import random_twin
from latentgym.errors import LatentGymError


def clip(frames: int, size: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, frames, size, size, 3), dtype=np.uint8)


def test_small_encoders_twin_has_other_weights_and_the_same_shape() -> None:
    encoder = random_small(3)
    twin, again, other = random_twin(encoder), random_twin(encoder), random_twin(encoder, seed=1)
    tokens = [one.encode(clip(2)).tokens for one in (encoder, twin, again, other)]
    assert all(one.shape == tokens[0].shape for one in tokens)
    assert torch.equal(tokens[1], tokens[2])
    assert not torch.equal(tokens[0], tokens[1]) and not torch.equal(tokens[1], tokens[3])
    assert len({one.spec.weights_digest for one in (encoder, twin, other)}) == 3
    assert (twin.spec.family, twin.spec.trained_on_actions) == ("random", False)
    encoder.label_episodes = {"data": frozenset({1})}
    assert random_twin(encoder).label_episodes == {}
    assert check_encoder(twin) == []


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18"])
def test_twins_of_published_architectures_do_not_collapse(name: str) -> None:
    ensure_torchvision()
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, pretrained=False, num_classes=0)
    spec = dataclasses.replace(
        random_small(0).spec, name=name, image_size=224, clip_length=1, temporal=False, tubelet=1
    )
    encoder: FrozenEncoder = TimmEncoder(spec, model)
    before = {key: value.clone() for key, value in encoder.model.state_dict().items()}
    twin = random_twin(encoder)
    tokens = twin.encode(clip(1, 224)).tokens
    assert torch.isfinite(tokens).all() and tokens.std() > 1e-3
    assert (tokens[0] - tokens[1]).abs().max() > 1e-4, "different frames look the same to it"
    assert all(torch.equal(value, before[key]) for key, value in encoder.model.state_dict().items())


def test_the_registry_opens_twins() -> None:
    twin = load_encoder("twin:random:5")
    assert twin.spec.name == "random-random" and twin.spec.family == "random"
    with pytest.raises(LatentGymError, match="twin:<source>"):
        load_encoder("twin")
    with pytest.raises(LatentGymError, match="no weights"):
        load_encoder("twin:pixels")
