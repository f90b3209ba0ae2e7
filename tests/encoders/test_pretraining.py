from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from latentgym.encoders import clip_pool, load_encoder
from latentgym.encoders.clip_pool import ClipPool, resize
from latentgym.encoders.objectives import OBJECTIVES
from latentgym.encoders.objectives.pixel_autoencoder import PixelAutoencoder
from latentgym.encoders.pretraining import STATE_NAME, pretrain
from latentgym.encoders.small import load_small_encoder, random_small
from latentgym.errors import CorruptDataError, LatentGymError, UnknownNameError
from latentgym.trajectories.episode import ActionSpec, Episode, Provenance
from latentgym.trajectories.store import create_store, open_dataset

LENGTHS = (12, 9, 14, 2, 11, 10)
ALL = tuple(range(len(LENGTHS)))


class Killed(Exception):
    """Stands for the signal that ends a run in mid-training."""


def make_episode(seed, length, size=64):
    """A square that moves by twice the action on a grey floor; red tells the episode, so that clips can be traced."""
    rng = np.random.default_rng(seed)
    action = rng.uniform(-1, 1, (length, 2)).astype(np.float32)
    place = np.clip(np.cumsum(np.vstack([rng.uniform(20, 40, 2), 4 * action]), axis=0), 4, 60)
    axis = np.arange(size)[None] * (64 / size)
    inside = [abs(axis - place[:, [i]]) < 5 for i in (0, 1)]
    frames = np.full((length + 1, size, size, 3), 90, np.uint8)
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
        policy="random",
        env_id="test/Square-v0",
    )


def make_dataset(path, lengths=LENGTHS, size=64, first_seed=0, names=("x", "y")):
    store = create_store(
        path,
        env_id="test/Square-v0",
        action_spec=ActionSpec(names, "world", "delta", ("m",) * 2, (1.0,) * 2, (-1.0,) * 2, (1.0,) * 2),
        cameras=("pixels", "pixels_side"),
        control_hz=10.0,
        horizon=100,
        episodes=len(lengths),
        provenance=Provenance({}, {}, 0, "", ""),
        settings={},
    )
    for index, length in enumerate(lengths):
        store.write(index, make_episode(first_seed + index, length, size))
    return open_dataset(path)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "dataset")


def run(objective, dataset, out, **changes):
    settings = {"steps": 6, "batch_size": 4, "save_every": 2} | changes
    return pretrain(objective, [(dataset, ALL)], out=out, **settings)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def killer(after):
    def progress(done, steps):
        if done == after:
            raise Killed

    return progress


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_a_killed_and_resumed_run_ends_with_the_bits_of_an_undisturbed_one(objective, dataset, tmp_path):
    whole = run(objective, dataset, tmp_path / "whole")
    with pytest.raises(Killed):
        run(objective, dataset, tmp_path / "cut", progress=killer(5))
    assert (tmp_path / "cut" / STATE_NAME).exists()
    seen = []
    resumed = run(objective, dataset, tmp_path / "cut", progress=lambda done, steps: seen.append(done))
    assert seen == [5, 6]
    assert contents(resumed) == contents(whole)
    assert set(contents(whole)) == {"encoder.json", "weights.safetensors"}


def test_the_result_does_not_depend_on_global_generators_or_threads(dataset, tmp_path):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = run("masked_image", dataset, tmp_path / "a")
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    torch.set_num_threads(2)
    try:
        second = run("masked_image", dataset, tmp_path / "b")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert contents(first) == contents(second)
    other = run("masked_image", dataset, tmp_path / "c", seed=1)
    assert contents(first)["weights.safetensors"] != contents(other)["weights.safetensors"]


def test_the_record_says_what_was_trained(dataset, tmp_path):
    out = run("next_latent", dataset, tmp_path / "e")
    record = json.loads((out / "encoder.json").read_text())["training"]
    objective = OBJECTIVES["next_latent"]()
    total = sum(parameter.numel() for parameter in objective.parameters())
    assert record["parameters"] == sum(parameter.numel() for parameter in objective.network.parameters())
    assert record["parameters"] + record["parameters_extra"] == total
    assert (record["steps"], record["batch_size"], record["seed"]) == (6, 4, 0)
    assert [step for step, _ in record["loss_curve"]] == [1, 2, 3, 4, 5, 6]
    assert record["latent_std"] > 0
    # Forward and backward of the first convolution alone, on two stacks of four clips, without the input's gradient.
    assert record["training_flops"] > 6 * 2 * (2 * 8 * 32 * 32 * 24 * 54)
    assert not any("wall" in key or "time" in key for key in record)
    encoder = load_encoder(str(out))
    assert encoder.spec.name == encoder.spec.family == "next_latent"
    assert encoder.spec.revision == "seed 0, step 6"


def test_flops_of_the_autoencoder_match_a_count_by_hand(dataset, tmp_path):
    out = run("pixel_autoencoder", dataset, tmp_path / "e", steps=1)
    trunk = [32**2 * 24 * 54, 16**2 * 48 * 216, 64 * 64 * 432, 64 * 64 * 576, 64 * 64 * 576]
    decoder = [64 * 64 * 576, 256 * 32 * 144, 256 * 48 * 32]
    forward = 2 * 4 * (sum(trunk) + sum(decoder))
    # Backward costs two forwards, less the gradient of the frames, which nobody asks for.
    expected = 3 * forward - 2 * 4 * trunk[0]
    assert json.loads((out / "encoder.json").read_text())["training"]["training_flops"] == expected


def test_checkpoints_are_encoders_on_the_way_and_do_not_disturb_the_run(dataset, tmp_path):
    plain = run("inverse_dynamics", dataset, tmp_path / "plain")
    out = run("inverse_dynamics", dataset, tmp_path / "kept", checkpoints=(2, 4, 6))
    folders = {path.name for path in out.iterdir() if path.is_dir()}
    assert folders == {"checkpoint-2", "checkpoint-4", "checkpoint-6"}
    digests = [load_small_encoder(out / f"checkpoint-{step}").spec.weights_digest for step in (2, 4, 6)]
    final = load_small_encoder(out).spec
    assert len({*digests, final.weights_digest}) == 3 and digests[-1] == final.weights_digest
    assert contents(out)["weights.safetensors"] == contents(plain)["weights.safetensors"]
    record = json.loads((out / "checkpoint-2" / "encoder.json").read_text())["training"]
    assert (record["steps"], record["planned_steps"]) == (2, 6)


def test_a_run_killed_at_a_checkpoint_keeps_it(dataset, tmp_path):
    arguments = {"checkpoints": (3,), "save_every": 2}
    whole = run("next_latent", dataset, tmp_path / "whole", **arguments)
    with pytest.raises(Killed):
        run("next_latent", dataset, tmp_path / "cut", progress=killer(3), **arguments)
    cut = run("next_latent", dataset, tmp_path / "cut", **arguments)
    assert contents(cut / "checkpoint-3") == contents(whole / "checkpoint-3")


def test_a_finished_run_is_not_repeated_and_another_is_refused(dataset, tmp_path):
    out = run("pixel_autoencoder", dataset, tmp_path / "e")
    steps = []
    run("pixel_autoencoder", dataset, out, progress=lambda done, total: steps.append(done))
    assert steps == []
    with pytest.raises(LatentGymError, match="another run"):
        run("pixel_autoencoder", dataset, out, seed=1)
    (out / "weights.safetensors").write_bytes(b"")
    with pytest.raises(CorruptDataError, match="cannot be read"):
        run("pixel_autoencoder", dataset, out)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_a_gpu_trains_on_the_same_clips_and_noise(objective, dataset, tmp_path):
    cpu, gpu = (run(objective, dataset, tmp_path / device, device=device) for device in ("cpu", "cuda"))
    records = [json.loads((folder / "encoder.json").read_text())["training"] for folder in (cpu, gpu)]
    assert [record["device"] for record in records] == ["cpu", "cuda"]
    losses = [np.array(record["loss_curve"])[:, 1] for record in records]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.02)
    # Fused attention counts otherwise on either device.
    assert records[0]["training_flops"] == pytest.approx(records[1]["training_flops"], rel=0.1)
    with pytest.raises(LatentGymError, match="another run"):
        run(objective, dataset, cpu, device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_killed_run_on_a_gpu_goes_on(dataset, tmp_path):
    with pytest.raises(Killed):
        run("shortcut_forcing", dataset, tmp_path / "cut", device="cuda", progress=killer(3))
    steps = []
    cut = run("shortcut_forcing", dataset, tmp_path / "cut", device="cuda", progress=lambda done, _: steps.append(done))
    assert steps == [3, 4, 5, 6]
    whole = run("shortcut_forcing", dataset, tmp_path / "whole", device="cuda")
    clip = np.zeros((1, 2, 64, 64, 3), np.uint8)
    found = [load_encoder(folder, device="cpu").encode(clip).tokens for folder in (cut, whole)]
    torch.testing.assert_close(*found, rtol=0.05, atol=0.05)


def test_a_device_that_is_not_there_is_refused(dataset, tmp_path):
    with pytest.raises(LatentGymError, match="unknown device 'gpu'"):
        run("diffusion", dataset, tmp_path / "e", device="gpu")
    with pytest.raises(LatentGymError, match="'cuda:64' was asked for"):
        run("diffusion", dataset, tmp_path / "e", device="cuda:64")
    assert not (tmp_path / "e").exists()


def test_states_of_other_runs_and_damaged_states_are_refused(dataset, tmp_path):
    with pytest.raises(Killed):
        run("pixel_autoencoder", dataset, tmp_path, progress=killer(3))
    with pytest.raises(LatentGymError, match="another run"):
        run("pixel_autoencoder", dataset, tmp_path, seed=1)
    state = tmp_path / STATE_NAME
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(CorruptDataError, match="remove it"):
        run("pixel_autoencoder", dataset, tmp_path)


def test_unknown_objectives_are_named(dataset, tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'diffusion'"):
        run("difusion", dataset, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps ≥ 1"),
        ({"batch_size": 1}, "batch_size ≥ 2"),
        ({"save_every": 0}, "save_every ≥ 1"),
        ({"checkpoints": (7,)}, "between 1 and 6"),
        ({"camera": "pixels_top"}, "cameras pixels, pixels_side; expected pixels_top"),
    ],
)
def test_bad_arguments_are_refused(dataset, tmp_path, changes, message):
    with pytest.raises(LatentGymError, match=message):
        run("masked_video", dataset, tmp_path / "e", **changes)


def test_too_few_frames_are_refused(dataset, tmp_path):
    with pytest.raises(LatentGymError, match=r"at least 4 frames; found 1 episodes, the longest of 3 frames"):
        pretrain("diffusion", [(dataset, [3])], out=tmp_path / "e")
    with pytest.raises(LatentGymError, match="found 0 episodes"):
        pretrain("diffusion", [], out=tmp_path / "e")
    with pytest.raises(LatentGymError, match=r"episode 6 .* has 6 episodes"):
        pretrain("diffusion", [(dataset, [6])], out=tmp_path / "e")


def test_a_loss_that_is_not_finite_stops_the_run_at_its_step(dataset, tmp_path):
    class Diverging(PixelAutoencoder):
        def loss(self, batch, generator):
            with torch.no_grad():
                self.network.trunk.blocks[0].conv.weight.mul_(1e20)
            return super().loss(batch, generator).square() ** 20

    name = PixelAutoencoder.name
    patched = {**OBJECTIVES, name: Diverging}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("latentgym.encoders.pretraining.OBJECTIVES", patched)
        with pytest.raises(LatentGymError, match=r"'pixel_autoencoder': the loss is (inf|nan) at step \d"):
            run(name, dataset, tmp_path / "e")
    assert not (tmp_path / "e" / "encoder.json").exists()


def test_frames_of_other_sizes_are_resized(tmp_path):
    large = make_dataset(tmp_path / "large", lengths=(8, 8), size=96)
    out = pretrain("masked_video", [(large, (0, 1))], out=tmp_path / "e", steps=2, batch_size=4)
    assert load_small_encoder(out).encode(large.episode(0).frames["pixels"][None, :2]).tokens.shape == (1, 1, 64, 64)
    frames = large.episode(0).frames["pixels"]
    batch = ClipPool([(large, (0, 1))], seed=0, steps=1).batch(0, 4)
    assert batch.frames.shape == (4, 4, 3, 64, 64)
    assert abs(resize(frames).astype(float).mean() - frames.astype(float).mean()) < 0.5


def clip_places(batch):
    """Episode and first frame of every row, from the marks that make_episode leaves."""
    pixels = ((batch.frames + 1) * 127.5).round().int()
    return list(zip((pixels[:, 0, 0, 32, 32] // 10).tolist(), pixels[:, 0, 1, 0, 0].tolist(), strict=True))


def test_clips_are_consecutive_frames_with_their_actions(dataset):
    pool = ClipPool([(dataset, ALL)], seed=0, steps=10, actions=True)
    actions = np.concatenate([dataset.episode(i, cameras=()).action for i in ALL if i != 3])
    batch = pool.batch(2, 16)
    pixels = ((batch.frames + 1) * 127.5).round().int()
    assert bool((pixels[:, :, 1, 0, 0].diff(dim=1) == 1).all())
    for row, (episode, begin) in enumerate(clip_places(batch)):
        raw = dataset.episode(episode, cameras=()).action[begin : begin + 3]
        np.testing.assert_allclose(batch.actions[row], (raw - actions.mean(0)) / actions.std(0), rtol=1e-3, atol=1e-5)


def test_clips_are_uniform_over_clips_of_the_training_episodes_alone(dataset):
    pool = ClipPool([(dataset, (0, 1, 3, 5))], seed=0, steps=10)
    places = [place for step in range(10) for place in clip_places(pool.batch(step, 100))]
    assert set(places) == {(e, b) for e in (0, 1, 5) for b in range(LENGTHS[e] - 2)}
    counts = np.unique(np.array(places), axis=0, return_counts=True)[1]
    expected = 1000 / len(counts)
    assert np.all(abs(counts - expected) < 5 * np.sqrt(expected))


def test_every_objective_sees_the_same_clips(dataset):
    plain = ClipPool([(dataset, ALL)], seed=3, steps=10).batch(4, 8)
    supervised = ClipPool([(dataset, ALL)], seed=3, steps=10, actions=True).batch(4, 8)
    assert torch.equal(plain.frames, supervised.frames)
    assert not torch.equal(plain.frames, ClipPool([(dataset, ALL)], seed=4, steps=10).batch(4, 8).frames)


def test_a_small_pool_stays_in_bounds_decodes_each_episode_once_and_reaches_all(dataset, monkeypatch):
    loads = []
    load = ClipPool._load
    monkeypatch.setattr(ClipPool, "_load", lambda self, *entry: loads.append(entry) or load(self, *entry))
    bound = 2 * 15 * clip_pool._FRAME_BYTES
    pool = ClipPool([(dataset, ALL)], seed=0, steps=20, pool_bytes=bound)
    seen, batches = set(), []
    for step in range(20):
        batches.append(pool.batch(step, 8))
        seen |= {episode for episode, _ in clip_places(batches[-1])}
        assert sum(frames.nbytes for frames, _ in pool._episodes.held.values()) <= bound
    assert seen == {0, 1, 2, 4, 5}
    assert sorted(number for _, number in loads) == [0, 1, 2, 4, 5]
    fresh = ClipPool([(dataset, ALL)], seed=0, steps=20, pool_bytes=bound)
    assert torch.equal(fresh.batch(13, 8).frames, batches[13].frames)


def test_a_chosen_camera_is_read(dataset):
    main = ClipPool([(dataset, ALL)], seed=0, steps=1).batch(0, 4).frames
    side = ClipPool([(dataset, ALL)], seed=0, steps=1, camera="pixels_side").batch(0, 4).frames
    assert torch.equal(side, main.flip(-2))


def ridge_r2(encoder, dataset, train, test, motion=True):
    """R² of the square's displacement, or of its place, from the clip's tokens on a 4 × 4 grid."""

    def rows(episodes):
        clips, targets = [], []
        for i in episodes:
            episode = dataset.episode(i)
            frames = episode.frames["pixels"]
            clips.append(np.stack([frames[:-1], frames[1:]], axis=1))
            targets.append(np.diff(episode.state, axis=0) if motion else episode.state[1:])
        tokens = encoder.encode(np.concatenate(clips)).tokens[:, 0].double()
        grid = tokens.transpose(1, 2).unflatten(2, (8, 8))
        return torch.nn.functional.avg_pool2d(grid, 2).flatten(1).numpy(), np.concatenate(targets)

    (x, y), (x_test, y_test) = rows(train), rows(test)
    mean, scale, offset = x.mean(0), x.std(0) + 1e-6, y.mean(0)
    x, x_test = (x - mean) / scale, (x_test - mean) / scale
    kernel = x @ x.T + 300 * np.eye(len(x))
    prediction = x_test @ x.T @ np.linalg.solve(kernel, y - offset) + offset
    return 1 - ((prediction - y_test) ** 2).sum() / ((y_test - y_test.mean(0)) ** 2).sum()


@pytest.mark.slow
def test_positive_controls_actions_train_motion_and_dynamics_features_carry_the_scene(tmp_path):
    dataset = make_dataset(tmp_path / "d", lengths=(24,) * 24)
    # The colour tells the episode: held-out episodes lie between the training ones, not beyond them.
    test = range(2, 24, 4)
    train = [i for i in range(24) if i not in test]

    def trained(objective):
        out = pretrain(objective, [(dataset, train)], out=tmp_path / objective, steps=80, batch_size=16)
        return load_small_encoder(out)

    random = ridge_r2(random_small(0), dataset, train, test)
    assert ridge_r2(trained("inverse_dynamics"), dataset, train, test) > random + 0.2
    # A dynamics reading that scored like the constant predictor would be broken, not bad.
    assert ridge_r2(trained("shortcut_forcing"), dataset, train, test, motion=False) > 0.3
