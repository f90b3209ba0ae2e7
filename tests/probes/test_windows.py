from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentgym.encoders import FeatureCache, View, load_encoder
from latentgym.errors import LatentGymError
from latentgym.probes.controls import control_actions, shuffled_actions, shuffled_rows, time_shifted_actions
from latentgym.probes.windows import Input, WindowFeatures, action_chunks, cut_windows, read_actions
from latentgym.trajectories import Dataset

KINDS: tuple[Input, ...] = ("pair", "pair_difference", "difference", "single", "window")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 5), st.integers(0, 100))
def test_windows_hold_the_mean_and_the_first_of_their_actions(lengths: list[int], k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    actions = {i: (rng.normal(size=(n, 2)), rng.random(n) < 0.6) for i, n in enumerate(lengths)}
    if max(lengths) < k:
        with pytest.raises(LatentGymError, match=f"horizon k = {k}"):
            cut_windows(actions, range(len(lengths)), k)
        return
    windows = cut_windows(actions, range(len(lengths)), k)
    assert len(windows) == sum(max(n - k + 1, 0) for n in lengths)
    for row in range(len(windows)):
        action, random = actions[int(windows.episode[row])]
        span = slice(windows.step[row], windows.step[row] + k)
        np.testing.assert_allclose(windows.mean[row], action[span].mean(0), atol=1e-12)
        np.testing.assert_array_equal(windows.first[row], action[span.start])
        assert windows.random[row] == random[span].all()
    blocks = list(windows.blocks(4))
    assert np.concatenate([block.episode for block in blocks]).tolist() == windows.episode.tolist()
    assert all(set(a.episode).isdisjoint(b.episode) for a, b in itertools.pairwise(blocks))


def test_rows_are_the_observations_at_both_ends(points: Dataset, tmp_path: object) -> None:
    cache = FeatureCache(str(tmp_path))
    encoder = load_encoder("state")
    features = WindowFeatures(cache.get(points, encoder, View("single")), cache.get(points, encoder, View("clip", 4)))
    windows = cut_windows(read_actions(points, (3, 7)), (3, 7), 4)
    rows = {kind: features.rows(windows, kind) for kind in KINDS}
    for row in range(len(windows)):
        state, t = points.episode(int(windows.episode[row])).state, windows.step[row]
        np.testing.assert_array_equal(rows["pair"][row], [*state[t], *state[t + 4]])
        np.testing.assert_array_equal(rows["pair_difference"][row], [*state[t], *(state[t + 4] - state[t])])
        np.testing.assert_array_equal(rows["difference"][row], state[t + 4] - state[t])
        np.testing.assert_array_equal(rows["single"][row], state[t])
        np.testing.assert_array_equal(rows["window"][row], state[t : t + 5].ravel())
    order = shuffled_rows(windows, 0)
    moved = features.rows(windows, "pair", order)
    np.testing.assert_array_equal(moved[:, :3], rows["single"])
    np.testing.assert_array_equal(moved[:, 3:], rows["pair"][order, 3:])


def test_features_of_another_horizon_are_refused(points: Dataset, tmp_path: object) -> None:
    cache = FeatureCache(str(tmp_path))
    encoder = load_encoder("state")
    features = WindowFeatures(cache.get(points, encoder, View("single")), cache.get(points, encoder, View("clip", 4)))
    with pytest.raises(LatentGymError, match="another data set or horizon"):
        features.rows(cut_windows(read_actions(points, (0,)), (0,), 1), "pair")


def test_shuffled_actions_are_the_same_actions(points: Dataset) -> None:
    windows = cut_windows(read_actions(points, range(10)), range(10), 1)
    shuffled = shuffled_actions(windows, 0)
    assert not np.array_equal(shuffled, windows.mean)
    np.testing.assert_array_equal(np.sort(shuffled, axis=0), np.sort(windows.mean, axis=0))


def test_time_shift_turns_each_episode_by_itself(points: Dataset) -> None:
    windows = cut_windows(read_actions(points, range(10)), range(10), 2)
    shifted = time_shifted_actions(windows)
    for index in range(10):
        rows = windows.episode == index
        np.testing.assert_array_equal(shifted[rows], np.roll(windows.mean[rows], rows.sum() // 2, axis=0))


def test_chunks_are_the_actions_of_each_window(points: Dataset) -> None:
    actions = read_actions(points, (4, 9))
    windows = cut_windows(actions, (4, 9), 4).select(slice(3, 15))
    chunks = action_chunks(actions, windows)
    for row in range(len(windows)):
        t = windows.step[row]
        np.testing.assert_array_equal(chunks[row], actions[int(windows.episode[row])][0][t : t + 4].ravel())
    np.testing.assert_allclose(chunks.reshape(len(windows), 4, -1).mean(1), windows.mean, atol=1e-12)


def test_control_actions_depend_on_the_pixels_alone(points: Dataset, tmp_path: object) -> None:
    cache = FeatureCache(str(tmp_path))
    actions = read_actions(points, range(20))
    train, test = cut_windows(actions, range(15), 1), cut_windows(actions, range(15, 20), 1)
    targets = control_actions(points, train, test, cache, 0)
    assert [len(t) for t in targets] == [len(train), len(test)]
    kinds = {tuple(row) for row in np.concatenate(targets)}
    assert 2 <= len(kinds) <= 64
    assert kinds <= {tuple(row) for row in train.mean}
    pairs: dict[bytes, tuple[float, ...]] = {}
    for windows, target in zip((train, test), targets, strict=True):
        for row in range(len(windows)):
            frames = points.episode(int(windows.episode[row])).frames["pixels"]
            seen = frames[windows.step[row] : windows.step[row] + 2].tobytes()
            assert pairs.setdefault(seen, tuple(target[row])) == tuple(target[row])


def test_nan_actions_are_named(points: Dataset) -> None:
    class Broken:
        path = points.path

        def episode(self, index: int, cameras: tuple[str, ...]) -> object:
            episode = points.episode(index, cameras)
            episode.action[3] = np.nan
            return episode

    with pytest.raises(LatentGymError, match=r"episode 2 .*NaN or infinite actions"):
        read_actions(Broken(), (2,))  # type: ignore[arg-type]
