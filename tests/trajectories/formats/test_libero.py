"""Demonstrations of LIBERO and robomimic: rows paired in time, images upright, whole tasks held out, damage named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from latentgym.errors import CorruptDataError, LatentGymError
from latentgym.policies.checkpoint import Training
from latentgym.probes import probe
from latentgym.studies.config import parse_config
from latentgym.studies.study import run_study
from latentgym.trajectories import check_dataset, inspect_dataset, open_dataset, split_episodes, split_tasks
from latentgym.trajectories.formats.libero import LiberoDataset
from latentgym.trajectories.formats.libero_layout import proprio
from latentgym.trajectories.formats.libero_tasks import libero_task_split, libero_tasks

TASK, HELD_OUT_TASK = "put_the_bowl_on_the_plate", libero_task_split()[1][0]
ROWS, SIDE = 7, 8
PINNED = (
    "pick_up_the_black_bowl_next_to_the_ramekin_and_place_it_on_the_plate",
    "pick_up_the_black_bowl_on_the_stove_and_place_it_on_the_plate",
)
PINNED_LAST = "STUDY_SCENE3_pick_up_the_red_mug_and_place_it_to_the_right_of_the_caddy"


def scene(step: int) -> np.ndarray:
    """What an upright camera sees at a time: sky (blue) above, ground (red) below, and the time in the corner."""
    frame = np.zeros((SIDE, SIDE, 3), np.uint8)
    frame[: SIDE // 2, :, 2] = 200
    frame[SIDE // 2 :, :, 0] = 100
    frame[0, 0] = step
    return frame


def joints(step: int) -> np.ndarray:
    return np.linspace(0, 1, 7) + 0.1 * step


def state(step: int) -> np.ndarray:
    """Time, seven joints, two fingers and two more positions; then velocities."""
    return np.concatenate([[step / 20], joints(step), [0.04, -0.04], [step, -step], np.full(10, 0.5)])


def write_libero(path: Path, *, demos: int = 3, rows: int = ROWS, follows: bool = True, **attributes: Any) -> Path:
    """A file as LIBERO's create_dataset.py writes it: row j of obs is taken after action j, images bottom row first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_name"] = "Libero_Tabletop_Manipulation"
        words = path.stem.removesuffix("_demo").split("_")
        data.attrs["problem_info"] = json.dumps({"language_instruction": words, "domain_name": "robosuite"})
        data.attrs["macros_image_convention"] = "opengl"
        controller = {"type": "OSC_POSE", "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5], "control_delta": True}
        arguments = {"control_freq": 20, "controller_configs": controller}
        data.attrs["env_args"] = json.dumps({"type": 1, "env_kwargs": arguments})
        data.attrs["num_demos"], data.attrs["total"] = demos, demos * rows
        for name, value in attributes.items():
            data.attrs[name] = value
        for number in range(demos):
            group = data.create_group(f"demo_{number}")
            seen = np.arange(rows) + int(follows)
            group["actions"] = np.stack([np.full(7, step / 100 - number / 10) for step in range(rows)])
            group["states"] = np.stack([state(step) for step in range(rows)])
            group["rewards"] = group["dones"] = np.eye(rows, dtype=np.uint8)[-1]
            group["robot_states"] = np.zeros((rows, 9))
            group.attrs["num_samples"], group.attrs["model_file"] = rows, "<mujoco/>"
            group.attrs["init_state"] = state(0)
            obs = group.create_group("obs")
            obs["agentview_rgb"] = np.stack([scene(step)[::-1] for step in seen])
            obs["eye_in_hand_rgb"] = np.stack([255 - scene(step)[::-1] for step in seen])
            obs["joint_states"] = np.stack([joints(step) for step in seen])
            obs["gripper_states"] = np.tile([0.04, -0.04], (rows, 1))
            obs["ee_pos"] = np.stack([[step, 0.0, 1.0] for step in seen])
            obs["ee_ori"] = np.tile([np.pi, 0.0, 0.0], (rows, 1))
            obs["ee_states"] = np.concatenate([obs["ee_pos"], obs["ee_ori"]], axis=1)
    return path


def write_robomimic(path: Path, *, demos: int = 4, rows: int = ROWS, size: int = 7) -> Path:
    """A file as robomimic's dataset_states_to_obs.py writes it: obs before actions, images upright, masks."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = demos * rows
        arguments = {"control_freq": 20, "controller_configs": {"type": "OSC_POSE", "control_delta": True}}
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": arguments})
        for number in range(demos):
            group = data.create_group(f"demo_{number}")
            group["actions"] = np.stack([np.full(size, step / 100) for step in range(rows)])
            group["states"] = np.stack([state(step) for step in range(rows)])
            group["rewards"] = (np.arange(rows) >= rows - 3).astype(np.float64)
            group["dones"] = np.eye(rows, dtype=np.int64)[-1]
            for name, shift in (("obs", 0), ("next_obs", 1)):
                obs = group.create_group(name)
                obs["agentview_image"] = np.stack([scene(step + shift) for step in range(rows)])
                obs["robot0_joint_pos"] = np.stack([joints(step + shift) for step in range(rows)])
                obs["robot0_eef_pos"] = np.stack([[step + shift, 0.0, 1.0] for step in range(rows)])
                obs["robot0_eef_quat"] = np.tile([1.0, 0.0, 0.0, 0.0], (rows, 1))
                obs["robot0_gripper_qpos"] = np.tile([0.02, -0.02], (rows, 1))
                obs["object"] = np.stack([np.full(10, step + shift, np.float64) for step in range(rows)])
        masks = file.create_group("mask")
        masks["train"] = np.array([b"demo_0", b"demo_2", b"demo_3"])
        masks["valid"] = np.array([b"demo_1"])
    return path


def test_libero_rows_are_paired_in_time_and_images_upright(tmp_path):
    dataset = open_dataset(write_libero(tmp_path / "libero_goal" / f"{TASK}_demo.hdf5"))
    assert isinstance(dataset, LiberoDataset)
    assert (dataset.env_id, dataset.cameras) == (f"libero/{TASK}", ("agentview_rgb", "eye_in_hand_rgb"))
    assert dataset.lengths.tolist() == [ROWS - 2] * 3 and dataset.successes.all() and dataset.control_hz == 20
    episode = dataset.episode(1, extras=("joint_states",))
    episode.validate()
    # The first observation of a file is of time 1, after action 0.
    times = np.arange(1, ROWS)
    assert np.array_equal(episode.frames["agentview_rgb"], np.stack([scene(step) for step in times]))
    assert np.array_equal(episode.sim_state, np.stack([state(step) for step in times]))
    assert np.allclose(episode.action[:, 0], times[:-1] / 100 - 0.1)
    assert np.allclose(episode.extras["joint_states"], np.stack([joints(step) for step in times]))
    assert np.array_equal(episode.proprio[:, 0], times) and episode.proprio.shape[1] == 11
    assert np.allclose(episode.state[:, 11:], episode.sim_state[:, 1:])
    assert episode.success.tolist() == [False] * (ROWS - 3) + [True] and not episode.terminated.any()
    assert episode.instruction == "put the bowl on the plate" and episode.policy == "human"
    assert not episode.random_action.any()


def test_rows_of_files_recorded_anew_are_paired_as_they_are(tmp_path):
    path = write_libero(tmp_path / f"{TASK}_demo.hdf5", follows=False)
    dataset = open_dataset(path)
    episode = dataset.episode(0)
    times = np.arange(ROWS)
    assert dataset.lengths.tolist() == [ROWS - 1] * 3
    assert np.array_equal(episode.frames["agentview_rgb"], np.stack([scene(step) for step in times]))
    assert np.array_equal(episode.sim_state, np.stack([state(step) for step in times]))
    assert np.allclose(episode.action[:, 0], times[:-1] / 100)
    assert any("precede" in note for note in inspect_dataset(path).notes)


def test_policies_of_libero_meet_its_environments(tmp_path):
    """Cameras, image size and tasks of the files are those of the environments that the suite makes."""
    suite = tmp_path / "libero_goal"
    for task in ("turn_on_the_stove", "put_the_bowl_on_the_plate"):
        write_libero(suite / f"{task}_demo.hdf5")
    several, one = Training.of(open_dataset(suite)), Training.of(open_dataset(suite / "turn_on_the_stove_demo.hdf5"))
    assert one.camera == "pixels" and one.env_options() == {"render": "stock", "image_size": SIDE}
    assert one.covers("libero/turn_on_the_stove") and not one.covers("libero/put_the_bowl_on_the_plate")
    assert several.covers("libero/turn_on_the_stove") and several.covers("libero/put_the_bowl_on_the_plate")
    assert one.covers("libero/libero_goal_swap/turn_on_the_stove") and not several.covers("libero/other")
    assert Training.from_dict(json.loads(json.dumps(dataclasses.asdict(several)))) == several
    wrist = Training.of(open_dataset(suite, camera="eye_in_hand_rgb"))
    assert wrist.camera == "pixels_robot0_eye_in_hand" and wrist.env_options()["cameras"] == ["robot0_eye_in_hand"]


def test_robomimic_rows_images_state_and_masks(tmp_path):
    path = write_robomimic(tmp_path / "image.hdf5")
    dataset = open_dataset(path, split="mask")
    assert (dataset.env_id, dataset.cameras) == ("robosuite/Lift-v0", ("agentview_image",))
    episode = dataset.episode(2)
    episode.validate()
    assert np.array_equal(episode.frames["agentview_image"], np.stack([scene(step) for step in range(ROWS)]))
    assert np.allclose(episode.action[:, 0], np.arange(ROWS - 1) / 100)
    assert np.array_equal(episode.state[:, 11:], np.tile(np.arange(ROWS)[:, None], (1, 10)))
    # A hand turned half around x: its site's axes are y and x of the world.
    assert np.allclose(episode.proprio[0, 3:9], [0, 1, 0, 1, 0, 0])
    assert episode.success.tolist() == [False] * (ROWS - 3) + [True] * 2
    assert dataset.held_out == (False, True, False, False)
    assert split_episodes(dataset).test == (1,)


def test_two_armed_actions_and_their_names(tmp_path):
    spec = open_dataset(write_robomimic(tmp_path / "image.hdf5", size=14)).action_spec
    assert spec.size == 14 and spec.translation == (0, 1, 2, 7, 8, 9) and spec.gripper == (6, 13)
    assert spec.names[7] == "robot1_x" and spec.scale[:4] == (0.05, 0.05, 0.05, 0.5)


def test_axis_angle_and_quaternion_give_the_same_rotation():
    rng = np.random.default_rng(0)
    axis = rng.standard_normal((20, 3))
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    angle = rng.uniform(0, np.pi, (20, 1))
    quaternion = np.concatenate([axis * np.sin(angle / 2), np.cos(angle / 2)], axis=1)
    rest = {"ee_pos": np.zeros((20, 3)), "gripper_states": np.zeros((20, 2))}
    ours = proprio({**rest, "ee_ori": axis * angle}, "libero")
    rest = {"robot0_eef_pos": np.zeros((20, 3)), "robot0_gripper_qpos": np.zeros((20, 2))}
    theirs = proprio({**rest, "robot0_eef_quat": quaternion}, "robomimic")
    assert np.allclose(ours, theirs, atol=1e-6)
    # Rodrigues' formula for the first axis of the body, which is the second of the site.
    turned = (
        np.cos(angle) * [1, 0, 0] + np.sin(angle) * np.cross(axis, [1, 0, 0]) + (1 - np.cos(angle)) * axis * axis[:, :1]
    )
    assert np.allclose(ours[:, 6:9], turned, atol=1e-6)


def test_split_holds_out_26_of_130_tasks_and_never_changes():
    train, held_out = libero_task_split()
    assert len(train) == 104 and len(held_out) == 26 and not set(train) & set(held_out)
    suites = [libero_tasks()[task] for task in held_out]
    assert {suite: suites.count(suite) for suite in set(suites)} == {
        "libero_spatial": 2, "libero_object": 2, "libero_goal": 2, "libero_10": 2, "libero_90": 18,
    }  # fmt: skip
    assert held_out[:2] == PINNED and held_out[-1] == PINNED_LAST


def test_suites_of_tasks_and_what_is_held_out(tmp_path):
    for number, task in enumerate([*libero_task_split()[0][:3], HELD_OUT_TASK]):
        suite = libero_tasks()[task]
        write_libero(tmp_path / suite / f"{task}_demo.hdf5", demos=2 + number % 2)
    dataset = open_dataset(tmp_path, split="tasks")
    assert len(dataset) == 10 and dataset.env_id == f"libero-{suite.removeprefix('libero_')}"
    held_out = [index for index, task in enumerate(dataset.tasks) if task == HELD_OUT_TASK]
    split = split_episodes(dataset)
    assert list(split.test) == held_out and len(split.train) > len(split.validation) >= 1
    assert split_tasks(open_dataset(tmp_path), dataset.tasks, [HELD_OUT_TASK]).test == split.test
    assert len(set(dataset.seeds)) == len(dataset) and len(set(dataset.groups)) == len(dataset)
    (tmp_path / suite / f"{HELD_OUT_TASK}_demo.hdf5").unlink()
    with pytest.raises(LatentGymError, match="none of the 3 file"):
        open_dataset(tmp_path, split="tasks")


def test_demonstrations_are_in_the_order_of_their_numbers(tmp_path):
    dataset = open_dataset(write_libero(tmp_path / f"{TASK}_demo.hdf5", demos=12))
    names = [dataset.episode(index, cameras=()).info["demonstration"] for index in range(12)]
    assert names == [f"demo_{number}" for number in range(12)]


def test_keys_follow_the_content(tmp_path):
    path = write_libero(tmp_path / f"{TASK}_demo.hdf5")
    before = open_dataset(path)
    keys, episodes = before.key, [before.episode_key(index) for index in range(3)]
    assert len(set(episodes)) == 3 and open_dataset(path).key == keys
    with h5py.File(path, "r+") as file:
        file["data/demo_1/actions"][2, 3] += 0.01
        file["data/demo_2/obs/agentview_rgb"][-1, 0, 0, 0] += 1
    after = open_dataset(path)
    assert after.key != keys
    assert [after.episode_key(index) == old for index, old in enumerate(episodes)] == [True, False, False]
    assert open_dataset(path, camera="eye_in_hand_rgb").key not in (keys, after.key)


def test_check_says_how_rows_and_images_were_read(tmp_path):
    report = inspect_dataset(write_libero(tmp_path / f"{TASK}_demo.hdf5").parent)
    assert report.problems == []
    assert any("3 demonstrations of 1 task" in note for note in report.notes)
    assert any("follow the actions" in note for note in report.notes)
    assert any("bottom row first" in note for note in report.notes)


def test_check_lists_actions_out_of_range_and_blank_frames(tmp_path):
    path = write_libero(tmp_path / f"{TASK}_demo.hdf5")
    with h5py.File(path, "r+") as file:
        file["data/demo_0/actions"][3] = 1.5
        file["data/demo_2/obs/eye_in_hand_rgb"][...] = 9
    problems = check_dataset(path)
    assert len(problems) == 2
    assert "demo_0: action 2 lies outside" in problems[0] and "demo_2" in problems[1]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file["data/demo_1"].pop("obs"), "damaged"),
        (lambda file: file["data/demo_0"].pop("obs"), "no observations"),
        (lambda file: file.pop("data"), "damaged, or no demonstrations"),
        (lambda file: file["data/demo_1/obs"].pop("ee_pos"), "other names or shapes"),
        (lambda file: file["data"].attrs.__setitem__("env_args", "{"), "damaged"),
    ],
)
def test_damage_is_one_clear_error(tmp_path, damage, message):
    path = write_libero(tmp_path / f"{TASK}_demo.hdf5")
    with h5py.File(path, "r+") as file:
        damage(file)
    with pytest.raises(LatentGymError, match=message):
        open_dataset(path)
    assert len(check_dataset(path)) == 1


def test_truncated_file_and_rows_of_another_number(tmp_path):
    path = write_libero(tmp_path / "one" / f"{TASK}_demo.hdf5")
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(CorruptDataError, match="damaged"):
        open_dataset(path)
    path = write_libero(tmp_path / "two" / f"{TASK}_demo.hdf5")
    with h5py.File(path, "r+") as file:
        del file["data/demo_2/states"]
        file["data/demo_2/states"] = np.zeros((ROWS - 1, 22))
    with pytest.raises(CorruptDataError, match=r"demo_2: 7 actions, but 6 rows of states"):
        open_dataset(path)


def test_files_of_different_kinds_are_not_mixed(tmp_path):
    write_libero(tmp_path / f"{TASK}_demo.hdf5")
    write_robomimic(tmp_path / "image.hdf5")
    with pytest.raises(LatentGymError, match="differ in their layout"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"camera": "agentvew_rgb"}, "did you mean 'agentview_rgb'"),
        ({"split": "paper"}, "known: mask, none, tasks"),
        ({"actions": "rel_actions"}, "unknown option of HDF5 demonstrations"),
        ({"split": "mask"}, "no mask"),
    ],
)
def test_bad_options_get_one_clear_error(tmp_path, options, message):
    path = write_libero(tmp_path / f"{TASK}_demo.hdf5")
    with pytest.raises(LatentGymError, match=message):
        open_dataset(path, **options)


def test_states_of_different_width_are_left_out_of_probes(tmp_path):
    """Scenes hold different numbers of objects, so that the simulator's state differs between tasks."""
    for task, more in (("turn_on_the_stove", 0), ("put_the_bowl_on_the_plate", 2)):
        path = write_libero(tmp_path / "libero_goal" / f"{task}_demo.hdf5", demos=5)
        with h5py.File(path, "r+") as file:
            for demo in file["data"].values():
                states = demo["states"][()]
                del demo["states"]
                demo["states"] = np.concatenate([states, np.zeros((len(states), more))], axis=1)
    dataset = open_dataset(tmp_path / "libero_goal")
    assert (
        not dataset.uniform_state and open_dataset(tmp_path / "libero_goal/turn_on_the_stove_demo.hdf5").uniform_state
    )
    report = inspect_dataset(tmp_path / "libero_goal")
    assert report.problems == [] and any("not equally wide" in note for note in report.notes)
    rows = probe(dataset, "proprio", horizons=(1,), readouts=("ridge",), replicates=20, folds=2).rows
    assert "state_r2" not in {row.metric for row in rows} and "action_r2" in {row.metric for row in rows}
    suite = {
        "name": "libero",
        "envs": ["latentgym/TabletopReach-v0"],
        "data": str(tmp_path / "libero_goal"),
        "rollouts": 0,
    }
    study = {"name": "uneven", "objectives": ["pixel_autoencoder"], "suites": [suite]}
    with pytest.raises(LatentGymError, match=r'not equally wide .* references = \["proprio"\]'):
        run_study(parse_config(study, "uneven"), tmp_path / "out")


@pytest.mark.parametrize("options", [{"camera": 3}, {"control_freq": "fast"}])
def test_values_of_another_kind_are_one_clear_error(tmp_path, options):
    path = write_libero(tmp_path / "turn_on_the_stove_demo.hdf5")
    if "control_freq" in options:
        with h5py.File(path, "r+") as file:
            arguments = json.loads(file["data"].attrs["env_args"])
            arguments["env_kwargs"] |= options
            file["data"].attrs["env_args"] = json.dumps(arguments)
        options = {}
    with pytest.raises(LatentGymError, match=r"camera: expected a name|no usable controller or rate"):
        open_dataset(path, **options)
