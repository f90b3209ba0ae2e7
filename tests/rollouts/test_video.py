from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from latentgym.errors import LatentGymError
from latentgym.rollouts import write_video


def clip(height: int = 64, width: int = 64, count: int = 7) -> list[np.ndarray]:
    """Frames whose brightness says which they are."""
    frames = [np.full((height, width, 3), 30 * index, np.uint8) for index in range(count)]
    for frame in frames:
        frame[: height // 2, : width // 2] = (200, 30, 30)
    return frames


@pytest.mark.parametrize(
    ("side", "expected"), [((64, 64), (256, 256)), ((85, 101), (340, 404)), ((301, 303), (302, 304))]
)
def test_any_browser_plays_it(tmp_path: Path, side: tuple[int, int], expected: tuple[int, int]) -> None:
    path = tmp_path / "clip.mp4"
    write_video(path, clip(*side), 12.5)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.height, stream.width) == expected
        assert float(stream.average_rate or 0) == pytest.approx(12.5)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(frames) == 7
    for index, frame in enumerate(frames):
        assert abs(float(frame[-20:, -20:].mean()) - 30 * index) < 6
        assert abs(frame[10:60, 10:60].mean(axis=(0, 1)) - (200, 30, 30)).max() < 12


def test_equal_frames_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_video(tmp_path / name, clip(), 10)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


@pytest.mark.parametrize("frames", [[], [np.zeros((4, 4), np.uint8)], [np.zeros((4, 4, 3))], clip(4) + clip(6)])
def test_bad_frames_leave_no_file(tmp_path: Path, frames: list[np.ndarray]) -> None:
    with pytest.raises(LatentGymError, match="expected frames of one shape"):
        write_video(tmp_path / "clip.mp4", frames, 10)
    assert not list(tmp_path.iterdir())


def test_bad_rate(tmp_path: Path) -> None:
    with pytest.raises(LatentGymError, match="positive"):
        write_video(tmp_path / "clip.mp4", clip(), 0)
