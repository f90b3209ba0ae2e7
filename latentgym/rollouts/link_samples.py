"""What the link resamples: families and runs of encoders, episodes behind a proxy, policy seeds and rollouts."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from latentgym.rollouts.link_points import LinkPoint
from latentgym.seeding import numpy_generator
from latentgym.statistics import crossed_bootstrap_means, hierarchical_bootstrap

Floats = NDArray[np.float64]


class Samples:
    """One environment's points and R resamples of them; encoder resamples are shared by all environments.

    Arrays over points have one column for every encoder run of the study, NaN where this environment lacks it.

    Args:
        points: one per run, ``None`` where this environment lacks it.
        families: family of each run.
        env: environment id.
        drawn: ``(R, M)`` runs of each resample, -1 where there is none.
        permutations: ``(R, N)`` run whose proxy each run gets under the null.
        seed: seed of everything that is resampled within the environment.
    """

    def __init__(
        self,
        points: Sequence[LinkPoint | None],
        families: Sequence[str],
        env: str,
        drawn: NDArray[np.intp],
        permutations: NDArray[np.intp],
        seed: int,
    ) -> None:
        self.points, self.families, self.env = points, families, env
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
        uniform = numpy_generator(self._seed, "episodes", self.env).random(self._replicates)
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
            columns = numpy_generator(self._seed, "rollouts", self.env, outcomes.shape[1])
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
        generator = numpy_generator(self._seed, "halves", self.env, rollouts)
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
                name = (p.env, p.encoder, p.seed, str(p.checkpoint))
                yield column, np.asarray(p.success, np.float64), numpy_generator(self._seed, use, *name)


def draw_samples(points: Sequence[LinkPoint], envs: Sequence[str], *, seed: int, replicates: int) -> list[Samples]:
    """Resample the encoders of all environments together.

    Args:
        points: the points of one scope.
        envs: environments, one result each.
        seed: seed of all resampling.
        replicates: number of resamples R.
    """
    runs = list(dict.fromkeys(_run(point) for point in points))
    families = [family for family, _, _ in runs]
    drawn = hierarchical_bootstrap(
        [families, [run for _, run, _ in runs]], replicates, numpy_generator(seed, "link", "encoders")
    )
    permutations = _family_permutations(families, replicates, numpy_generator(seed, "link", "permutations"))
    samples = []
    for env in envs:
        there = {_run(point): point for point in points if point.env == env}
        samples.append(Samples([there.get(run) for run in runs], families, env, drawn, permutations, seed))
    return samples


def _run(point: LinkPoint) -> tuple[str, tuple[str, int], int | None]:
    return point.family, (point.encoder, point.seed), point.checkpoint


def _family_permutations(families: Sequence[str], count: int, generator: np.random.Generator) -> NDArray[np.intp]:
    """Sources ``(count, N)``: each family takes the place of another, since runs of one family are not exchangeable.

    Runs of the family that takes a place are assigned in random order, repeated where it has fewer of them.
    """
    names = list(dict.fromkeys(families))
    members = [np.flatnonzero([family == name for family in families]) for name in names]
    order = np.argsort(generator.random((count, len(names))), axis=1)
    sources = np.zeros((count, len(families)), dtype=np.intp)
    for place, own in enumerate(members):
        for other, theirs in enumerate(members):
            rows = np.flatnonzero(order[:, place] == other)
            shuffled = np.argsort(generator.random((len(rows), len(theirs))), axis=1)
            sources[rows[:, None], own] = theirs[shuffled[:, np.arange(len(own)) % len(theirs)]]
    return sources
