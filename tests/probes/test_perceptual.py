from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from latentgym.encoders.torchvision_fallback import ensure_torchvision
from latentgym.errors import CorruptDataError, LatentGymError
from latentgym.probes.perceptual import FEATURES_FILE, HEADS_FILE, Lpips, gmsd


def images(seed: int = 0, size: int = 64) -> torch.Tensor:
    """Smooth pictures."""
    noise = torch.rand(3, 3, size // 8, size // 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, size=(size, size), mode="bicubic").clamp(0, 1)


def test_gmsd_equals_piqa() -> None:
    ensure_torchvision()
    piqa = pytest.importorskip("piqa")
    target = images()
    image = (target + 0.1 * torch.randn(target.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    for index in range(3):
        expected = piqa.GMSD()(image[index : index + 1], target[index : index + 1])
        assert gmsd(image, target)[index].item() == pytest.approx(expected.item(), rel=0.02)


def test_gmsd_is_zero_for_equal_images_and_grows_with_harm() -> None:
    target = images()
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(1))
    assert gmsd(target, target).abs().max() < 1e-6
    found = [gmsd((target + scale * noise).clamp(0, 1), target).mean() for scale in (0.02, 0.1, 0.3)]
    assert found == sorted(found)


def test_lpips_equals_torchmetrics(shared: Path) -> None:
    ensure_torchvision()
    from torchmetrics.functional.image.lpips import _LPIPS

    folder = shared / "weights" / "lpips_alex"
    ours = Lpips(folder)
    theirs = _LPIPS(pretrained=False, net="alex", pnet_rand=True, eval_mode=True)
    for slice_index, layer in enumerate(ours.convolutions, start=1):
        getattr(theirs.net, f"slice{slice_index}")[-2].load_state_dict(ours.convolutions[layer].state_dict())
    for index, head in enumerate(ours.heads):
        getattr(theirs, f"lin{index}").model[1].weight.data = head
    for size in (64, 96):
        first, second = images(0, size), images(5, size)
        expected = theirs(first, second, normalize=True).flatten()
        torch.testing.assert_close(ours(first, second), expected, rtol=1e-4, atol=1e-6)
    assert ours(first, first).abs().max() == 0


def test_missing_or_damaged_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(LatentGymError, match=FEATURES_FILE):
        Lpips(tmp_path)
    save_file({"0.weight": torch.zeros(2)}, tmp_path / FEATURES_FILE)
    save_file({"lin0.model.1.weight": torch.zeros(2)}, tmp_path / HEADS_FILE)
    with pytest.raises(CorruptDataError, match="not AlexNet"):
        Lpips(tmp_path)
    (tmp_path / HEADS_FILE).write_bytes(b"nothing")
    with pytest.raises(CorruptDataError, match="truncated"):
        Lpips(tmp_path)


def test_arrays_are_untouched() -> None:
    target = images()
    before = target.clone()
    gmsd(target, target.flip(-1))
    assert np.array_equal(target, before)
