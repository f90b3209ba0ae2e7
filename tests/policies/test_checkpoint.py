from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from latentgym.encoders import load_encoder
from latentgym.encoders.feeding import split_feeding
from latentgym.encoders.torchvision_fallback import ensure_torchvision
from latentgym.errors import CorruptDataError, LatentGymError, UnknownNameError
from latentgym.policies import (
    CloningPolicy,
    ConstantPolicy,
    ExpertPolicy,
    RandomPolicy,
    load_policy,
    train_convnet_policy,
    train_policy,
)
from latentgym.policies.checkpoint import CheckpointedPolicy
from latentgym.trajectories import Dataset


@pytest.fixture(scope="module")
def saved(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    policy = train_policy(dataset, load_encoder("random:3"), steps=3, components=8)
    return policy.save(tmp_path_factory.mktemp("saved") / "policy")


def frames(rows: int = 3) -> dict[str, np.ndarray]:
    return {"pixels": np.random.default_rng(0).integers(0, 256, (rows, 64, 64, 3), dtype=np.uint8)}


@pytest.mark.parametrize("name", ["random", "pixels", "state", "proprio"])
def test_a_loaded_policy_acts_as_the_saved_one(dataset: Dataset, tmp_path: Path, name: str) -> None:
    policy = train_policy(dataset, load_encoder(name), steps=3)
    again = load_policy(policy.save(tmp_path / "policy"))
    episode = dataset.episode(0)
    observation = frames() | {"state": episode.state[:3], "proprio": episode.proprio[:3]}
    assert isinstance(again, CloningPolicy)
    for one in (policy, again):
        one.reset(np.ones(3, bool))
    for _ in range(3):
        assert np.array_equal(policy.act(observation), again.act(observation))
    assert again.cloning_r2 == policy.cloning_r2
    assert again.training == policy.training


def test_a_convnet_survives_saving(dataset: Dataset, tmp_path: Path) -> None:
    policy = train_convnet_policy(dataset, steps=2, batch_size=8)
    again = load_policy(policy.save(tmp_path / "policy"))
    for one in (policy, again):
        one.reset(np.ones(3, bool))
    assert np.array_equal(policy.act(frames()), again.act(frames()))


def test_a_subclass_does_not_replace_its_parent() -> None:
    class Bold(ExpertPolicy):
        pass

    assert CheckpointedPolicy.kinds[ExpertPolicy.kind] is ExpertPolicy
    assert Bold.kind == ExpertPolicy.kind


def test_baselines_survive_saving(dataset: Dataset, tmp_path: Path) -> None:
    for place, policy in enumerate((ExpertPolicy(), RandomPolicy(dataset.action_spec), RandomPolicy())):
        assert type(load_policy(policy.save(tmp_path / str(place)))) is type(policy)
    constant = ConstantPolicy.fit(dataset, [0, 1])
    again = load_policy(constant.save(tmp_path / "constant"))
    for one in (constant, again):
        one.reset(np.ones(2, bool))
    assert np.array_equal(constant.act({}), again.act({}))


def test_an_encoder_that_differs_is_refused(saved: Path) -> None:
    with pytest.raises(LatentGymError, match=r"does not fit encoder 'random'.*weights_digest"):
        load_policy(saved, load_encoder("random:4"))
    assert load_policy(saved, load_encoder("random:3")).name == "cloning on random"


def test_an_encoder_of_equal_weights_fits_wherever_it_lies(dataset: Dataset, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ensure_torchvision()
    config = transformers.Dinov2Config(
        image_size=28, patch_size=14, hidden_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "one")
    policy = train_policy(dataset, load_encoder(tmp_path / "one", device="cpu"), steps=2, batch_size=8, hidden=(8,))
    saved = policy.save(tmp_path / "policy")
    (tmp_path / "one").rename(tmp_path / "two")
    moved = load_encoder(tmp_path / "two", device="cpu")
    assert load_policy(saved, moved).encoder is moved  # type: ignore[attr-defined]


@pytest.mark.parametrize("source", ["{}+duplicated", "twin:{}", "twin:{}+causal"])
def test_a_policy_reopens_an_encoder_that_is_fed_another_way_or_drawn_anew(
    dataset: Dataset, tmp_path: Path, source: str
) -> None:
    transformers = pytest.importorskip("transformers")
    ensure_torchvision()
    config = transformers.VideoMAEConfig(
        image_size=32, patch_size=16, num_frames=4, tubelet_size=2, hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=16,
    )  # fmt: skip
    transformers.VideoMAEModel(config).save_pretrained(tmp_path / "video")
    encoder = load_encoder(source.format(tmp_path / "video"), device="cpu")
    policy = train_policy(dataset, encoder, steps=2, batch_size=8, hidden=(8,))
    again = load_policy(policy.save(tmp_path / "policy"))
    assert isinstance(again, CloningPolicy)
    assert again.encoder.spec == encoder.spec
    assert split_feeding(again.encoder.spec.name)[1] == split_feeding(source)[1]


def test_a_policy_on_the_twin_of_a_small_encoder_is_saved_with_its_weights(dataset: Dataset, tmp_path: Path) -> None:
    twin = load_encoder("twin:random:3", device="cpu")
    again = load_policy(train_policy(dataset, twin, steps=2, batch_size=8, hidden=(8,)).save(tmp_path / "policy"))
    assert isinstance(again, CloningPolicy)
    assert again.encoder.spec == twin.spec


def test_a_policy_on_an_inner_layer_of_a_small_encoder_is_opened_with_it(dataset: Dataset, tmp_path: Path) -> None:
    encoder = load_encoder("random", layer=1, device="cpu")
    again = load_policy(train_policy(dataset, encoder, steps=2, batch_size=8, hidden=(8,)).save(tmp_path / "policy"))
    assert isinstance(again, CloningPolicy)
    assert again.encoder.spec == encoder.spec


def test_existing_folders_are_kept(saved: Path) -> None:
    with pytest.raises(LatentGymError, match="exists already"):
        load_policy(saved).save(saved)


def test_a_folder_without_a_policy(tmp_path: Path) -> None:
    with pytest.raises(LatentGymError, match="holds no policy"):
        load_policy(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_damaged_weights(saved: Path, tmp_path: Path, damage: str) -> None:
    policy = load_policy(saved).save(tmp_path / "policy")
    weights = policy / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.unlink() if damage == "missing" else weights.write_bytes(data[:100] if damage == "truncated" else data)
    with pytest.raises(CorruptDataError, match=r"weights\.safetensors"):
        load_policy(policy)


def test_damaged_records(saved: Path, tmp_path: Path) -> None:
    policy = load_policy(saved).save(tmp_path / "policy")
    record = json.loads((policy / "policy.json").read_text())
    (policy / "policy.json").write_text(json.dumps(record | {"kind": "clonning"}))
    with pytest.raises(UnknownNameError, match="cloning"):
        load_policy(policy)
    del record["policy"]["head"]
    (policy / "policy.json").write_text(json.dumps(record))
    with pytest.raises(CorruptDataError, match="damaged"):
        load_policy(policy)
    (policy / "policy.json").write_text("{")
    with pytest.raises(CorruptDataError, match="JSON"):
        load_policy(policy)
