from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentgym.encoders import Encoder, EncoderSpec, Latents, PixelEncoder, View, encode_view, load_encoder, pool
from latentgym.encoders.features import canonical_view, default_batch_size, encode_episodes, window_indices
from latentgym.errors import LatentGymError

views = st.one_of(st.sampled_from([View("single"), View("causal")]), st.integers(0, 6).map(lambda k: View("clip", k)))


class ClipEncoder(Encoder):
    """Reads vectors, weighs the frames of each tubelet differently: every frame of the clip matters, and its place."""

    def __init__(self, clip_length, tubelet):
        self.spec = EncoderSpec(
            name="clip",
            family="test",
            modality="state",
            clip_length=clip_length,
            tubelet=tubelet,
            temporal=clip_length > 1,
        )

    def forward(self, clip, layer):
        tubelets = clip.reshape(len(clip), -1, self.spec.tubelet, clip.shape[-1])
        weights = torch.arange(1.0, self.spec.tubelet + 1)[:, None]
        tokens = (tubelets * weights).sum(2).sin()[:, :, None]
        return Latents(tokens, (torch.arange(tokens.shape[1]) + 1) * self.spec.tubelet - 1, layer)


def episode(observations, seed=0):
    return np.random.default_rng(seed).standard_normal((observations, 3)).astype(np.float32)


@given(observations=st.integers(1, 12), view=views, length=st.integers(1, 8))
def test_windows_see_only_what_the_view_allows(observations, view, length):
    windows = window_indices(observations, view, length)
    assert windows.shape == (max(0, observations - view.k), length)
    for row, window in enumerate(windows):
        assert (np.diff(window) >= 0).all()
        if view.kind == "single":
            assert set(window) == {row}
        elif view.kind == "causal":
            assert window.tolist() == [max(0, row - length + 1 + frame) for frame in range(length)]
        else:
            assert window[-1] == row + view.k
            assert row <= window[0]
            counts = np.unique(window, return_counts=True)[1]
            if length > view.k:
                assert set(window) == set(range(row, row + view.k + 1))
                assert counts.max() - counts.min() <= 1
            else:
                assert window.tolist() == list(range(row + view.k + 1 - length, row + view.k + 1))


@settings(deadline=None)
@given(
    observations=st.integers(1, 9),
    view=views,
    shape=st.sampled_from([(1, 1), (2, 2), (4, 4), (4, 2), (6, 2), (3, 1)]),
    batch_size=st.integers(1, 5),
)
def test_rows_are_the_encoding_of_their_window(observations, view, shape, batch_size):
    """Also the law that lets the cache save passes: the canonical view holds the same rows."""
    encoder, data = ClipEncoder(*shape), episode(observations)
    features = encode_view(encoder, data, view, batch_size=batch_size)
    windows = window_indices(observations, view, encoder.spec.clip_length)
    assert features.shape == (len(windows), 3)
    assert features.dtype == np.float32
    for row, window in zip(features, windows, strict=True):
        pooled = encoder.encode(data[window][None]).pooled[0]
        expected = pooled[-1] if view.kind == "causal" else pooled.mean(0)
        np.testing.assert_allclose(row, expected.numpy(), atol=1e-5)
    stored, drop = canonical_view(view, encoder.spec)
    np.testing.assert_allclose(encode_view(encoder, data, stored)[drop:], features, atol=1e-5)


@pytest.mark.parametrize("name", ["pixels", "random"])
def test_the_future_does_not_change_a_causal_row(name):
    encoder = load_encoder(name, device="cpu")
    frames = np.random.default_rng(0).integers(0, 256, (21, 64, 64, 3), dtype=np.uint8)
    whole = encode_view(encoder, frames, View("causal"))
    for seen in (1, 7, 16, 20):
        np.testing.assert_array_equal(encode_view(encoder, frames[:seen], View("causal")), whole[:seen])


def test_two_frame_encoder_reads_horizons_off_its_causal_pass():
    encoder = load_encoder("random", device="cpu")
    assert encoder.spec.temporal
    for k in (1, 4):
        assert canonical_view(View("clip", k), encoder.spec) == (View("causal"), k)
    assert canonical_view(View("clip", 0), encoder.spec) == (View("single"), 0)
    assert canonical_view(View("clip", 4), EncoderSpec("a", "b", clip_length=2)) == (View("single"), 4)


def test_pooling_shapes_and_values():
    tokens = torch.arange(2 * 1 * 16 * 3, dtype=torch.float32).reshape(2, 1, 16, 3)
    latents = Latents(tokens, torch.tensor([0]), prefix=tokens[:, :, :2] + 1)
    assert torch.equal(pool(latents, "mean"), tokens.mean(2))
    assert torch.equal(pool(latents, "cls"), tokens[:, :, 0] + 1)
    assert torch.equal(pool(latents, "grid:4"), tokens.flatten(2))
    quarters = tokens.reshape(2, 1, 2, 2, 2, 2, 3).mean(dim=(3, 5)).flatten(2)
    torch.testing.assert_close(pool(latents, "grid:2"), quarters)
    torch.testing.assert_close(pool(latents, "grid:1"), tokens.mean(2))
    wide = Latents(tokens[:, :, :8], torch.tensor([0]))
    expected = tokens[:, :, :8].reshape(2, 2, 2, 2, 3).mean(3).flatten(1)[:, None]
    torch.testing.assert_close(pool(wide, "grid:2", grid=(2, 4)), expected)


@pytest.mark.parametrize(
    ("pooling", "message"),
    [
        ("max", "unknown pooling 'max'"),
        ("grid:0", "unknown pooling"),
        ("grid:", "unknown pooling"),
        ("cls", "no CLS token"),
        ("grid:3", "does not fit 4 patch tokens"),
    ],
)
def test_pooling_that_does_not_fit(pooling, message):
    with pytest.raises(LatentGymError, match=message):
        pool(Latents(torch.zeros(1, 1, 4, 2), torch.tensor([0])), pooling)


def test_views_are_parsed_and_checked():
    assert [View.parse(text) for text in ("single", "causal", "clip:0", "clip:12")] == [
        View("single"),
        View("causal"),
        View("clip", 0),
        View("clip", 12),
    ]
    for text in ("clip", "clip:-1", "causal:1", "last", ""):
        with pytest.raises(LatentGymError, match="unknown view"):
            View.parse(text)
    for kind, k in (("causal", 1), ("clip", -1)):
        with pytest.raises(LatentGymError, match="horizon"):
            View(kind, k)
    with pytest.raises(LatentGymError, match="no observations"):
        encode_view(load_encoder("state"), np.zeros((0, 3), np.float32), View("single"))


def test_an_episode_shorter_than_the_horizon_has_no_rows():
    assert encode_view(load_encoder("random"), np.zeros((3, 64, 64, 3), np.uint8), View("clip", 4)).shape == (0, 1024)


@pytest.mark.parametrize("view", [View("single"), View("causal"), View("clip", 4)])
def test_batches_across_episodes_change_no_bit(view):
    encoder = load_encoder("random", device="cpu")
    rng = np.random.default_rng(0)
    episodes = [rng.integers(0, 256, (length, 64, 64, 3), dtype=np.uint8) for length in (3, 9, 1, 5, 4)]
    together = list(encode_episodes(encoder, episodes, view, batch_size=4))
    assert [len(rows) for rows in together] == [max(0, len(frames) - view.k) for frames in episodes]
    for frames, rows in zip(episodes, together, strict=True):
        np.testing.assert_array_equal(rows, encode_view(encoder, frames, view, batch_size=4))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_episodes_on_a_gpu_are_what_their_clips_give_one_batch_at_a_time():
    encoder = load_encoder("random", device="cuda")
    rng = np.random.default_rng(0)
    episodes = [rng.integers(0, 256, (length, 64, 64, 3), dtype=np.uint8) for length in (30, 9, 1, 50)]
    found = np.concatenate(list(encode_episodes(encoder, episodes, View("single"), batch_size=8)))
    frames = np.concatenate(episodes)
    clips = frames[:, None].repeat(encoder.spec.clip_length, axis=1)
    batches = [clips[start : start + 8] for start in range(0, len(clips), 8)]
    batches[-1] = np.concatenate([batches[-1], batches[-1][-1:].repeat(8 - len(batches[-1]), axis=0)])
    expected = [pool(encoder.encode(batch), encoder.spec.pooling).mean(dim=1).cpu().numpy() for batch in batches]
    np.testing.assert_array_equal(found, np.concatenate(expected)[: len(frames)])


class Cramped(PixelEncoder):
    """Takes no more than three clips at once, as a small GPU would."""

    def __init__(self, most=3):
        super().__init__(4)
        self.most, self.batches = most, []

    def encode_layers(self, clip, layers):
        self.batches.append(len(clip))
        if len(clip) > self.most:
            raise torch.OutOfMemoryError("out of memory")
        return super().encode_layers(clip, layers)


def test_batches_that_do_not_fit_are_halved_once():
    frames = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    encoder = Cramped()
    found = encode_view(encoder, frames, View("single"), batch_size=16)
    np.testing.assert_array_equal(found, encode_view(PixelEncoder(4), frames, View("single")))
    assert encoder.batches == [16, 8, 4] + [2] * 10
    assert encoder.batch_limit == default_batch_size(encoder) == 2
    with pytest.raises(LatentGymError, match="one clip does not fit the memory of cpu; use a smaller image_size"):
        encode_view(Cramped(most=0), frames, View("single"))
