from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from latentgym.encoders import ModuleEncoder, check_encoder, load_encoder, load_torchscript
from latentgym.errors import CorruptDataError, LatentGymError


class Video(torch.nn.Module):
    """Maps of two token times from four frames, or their vectors."""

    def __init__(self, vectors: bool = False) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv3d(3, 6, (2, 8, 8), stride=(2, 8, 8))
        self.vectors = vectors

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        maps = self.convolution(video)
        return maps.mean(dim=(3, 4)).transpose(1, 2) if self.vectors else maps


class Tokens(torch.nn.Module):
    """A CLS token and four patch tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = torch.nn.Linear(3, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        small = torch.nn.functional.adaptive_avg_pool2d(image, 2).flatten(2).transpose(1, 2)
        return self.projection(torch.cat([small.mean(dim=1, keepdim=True), small], dim=1))


def seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def clip(frames=1):
    return np.random.default_rng(0).integers(0, 256, (2, frames, 16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("module", "options", "grid", "width"),
    [
        (lambda: torch.nn.Conv2d(3, 4, 4, stride=4), {}, (4, 4), 4),
        (lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 7)), {}, (1, 1), 7),
        (Tokens, {"prefix_tokens": 1}, (2, 2), 5),
        (Video, {"clip_length": 4}, (2, 2), 6),
        (lambda: Video(vectors=True), {"clip_length": 4}, (1, 1), 6),
    ],
)
def test_modules_of_every_output(module, options, grid, width):
    network = seeded(module)
    encoder = ModuleEncoder(network, "mine", image_size=16, **options)
    assert check_encoder(encoder) == []
    assert (encoder.spec.grid, encoder.spec.embed_dim) == (grid, width)
    latents = encoder.encode(clip(encoder.spec.clip_length))
    assert (latents.prefix is not None) == ("prefix_tokens" in options)
    assert latents.times.tolist() == ([1, 3] if "clip_length" in options else [0])


def test_tokens_are_the_module_s():
    network = seeded(lambda: torch.nn.Conv2d(3, 4, 4, stride=4))
    encoder = ModuleEncoder(network, "mine", image_size=16)
    pixels = torch.from_numpy(clip()[:, 0]).float().permute(0, 3, 1, 2) / 127.5 - 1
    expected = network(pixels).flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoder.encode(clip()).tokens[:, 0], expected, atol=1e-5, rtol=0)


def test_another_output_is_refused():
    with pytest.raises(LatentGymError, match=r"its module returned \(1, 3, 2, 8, 2, 16\); expected a feature map"):
        ModuleEncoder(torch.nn.Unflatten(3, (8, 2)), "odd", image_size=16, clip_length=2)
    with pytest.raises(LatentGymError, match="its module returned tuple"):
        ModuleEncoder(torch.nn.MaxPool2d(2, return_indices=True), "odd", image_size=16)


def test_torchscript_runs_only_if_trusted(tmp_path):
    network = seeded(Tokens).eval()
    path = tmp_path / "mine.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(network, torch.zeros(1, 3, 16, 16)).save(str(path))
        with pytest.raises(LatentGymError, match=r"a program that runs when it is used.*pass trust=True"):
            load_torchscript(path, image_size=16)
        with pytest.raises(LatentGymError, match=r"load_torchscript\(path, trust=True"):
            load_encoder(path)
        encoder = load_torchscript(path, trust=True, image_size=16, prefix_tokens=1)
        assert check_encoder(encoder) == []
        own = ModuleEncoder(network, "mine", image_size=16, prefix_tokens=1)
        torch.testing.assert_close(encoder.encode(clip()).tokens, own.encode(clip()).tokens)
        assert (encoder.spec.name, encoder.spec.source) == ("mine", str(path))
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(CorruptDataError, match="truncated or is no TorchScript file"):
            load_torchscript(path, trust=True, image_size=16)
    with pytest.raises(LatentGymError, match="there is no TorchScript file"):
        load_torchscript(tmp_path / "none.pt", trust=True, image_size=16)
