"""Splits of a data set by episode, never by frame, so that no test frame has a neighbour in training."""

from __future__ import annotations

import dataclasses
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


def split_episodes(
    dataset: Splittable, *, seed: int = 0, fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
) -> Split:
    """Split a data set into train, validation and test, stratified by behaviour policy.

    Within a policy, episodes are ranked by a hash of ``seed`` and their reset seed, then dealt to the three parts in
    proportion. Which part an episode falls into thus does not depend on the order of the episodes, and variants of one
    environment recorded with the same seeds are split alike.

    Args:
        dataset: the data set.
        seed: seed of the split.
        fractions: shares of train, validation and test, all positive, summing to 1.

    Raises:
        LatentGymError: if the fractions are invalid or the episodes too few for three parts.
    """
    if len(fractions) != 3 or not all(fraction > 0 for fraction in fractions) or abs(sum(fractions) - 1) > 1e-6:
        raise LatentGymError(f"fractions: expected three positive numbers that sum to 1, found {fractions}")
    count = len(dataset.policies)
    if count < 3:
        raise LatentGymError(
            f"a split needs at least 3 episodes (train, validation and test), found {count}; record more episodes"
        )

    def rank(index: int) -> tuple[str, int, int]:
        policy = dataset.policies[index]
        return policy, derive_seed(seed, "split", policy, dataset.seeds[index]), index

    sizes = _sizes(count, fractions)
    parts: tuple[list[int], ...] = ([], [], [])
    for dealt, index in enumerate(sorted(range(count), key=rank), start=1):
        # The part furthest behind its share comes next; over any run of episodes the parts stay in proportion.
        behind = [sizes[part] * dealt / count - len(parts[part]) for part in range(3)]
        parts[behind.index(max(behind))].append(index)
    train, validation, test = (tuple(sorted(part)) for part in parts)
    return Split(train, validation, test)


def _sizes(count: int, fractions: tuple[float, float, float]) -> list[int]:
    """Sizes of the three parts: largest remainders, at least one episode each."""
    sizes = [max(1, int(count * fraction)) for fraction in fractions]
    while sum(sizes) < count:
        remainders = [count * fraction - size for fraction, size in zip(fractions, sizes, strict=True)]
        sizes[remainders.index(max(remainders))] += 1
    while sum(sizes) > count:
        sizes[sizes.index(max(sizes))] -= 1
    return sizes
