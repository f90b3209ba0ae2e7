"""What the link resamples: families and runs of encoders, episodes behind a proxy, policy seeds and rollouts.

Families are resampled for all studies together, since one family's encoders have their pretraining signal in common
wherever they were trained; runs are resampled within the study that they belong to.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from latentgym.rollouts.link_points import LinkPoint, places_of
from latentgym.seeding import numpy_generator
from latentgym.statistics import crossed_bootstrap_means, hierarchical_bootstrap

Floats = NDArray[np.float64]


class Samples:
    """One place's points and R resamples of them; encoder resamples are shared by all places.

    Arrays over points have one column for every encoder run of the study, NaN where this environment lacks it.

    Args:
        points: one per run, ``None`` where this environment lacks it.
        families: family of each run.
        all_families: families of all places, in one order.
        place: name of the place, see :func:`~latentgym.rollouts.link_points.places_of`.
        drawn: ``(R, M)`` runs of each resample, -1 where there is none.
        permutations: ``(R, N)`` run whose proxy each run gets under the null.
        seed: seed of everything that is resampled within the environment.
    """

    def __init__(
        self,
        points: Sequence[LinkPoint | None],
        families: Sequence[str],
        all_families: Sequence[str],
        place: str,
        drawn: NDArray[np.intp],
        permutations: NDArray[np.intp],
        seed: int,
    ) -> None:
        self.points, self.families, self.place = points, families, place
        self.all_families = all_families
        self._drawn, self._permutations, self._seed = drawn, permutations, seed
        self._replicates = len(drawn)
        self.success = self._column([None if p is None else float(np.mean(p.success)) for p in points])
        self.parameters = self._column([None if p is None else float(p.parameters) for p in points])
        self.proxy = functools.cache(self._proxy)
        self.drawn_proxy = functools.cache(self._drawn_proxy)

    @staticmethod
    def _column(values: Sequence[float | None]) -> Floats:
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)

    def take(self, values: Floats) -> Floats:
        """Values ``(N,)`` or ``(R, N)`` of the runs in each resample, ``(R, M)``, NaN where there is none."""
        rows = np.broadcast_to(values, (self._replicates, len(self.points)))
        return np.where(self._drawn >= 0, np.take_along_axis(rows, np.maximum(self._drawn, 0), axis=1), np.nan)

    def permuted(self, values: Floats) -> Floats:
        """``values`` ``(N,)`` exchanged between families, ``(R, N)``."""
        return values[self._permutations]

    def encoders(self, values: Floats) -> frozenset[str]:
        """Names of the encoders that have both a value and a success rate."""
        known = np.isfinite(values) & np.isfinite(self.success)
        return frozenset(p.encoder for p, there in zip(self.points, known, strict=True) if p is not None and there)

    def _proxy(self, name: str) -> Floats:
        return self._column([None if p is None else p.proxies.get(name) for p in self.points])

    def _drawn_proxy(self, name: str) -> Floats:
        """The proxy over resampled runs and, where replicates are known, resampled episodes: ``(R, M)``."""
        # One draw for all encoders keeps them paired over episodes.
        uniform = numpy_generator(self._seed, "episodes", self.place).random(self._replicates)
        values = np.repeat(self.proxy(name)[None], self._replicates, axis=0)
        for column, point in enumerate(self.points):
            known = [] if point is None else point.proxy_replicates.get(name, [])
            if known and np.isfinite(values[0, column]):
                values[:, column] = np.asarray(known, np.float64)[(uniform * len(known)).astype(np.intp)]
        return self.take(values)

    @functools.cached_property
    def drawn_success(self) -> Floats:
        """Success rates over resampled runs, policy seeds and rollouts, ``(R, M)``."""
        values = np.full((self._replicates, len(self.points)), np.nan)
        for column, outcomes, rows in self._outcomes("success"):
            columns = numpy_generator(self._seed, "rollouts", self.place, outcomes.shape[1])
            values[:, column] = crossed_bootstrap_means(outcomes, self._replicates, rows=rows, columns=columns)
        return self.take(values)

    @functools.cached_property
    def halves(self) -> tuple[Floats, Floats]:
        """Success rates on two random halves of the rollouts, a new halving in every row, ``(R, N)`` each."""
        return self._halved(resample=False)

    @functools.cached_property
    def drawn_halves(self) -> tuple[Floats, Floats]:
        """The same over resampled runs, policy seeds, and rollouts resampled within each half, ``(R, M)`` each."""
        first, second = self._halved(resample=True)
        return self.take(first), self.take(second)

    def _halved(self, *, resample: bool) -> tuple[Floats, Floats]:
        values = np.full((2, self._replicates, len(self.points)), np.nan)
        weights: dict[int, tuple[Floats, Floats]] = {}
        for column, outcomes, rows in self._outcomes("halves"):
            policies, rollouts = outcomes.shape
            if rollouts not in weights:
                weights[rollouts] = self._half_weights(rollouts, resample)
            chosen = np.full((self._replicates, policies), 1 / policies)
            if resample:
                chosen = rows.multinomial(policies, np.full(policies, 1 / policies), self._replicates) / policies
            rates = chosen @ outcomes
            for half, weight in enumerate(weights[rollouts]):
                values[half, :, column] = (rates * weight).sum(axis=1)
        return values[0], values[1]

    def _half_weights(self, rollouts: int, resample: bool) -> tuple[Floats, Floats]:
        """Weight of every rollout in each half, ``(R, n)``; the halves are equally large, one rollout may be left."""
        generator = numpy_generator(self._seed, "halves", self.place, rollouts)
        order = np.argsort(generator.random((self._replicates, rollouts)), axis=1)
        size = rollouts // 2
        halves = []
        for half in (order[:, :size], order[:, size : 2 * size]):
            members = half
            if resample and size:
                members = np.take_along_axis(half, generator.integers(size, size=half.shape), axis=1)
            weight = np.zeros((self._replicates, rollouts))
            np.add.at(weight, (np.arange(self._replicates)[:, None], members), 1 / max(size, 1))
            halves.append(weight)
        return halves[0], halves[1]

    def _outcomes(self, use: str) -> Iterator[tuple[int, Floats, np.random.Generator]]:
        """Column, outcomes ``(P, n)`` and a generator of its own for each point's policy seeds."""
        for column, p in enumerate(self.points):
            if p is not None:
                name = (self.place, p.encoder, p.seed, str(p.checkpoint))
                yield column, np.asarray(p.success, np.float64), numpy_generator(self._seed, use, *name)


def draw_samples(points: Sequence[LinkPoint], *, seed: int, replicates: int) -> list[Samples]:
    """Resample the encoders of all places together.

    Args:
        points: the points of one scope, at least one.
        seed: seed of all resampling.
        replicates: number of resamples R.

    Returns:
        One per place, in the order of :func:`~latentgym.rollouts.link_points.places_of`.
    """
    runs = list(dict.fromkeys(map(_run, points)))
    families, studies = [run.family for run in runs], np.array([run.study for run in runs])
    levels: list[Sequence[Any]] = [families, studies.tolist(), [run.identity for run in runs]]
    # Strata keep every study in every resample, which would otherwise lose whole studies by chance.
    drawn = hierarchical_bootstrap(levels, replicates, numpy_generator(seed, "link", "encoders"), strata={1})
    generator = numpy_generator(seed, "link", "permutations")
    names = list(dict.fromkeys(families))
    keys = generator.random((replicates, len(names)))
    resamples = {}
    for study in dict.fromkeys(studies.tolist()):
        own = np.flatnonzero(studies == study)
        present = [families[index] for index in own]
        chosen = keys[:, [index for index, name in enumerate(names) if name in present]]
        resamples[study] = (own, _within(drawn, own, len(runs)), _family_permutations(present, chosen, generator))
    samples = []
    for place, there in places_of(points).items():
        own, resample, permutations = resamples[there[0].study]
        found = {_run(point): point for point in there}
        members = [runs[index] for index in own]
        columns, kinds = [found.get(run) for run in members], [run.family for run in members]
        samples.append(Samples(columns, kinds, names, place, resample, permutations, seed))
    return samples


class _Run(NamedTuple):
    """What a pretraining run is known by, over all studies."""

    family: str
    study: str
    identity: tuple[str, int]
    checkpoint: int | None


def _run(point: LinkPoint) -> _Run:
    return _Run(point.family, point.study, (point.encoder, point.seed), point.checkpoint)


def _within(drawn: NDArray[np.intp], own: NDArray[np.intp], size: int) -> NDArray[np.intp]:
    """Of the resampled runs ``(R, M)``, those of one study, numbered within it and padded on the right with -1."""
    number = np.full(size + 1, -1, np.intp)  # the last entry is what -1 points at
    number[own] = np.arange(len(own))
    local = number[drawn]
    local = np.take_along_axis(local, np.argsort(local < 0, axis=1, kind="stable"), axis=1)
    return local[:, : int((local >= 0).sum(axis=1).max(initial=1))]


def _family_permutations(families: Sequence[str], keys: Floats, generator: np.random.Generator) -> NDArray[np.intp]:
    """Sources ``(R, N)``: each family takes the place of another, since runs of one family are not exchangeable.

    Runs of the family that takes a place are assigned in random order, repeated where it has fewer of them.

    Args:
        families: family of each run.
        keys: ``(R, F)`` random sort keys of the families in order of appearance, shared by all studies.
        generator: assigns runs.
    """
    names = list(dict.fromkeys(families))
    members = [np.flatnonzero([family == name for family in families]) for name in names]
    order = np.argsort(keys, axis=1)
    sources = np.zeros((len(keys), len(families)), dtype=np.intp)
    for place, own in enumerate(members):
        for other, theirs in enumerate(members):
            rows = np.flatnonzero(order[:, place] == other)
            shuffled = np.argsort(generator.random((len(rows), len(theirs))), axis=1)
            sources[rows[:, None], own] = theirs[shuffled[:, np.arange(len(own)) % len(theirs)]]
    return sources
