from __future__ import annotations

import dataclasses
from collections import Counter

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from latentgym.errors import LatentGymError
from latentgym.trajectories import open_dataset
from latentgym.trajectories.splits import Split, split_episodes, split_tasks


@dataclasses.dataclass(frozen=True)
class Episodes:
    policies: tuple[str, ...]
    seeds: tuple[int, ...]
    labels: tuple[str, ...] = ()
    set_aside: tuple[bool, ...] = ()

    @property
    def groups(self) -> tuple[str, ...]:
        return self.labels or tuple(map(str, range(len(self.policies))))

    @property
    def held_out(self) -> tuple[bool, ...]:
        return self.set_aside or (False,) * len(self.policies)


POLICIES = st.lists(st.sampled_from(["expert", "noisy-expert", "random"]), min_size=3, max_size=120)
FRACTIONS = st.tuples(*[st.integers(1, 8)] * 3).map(lambda parts: tuple(part / sum(parts) for part in parts))


@settings(max_examples=150, deadline=None)
@given(POLICIES, st.integers(0, 5), FRACTIONS)
def test_parts_are_disjoint_not_empty_and_cover_everything(policies, seed, fractions):
    split = split_episodes(Episodes(tuple(policies), tuple(range(len(policies)))), seed=seed, fractions=fractions)
    parts = (split.train, split.validation, split.test)
    assert all(parts)
    assert sorted(index for part in parts for index in part) == list(range(len(policies)))
    assert all(list(part) == sorted(part) for part in parts)


@settings(max_examples=100, deadline=None)
@given(POLICIES.filter(lambda policies: len(policies) >= 20), st.integers(0, 5), FRACTIONS)
def test_every_policy_is_dealt_in_proportion(policies, seed, fractions):
    split = split_episodes(Episodes(tuple(policies), tuple(range(len(policies)))), seed=seed, fractions=fractions)
    for part in (split.train, split.validation, split.test):
        share = len(part) / len(policies)
        counts = Counter(policies[index] for index in part)
        for policy, total in Counter(policies).items():
            assert abs(counts[policy] - total * share) <= 2


@settings(max_examples=50, deadline=None)
@given(POLICIES, st.integers(0, 5), st.randoms(use_true_random=False))
def test_membership_does_not_depend_on_the_order_of_the_episodes(policies, seed, random):
    count = len(policies)
    order = list(range(count))
    random.shuffle(order)
    plain = split_episodes(Episodes(tuple(policies), tuple(range(count))), seed=seed)
    shuffled = split_episodes(Episodes(tuple(policies[i] for i in order), tuple(order)), seed=seed)
    for part in ("train", "validation", "test"):
        assert {order[i] for i in getattr(shuffled, part)} == set(getattr(plain, part))


def test_same_seed_same_split_and_another_seed_another():
    episodes = Episodes(("expert",) * 50, tuple(range(50)))
    assert split_episodes(episodes, seed=1) == split_episodes(episodes, seed=1)
    assert split_episodes(episodes, seed=1) != split_episodes(episodes, seed=2)


def test_default_sizes_and_stratification():
    split = split_episodes(Episodes(("noisy-expert",) * 70 + ("random",) * 30, tuple(range(100))))
    assert (len(split.train), len(split.validation), len(split.test)) == (70, 10, 20)
    assert sum(index >= 70 for index in split.test) == 6


def test_parts_are_not_biased_by_index():
    means = [np.mean(split_episodes(Episodes(("e",) * 60, tuple(range(60))), seed=s).test) for s in range(200)]
    # Mean of 12 of 0 … 59 has standard deviation 4.5; over 200 seeds 0.32.
    assert abs(np.mean(means) - 29.5) < 1.3


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_episodes(count):
    with pytest.raises(LatentGymError, match=f"at least 3 episodes .* found {count}"):
        split_episodes(Episodes(("expert",) * count, tuple(range(count))))


@pytest.mark.parametrize("fractions", [(0.5, 0.5, 0.5), (1.0, 0.0, 0.0), (0.5, 0.5), (float("nan"), 0.5, 0.5)])
def test_invalid_fractions(fractions):
    with pytest.raises(LatentGymError, match="fractions"):
        split_episodes(Episodes(("expert",) * 9, tuple(range(9))), fractions=fractions)


def test_an_episode_in_two_parts_is_refused():
    with pytest.raises(LatentGymError, match="one part only"):
        Split((0, 1), (1,), (2,))


def test_split_of_a_recorded_data_set(recorded):
    split = split_episodes(open_dataset(recorded))
    assert sorted([*split.train, *split.validation, *split.test]) == [0, 1, 2, 3]


GROUPS = st.lists(st.integers(1, 40), min_size=3, max_size=30)


def grouped(sizes: list[int], held_out: int = 0) -> Episodes:
    labels = tuple(f"range {group}" for group, size in enumerate(sizes) for _ in range(size))
    aside = tuple(int(label.split()[1]) < held_out for label in labels)
    return Episodes(("play",) * len(labels), tuple(range(len(labels))), labels, aside)


@settings(max_examples=150, deadline=None)
@given(GROUPS, st.integers(0, 5), FRACTIONS)
def test_a_group_lies_in_one_part_and_no_part_is_empty(sizes, seed, fractions):
    episodes = grouped(sizes)
    split = split_episodes(episodes, seed=seed, fractions=fractions)
    parts = (split.train, split.validation, split.test)
    assert all(parts)
    assert sorted(index for part in parts for index in part) == list(range(len(episodes.groups)))
    of_part = [{episodes.groups[index] for index in part} for part in parts]
    assert sum(map(len, of_part)) == len(sizes)


def test_what_is_held_out_is_the_test_part():
    split = split_episodes(grouped([5, 5, 5, 5, 5], held_out=1))
    assert split.test == tuple(range(5))
    assert set(split.train) | set(split.validation) == set(range(5, 25)) and len(split.validation) == 5


def test_too_few_groups_is_one_clear_message():
    with pytest.raises(LatentGymError, match="group_steps"):
        split_episodes(grouped([50, 50]))
    with pytest.raises(LatentGymError, match="not held out"):
        split_episodes(grouped([5, 5], held_out=1))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), min_size=8, max_size=40), st.integers(0, 3))
def test_held_out_tasks_are_tested_and_share_no_recording_with_the_rest(episodes, seed):
    tasks, groups = [task for task, _ in episodes], tuple(str(group) for _, group in episodes)
    data = Episodes(("p",) * len(episodes), tuple(range(len(episodes))), groups, (False,) * len(episodes))
    apart = set(groups) - {group for task, group in zip(tasks, groups, strict=True) if task == "c"}
    if "c" not in tasks or len(apart) < 2:
        with pytest.raises(LatentGymError):
            split_tasks(data, tasks, {"c"}, seed=seed)
        return
    split = split_tasks(data, tasks, {"c"}, seed=seed)
    assert {tasks[index] for index in split.test} == {"c"}
    assert "c" not in {tasks[index] for index in (*split.train, *split.validation)}
    recordings = [{groups[index] for index in part} for part in (split.train, split.validation, split.test)]
    assert all(recordings)
    assert sum(map(len, recordings)) == len(set.union(*recordings))


def test_tasks_that_do_not_fit_the_data_are_named():
    data = Episodes(("p",) * 4, (0, 1, 2, 3), ("0", "1", "2", "3"), (False,) * 4)
    for tasks, held_out in ((["a"] * 3, {"a"}), (["a"] * 4, {"b"}), (["a"] * 4, set())):
        with pytest.raises(LatentGymError):
            split_tasks(data, tasks, held_out)
    with pytest.raises(LatentGymError, match="fractions"):
        split_tasks(data, ["a", "a", "a", "b"], {"b"}, fractions=(0.5, 0.6))
