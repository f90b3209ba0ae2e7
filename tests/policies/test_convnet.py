from __future__ import annotations

import numpy as np
import pytest
import torch

from latentgym.errors import LatentGymError
from latentgym.policies import train_convnet_policy
from latentgym.policies.convnet import _shifted
from latentgym.trajectories import Dataset


def test_equal_seeds_give_equal_bits(dataset: Dataset) -> None:
    first, second = (train_convnet_policy(dataset, steps=5, batch_size=16, image_size=32) for _ in range(2))
    assert all(torch.equal(tensor, second.tensors()[name]) for name, tensor in first.tensors().items())
    assert first.rows()[0].metric == "cloning_r2"


def test_training_lowers_the_loss(dataset: Dataset) -> None:
    policy = train_convnet_policy(dataset, demonstrations=1, shift=0, steps=60, batch_size=30, image_size=32)
    assert policy.facts["loss"][-1] < 0.8 * policy.facts["loss"][0]


def test_a_reset_row_forgets_its_frames(dataset: Dataset) -> None:
    policy = train_convnet_policy(dataset, steps=2, batch_size=8)
    clip = dataset.episode(0).frames["pixels"]
    policy.reset(np.ones(2, bool))
    first = policy.act({"pixels": clip[:2]})
    policy.act({"pixels": clip[2:4]})
    policy.reset(np.array([True, False]))
    again = policy.act({"pixels": clip[[0, 5]]})
    assert again[0] == pytest.approx(first[0], abs=1e-6)
    with pytest.raises(LatentGymError, match="reads observation"):
        policy.act({"state": np.zeros((2, 3))})


def test_shift_moves_all_frames_of_a_window_alike() -> None:
    frames = torch.arange(2 * 2 * 5 * 5 * 3, dtype=torch.uint8).reshape(2, 2, 5, 5, 3)
    offsets = torch.tensor([[1, 1], [2, 0]])
    moved = _shifted(frames, offsets, 1)
    # No shift.
    assert torch.equal(moved[0], frames[0])
    # One row down and one column left: edges are repeated.
    rows, columns = [1, 2, 3, 4, 4], [0, 0, 1, 2, 3]
    assert torch.equal(moved[1], frames[1][:, rows][:, :, columns])


def test_options_are_checked(dataset: Dataset) -> None:
    with pytest.raises(LatentGymError, match="image_size"):
        train_convnet_policy(dataset, image_size=16)
