from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from latentgym.encoders import load_encoder
from latentgym.encoders.torchvision_fallback import ensure_torchvision
from latentgym.errors import LatentGymError
from latentgym.probes import FidelityResult, fidelity
from latentgym.probes.decoder import GridDecoder, psnr, ssim
from latentgym.trajectories import Dataset, split_episodes

FAST = {"steps": 120, "batch_size": 16, "replicates": 50, "train_frames": 120, "test_frames": 40}


def run(dataset: Dataset, name: str, **changes: int) -> FidelityResult:
    return fidelity([(dataset, split_episodes(dataset))], load_encoder(name), **{**FAST, **changes})


def test_psnr_and_ssim_equal_torchmetrics() -> None:
    ensure_torchvision()  # torchmetrics imports it, and a CPU build of torch can make that fail
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    generator = torch.Generator().manual_seed(0)
    target = torch.rand(3, 3, 64, 64, generator=generator)
    image = (target + 0.1 * torch.randn(target.shape, generator=generator)).clamp(0, 1)
    for index in range(3):
        pair = image[index : index + 1], target[index : index + 1]
        assert psnr(*pair).item() == pytest.approx(peak_signal_noise_ratio(*pair, data_range=1.0).item(), abs=1e-4)
        # torchmetrics averages over reflected borders too; the published index keeps to windows inside the image.
        _, index_map = structural_similarity_index_measure(*pair, data_range=1.0, return_full_image=True)
        assert ssim(*pair).item() == pytest.approx(index_map[..., 5:-5, 5:-5].mean().item(), abs=1e-5)
    assert psnr(target, target).tolist() == [100.0] * 3
    assert torch.allclose(ssim(target, target), torch.ones(3))


@pytest.mark.parametrize("grid", [(1, 1), (8, 8), (7, 7), (16, 16), (14, 14), (5, 17)])
def test_the_decoder_takes_every_grid_and_only_its_projection_differs(grid: tuple[int, int]) -> None:
    decoder = GridDecoder(10, grid, torch.full((3, 64, 64), 0.5), torch.Generator().manual_seed(0))
    tokens = torch.randn(2, grid[0] * grid[1], 10, requires_grad=True)
    image = decoder(tokens)
    assert image.shape == (2, 3, 64, 64)
    image.square().sum().backward()
    assert tokens.grad is not None and (tokens.grad.abs().sum((0, 2)) > 0).all(), "a token is not looked at"
    parameters = sum(p.numel() for p in decoder.parameters()) - decoder.project.weight.numel()
    other = GridDecoder(3, (8, 8), torch.zeros(3, 64, 64), torch.Generator())
    assert parameters == sum(p.numel() for p in other.parameters()) - other.project.weight.numel()


def test_latents_that_keep_the_image_beat_the_mean_image_and_noise_does_not(points: Dataset) -> None:
    seen, blind = run(points, "pixels"), run(points, "proprio")
    values = {row.metric: row.value for row in seen.rows}
    floor = values["psnr_mean_image_db"]
    assert values["psnr_db"] > floor + 3  # type: ignore[operator]
    assert {row.metric: row.value for row in blind.rows}["psnr_db"] < floor + 0.5  # type: ignore[operator]
    for row in seen.rows:
        assert row.n == len(split_episodes(points).test)
        assert row.low <= row.value <= row.high  # type: ignore[operator]
    assert seen.examples.shape == (8, 2, 64, 64, 3) and seen.examples.dtype == np.uint8
    assert seen.latent_floats_per_frame == 16 * 16 * 3
    assert seen.replicates["psnr_db|decoder"].shape == (50,)


def test_same_seed_same_numbers(points: Dataset) -> None:
    first, second = run(points, "pixels", steps=10), run(points, "pixels", steps=10)
    assert first.rows == second.rows
    assert np.array_equal(first.examples, second.examples)


def test_several_data_sets_share_one_decoder(points: Dataset, make_dataset: Callable[..., Dataset]) -> None:
    other = make_dataset((9,) * 10)
    both = [(dataset, split_episodes(dataset)) for dataset in (points, other)]
    result = fidelity(both, load_encoder("pixels"), **{**FAST, "steps": 5})
    assert result.rows[0].n == sum(len(split.test) for _, split in both)


def test_nothing_to_decode_is_an_error() -> None:
    with pytest.raises(LatentGymError, match="at least one data set"):
        fidelity([], load_encoder("pixels"))
