from __future__ import annotations

import dataclasses
import multiprocessing
import warnings

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from latentgym.encoders import FeatureCache, View, encode_view, feature_key, load_encoder
from latentgym.encoders import features as batching
from latentgym.encoders.contract import EncoderSpec
from latentgym.errors import LatentGymError
from latentgym.trajectories.episode import ActionSpec, Episode, Provenance
from latentgym.trajectories.store import create_store, open_dataset

LENGTHS = (5, 3, 9, 4, 2)
VIEWS = (View("single"), View("causal"), View("clip", 1), View("clip", 4))


def make_episode(seed, length, cameras=("pixels",)):
    rng = np.random.default_rng(seed)
    return Episode(
        frames={camera: rng.integers(0, 256, (length + 1, 24, 24, 3), dtype=np.uint8) for camera in cameras},
        action=rng.standard_normal((length, 2)).astype(np.float32),
        proprio=rng.standard_normal((length + 1, 3)).astype(np.float32),
        state=rng.standard_normal((length + 1, 4)).astype(np.float32),
        sim_state=np.zeros((length + 1, 0)),
        reward=np.zeros(length, np.float32),
        terminated=np.zeros(length, bool),
        truncated=np.arange(length) == length - 1,
        success=np.zeros(length, bool),
        random_action=np.zeros(length, bool),
        seed=seed,
        policy="random",
        env_id="test/Env-v0",
    )


def make_dataset(path, seed=0, cameras=("pixels",)):
    store = create_store(
        path,
        env_id="test/Env-v0",
        action_spec=ActionSpec(("x", "y"), "world", "delta", ("m", "m"), (1.0, 1.0), (-1.0, -1.0), (1.0, 1.0)),
        cameras=cameras,
        control_hz=10.0,
        horizon=20,
        episodes=len(LENGTHS),
        provenance=Provenance({}, {}, 0, "", ""),
        settings={},
    )
    for index, length in enumerate(LENGTHS):
        store.write(index, make_episode(100 * seed + index, length, cameras))
    return open_dataset(path)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "dataset")


@pytest.fixture(scope="module")
def encoders():
    return {name: load_encoder(name, device="cpu") for name in ("pixels", "state", "proprio", "random")}


def shards(root):
    return sorted(root.glob("*/*.safetensors"))


def snapshot(root):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in shards(root)}


@pytest.mark.parametrize("view", VIEWS, ids=str)
@pytest.mark.parametrize("name", ["pixels", "state", "proprio", "random"])
def test_equals_encode_view(dataset, encoders, tmp_path, name, view):
    encoder = encoders[name]
    features = FeatureCache(tmp_path, shard_bytes=4 * 1024 * 12).get(dataset, encoder, view)
    for index in range(len(dataset)):
        episode = dataset.episode(index)
        data = episode.frames["pixels"] if encoder.spec.modality == "pixels" else getattr(episode, name)
        expected = encode_view(encoder, data, view)
        assert features.episode(index).dtype == np.float32
        np.testing.assert_array_equal(features.episode(index), expected)
        assert features.lengths[index] == len(expected)
    rows, groups = features.rows([3, 0])
    np.testing.assert_array_equal(rows, np.concatenate([features.episode(3), features.episode(0)]))
    assert groups.tolist() == [3] * features.lengths[3] + [0] * features.lengths[0]
    assert rows.shape[1] == features.dim
    with pytest.raises(LatentGymError, match="from 0 to 4, found 5"):
        features.episode(5)


def test_views_that_an_encoder_cannot_tell_apart_share_one_pass(dataset, encoders, tmp_path):
    for name, passes in (("pixels", 1), ("random", 2)):
        cache = FeatureCache(tmp_path / name)
        for view in VIEWS:
            cache.get(dataset, encoders[name], view)
        assert len(list((tmp_path / name).iterdir())) == passes


def test_a_second_call_computes_nothing(dataset, encoders, tmp_path):
    FeatureCache(tmp_path).get(dataset, encoders["random"], View("causal"))
    before = snapshot(tmp_path)
    silent = load_encoder("random", device="cpu")
    silent.forward = None
    features = FeatureCache(tmp_path).get(dataset, silent, View("causal"))
    assert features.episode(0).shape == (6, 1024)
    assert snapshot(tmp_path) == before


def test_shards_are_bounded_and_progress_is_told(dataset, encoders, tmp_path):
    limit, told = 4 * 1024 * 10, []
    FeatureCache(tmp_path, shard_bytes=limit).get(
        dataset, encoders["random"], View("causal"), progress=lambda done, total: told.append((done, total))
    )
    assert [path.stem for path in shards(tmp_path)] == ["000000-000001", "000002-000002", "000003-000004"]
    assert told == [(2, 5), (3, 5), (5, 5)]
    assert all(path.stat().st_size < limit + 1024 for path in shards(tmp_path))


def test_a_killed_run_continues_where_it_stopped(dataset, encoders, tmp_path):
    def kill(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FeatureCache(tmp_path, shard_bytes=1).get(dataset, encoders["random"], View("causal"), progress=kill)
    first = snapshot(tmp_path)
    assert len(first) == 1
    features = FeatureCache(tmp_path, shard_bytes=1).get(dataset, encoders["random"], View("causal"))
    assert snapshot(tmp_path).items() >= first.items()
    assert len(shards(tmp_path)) == len(LENGTHS)
    assert len(features.rows(range(5))[0]) == sum(LENGTHS) + 5
    assert not list(tmp_path.rglob("*.partial"))


def _damage_truncate(data):
    return data[: len(data) // 2]


def _damage_header(data):
    return b"\xff" * 8 + data[8:]


def _damage_bit(data):
    return data[:-3] + bytes([data[-3] ^ 4]) + data[-2:]


def _damage_digest(data):
    place = data.index(b'sha256":"') + 12
    return data[:place] + (b"0" if data[place : place + 1] != b"0" else b"1") + data[place + 1 :]


@pytest.mark.parametrize("damage", [_damage_truncate, _damage_header, _damage_bit, _damage_digest, lambda data: b""])
def test_a_damaged_shard_is_encoded_again(dataset, encoders, tmp_path, damage):
    cache = FeatureCache(tmp_path, shard_bytes=1)
    cache.get(dataset, encoders["random"], View("causal"))
    before = snapshot(tmp_path)
    victim = shards(tmp_path)[2]
    victim.write_bytes(damage(victim.read_bytes()))
    with pytest.warns(RuntimeWarning, match=rf"{victim.name} is damaged .* it is encoded again"):
        features = cache.get(dataset, encoders["random"], View("causal"))
    assert {path: data for path, (_, data) in snapshot(tmp_path).items()} == {
        path: data for path, (_, data) in before.items()
    }
    np.testing.assert_array_equal(
        features.episode(2), encode_view(encoders["random"], dataset.episode(2).frames["pixels"], View("causal"))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FeatureCache(tmp_path, shard_bytes=1).get(dataset, encoders["random"], View("causal"))


def test_rows_of_another_data_set_are_not_believed(dataset, encoders, tmp_path):
    cache = FeatureCache(tmp_path)
    cache.get(dataset, encoders["state"], View("single"))
    (path,) = shards(tmp_path)
    save_file({"features": load_file(path)["features"][:-1].copy()}, path)
    with pytest.warns(RuntimeWarning, match="digest differs"):
        assert len(cache.get(dataset, encoders["state"], View("single")).episode(4)) == 3


def test_a_damaged_index_is_written_again(dataset, encoders, tmp_path):
    FeatureCache(tmp_path).get(dataset, encoders["state"], View("single"))
    (index,) = tmp_path.glob("*/index.json")
    whole = index.read_text()
    index.write_text(whole[:10])
    with pytest.warns(RuntimeWarning, match="is written again"):
        FeatureCache(tmp_path).get(dataset, encoders["state"], View("single"))
    assert index.read_text() == whole


def test_key_changes_with_everything_that_determines_the_numbers(dataset, tmp_path):
    spec = EncoderSpec("a", "b", weights_digest="1", clip_length=2, temporal=True)
    keys = {feature_key(dataset.key, spec, View("causal"), "mean")}
    changes = {
        "weights_digest": "2",
        "image_size": 32,
        "mean": (0.0, 0.5, 0.5),
        "std": (1.0, 0.5, 0.5),
        "layer": 3,
        "dtype": "bfloat16",
        "clip_length": 4,
        "tubelet": 2,
        "temporal": False,
        "modality": "state",
        "family": "c",
    }
    for field, value in changes.items():
        keys.add(feature_key(dataset.key, dataclasses.replace(spec, **{field: value}), View("causal"), "mean"))
    keys.add(feature_key(dataset.key, spec, View("single"), "mean"))
    keys.add(feature_key(dataset.key, spec, View("clip", 2), "mean"))
    keys.add(feature_key(dataset.key, spec, View("causal"), "cls"))
    keys.add(feature_key(make_dataset(tmp_path / "other", seed=1).key, spec, View("causal"), "mean"))
    assert len(keys) == 1 + len(changes) + 4
    moved = dataclasses.replace(spec, name="z", source="elsewhere", licence="MIT", revision="1")
    assert feature_key(dataset.key, moved, View("causal"), "mean") in keys
    nameless = dataclasses.replace(spec, weights_digest="")
    renamed = dataclasses.replace(nameless, name="z")
    assert feature_key("", nameless, View("causal"), "mean") != feature_key("", renamed, View("causal"), "mean")


def test_short_episodes_have_no_rows(dataset, encoders, tmp_path):
    features = FeatureCache(tmp_path).get(dataset, encoders["random"], View("clip", 4))
    assert features.lengths.tolist() == [2, 0, 6, 1, 0]
    assert features.episode(1).shape == (0, 1024)
    assert features.rows([1, 4])[0].shape == (0, 1024)


def test_failures_name_the_episode(tmp_path, encoders, monkeypatch):
    blind = make_dataset(tmp_path / "blind", cameras=())
    with pytest.raises(LatentGymError, match="without cameras; 'pixels' reads pixels"):
        FeatureCache(tmp_path / "features").get(blind, encoders["pixels"], View("single"))
    broken = load_encoder("state", device="cpu")
    forward, calls = broken.forward, []

    def fail_late(clip, layer):
        calls.append(1)
        return forward(clip / (len(calls) <= 2), layer)

    broken.forward = fail_late
    monkeypatch.setattr(batching, "MAX_BATCH", {"cpu": 2})
    with pytest.raises(LatentGymError, match=r"blind, from episode 0 on: encoder 'state' returned NaN or infinite"):
        FeatureCache(tmp_path / "features").get(blind, broken, View("single"))


def _fill(path, root):
    encoder = load_encoder("random", device="cpu")
    FeatureCache(root, shard_bytes=1).get(open_dataset(path), encoder, View("causal"))


@pytest.mark.slow
def test_two_processes_share_a_cache(dataset, encoders, tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_fill, args=(dataset.path, tmp_path)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        features = FeatureCache(tmp_path, shard_bytes=1).get(dataset, encoders["random"], View("causal"))
    assert len(features.rows(range(5))[0]) == sum(LENGTHS) + 5


def test_mean_pooling_is_read_from_the_default_grid(dataset, tmp_path):
    encoder = load_encoder("random", device="cpu")
    cache = FeatureCache(tmp_path / "cache")
    cache.get(dataset, encoder, View("single"))
    files = sorted((tmp_path / "cache").rglob("*"))
    mean = cache.get(dataset, encoder, View("single"), pooling="mean")
    assert sorted((tmp_path / "cache").rglob("*")) == files
    direct = encode_view(encoder, dataset.episode(0).frames["pixels"], View("single"), pooling="mean")
    np.testing.assert_allclose(mean.episode(0), direct, atol=1e-6)
