from __future__ import annotations

import io

import av
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as npst

from latentgym.errors import CorruptDataError, LatentGymError
from latentgym.trajectories.frames import decode_frames, encode_frames

SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 40), st.integers(1, 40), st.just(3))


@settings(max_examples=60, deadline=None)
@given(npst.arrays(np.uint8, SHAPES))
def test_round_trip_is_exact_for_sparse_frames(frames):
    assert np.array_equal(decode_frames(encode_frames(frames), frames.shape), frames)


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(0, 2**32 - 1), st.sampled_from([2, 16, 256]))
def test_round_trip_is_exact_for_noise(shape, seed, levels):
    rng = np.random.default_rng(seed)
    frames = (rng.integers(0, levels, shape) * (255 // (levels - 1))).astype(np.uint8)
    assert np.array_equal(decode_frames(encode_frames(frames), shape), frames)


def test_round_trip_of_frames_that_move_and_stand_still():
    frames = np.zeros((40, 64, 64, 3), np.uint8)
    for t in range(40):
        frames[t, 10 + t // 2 : 20 + t // 2, 5 + t // 3 : 15 + t // 3] = (t, 255 - t, 128)
    assert np.array_equal(decode_frames(encode_frames(frames), frames.shape), frames)


def test_non_contiguous_frames_are_stored_as_they_look():
    frames = np.random.default_rng(0).integers(0, 256, (3, 12, 10, 3), dtype=np.uint8)[:, ::-1, ::2]
    assert np.array_equal(decode_frames(encode_frames(frames), frames.shape), frames)


def test_encoding_is_deterministic_and_free_of_version_strings():
    frames = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    data = encode_frames(frames)
    assert data == encode_frames(frames.copy())
    assert b"Lav" not in data


def test_real_frames_compress_and_come_back_exactly(shared):
    paths = sorted((shared / "calvin_debug" / "training").glob("episode_*.npz"))[:5]
    frames = np.stack([np.load(path)["rgb_static"] for path in paths])
    data = encode_frames(frames)
    assert np.array_equal(decode_frames(data, frames.shape), frames)
    assert len(data) < 0.5 * frames.nbytes


@pytest.mark.parametrize("control_hz", [0.0001, 1.0, 30.0, 12.5, 29.97, 500.0])
def test_playback_rate_is_the_control_rate(control_hz):
    frames = np.zeros((3, 8, 8, 3), np.uint8)
    data = encode_frames(frames, control_hz)
    assert np.array_equal(decode_frames(data, frames.shape), frames)
    with av.open(io.BytesIO(data), "r") as container:
        assert float(container.streams.video[0].average_rate) == pytest.approx(max(control_hz, 0.001), rel=1e-2)


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((2, 8, 8, 4), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
    ],
)
def test_wrong_frames_are_refused(frames):
    with pytest.raises(LatentGymError, match=r"expected \(N, H, W, 3\) uint8"):
        encode_frames(frames)


@pytest.mark.parametrize("control_hz", [0.0, -1.0, float("nan"), float("inf")])
def test_wrong_rates_are_refused(control_hz):
    with pytest.raises(LatentGymError, match="control_hz"):
        encode_frames(np.zeros((1, 8, 8, 3), np.uint8), control_hz)


@pytest.mark.parametrize("shape", [(3, 8, 8, 3), (5, 8, 8, 3), (4, 8, 9, 3)])
def test_another_number_or_size_of_frames_is_corrupt(shape):
    data = encode_frames(np.zeros((4, 8, 8, 3), np.uint8))
    with pytest.raises(CorruptDataError, match="expected"):
        decode_frames(data, shape)


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.9])
def test_truncated_video_is_corrupt(keep):
    frames = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    data = encode_frames(frames)
    with pytest.raises(CorruptDataError):
        decode_frames(data[: int(keep * len(data)) if keep < 1 else keep], frames.shape)
