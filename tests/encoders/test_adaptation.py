from __future__ import annotations

import dataclasses
import json
import shutil
import warnings

import numpy as np
import pytest
import torch

from latentgym.encoders import FeatureCache, View, check_encoder, find_encoders, load_encoder
from latentgym.encoders.adaptation import adapt
from latentgym.encoders.optimisation import STATE_NAME
from latentgym.encoders.pretraining import pretrain
from latentgym.encoders.torchvision_fallback import ensure_torchvision
from latentgym.encoders.window_pool import WindowPool
from latentgym.errors import CorruptDataError, LatentGymError, UnknownNameError
from latentgym.policies import load_policy, train_policy
from latentgym.probes import probe
from latentgym.trajectories import Split, split_episodes
from latentgym.trajectories.episode import ActionSpec, Episode, Provenance
from latentgym.trajectories.store import create_store, open_dataset

SPLIT = Split(train=(0, 1, 2, 4, 6, 7), validation=(5,), test=(3, 8, 9))


class Killed(Exception):
    """Stands for the signal that ends a run in mid-training."""


def make_episode(seed, length):
    """A square that moves by twice the action on a grey floor; red tells the episode, so that clips can be traced."""
    rng = np.random.default_rng(seed)
    action = rng.uniform(-1, 1, (length, 2)).astype(np.float32)
    place = np.clip(np.cumsum(np.vstack([rng.uniform(20, 40, 2), 4 * action]), axis=0), 4, 60)
    axis = np.arange(64)[None]
    inside = [abs(axis - place[:, [i]]) < 5 for i in (0, 1)]
    frames = np.full((length + 1, 64, 64, 3), 90, np.uint8)
    frames[inside[0][:, :, None] & inside[1][:, None, :]] = 250
    frames[..., 0] = 10 * seed
    frames[:, 0, :, 1] = np.arange(length + 1)[:, None]
    return Episode(
        frames={"pixels": frames, "pixels_side": frames[:, ::-1]},
        action=action,
        proprio=np.zeros((length + 1, 1), np.float32),
        state=place.astype(np.float32),
        sim_state=np.zeros((length + 1, 0)),
        reward=np.zeros(length, np.float32),
        terminated=np.zeros(length, bool),
        truncated=np.arange(length) == length - 1,
        success=np.zeros(length, bool),
        random_action=np.ones(length, bool),
        seed=seed,
        policy="expert",
        env_id="test/Square-v0",
    )


def make_dataset(path, lengths):
    store = create_store(
        path,
        env_id="test/Square-v0",
        action_spec=ActionSpec(("x", "y"), "world", "delta", ("m",) * 2, (1.0,) * 2, (-1.0,) * 2, (1.0,) * 2),
        cameras=("pixels", "pixels_side"),
        control_hz=10.0,
        horizon=100,
        episodes=len(lengths),
        provenance=Provenance({}, {}, 0, "", ""),
        settings={},
    )
    for index, length in enumerate(lengths):
        store.write(index, make_episode(index, length))
    return open_dataset(path)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    lengths = (12, 9, 14, 8, 11, 10, 9, 12, 10, 11)
    return make_dataset(tmp_path_factory.mktemp("data") / "dataset", lengths)


@pytest.fixture(scope="module")
def small(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("small") / "ssl"
    return pretrain("image_ssl", [(dataset, SPLIT.train)], out=out, steps=2, batch_size=4)


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    ensure_torchvision()
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    folder = tmp_path_factory.mktemp("hf") / "dino"
    transformers.Dinov2Model(config).save_pretrained(folder)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    return folder


def run(encoder, dataset, out, **changes):
    return adapt(
        encoder, dataset, out=out, **({"steps": 4, "batch_size": 4, "save_every": 2, "split": SPLIT} | changes)
    )


def tokens(source, dataset):
    frames = dataset.episode(3).frames["pixels"][:2]
    encoder = load_encoder(source)
    length = encoder.spec.clip_length
    return encoder.encode(np.repeat(frames[:, None], length, axis=1)).tokens


@pytest.mark.parametrize("arm", ["adapter", "finetune"])
@pytest.mark.parametrize("kind", ["small", "dino", "random"])
def test_adapted_folder_serves_everywhere_by_its_path(arm, kind, dataset, small, dino, tmp_path):
    source = {"small": small, "dino": dino, "random": "random:3"}[kind]
    out = run(source, dataset, tmp_path / "out", arm=arm)
    encoder, base = load_encoder(out), load_encoder(source)
    assert find_encoders(out.parent)[0] == {"out": str(out)}
    assert encoder.spec.trained_on_actions and encoder.spec.weights_digest != base.spec.weights_digest
    assert encoder.spec.name.startswith(base.spec.name + "+id") and encoder.spec.family == base.spec.family
    assert not torch.equal(tokens(out, dataset), tokens(source, dataset))
    assert check_encoder(encoder) == []
    features = FeatureCache(tmp_path / "cache").get(dataset, encoder, View("causal"))
    assert np.isfinite(features.episode(0)).all()
    result = probe(
        dataset, str(out), split=SPLIT, horizons=(1,), readouts=("ridge",), controls=(), replicates=20, folds=2
    )
    assert {row.encoder for row in result.rows} == {encoder.spec.name}
    policy = train_policy(dataset, encoder, split=SPLIT, demonstrations=None, steps=2)
    policy.save(tmp_path / "policy")
    assert load_policy(tmp_path / "policy").encoder.spec.weights_digest == encoder.spec.weights_digest
    assert not (out / STATE_NAME).exists() and not list(out.rglob("*.bin"))


def test_folder_is_whole_without_its_base(dataset, dino, tmp_path):
    copy = shutil.copytree(dino, tmp_path / "base")
    out = run(copy, dataset, tmp_path / "out")
    before = tokens(out, dataset)
    shutil.rmtree(copy)
    moved = out.rename(tmp_path / "moved")
    assert torch.equal(tokens(moved, dataset), before)


def test_a_folder_with_a_feeding_is_copied_too(dataset, tmp_path):
    video = pretrain("masked_video", [(dataset, SPLIT.train)], out=tmp_path / "video", steps=2, batch_size=4)
    out = run(f"{video}+duplicated", dataset, tmp_path / "out")
    before, spec = tokens(out, dataset), load_encoder(out).spec
    shutil.rmtree(video)
    assert torch.equal(tokens(out, dataset), before)
    assert spec.clip_length == 1 and "+duplicated" in spec.name


def test_adapter_leaves_the_trunk_and_inner_layers_alone(dataset, dino, tmp_path):
    out = run(dino, dataset, tmp_path / "out")
    encoder, base = load_encoder(out), load_encoder(dino)
    for name, value in base.model.state_dict().items():
        assert torch.equal(value, encoder.base.model.state_dict()[name])
    clip = np.full((1, 1, 28, 28, 3), 77, np.uint8)
    assert torch.equal(encoder.encode(clip, 0).tokens, base.encode(clip, 0).tokens)
    assert not torch.equal(encoder.encode(clip).tokens, base.encode(clip).tokens)


@pytest.mark.parametrize("arm", ["adapter", "finetune"])
def test_killed_run_ends_with_the_same_bits(arm, dataset, small, tmp_path):
    def kill(done, _):
        if done == 3:
            raise Killed

    with pytest.raises(Killed):
        run(small, dataset, tmp_path / "cut", arm=arm, progress=kill)
    assert (tmp_path / "cut" / STATE_NAME).exists()
    with pytest.raises(LatentGymError):
        load_encoder(tmp_path / "cut")
    run(small, dataset, tmp_path / "cut", arm=arm)
    run(small, dataset, tmp_path / "whole", arm=arm)
    name = "weights.safetensors"
    assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_control_differs_in_the_actions_alone(dataset, small):
    options = {"k": 1, "camera": None, "seed": 0, "steps": 4, "pool_bytes": 2**24, "tokens": False}
    encoder = load_encoder(small)
    real, control = (WindowPool(encoder, [(dataset, SPLIT.train)], control=flag, **options) for flag in (False, True))
    a, b = real.batch(1, 64), control.batch(1, 64)
    assert torch.equal(a.single, b.single) and torch.equal(a.clip, b.clip)
    assert (a.target != b.target).any(dim=1).all()
    known = np.concatenate([real._targets[0, index] for index in SPLIT.train])
    assert all((known == row).all(axis=1).any() for row in b.target.numpy())


@pytest.mark.parametrize("k", [1, 4])
def test_windows_hold_the_frames_and_mean_action_of_their_episode(dataset, small, k):
    pool = WindowPool(
        load_encoder(small), [(dataset, SPLIT.train)], k=k, tokens=False, control=False, camera=None, seed=0, steps=4,
        pool_bytes=1,
    )  # fmt: skip
    actions = [dataset.episode(index, cameras=()).action for index in SPLIT.train]
    means = np.concatenate([[a[t : t + k].mean(0) for t in range(len(a) - k + 1)] for a in actions])
    for step in range(4):
        batch = pool.batch(step, 5)
        for single, clip, target in zip(batch.single, batch.clip, batch.target, strict=True):
            # Red tells the episode, and one line of blue its step.
            index, t = int(single[0, 0, 0, 0]) // 10, int(single[0, 0, 5, 1])
            assert index in SPLIT.train and int(clip[-1, 0, 5, 1]) == t + k
            expected = (dataset.episode(index).action[t : t + k].mean(0) - means.mean(0)) / means.std(0)
            np.testing.assert_allclose(target, expected, atol=1e-4)
    assert len(pool._episodes.held) == 1


@pytest.mark.parametrize("control", [False, True])
def test_loss_falls_and_the_name_tells_the_control(control, dataset, small, tmp_path):
    out = run(small, dataset, tmp_path / "out", control=control, steps=40, batch_size=16)
    curve = json.loads((out / "encoder.json").read_text())["training"]["loss_curve"]
    assert curve[-1][1] < 0.8 * curve[0][1]
    assert load_encoder(out).spec.name.endswith("-control") == control


def test_probe_warns_of_labels_that_the_encoder_has_seen(dataset, small, tmp_path):
    out = run(small, dataset, tmp_path / "out")
    options = {"horizons": (1,), "readouts": ("ridge",), "controls": (), "replicates": 10, "folds": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe(dataset, str(out), split=SPLIT, **options)
    other = dataclasses.replace(SPLIT, train=SPLIT.test, test=SPLIT.train)
    with pytest.warns(RuntimeWarning, match="6 of 7 held-out episodes"):
        probe(dataset, str(out), split=other, **options)


def test_labels_of_the_base_stay_known(dataset, small, tmp_path):
    first = run(small, dataset, tmp_path / "first", split=dataclasses.replace(SPLIT, train=SPLIT.train[:2]))
    second = run(first, dataset, tmp_path / "second", split=dataclasses.replace(SPLIT, train=SPLIT.train[2:4]))
    seen = {dataset.key: frozenset(SPLIT.train[:4])}
    assert load_encoder(second).label_episodes == load_encoder(f"{second}+duplicated").label_episodes == seen


def test_finished_run_is_not_repeated_and_another_is_refused(dataset, small, tmp_path):
    out = run(small, dataset, tmp_path / "out")
    before = (out / "encoder.json").stat().st_mtime_ns
    run(small, dataset, out)
    assert (out / "encoder.json").stat().st_mtime_ns == before
    with pytest.raises(LatentGymError, match="holds another encoder"):
        run(small, dataset, out, seed=1)
    with pytest.raises(LatentGymError, match="holds another encoder"):
        run(small, dataset, small)


def test_damage_is_named(dataset, dino, tmp_path):
    out = run(dino, dataset, tmp_path / "out")
    for name in ("weights.safetensors", "base/model.safetensors"):
        content = (out / name).read_bytes()
        (out / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(CorruptDataError, match=name):
            load_encoder(out)
        (out / name).write_bytes(content)
    load_encoder(out)


@pytest.mark.parametrize(
    ("encoder", "options", "words"),
    [
        ("proprio", {}, "not pixels"),
        ("pixels", {"arm": "finetune"}, "no weights to fine-tune"),
        ("random", {"steps": 0}, "steps ≥ 1"),
        ("random", {"k": 50}, "has 50 steps"),
        ("random", {"camera": "wrist"}, "expected wrist"),
        ("random", {"split": Split((0,), (1,), (2,)), "control": True}, "at least two"),
        ("random", {"split": Split((99,), (1,), (2,))}, "no episode 99"),
    ],
)
def test_bad_input(encoder, options, words, dataset, tmp_path):
    with pytest.raises(LatentGymError, match=words):
        run(encoder, dataset, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_unknown_arm_and_foreign_folder(dataset, dino, tmp_path):
    with pytest.raises(UnknownNameError, match="adapter"):
        run("random", dataset, tmp_path / "out", arm="adaptor")
    with pytest.raises(LatentGymError, match="something else"):
        run("random", dataset, dino)


def test_default_split_is_that_of_the_seed(dataset, tmp_path):
    out = run("random", dataset, tmp_path / "out", split=None, seed=2)
    assert load_encoder(out).label_episodes == {dataset.key: frozenset(split_episodes(dataset, seed=2).train)}
