from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentgym.encoders import LatentStream, View, encode_view, load_encoder
from latentgym.errors import LatentGymError

ROWS = 3


@pytest.fixture(scope="module")
def encoders():
    return {name: load_encoder(name, device="cpu") for name in ("pixels", "state", "random")}


def observations_of(rng, length):
    return {
        "pixels": rng.integers(0, 256, (length, 64, 64, 3), dtype=np.uint8),
        "state": rng.standard_normal((length, 4)).astype(np.float32),
    }


def stream_features(stream, episodes):
    """Run rows of unequal length side by side; a finished row starts its next episode at once."""
    steps = max(sum(len(episode["state"]) for episode in row) for row in episodes)
    features = [[] for _ in episodes]
    schedule = [[(e, t) for e, episode in enumerate(row) for t in range(len(episode["state"]))] for row in episodes]
    for step in range(steps):
        now = [plan[min(step, len(plan) - 1)] for plan in schedule]
        stream.reset(
            np.array([step == 0 or (t == 0 and step < len(plan)) for (_, t), plan in zip(now, schedule, strict=True)])
        )
        batch = {
            key: np.stack([row[e][key][t] for row, (e, t) in zip(episodes, now, strict=True)])
            for key in ("pixels", "state")
        }
        for row, vector in enumerate(stream.push(batch)):
            if step < len(schedule[row]):
                features[row].append(vector)
    return features


@pytest.mark.parametrize("name", ["pixels", "state", "random"])
@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    lengths=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=2), min_size=ROWS, max_size=ROWS),
)
def test_equals_the_causal_view_whatever_the_resets(encoders, name, seed, lengths):
    encoder, rng = encoders[name], np.random.default_rng(seed)
    episodes = [[observations_of(rng, length) for length in row] for row in lengths]
    streamed = stream_features(LatentStream(encoder), episodes)
    for row, features in zip(episodes, streamed, strict=True):
        expected = [encode_view(encoder, episode[encoder.spec.modality], View("causal")) for episode in row]
        np.testing.assert_allclose(np.stack(features), np.concatenate(expected), atol=1e-5)


@pytest.mark.parametrize("name", ["pixels", "random"])
def test_same_bits_for_the_same_batch_size(encoders, name):
    encoder, rng = encoders[name], np.random.default_rng(0)
    episodes = [[observations_of(rng, length)] for length in (6, 4, 5)]
    for batch_size in (ROWS, 2, 8):
        streamed = stream_features(LatentStream(encoder, batch_size=batch_size), episodes)
        for (episode,), features in zip(episodes, streamed, strict=True):
            expected = encode_view(encoder, episode["pixels"], View("causal"), batch_size=batch_size)
            np.testing.assert_array_equal(np.stack(features), expected)
    alone = stream_features(LatentStream(encoder, batch_size=8), episodes[:1])
    np.testing.assert_array_equal(np.stack(alone[0]), np.stack(streamed[0]))


def test_other_camera_and_pooling(encoders):
    frames = np.random.default_rng(0).integers(0, 256, (ROWS, 64, 64, 3), dtype=np.uint8)
    stream = LatentStream(encoders["random"], "mean")
    stream.reset(np.ones(ROWS, bool))
    features = stream.push({"pixels_wrist": frames}, camera="pixels_wrist")
    expected = [encode_view(encoders["random"], frame[None], View("causal"), pooling="mean")[0] for frame in frames]
    np.testing.assert_allclose(features, np.stack(expected), atol=1e-5)


def test_the_caller_may_reuse_its_buffers(encoders):
    frames = np.random.default_rng(0).integers(0, 256, (3, 2, 64, 64, 3), dtype=np.uint8)
    stream, buffer, rows = LatentStream(encoders["random"]), np.empty((2, 64, 64, 3), np.uint8), []
    stream.reset(np.ones(2, bool))
    for batch in frames:
        buffer[:] = batch
        rows.append(stream.push({"pixels": buffer}))
    expected = encode_view(encoders["random"], frames[:, 0], View("causal"))
    np.testing.assert_allclose(np.stack(rows)[:, 0], expected, atol=1e-5)


def test_misuse_is_refused(encoders):
    stream = LatentStream(encoders["random"])
    frames = np.zeros((2, 64, 64, 3), np.uint8)
    with pytest.raises(LatentGymError, match="call reset"):
        stream.push({"pixels": frames})
    stream.reset(np.ones(2, bool))
    with pytest.raises(LatentGymError, match=r"reads observation\['pixels'\], which is not there; found state"):
        stream.push({"state": frames})
    stream.push({"pixels": frames})
    with pytest.raises(LatentGymError, match=r"expected shape \(2, 64, 64, 3\), found \(1, 64, 64, 3\)"):
        stream.push({"pixels": frames[:1]})
    with pytest.raises(LatentGymError, match="of 2 rows: reset was given 3"):
        stream.reset(np.zeros(3, bool))
    stream.reset(np.ones(1, bool))
    assert stream.push({"pixels": frames[:1]}).shape == (1, 1024)
