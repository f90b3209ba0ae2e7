from __future__ import annotations

import colorsys
import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from latentgym.corruptions import CORRUPTIONS, corrupt, smooth
from latentgym.errors import LatentGymError, UnknownNameError

CASES = [(name, severity) for name, kind in CORRUPTIONS.items() for severity in range(1, len(kind.severities) + 1)]


def clips(batch: int = 2, frames: int = 3, height: int = 64, width: int = 64) -> np.ndarray:
    """A smooth scene with an edge, drifting by a pixel per frame."""
    rng = np.random.default_rng(0)
    wide = ndimage.gaussian_filter(rng.uniform(0, 255, (batch, height, width + frames, 3)), (0, 3, 3, 0)) * 4 - 380
    wide[:, height // 3 : height // 2, ::9] = 240
    return np.stack([wide[:, :, t : t + width] for t in range(frames)], axis=1).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(("name", "severity"), CASES)
def test_seeded_by_clip_alone(name: str, severity: int) -> None:
    """A clip's corruption depends on its seed, not on the clips beside it."""
    x = clips()
    together = corrupt(x, name, severity, seed=[3, 8])
    assert together.dtype == np.uint8 and together.shape == x.shape
    assert (together != x).any(axis=(1, 2, 3, 4)).all()
    for index, seed in enumerate((3, 8)):
        np.testing.assert_array_equal(corrupt(x[index : index + 1], name, severity, seed=seed)[0], together[index])
    same = np.array_equal(corrupt(x, name, severity, seed=[4, 9]), together)
    assert same != CORRUPTIONS[name].random


@pytest.mark.parametrize("name", list(CORRUPTIONS))
def test_static_noise_is_the_same_in_every_frame_and_per_frame_noise_is_not(name: str) -> None:
    still = np.repeat(clips(frames=1), 4, axis=1)
    static = corrupt(still, name, 1, mode="static")
    assert (static == static[:, :1]).all()
    moving = corrupt(still, name, 1, mode="per_frame")
    assert (moving == moving[:, :1]).all() != CORRUPTIONS[name].random


@pytest.mark.parametrize("name", [name for name, kind in CORRUPTIONS.items() if name not in ("elastic", "snow")])
def test_harm_grows_with_severity(name: str) -> None:
    """Elastic and snow change kind between severities, in the reference too."""
    x = clips()
    severities = range(1, len(CORRUPTIONS[name].severities) + 1)
    harm = [np.square(corrupt(x, name, s).astype(float) - x).mean() for s in severities]
    assert harm == sorted(harm)


def test_noise_has_its_deviation() -> None:
    grey = np.full((1, 1, 128, 128, 3), 128, np.uint8)
    noisy = corrupt(grey, "noise_015", 1).astype(float) / 255
    assert noisy.std() == pytest.approx(0.15, rel=0.03) and noisy.mean() == pytest.approx(128 / 255, abs=0.01)
    salted = corrupt(grey, "impulse_noise", 5)
    assert np.isin(salted, (0, 128, 255)).all()
    assert (salted != 128).mean() == pytest.approx(0.27, abs=0.01)


@pytest.mark.parametrize(("border", "theirs"), [("edge", "nearest"), ("reflect", "reflect"), ("mirror", "mirror")])
@pytest.mark.parametrize("deviation", [0.4, 1.7, 20.0])
def test_smoothing_equals_scipy(border: str, theirs: str, deviation: float) -> None:
    x = np.random.default_rng(0).normal(size=(2, 17, 31))
    ours = smooth(torch.from_numpy(x), deviation, border).numpy()  # type: ignore[arg-type]
    np.testing.assert_allclose(ours, ndimage.gaussian_filter(x, (0, deviation, deviation), mode=theirs), atol=1e-12)


def test_blur_equals_opencv() -> None:
    cv2 = pytest.importorskip("cv2")
    x = clips(1, 1)
    expected = cv2.GaussianBlur(x[0, 0].astype(np.float32), (11, 11), 0)
    assert np.abs(corrupt(x, "blur_11", 1)[0, 0] - expected).max() <= 0.51


@pytest.mark.parametrize("severity", range(1, 6))
def test_jpeg_is_that_of_pillow(severity: int) -> None:
    x = clips(1, 1, 64, 80)
    buffer = io.BytesIO()
    Image.fromarray(x[0, 0]).save(buffer, "JPEG", quality=CORRUPTIONS["jpeg"].severities[severity - 1])
    expected = np.asarray(Image.open(buffer)).astype(float)
    ours = corrupt(x, "jpeg", severity)[0, 0]
    assert np.abs(ours - expected).mean() < 0.2 * np.abs(x[0, 0] - expected).mean()


def test_jpeg_is_that_of_kornia() -> None:
    jpeg = pytest.importorskip("kornia.enhance").jpeg_codec_differentiable
    x = clips(1, 1)
    frame = torch.from_numpy(x[0]).permute(0, 3, 1, 2).float() / 255
    expected = (jpeg(frame, torch.tensor([15.0]))[0] * 255).permute(1, 2, 0).numpy()
    ours = corrupt(x, "jpeg", 3)[0, 0]
    assert np.abs(ours - expected).mean() < 0.25 * np.abs(x[0, 0] - expected).mean()


@pytest.mark.parametrize("severity", range(1, 6))
def test_pixelate_is_that_of_pillow(severity: int) -> None:
    x = clips(1, 1)
    side = int(64 * CORRUPTIONS["pixelate"].severities[severity - 1])
    expected = Image.fromarray(x[0, 0]).resize((side, side), Image.BOX).resize((64, 64), Image.NEAREST)
    ours = corrupt(x, "pixelate", severity)[0, 0].astype(float)
    assert np.abs(ours - np.asarray(expected)).max() <= 1.01  # Pillow rounds after each axis


def test_brightness_raises_the_value_alone() -> None:
    x = clips(1, 1)
    bright = corrupt(x, "brightness", 2)[0, 0]
    for row, column in [(3, 3), (40, 12), (25, 9)]:
        hue, saturation, value = colorsys.rgb_to_hsv(*(x[0, 0, row, column] / 255))
        expected = colorsys.hsv_to_rgb(hue, saturation, min(value + 0.2, 1.0))
        np.testing.assert_allclose(bright[row, column] / 255, expected, atol=0.51 / 255)


def test_motion_blur_streaks_in_one_direction() -> None:
    dot = np.zeros((1, 1, 65, 65, 3), np.uint8)
    dot[0, 0, 32, 32] = 255
    streak = np.argwhere(corrupt(dot, "motion_blur", 5, seed=1)[0, 0, :, :, 0] > 0) - 32
    assert len(streak) > 4
    _, spread, _ = np.linalg.svd(streak.astype(float))
    assert spread[1] < 0.3 * spread[0]


def test_tensors_stay_tensors_and_equal_arrays() -> None:
    x = clips()
    for name in CORRUPTIONS:
        found = corrupt(torch.from_numpy(x), name, 1, seed=5)
        assert isinstance(found, torch.Tensor)
        np.testing.assert_array_equal(found.numpy(), corrupt(x, name, 1, seed=5))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", list(CORRUPTIONS))
def test_gpu_agrees_with_cpu(name: str) -> None:
    x = clips()
    on_gpu = corrupt(x, name, 1, device="cuda").astype(int)
    assert (np.abs(on_gpu - corrupt(x, name, 1)) > 1).mean() < 1e-3


def test_bad_input_is_named() -> None:
    x = clips(1, 1)
    with pytest.raises(UnknownNameError, match="did you mean 'gaussian_noise'"):
        corrupt(x, "gausian_noise")
    with pytest.raises(LatentGymError, match="severities are 1 … 5, found 6"):
        corrupt(x, "snow", 6)
    with pytest.raises(LatentGymError, match=r"\(B, T, H, W, 3\)"):
        corrupt(x[0], "snow")
    with pytest.raises(LatentGymError, match="one seed per clip"):
        corrupt(x, "snow", seed=[1, 2])
    with pytest.raises(UnknownNameError, match="static"):
        corrupt(x, "snow", mode="dynamic")  # type: ignore[call-overload]
