"""Splits of a data set by episode, never by frame, so that no test frame has a neighbour in training."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Protocol

from latentgym.errors import LatentGymError
from latentgym.seeding import derive_seed


@dataclasses.dataclass(frozen=True)
class Split:
    """Episode indices of each part, ascending; the parts are disjoint.

    Attributes:
        train: episodes that anything may be fitted on.
        validation: episodes for choices such as a layer or a regularisation.
        test: episodes that results are reported on.
    """

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]

    def __post_init__(self) -> None:
        everything = [*self.train, *self.validation, *self.test]
        if len(set(everything)) != len(everything):
            raise LatentGymError("Split: an episode may belong to one part only")


class Splittable(Protocol):
    """What a split needs to know of a data set: :class:`latentgym.trajectories.store.Dataset` provides it."""

    @property
    def policies(self) -> tuple[str, ...]:
        """Behaviour policy per episode."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """Reset seed per episode."""

    @property
    def groups(self) -> tuple[str, ...]:
        """Label per episode; episodes of one label stay in one part."""

    @property
    def held_out(self) -> tuple[bool, ...]:
        """Per episode, whether it belongs to the test part in any case."""


def split_episodes(
    dataset: Splittable, *, seed: int = 0, fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
) -> Split:
    """Split a data set into train, validation and test, stratified by behaviour policy.

    Within a policy, episodes are ranked by a hash of ``seed`` and their reset seed, then dealt to the three parts in
    proportion. Which part an episode falls into thus does not depend on the order of the episodes, and variants of one
    environment recorded with the same seeds are split alike. Episodes of one group (cut from one recording) are dealt
    together. Where the data set holds episodes out, those are the test part, and the others are dealt to training and
    validation in the proportion of their shares.

    Args:
        dataset: the data set.
        seed: seed of the split.
        fractions: shares of train, validation and test, all positive, summing to 1.

    Raises:
        LatentGymError: if the fractions are invalid or the episodes too few for three parts.
    """
    if len(fractions) != 3 or not all(fraction > 0 for fraction in fractions) or abs(sum(fractions) - 1) > 1e-6:
        raise LatentGymError(f"fractions: expected three positive numbers that sum to 1, found {fractions}")
    test = tuple(index for index, held_out in enumerate(dataset.held_out) if held_out)
    groups: dict[str, list[int]] = {}
    for index, group in enumerate(dataset.groups):
        if not dataset.held_out[index]:
            groups.setdefault(group, []).append(index)
    if len(groups) < (2 if test else 3):
        raise LatentGymError(_too_few(len(groups), len(dataset.groups), held_out=bool(test)))

    def rank(members: list[int]) -> tuple[str, int, int]:
        policy = dataset.policies[members[0]]
        return policy, derive_seed(seed, "split", policy, dataset.seeds[members[0]]), members[0]

    shares = [fraction / sum(fractions[:2]) for fraction in fractions[:2]] if test else fractions
    parts = _deal(sorted(groups.values(), key=rank), shares)
    return Split(parts[0], parts[1], test or parts[2])


def split_tasks(
    dataset: Splittable,
    tasks: Sequence[str],
    held_out: Collection[str],
    *,
    seed: int = 0,
    fractions: tuple[float, float] = (0.9, 0.1),
) -> Split:
    """Hold whole tasks out: they are the test part, and the episodes of the others are dealt to train and validation.

    Episodes of another task that were cut from the same recording as a test episode are in no part, because their
    neighbours in time are test frames.

    Args:
        dataset: the data set.
        tasks: task of each episode, such as its instruction.
        held_out: tasks that are tested on and never seen before.
        seed: seed of the split of the others.
        fractions: shares of train and validation among them, both positive, summing to 1.

    Raises:
        LatentGymError: on another number of tasks than episodes, a task that no episode has, invalid fractions, or
            fewer than two recordings left to train and validate on.
    """
    if len(tasks) != len(dataset.groups):
        raise LatentGymError(f"tasks: expected one per episode ({len(dataset.groups)}), found {len(tasks)}")
    missing = sorted(set(held_out) - set(tasks))
    if missing or not held_out:
        raise LatentGymError(f"held_out: no episode has the task(s) {missing}; known: {', '.join(sorted(set(tasks)))}")
    if len(fractions) != 2 or not all(fraction > 0 for fraction in fractions) or abs(sum(fractions) - 1) > 1e-6:
        raise LatentGymError(f"fractions: expected two positive numbers that sum to 1, found {fractions}")
    test = [index for index, task in enumerate(tasks) if task in held_out]
    touched = {dataset.groups[index] for index in test}
    groups: dict[str, list[int]] = {}
    for index, group in enumerate(dataset.groups):
        if group not in touched:
            groups.setdefault(group, []).append(index)
    if len(groups) < 2:
        raise LatentGymError(_too_few(len(groups), len(dataset.groups), held_out=True))

    def rank(members: list[int]) -> tuple[str, int, int]:
        task = tasks[members[0]]
        return task, derive_seed(seed, "split", task, dataset.seeds[members[0]]), members[0]

    train, validation = _deal(sorted(groups.values(), key=rank), fractions)
    return Split(train, validation, tuple(test))


def _deal(groups: Sequence[list[int]], fractions: Sequence[float]) -> list[tuple[int, ...]]:
    """Deal groups to parts in order; every part gets at least one."""
    count = sum(map(len, groups))
    sizes = _sizes(count, fractions)
    parts: list[list[int]] = [[] for _ in fractions]
    dealt = 0
    for number, members in enumerate(groups):
        dealt += len(members)
        # The part furthest behind its share comes next; over any run of episodes the parts stay in proportion.
        behind = [size * dealt / count - len(part) for size, part in zip(sizes, parts, strict=True)]
        # Groups differ in size, so the last ones are kept for parts that are still empty.
        empty = [index for index, part in enumerate(parts) if not part]
        open_parts = empty if len(empty) >= len(groups) - number else range(len(parts))
        parts[max(open_parts, key=behind.__getitem__)] += members
    return [tuple(sorted(part)) for part in parts]


def _too_few(groups: int, episodes: int, *, held_out: bool) -> str:
    if held_out:
        return f"a split needs at least 2 recordings that are not held out, found {groups}"
    if groups == episodes:
        return f"a split needs at least 3 episodes (train, validation and test), found {groups}; record more episodes"
    return (
        f"a split needs at least 3 recordings (train, validation and test), found {groups}, which {episodes} episodes "
        "were cut from; a CALVIN folder with few play ranges can be opened with group_steps=512, say, which makes "
        "several of each"
    )


def _sizes(count: int, fractions: Sequence[float]) -> list[int]:
    """Sizes of the parts: largest remainders, at least one episode each."""
    sizes = [max(1, int(count * fraction)) for fraction in fractions]
    while sum(sizes) < count:
        remainders = [count * fraction - size for fraction, size in zip(fractions, sizes, strict=True)]
        sizes[remainders.index(max(remainders))] += 1
    while sum(sizes) > count:
        sizes[sizes.index(max(sizes))] -= 1
    return sizes
