"""The official thousand chains and their scenes, and short chains of a few tasks."""

from __future__ import annotations

import numpy as np
import pytest

from latentgym.envs.calvin import initial_state, official_chains, short_chains
from latentgym.envs.calvin.chains import _fnv1_32, generate_official_chains, initial_conditions, next_states
from latentgym.errors import LatentGymError, UnknownNameError

TASKS = ("turn_on_led", "move_slider_left", "close_drawer")


def test_the_hash_is_that_of_pyhash() -> None:
    """The check values of pyhash's own tests for ``fnv1_32``, bytes and text."""
    assert _fnv1_32(b"test") == 3698262380
    assert _fnv1_32("test".encode("utf-16-le")) == 3910690890


@pytest.mark.slow
def test_the_thousand_are_drawn_as_they_are_shipped() -> None:
    assert generate_official_chains() == official_chains()


def test_every_condition_has_a_scene_of_its_own() -> None:
    conditions = initial_conditions()
    scenes = {initial_state(condition)[1].tobytes() for condition in conditions}
    assert len(conditions) == len(scenes) == 192


def test_short_chains_can_be_done_and_are_drawn_from_the_seed() -> None:
    chains = short_chains(TASKS, 20, 2, seed=3)
    assert chains == short_chains(TASKS, 20, 2, seed=3) != short_chains(TASKS, 20, 2, seed=4)
    assert len({repr(chain) for chain in chains}) == 20
    for condition, tasks in chains:
        assert len(set(tasks)) == 2 and set(tasks) <= set(TASKS)
        (after,) = next_states(condition, tasks[0])
        assert len(next_states(after, tasks[1])) == 1
        assert np.isfinite(initial_state(condition)[1]).all()


def test_more_chains_than_there_are_repeat() -> None:
    assert len(short_chains(["turn_on_led", "turn_off_led"], 1000)) == 1000


def test_impossible_chains_are_refused() -> None:
    with pytest.raises(UnknownNameError):
        short_chains(["dance"], 3)
    with pytest.raises(LatentGymError, match="name more tasks"):
        short_chains(["turn_on_led"], 3, 2)
    for n, length in ((0, 2), (3, 0), (3, 6)):
        with pytest.raises(LatentGymError, match="expected n"):
            short_chains(TASKS, n, length)
