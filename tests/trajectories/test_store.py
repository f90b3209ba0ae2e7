from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from latentgym.errors import CorruptDataError, LatentGymError, UnknownNameError
from latentgym.trajectories import check_dataset, open_dataset
from latentgym.trajectories.episode_files import ARRAYS, sealed
from latentgym.trajectories.header import HEADER_FILE

# Processes below are forked from a parent that has used neither GL nor CUDA.
FORK = multiprocessing.get_context("fork")


def assert_same(found, expected):
    for name in (*ARRAYS, "expert_action"):
        array = getattr(found, name)
        assert array.dtype == getattr(expected, name).dtype
        assert np.array_equal(array, getattr(expected, name)), name
    assert set(found.frames) == set(expected.frames)
    assert all(np.array_equal(found.frames[camera], expected.frames[camera]) for camera in expected.frames)
    for name in ("seed", "policy", "env_id", "instruction", "info"):
        assert getattr(found, name) == getattr(expected, name), name


def flip_bit(path: Path, position: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(position * (len(data) - 1))] ^= 1
    path.write_bytes(data)


def test_round_trip(recorded, make_episode):
    dataset = open_dataset(recorded)
    assert len(dataset) == 4
    assert dataset.lengths.tolist() == [5, 6, 7, 8]
    assert dataset.lengths.dtype == np.int64
    assert dataset.policies == ("expert",) * 4
    assert dataset.seeds == (0, 1, 2, 3)
    assert (dataset.env_id, dataset.cameras, dataset.horizon) == ("test/Env-v0", ("pixels", "pixels_wrist"), 50)
    assert dataset.control_hz == 12.5
    assert dataset.settings == {"image_size": 16, "render": "fast"}
    assert dataset.action_spec.names == ("x", "y")
    assert dataset.provenance.versions == {"mujoco": "3.3.0"}
    for index in range(4):
        assert_same(dataset.episode(index), make_episode(seed=index, steps=5 + index))


def test_only_the_cameras_asked_for_are_read(recorded):
    (recorded / "episodes" / "000001" / "pixels.mov").unlink()
    dataset = open_dataset(recorded)
    assert dict(dataset.episode(1, cameras=()).frames) == {}
    assert list(dataset.episode(1, cameras=["pixels_wrist"]).frames) == ["pixels_wrist"]
    with pytest.raises(CorruptDataError, match=r"pixels\.mov cannot be read"):
        dataset.episode(1)


def test_arrays_can_be_written_to_and_handed_to_torch(recorded, recwarn):
    episode = open_dataset(recorded).episode(0)
    for array in (episode.action, episode.terminated, episode.frames["pixels"]):
        torch.from_numpy(array)
    assert not recwarn.list


def test_optional_parts(make_store, make_episode):
    store = make_store(cameras=(), episodes=1)
    episode = make_episode(frames={}, expert_action=None, sim_state=np.zeros((7, 0)), info={}, instruction="")
    store.write(0, episode)
    found = open_dataset(store.path).episode(0)
    assert found.expert_action is None
    assert found.sim_state.shape == (7, 0)
    assert dict(found.frames) == {}


def test_an_episode_that_was_copied_without_its_record_is_written_anew(recorded, make_store, make_episode):
    (recorded / "episodes" / "000001" / "episode.json").unlink()
    store = make_store(recorded)
    assert store.missing() == (1,)
    store.write(1, make_episode(seed=1, steps=6))
    assert_same(open_dataset(recorded).episode(1), make_episode(seed=1, steps=6))


def test_strided_arrays_are_stored_as_they_look(make_store, make_episode):
    store = make_store(episodes=1)
    episode = make_episode(action=np.arange(24, dtype=np.float32).reshape(2, 12).T[::2])
    store.write(0, episode)
    assert_same(open_dataset(store.path).episode(0), episode)


def test_equal_recordings_have_equal_keys_and_bytes(tmp_path, make_store, make_episode):
    stores = [make_store(tmp_path / name) for name in ("a", "b")]
    for store, order in zip(stores, ([0, 1, 2, 3], [3, 1, 0, 2]), strict=True):
        for index in order:
            store.write(index, make_episode(seed=index))
    first, second = (open_dataset(store.path) for store in stores)
    assert first.key == second.key
    assert [first.episode_key(i) for i in range(4)] == [second.episode_key(i) for i in range(4)]
    files = [{f.relative_to(s.path): f.read_bytes() for f in s.path.rglob("*") if f.is_file()} for s in stores]
    assert files[0] == files[1]


def test_key_changes_with_any_data_and_with_what_determines_them(tmp_path, make_store, make_episode):
    changed = make_episode(seed=0)
    changed.frames["pixels"][3, 2, 1, 0] ^= 1
    variants = [({}, make_episode(seed=0)), ({}, changed), ({"settings": {"image_size": 17}}, make_episode(seed=0))]
    keys = []
    for number, (header, episode) in enumerate(variants):
        store = make_store(tmp_path / str(number), episodes=1, **header)
        store.write(0, episode)
        keys.append(open_dataset(store.path).key)
    assert len(set(keys)) == 3


def test_opening_reads_no_arrays(recorded):
    for path in (recorded / "episodes").rglob("*"):
        if path.suffix in (".mov", ".safetensors"):
            path.unlink()
    assert open_dataset(recorded).lengths.tolist() == [5, 6, 7, 8]


def test_dataset_travels_to_other_processes(recorded):
    dataset = open_dataset(recorded)
    # Python's own multiprocessing pickles arguments in memory; nothing is pickled to disk.
    assert pickle.loads(pickle.dumps(dataset)).key == dataset.key


@pytest.mark.parametrize("name", ["arrays.safetensors", "pixels.mov"])
@pytest.mark.parametrize("position", [0.0, 0.3, 0.99, 1.0])
def test_flipped_bit(recorded, name, position):
    flip_bit(recorded / "episodes" / "000002" / name, position)
    dataset = open_dataset(recorded)
    with pytest.raises(CorruptDataError, match=rf"000002/{name} was altered.*delete .*000002 and run the same record"):
        dataset.episode(2)
    dataset.episode(1)


@pytest.mark.parametrize("name", ["arrays.safetensors", "pixels.mov"])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.999])
def test_truncated_file(recorded, name, keep):
    path = recorded / "episodes" / "000000" / name
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(CorruptDataError, match=rf"{name} is truncated or padded: \d+ of {len(data)} bytes"):
        open_dataset(recorded).episode(0)


@pytest.mark.parametrize("name", ["episodes/000001/episode.json", "dataset.json"])
@pytest.mark.parametrize("damage", ["edit", "truncate", "empty", "binary", "list"])
def test_damaged_record(recorded, name, damage):
    path = recorded / name
    text = path.read_text()
    edited = text.replace('"test/Env-v0"', '"test/Env-v1"')
    assert edited != text
    damaged = {"edit": edited, "truncate": text[:-20], "empty": "", "binary": "\x00\x01", "list": "[]"}[damage]
    path.write_text(damaged)
    with pytest.raises(CorruptDataError, match=str(path)):
        open_dataset(recorded)


def test_unknown_schema(recorded):
    path = recorded / HEADER_FILE
    data = {key: value for key, value in json.loads(path.read_text()).items() if key != "digest"}
    path.write_text(json.dumps(sealed({**data, "schema": 2})))
    with pytest.raises(LatentGymError, match="expected schema 1, found 2"):
        open_dataset(recorded)


def test_no_data_set(tmp_path):
    with pytest.raises(CorruptDataError, match="holds no data set"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(CorruptDataError, match="holds no data set"):
        open_dataset(tmp_path)


def test_wrong_index_or_camera(recorded):
    dataset = open_dataset(recorded)
    for index in (-1, 4):
        with pytest.raises(LatentGymError, match=f"from 0 to 3, found {index}"):
            dataset.episode(index)
        with pytest.raises(LatentGymError, match=f"from 0 to 3, found {index}"):
            dataset.episode_key(index)
    with pytest.raises(UnknownNameError, match="did you mean 'pixels'"):
        dataset.episode(0, cameras=["pixel"])


def test_interrupted_recording_names_the_missing_episodes_and_is_finished_by_recording_again(
    tmp_path, make_store, make_episode
):
    store = make_store(episodes=9)
    for index in (0, 2, 6):
        store.write(index, make_episode(seed=index))
    with pytest.raises(
        LatentGymError, match=r"6 of 9 episodes are missing \(1, 3-5, 7-8\); run the same record command"
    ):
        open_dataset(store.path)
    again = make_store(episodes=9)
    assert again.missing() == (1, 3, 4, 5, 7, 8)
    for index in again.missing():
        again.write(index, make_episode(seed=index))
    assert open_dataset(store.path).seeds == tuple(range(9))


def test_open_end_grows_and_reports_gaps(make_store, make_episode, make_provenance):
    store = make_store(episodes=None)
    with pytest.raises(LatentGymError, match="holds no episodes yet"):
        open_dataset(store.path)
    for index in (0, 3, 1):
        store.write(index, make_episode(seed=index))
    assert store.missing() == (2,)
    with pytest.raises(LatentGymError, match=r"1 of 4 episodes are missing \(2\)"):
        open_dataset(store.path)
    store.write(2, make_episode(seed=2))
    assert len(open_dataset(store.path)) == 4
    assert check_dataset(store.path) == []
    with pytest.raises(LatentGymError, match="from 0, found -1"):
        store.write(-1, make_episode())
    with pytest.raises(LatentGymError, match=r"version\.mujoco"):
        make_store(episodes=None, provenance=make_provenance(versions={"mujoco": "3.4.0"}))


def test_an_episode_that_is_there_is_kept(recorded, make_store, make_episode):
    key = open_dataset(recorded).key
    make_store().write(0, make_episode(seed=99))
    assert open_dataset(recorded).key == key
    assert not list(recorded.rglob("*.partial"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"image_size": 32, "render": "fast"}}, r"settings\.image_size 16 there, 32 now"),
        ({"env_id": "test/Other-v0"}, "env_id 'test/Env-v0' there, 'test/Other-v0' now"),
        ({"episodes": 5}, "episodes 4 there, 5 now"),
        ({"cameras": ("pixels",)}, "cameras"),
        (
            {"settings": {"image_size": 16, "render": "fast", "distractor": "static"}},
            r"settings\.distractor None there",
        ),
    ],
)
def test_another_configuration_is_refused(recorded, make_store, changes, message):
    before = (recorded / HEADER_FILE).read_bytes()
    with pytest.raises(LatentGymError, match=f"another configuration: .*{message}"):
        make_store(**changes)
    assert (recorded / HEADER_FILE).read_bytes() == before


def test_provenance_counts_where_it_determines_the_data(recorded, make_store, make_provenance):
    make_store(provenance=make_provenance(command="latentgym record Y", revision="abc"))
    with pytest.raises(LatentGymError, match="seed 0 there, 1 now"):
        make_store(provenance=make_provenance(seed=1))
    newer = make_provenance(versions={"mujoco": "3.4.0"}, gl={"renderer": "other"})
    make_store(provenance=newer)
    shutil.rmtree(recorded / "episodes" / "000003")
    with pytest.raises(LatentGymError, match=r"version\.mujoco '3\.3\.0' there, '3\.4\.0' now; gl\.renderer"):
        make_store(provenance=newer)


def test_a_folder_with_other_files_is_refused(tmp_path, make_store):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.tex").write_text("x")
    with pytest.raises(LatentGymError, match="not empty and holds no data set"):
        make_store()
    assert [entry.name for entry in (tmp_path / "data").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"episodes": 0}, "episodes: expected at least 1"),
        ({"horizon": 0}, "horizon: expected at least 1"),
        ({"control_hz": float("nan")}, "control_hz"),
        ({"cameras": ("../evil",)}, "cameras"),
        ({"cameras": ("a", "a")}, "different names"),
        ({"settings": {"x": object()}}, "JSON types only"),
    ],
)
def test_invalid_configuration(tmp_path, make_store, changes, message):
    with pytest.raises(LatentGymError, match=message):
        make_store(**changes)
    assert not (tmp_path / "data" / HEADER_FILE).exists()


def nan_at_step_3(array):
    array = array.copy()
    array[3, 0] = np.nan
    return array


def test_nan_actions_are_refused_with_one_message(make_store, make_episode):
    store = make_store()
    episode = make_episode()
    bad = make_episode(action=nan_at_step_3(episode.action))
    with pytest.raises(
        LatentGymError, match=r"episode 1 was not written.*action: NaN or infinite value, first at step 3"
    ):
        store.write(1, bad)
    assert not store.has(1)
    assert not list((store.path / "episodes").iterdir())


def test_every_problem_of_a_foreign_episode_is_named(make_store, make_episode):
    store = make_store()
    episode = make_episode(
        env_id="test/Other-v0", action=np.zeros((6, 4), np.float32), frames={"front": np.zeros((7, 8, 8, 3), np.uint8)}
    )
    with pytest.raises(LatentGymError, match=r"expected env_id .*; expected cameras .*; expected 2 action dimensions"):
        store.write(0, episode)
    with pytest.raises(LatentGymError, match="from 0 to 3, found 4"):
        store.write(4, make_episode())
    with pytest.raises(LatentGymError, match="info must hold JSON types only"):
        store.write(0, make_episode(info={"goal": object()}))
    assert store.missing() == (0, 1, 2, 3)


def test_episodes_of_different_shapes_do_not_make_a_data_set(make_store, make_episode):
    store = make_store(episodes=2)
    store.write(0, make_episode(size=16))
    store.write(1, make_episode(size=18))
    with pytest.raises(CorruptDataError, match=r"000001: pixels has shape \[18, 18, 3\] per step"):
        open_dataset(store.path)


def write_some(store, make_episode, indices):
    for index in indices:
        store.write(index, make_episode(seed=index))


def test_several_processes_write_one_store(make_store, make_episode):
    store = make_store(episodes=12)
    # The ranges overlap: two writers of one episode must not disturb each other.
    workers = [
        FORK.Process(target=write_some, args=(store, make_episode, range(start, start + 6))) for start in (0, 3, 6)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert check_dataset(store.path) == []
    assert sorted(entry.name for entry in (store.path / "episodes").iterdir()) == [f"{i:06d}" for i in range(12)]


def test_killed_writer_leaves_whole_episodes_only(make_store, make_episode):
    store = make_store(episodes=5_000)
    worker = FORK.Process(target=write_some, args=(store, make_episode, range(5_000)))
    worker.start()
    while not store.has(5):
        time.sleep(0.01)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    folders = [entry for entry in (store.path / "episodes").iterdir() if not entry.name.endswith(".partial")]
    for folder in folders:
        assert sorted(path.name for path in folder.iterdir()) == [
            "arrays.safetensors",
            "episode.json",
            "pixels.mov",
            "pixels_wrist.mov",
        ]
    assert len(store.missing()) == 5_000 - len(folders)


def test_what_a_killed_writer_left_is_cleaned_once_it_is_old(recorded, make_store):
    fresh, old = (recorded / "episodes" / f".000009-{name}.partial" for name in ("new", "old"))
    for folder in (fresh, old):
        folder.mkdir()
        (folder / "pixels.mov").write_bytes(b"x")
    os.utime(old, (0, 0))
    make_store()
    assert fresh.exists()
    assert not old.exists()
    assert open_dataset(recorded).lengths.tolist() == [5, 6, 7, 8]
    assert check_dataset(recorded) == []


FULL_DISK = """
import sys
from pathlib import Path
import numpy as np
from latentgym.errors import LatentGymError
from latentgym.trajectories import ActionSpec, Episode, Provenance, create_store

spec = ActionSpec(("x",), "world", "delta", ("m",), (1.0,), (-1.0,), (1.0,))
store = create_store(
    Path(sys.argv[1]) / "data", env_id="e", action_spec=spec, cameras=("pixels",), control_hz=10, horizon=9,
    episodes=99, provenance=Provenance({}, {}, 0, "", ""), settings={},
)
flag, vector = np.zeros(3, np.bool_), np.zeros((4, 1), np.float32)
frames = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
episode = Episode(
    frames={"pixels": frames}, action=vector[:3], proprio=vector, state=vector, sim_state=np.zeros((4, 0)),
    reward=vector[:3, 0], terminated=flag, truncated=flag, success=flag, random_action=flag, seed=0, policy="p",
    env_id="e",
)
try:
    for index in range(99):
        store.write(index, episode)
except LatentGymError as error:
    print(error)
print(sorted(path.name for path in (store.path / "episodes").iterdir()))
"""


def test_full_disk(on_full_disk):
    message, left = on_full_disk(FULL_DISK).strip().splitlines()
    assert "the disk is full" in message
    assert "run the same command again" in message
    assert left == str([f"{index:06d}" for index in range(left.count("0000"))])
    assert "000000" in left


def test_check_lists_every_problem_at_once(recorded):
    episodes = recorded / "episodes"
    flip_bit(episodes / "000000" / "pixels.mov")
    flip_bit(episodes / "000001" / "arrays.safetensors")
    shutil.rmtree(episodes / "000002")
    (episodes / "000003" / "episode.json").write_text("{")
    (episodes / "notes").mkdir()
    calls = []
    problems = check_dataset(recorded, progress=lambda done, total: calls.append((done, total)))
    assert len(problems) == 5
    for text in (
        "1 of 4 episodes are missing (2)",
        "notes",
        "000000/pixels.mov",
        "000001/arrays",
        "000003/episode.json",
    ):
        assert any(text in problem for problem in problems), text
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_check_of_a_sound_data_set_and_of_none(recorded, tmp_path):
    assert check_dataset(recorded) == []
    assert "holds no data set" in check_dataset(tmp_path / "nowhere")[0]


def test_check_finds_content_that_breaks_the_contract_under_a_right_digest(recorded):
    folder = recorded / "episodes" / "000001"
    arrays = safetensors.numpy.load_file(folder / "arrays.safetensors")
    arrays["action"][2, 0] = np.inf
    data = safetensors.numpy.save(arrays)
    (folder / "arrays.safetensors").write_bytes(data)
    record = json.loads((folder / "episode.json").read_text())
    del record["digest"]
    record["files"]["arrays.safetensors"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "episode.json").write_text(json.dumps(sealed(record)))
    problems = check_dataset(recorded)
    assert len(problems) == 1
    assert "action: NaN or infinite value, first at step 2" in problems[0]
