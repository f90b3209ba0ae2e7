"""CALVIN folders are read in place: every transition once, damage named, nothing assumed to fit in memory."""

from __future__ import annotations

import itertools
import os
import pickle
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from latentgym.errors import CorruptDataError, LatentGymError
from latentgym.trajectories import check_dataset, inspect_dataset, open_dataset, split_episodes
from latentgym.trajectories.formats.calvin import CalvinDataset
from latentgym.trajectories.formats.calvin_annotations import read_task_embeddings
from latentgym.trajectories.formats.calvin_index import GAP_STEPS, PlayRange, cut_groups, cut_segments


def raw(folder: Path, step: int) -> dict[str, np.ndarray]:
    with np.load(folder / f"episode_{step:07d}.npz") as arrays:
        return dict(arrays)


RANGES = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 5)), min_size=1, max_size=5)


@settings(max_examples=100, deadline=None)
@given(RANGES, st.integers(1, 200))
def test_every_transition_lies_in_exactly_one_segment(shapes, most):
    plays, start = [], 3
    for length, gap in shapes:
        plays.append(PlayRange(Path(), "", start, start + length, ""))
        start += length + 1 + gap
    segments = cut_segments(cut_groups(plays), most)
    covered = [step for segment in segments for step in range(segment.first, segment.last)]
    assert covered == [step for play in plays for step in range(play.first, play.last)]
    assert all(1 <= segment.length <= most for segment in segments)
    for play in plays:
        lengths = [segment.length for segment in segments if segment.play == play]
        assert not lengths or max(lengths) - min(lengths) <= 1


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2000), st.integers(2 * GAP_STEPS + 1, 600))
def test_groups_of_one_range_lie_apart(length, group_steps):
    groups = cut_groups([PlayRange(Path(), "", 0, length, "")], group_steps)
    assert len({group.group for group in groups}) == len(groups)
    assert all(later.first - group.last == GAP_STEPS for group, later in itertools.pairwise(groups))
    assert all(group.length <= group_steps for group in groups)
    assert not groups or groups[-1].last == length


@pytest.mark.parametrize("space", ["rel_actions", "actions"])
def test_an_episode_holds_what_the_files_hold(make_calvin, space):
    folder = make_calvin()
    dataset = open_dataset(folder, actions=space, segment_steps=10, workers=3)
    assert isinstance(dataset, CalvinDataset)
    assert dataset.lengths.tolist() == [10, 10, 6, 6, 7]
    assert (dataset.cameras, dataset.control_hz, dataset.env_id) == (("rgb_static", "rgb_gripper"), 30.0, "calvin-BD")
    assert dataset.scenes == ("B", "B", "B", "B", "D")
    for index, first in enumerate([0, 10, 21, 27, 40]):
        episode = dataset.episode(index, extras=("depth_static", "rgb_tactile", space))
        episode.validate()
        steps = [raw(folder, step) for step in range(first, first + len(episode) + 1)]
        for camera in dataset.cameras:
            assert np.array_equal(episode.frames[camera], np.stack([step[camera] for step in steps]))
        assert np.array_equal(episode.action, np.stack([step[space] for step in steps[:-1]]).astype(np.float32))
        assert np.array_equal(
            episode.sim_state, np.stack([np.concatenate([step["robot_obs"], step["scene_obs"]]) for step in steps])
        )
        for name, array in episode.extras.items():
            assert array.dtype == steps[0][name].dtype
            assert np.array_equal(array, np.stack([step[name] for step in steps]))
        assert episode.truncated.tolist() == [False] * (len(episode) - 1) + [True]
        assert not episode.random_action.any() and not episode.success.any()
    assert dataset.episode(0, cameras=()).frames == {}


def test_action_spaces_mean_what_the_benchmark_says(make_calvin):
    folder = make_calvin()
    relative, absolute = open_dataset(folder).action_spec, open_dataset(folder, actions="actions").action_spec
    assert relative.scale == (1 / 50,) * 3 + (1 / 20,) * 3 + (1.0,)
    assert (relative.mode, relative.frame, relative.gripper_close_sign) == ("delta", "world", -1)
    assert absolute.mode == "absolute"


def test_spans_and_the_language_episodes(make_calvin):
    folder = make_calvin()
    play = open_dataset(folder, segment_steps=10)
    tasks = [[span["task"] for span in play.episode(index, ()).info["spans"]] for index in range(len(play))]
    assert tasks == [["task_0"], [], ["task_1"], ["task_1"], []]
    language = open_dataset(folder, episodes="language")
    assert language.lengths.tolist() == [7, 8]
    episode = language.episode(1)
    assert episode.instruction == "sentence 1"
    assert (episode.info["first_step"], episode.info["last_step"]) == (22, 30)
    assert episode.success.tolist() == [False] * 7 + [True]
    assert language.groups == ("0-20", "21-33")
    assert isinstance(language, CalvinDataset) and language.annotations[""].embeddings is not None
    row = episode.info["spans"][0]["row"]
    assert np.array_equal(language.annotations[""].embeddings[row], np.arange(6, 12))


def test_root_holds_validation_out_and_ranges_stay_together(make_calvin, tmp_path):
    make_calvin("training")
    make_calvin("validation", ranges=((100, 120),), scenes={"calvin_scene_A": [100, 120]}, spans=())
    dataset = open_dataset(tmp_path, segment_steps=5)
    split = split_episodes(dataset)
    assert [dataset.held_out[index] for index in split.test] == [True] * 4
    groups = [{dataset.groups[index] for index in part} for part in (split.train, split.validation)]
    assert not groups[0] & groups[1]
    assert dataset.env_id == "calvin-ABD"


def test_saturation_is_reported(make_calvin):
    folder = make_calvin()
    dataset = open_dataset(folder)
    assert isinstance(dataset, CalvinDataset)
    steps = [*range(21), *range(21, 34), *range(40, 48)]
    share = sum(step % 2 for step in steps) / len(steps)
    assert np.allclose(dataset.saturation()[:6], [share, 0, 0, 0, 0, 0])
    assert dataset.episode(0, ()).info["saturation"]["x"] == pytest.approx(0.5)
    assert any(f"x {100 * share:.1f} %" in note for note in inspect_dataset(folder).notes)


def test_key_depends_on_data_and_options_not_on_place_or_threads(make_calvin, tmp_path):
    folder = make_calvin()
    key = open_dataset(folder).key
    moved = folder.rename(tmp_path / "elsewhere")
    assert open_dataset(moved, workers=1).key == key
    keys = [open_dataset(moved, **{name: value}).key for name, value in OPTIONS.items()]
    before = [open_dataset(moved).episode_key(index) for index in range(3)]
    file = moved / "episode_0000003.npz"
    np.savez_compressed(file, **{**raw(moved, 3), "scene_obs": np.zeros(24)})
    assert len({key, *keys, open_dataset(moved).key}) == len(keys) + 2
    after = [open_dataset(moved).episode_key(index) for index in range(3)]
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, True, True]


OPTIONS = {"actions": "actions", "segment_steps": 9, "episodes": "language", "camera": "rgb_gripper"}


def test_opening_reads_one_step_file_and_an_episode_its_own(make_calvin):
    folder = make_calvin()
    for step in range(1, 20):
        (folder / f"episode_{step:07d}.npz").write_bytes(b"")
    dataset = open_dataset(folder)
    dataset.episode(1)
    with pytest.raises(CorruptDataError, match="episode_0000001"):
        dataset.episode(0)


def test_the_data_set_travels_to_other_processes(make_calvin):
    dataset = open_dataset(make_calvin())
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.key == dataset.key and np.array_equal(copy.episode(1).action, dataset.episode(1).action)


def test_the_gripper_camera_can_be_the_main_one(make_calvin):
    assert open_dataset(make_calvin(), camera="rgb_gripper").cameras == ("rgb_gripper", "rgb_static")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"actions": "absolute"}, "rel_actions"),
        ({"segment_step": 3}, "did you mean 'segment_steps'"),
        ({"segment_steps": 0}, "positive whole number"),
        ({"group_steps": 20}, "more than 64"),
        ({"episodes": "langauge"}, "'play' or 'language'"),
        ({"camera": "static"}, "rgb_static, rgb_gripper"),
        ({"renderer": "auto"}, "'egl' or 'tiny'"),
        ({"annotations": "lang_other"}, "is missing"),
        ({"annotations": 3}, "annotations: expected a text"),
        ({"actions": [1]}, "actions: expected a text"),
    ],
)
def test_bad_options(make_calvin, options, message):
    with pytest.raises(LatentGymError, match=message):
        open_dataset(make_calvin(), **options)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)


def pickle_inside(path: Path) -> None:
    np.savez_compressed(
        path, **{**raw(path.parent, int(path.stem[8:])), "actions": np.array([os.system], dtype=object)}
    )


def other_shape(path: Path) -> None:
    np.savez_compressed(path, **{**raw(path.parent, int(path.stem[8:])), "rgb_static": np.zeros((9, 8, 3), np.uint8)})


def array_missing(path: Path) -> None:
    arrays = raw(path.parent, int(path.stem[8:]))
    del arrays["actions"], arrays["rgb_static"]
    np.savez_compressed(path, **arrays)


DAMAGES = [Path.unlink, truncate, flip_a_bit, pickle_inside, other_shape, array_missing]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("workers", [1, 4])
def test_a_damaged_step_file_is_named(make_calvin, damage, workers):
    folder = make_calvin()
    dataset = open_dataset(folder, actions="actions", workers=workers)
    damage(folder / "episode_0000005.npz")
    with pytest.raises(CorruptDataError, match="episode_0000005"):
        dataset.episode(0)
    if damage is Path.unlink:
        with pytest.raises(CorruptDataError, match="episode_0000005"):
            dataset.key  # noqa: B018


def test_check_names_every_damaged_file(make_calvin):
    folder = make_calvin()
    assert check_dataset(folder) == []
    for step, damage in zip((2, 5, 8, 25, 30, 44), DAMAGES, strict=True):
        damage(folder / f"episode_{step:07d}.npz")
    np.savez_compressed(folder / "episode_0000010.npz", **{**raw(folder, 10), "robot_obs": np.full(15, np.nan)})
    np.savez_compressed(folder / "episode_0000011.npz", **{**raw(folder, 11), "rel_actions": np.full(7, 1.5)})
    calls: list[tuple[int, int]] = []
    problems = check_dataset(folder, progress=lambda done, total: calls.append((done, total)))
    for step in (2, 5, 8, 25, 30, 44, 10, 11):
        assert sum(f"episode_{step:07d}" in problem for problem in problems) == 1, (step, problems)
    assert len(problems) == 8
    assert calls[-1] == (42, 42)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([[0, 20], [21, 60]], "episode_0000060.npz is missing"),
        ([[0, 20], [15, 33]], "overlap"),
        ([[20, 0]], "not ascending"),
        (np.zeros((0, 2), int), "no play range"),
        ([0, 20], "shape"),
        ([[0.0, 20.0]], "integers"),
    ],
)
def test_a_wrong_index_is_refused_on_opening(make_calvin, index, message):
    folder = make_calvin()
    np.save(folder / "ep_start_end_ids.npy", np.array(index))
    with pytest.raises(CorruptDataError, match=message):
        open_dataset(folder)
    assert message in check_dataset(folder)[0]


@pytest.mark.parametrize(
    ("scenes", "message"),
    [
        ({"calvin_scene_E": [0, 47]}, "unknown scene 'calvin_scene_E'"),
        ({"calvin_scene_A": [0, 10], "calvin_scene_B": [11, 47]}, "scenes A and B"),
        ({"calvin_scene_A": "everything"}, "first and last step"),
        ({"calvin_scene_A": [47, 0]}, "first and last step"),
        ({"calvin_scene_A": [[0], [1, 2]]}, "first and last step"),
        ({"calvin_scene_A": [0, 10]}, "a part of the play range"),
        ([1, 2], "dictionary of scenes"),
    ],
)
def test_a_wrong_scene_is_refused(make_calvin, scenes, message):
    folder = make_calvin(scenes=scenes)
    if isinstance(scenes, list):
        np.save(folder / "scene_info.npy", np.array(scenes))
    with pytest.raises(CorruptDataError, match=message):
        open_dataset(folder)


def test_without_scene_info_and_annotations(make_calvin):
    folder = make_calvin()
    (folder / "scene_info.npy").unlink()
    (folder / "lang_annotations" / "auto_lang_ann.npy").unlink()
    dataset = open_dataset(folder)
    assert dataset.env_id == "calvin" and dataset.episode(0, ()).info["spans"] == []
    with pytest.raises(LatentGymError, match="no annotated span"):
        open_dataset(folder, episodes="language")


def test_annotations_that_point_nowhere_or_attack_are_refused(make_calvin, tmp_path):
    folder = make_calvin("outside", spans=((30, 42),))
    with pytest.raises(CorruptDataError, match="in no play range"):
        open_dataset(folder)

    for field, value, message in (
        ("emb", [[0.0], [0.0, 1.0]], "one row of floats per sentence"),
        ("indx", [(0, float("inf"))], "info/indx of one length; OverflowError"),
    ):
        folder = make_calvin(field)
        path = folder / "lang_annotations" / "auto_lang_ann.npy"
        content = np.load(path, allow_pickle=True).item()
        content["info" if field == "indx" else "language"][field] = value
        np.save(path, np.array(content), allow_pickle=True)
        with pytest.raises(CorruptDataError, match=message):
            open_dataset(folder)

    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    folder = make_calvin("attack")
    np.save(folder / "lang_annotations" / "auto_lang_ann.npy", np.array({"language": Attack()}), allow_pickle=True)
    with pytest.raises(CorruptDataError, match="only NumPy arrays and plain containers"):
        open_dataset(folder)
    assert len(check_dataset(folder)) == 1
    assert not (tmp_path / "executed").exists()


def test_the_recorded_example(shared):
    root = shared / "calvin_debug"
    dataset = open_dataset(root / "training")
    assert isinstance(dataset, CalvinDataset)
    assert (len(dataset), int(dataset.lengths.sum())) == (12, 6 * 87)
    assert dataset.scenes == ("A", "A", "B", "B", "C", "C", *"DDDDDD")
    episode = dataset.episode(7, extras=("depth_static",))
    episode.validate()
    assert episode.frames["rgb_static"].shape == (len(episode) + 1, 200, 200, 3)
    assert episode.extras["depth_static"].dtype == np.float32
    # The absolute action of a step is the pose that the next observation shows.
    absolute = open_dataset(root / "training", actions="actions").episode(0, ())
    assert np.allclose(absolute.action[:, :3], absolute.proprio[1:, :3], atol=1e-6)
    language = open_dataset(root, episodes="language")
    assert len(language) == 7 and language.episode(0, ()).instruction == "push the blue block to the left"
    sentence, embedding = read_task_embeddings(root / "validation")["open_drawer"]
    assert sentence == "pull the handle to open the drawer" and embedding.shape == (384,)
