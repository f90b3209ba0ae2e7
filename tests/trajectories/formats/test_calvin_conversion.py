"""CALVIN to the native store and back: not a bit is lost, and nothing half-done looks whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from latentgym.errors import CorruptDataError, LatentGymError
from latentgym.trajectories import check_dataset, open_dataset, split_episodes
from latentgym.trajectories.formats.calvin_conversion import MARKER, convert

B = {"calvin_scene_B": [0, 41]}


def files(root: Path) -> list[Path]:
    return sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())


def assert_equal_folders(one: Path, other: Path) -> None:
    assert files(one) == files(other)
    for name in files(one):
        if not name.name.startswith("episode_"):
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
            continue
        with np.load(one / name) as a, np.load(other / name) as b:
            assert a.files == b.files
            for key in a.files:
                assert (a[key].dtype, a[key].shape) == (b[key].dtype, b[key].shape), (name, key)
                assert a[key].tobytes() == b[key].tobytes(), (name, key)


@pytest.fixture
def both(make_calvin, tmp_path) -> Path:
    """A root with both splits, a play range of one step, a step outside all ranges and a file beside the splits."""
    training = make_calvin("source/training", ranges=((0, 20), (21, 21), (30, 41)), scenes=B, spans=((2, 9),))
    (training / "episode_0000099.npz").write_bytes((training / "episode_0000000.npz").read_bytes())
    make_calvin("source/validation", ranges=((100, 110),), scenes={"calvin_scene_A": [100, 110]}, spans=())
    (tmp_path / "source" / "README.txt").write_text("about")
    return tmp_path / "source"


@pytest.mark.parametrize("segment_steps", [1, 7, 64])
def test_the_round_trip_is_exact(both, tmp_path, segment_steps):
    native, back = tmp_path / "native", tmp_path / "back"
    count = convert(both, native, segment_steps=segment_steps)
    assert check_dataset(native) == []
    assert convert(native, back, "calvin") == count
    assert_equal_folders(both, back)
    assert not (back / MARKER).exists()


def test_annotations_behind_a_symbolic_link_are_converted_too(both, tmp_path):
    place = both / "training" / "lang_annotations"
    elsewhere = place.rename(tmp_path / "elsewhere")
    place.symlink_to(elsewhere)
    (elsewhere / "circle").symlink_to(both / "training")
    (elsewhere / "inner").mkdir()
    (elsewhere / "inner" / "more.txt").write_text("more")
    (place.parent / "alias").symlink_to(elsewhere)
    convert(both, tmp_path / "native", segment_steps=8)
    convert(tmp_path / "native", tmp_path / "back", "calvin")
    (elsewhere / "circle").unlink()
    held = [path for path in elsewhere.rglob("*") if path.is_file()]
    assert {path.name for path in held} >= {"auto_lang_ann.npy", "more.txt"}
    for path in held:
        for name in ("lang_annotations", "alias"):
            copied = tmp_path / "back" / "training" / name / path.relative_to(elsewhere)
            assert copied.read_bytes() == path.read_bytes()


def test_an_array_that_only_some_steps_hold_is_a_problem(both):
    path = both / "training" / "episode_0000003.npz"
    with np.load(path) as arrays:
        np.savez(path, **arrays, extra=np.zeros(3))
    assert any("episode_0000003.npz: extra is not in the first step" in problem for problem in check_dataset(both))


def test_the_native_data_set_reads_like_the_folder(both, tmp_path):
    convert(both, tmp_path / "native", segment_steps=8)
    native, source = open_dataset(tmp_path / "native"), open_dataset(both, segment_steps=8)
    assert split_episodes(native) == split_episodes(source)
    assert (native.groups, native.held_out, native.action_spec) == (source.groups, source.held_out, source.action_spec)
    assert native.extras == tuple(sorted(source.extras))
    for index in range(len(source)):
        a, b = native.episode(index, extras=native.extras), source.episode(index, extras=native.extras)
        assert a.info == b.info and a.instruction == b.instruction
        for name in ("action", "proprio", "state", "sim_state", "truncated", "success"):
            assert np.array_equal(getattr(a, name), getattr(b, name))
        for kind in ("frames", "extras"):
            for name, array in getattr(b, kind).items():
                assert np.array_equal(getattr(a, kind)[name], array)


def test_a_split_folder_by_itself(make_calvin, tmp_path):
    source = make_calvin()
    convert(source, tmp_path / "native")
    convert(tmp_path / "native", tmp_path / "back", "calvin")
    assert_equal_folders(source, tmp_path / "back")


def test_an_interrupted_conversion_is_unfinished_and_goes_on(both, tmp_path):
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    native, back = tmp_path / "native", tmp_path / "back"
    with pytest.raises(KeyboardInterrupt):
        convert(both, native, segment_steps=7, progress=stop)
    with pytest.raises(LatentGymError, match="unfinished"):
        open_dataset(native)
    convert(both, native, segment_steps=7)
    with pytest.raises(KeyboardInterrupt):
        convert(native, back, "calvin", progress=stop)
    with pytest.raises(LatentGymError, match="holds no data set"):
        open_dataset(back)
    convert(native, back, "calvin")
    assert_equal_folders(both, back)


def test_attachments_are_checked(both, tmp_path):
    native = tmp_path / "native"
    convert(both, native)
    altered = native / "attachments" / "training" / "lang_annotations" / "auto_lang_ann.npy"
    altered.write_bytes(b"other")
    assert any("auto_lang_ann.npy was altered" in problem for problem in check_dataset(native))
    with pytest.raises(CorruptDataError, match="altered"):
        convert(native, tmp_path / "back", "calvin")
    with pytest.raises(LatentGymError, match="holds no data set"):
        open_dataset(tmp_path / "back")


def test_what_cannot_be_converted_is_one_clear_message(both, recorded, tmp_path):
    with pytest.raises(LatentGymError, match="not converted from CALVIN"):
        convert(recorded, tmp_path / "out", "calvin")
    with pytest.raises(LatentGymError, match="not converted from CALVIN"):
        convert(both, tmp_path / "out", "calvin")
    with pytest.raises(LatentGymError, match="is no CALVIN folder"):
        convert(recorded, tmp_path / "out")
    with pytest.raises(LatentGymError, match="unknown format"):
        convert(both, tmp_path / "out", "lerobot")
    convert(both, tmp_path / "native")
    with pytest.raises(LatentGymError, match="not empty"):
        convert(tmp_path / "native", both, "calvin")
    with pytest.raises(LatentGymError, match="another configuration"):
        convert(both, tmp_path / "native", segment_steps=3)
    back = tmp_path / "back"
    back.mkdir()
    (back / MARKER).write_text(json.dumps({"source": "other"}))
    with pytest.raises(LatentGymError, match="another conversion"):
        convert(tmp_path / "native", back, "calvin")


def test_the_recorded_example(shared, tmp_path):
    source = shared / "calvin_debug" / "validation"
    convert(source, tmp_path / "native")
    convert(tmp_path / "native", tmp_path / "back", "calvin")
    assert_equal_folders(source, tmp_path / "back")
