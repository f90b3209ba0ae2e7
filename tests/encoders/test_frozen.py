"""Frozen modules as encoders."""

from __future__ import annotations

import torch

from latentgym.encoders.contract import EncoderSpec, Latents
from latentgym.encoders.frozen import FrozenEncoder


class Plain(FrozenEncoder):
    """One token per frame."""

    def forward(self, clip: torch.Tensor, layer: int) -> Latents:
        return Latents(self.model(clip.flatten(2))[:, :, None], torch.arange(clip.shape[1]))


def test_weights_round_alike_wherever_their_file_was_mapped():
    aligned, moved = torch.nn.Linear(12, 5), torch.nn.Linear(12, 5)
    for name, parameter in aligned.named_parameters():
        shifted = torch.cat([torch.zeros(1), parameter.detach().flatten()])[1:]
        moved.get_parameter(name).data = shifted.reshape(parameter.shape)
    assert moved.weight.data_ptr() % 64
    clip = torch.randint(0, 256, (1, 1, 2, 2, 3), dtype=torch.uint8)
    first, second = (Plain(EncoderSpec("plain", "random", image_size=2), module) for module in (aligned, moved))
    assert torch.equal(first.encode(clip).tokens, second.encode(clip).tokens)
    assert not any(parameter.data_ptr() % 64 for parameter in moved.parameters())
