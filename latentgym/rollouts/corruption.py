"""Policies under corruption: one policy on clean and on corrupted frames, from the same initial states."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentgym.corruptions import CORRUPTIONS, checked_corruption
from latentgym.errors import LatentGymError, UnknownNameError
from latentgym.policies import Policy
from latentgym.results import Row
from latentgym.rollouts.evaluate import Evaluation, evaluate, resolve_policy
from latentgym.seeding import numpy_generator
from latentgym.statistics import holm, mcnemar, newcombe_interval, percentile_interval, wilson_interval

_REPLICATES = 2000


@dataclasses.dataclass(frozen=True)
class Drop:
    """How much success one corruption costs.

    Attributes:
        factor: the corruption.
        severity: its severity; ``None`` for the mean over every severity that was run.
        successes: episodes that succeeded under it, over all its severities.
        episodes: episodes that were run under it.
        success_rate: their ratio.
        drop: clean minus corrupted success rate.
        low: lower end of the 95 % interval of the drop: Newcombe's paired one, and for a mean over severities a
            bootstrap over initial states.
        high: upper end.
        p_value: exact McNemar test against clean, adjusted by Holm for the number of corruptions and severities;
            ``None`` for a mean over severities.
        crashed: episodes that crashed twice under it; they count as not succeeded.
    """

    factor: str
    severity: int | None
    successes: int
    episodes: int
    success_rate: float
    drop: float
    low: float
    high: float
    p_value: float | None
    crashed: int = 0


@dataclasses.dataclass(frozen=True)
class CorruptionReport:
    """One policy, clean and corrupted, on one list of seeds.

    Attributes:
        clean: rollouts without corruption.
        corrupted: rollouts per ``"name:severity"``.
        drops: one per corruption and severity, in the order they were asked for, each corruption's mean over severities
            after its last one where there are several.
    """

    clean: Evaluation
    corrupted: Mapping[str, Evaluation]
    drops: tuple[Drop, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "clean": self.clean.to_dict(),
            "corrupted": {name: evaluation.to_dict() for name, evaluation in self.corrupted.items()},
            "drops": [dataclasses.asdict(drop) for drop in self.drops],
        }

    def to_rows(
        self, *, encoder: str | None = None, family: str = "", seed: int = 0, policy_seed: int | None = None
    ) -> list[Row]:
        """The clean rows, then those of :func:`drop_rows`."""
        named: dict[str, Any] = {"encoder": encoder, "family": family, "seed": seed, "policy_seed": policy_seed}
        rows = self.clean.to_rows(**named)
        template = next(row for row in rows if row.metric == "success_rate")
        return [*rows, *drop_rows(template, self.drops)]

    def describe(self) -> str:
        """The drops as a table of plain text, one line each."""
        lines = [self.clean.describe(), ""]
        lines.append(f"{'corruption':<20}{'succeeded':>12}{'drop':>8}   95 % interval    p (Holm)")
        for drop in self.drops:
            name = f"{drop.factor} (mean)" if drop.severity is None else f"{drop.factor}:{drop.severity}"
            p = "" if drop.p_value is None else f"{drop.p_value:.3f}"
            interval = f"{100 * drop.low:+5.0f} to {100 * drop.high:+4.0f} %"
            counted = f"{drop.successes}/{drop.episodes}"
            crashed = f"   {drop.crashed} crashed and count as failed" if drop.crashed else ""
            lines.append(f"{name:<20}{counted:>12}{100 * drop.drop:>+6.0f} %  {interval:>15}{p:>12}{crashed}")
        return "\n".join(lines)


def evaluate_corrupted(
    env_id: str,
    policy: Policy,
    seeds: Sequence[int] = range(100),
    *,
    corruptions: Sequence[str],
    severities: Sequence[int] = (),
    env_options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> CorruptionReport:
    """Roll a policy out on clean and on corrupted frames of the same episodes.

    Corruptions are drawn from each episode's seed (see :class:`~latentgym.envs.wrappers.CorruptObservation`), so that
    every policy meets the same initial states under the same corruptions, and drops are paired.

    Args:
        env_id: environment id.
        policy: the policy, one that reads frames.
        seeds: one seed per episode, the same for every condition.
        corruptions: names, such as ``"snow"``, or ``"snow:3"``.
        severities: severities of the names that state none; 3, or the only one there is, by default.
        env_options: options of :func:`latentgym.make_env`, the same for every condition.
        progress: called with (episodes done, episodes in all), over all conditions.
        **options: further arguments of :func:`latentgym.rollouts.evaluate`.

    Raises:
        UnknownNameError: if there is no such corruption.
        LatentGymError: on a severity that does not exist, no condition or one named twice, a policy that reads no
            frames, or what :func:`~latentgym.rollouts.evaluate` refuses.

    Example:
        >>> from latentgym.policies import load_policy
        >>> report = evaluate_corrupted("latentgym/TabletopReach-v0", load_policy("policies/reach"),
        ...                             corruptions=["snow", "brightness"], severities=[1, 3])  # doctest: +SKIP
    """
    conditions = _conditions(corruptions, severities)
    policy = resolve_policy(policy)
    if not policy.needs_pixels:
        raise LatentGymError(f"policy {policy.name!r} reads no frames, so that corrupting them changes nothing")
    if "corruption" in (env_options or {}):
        raise LatentGymError("env_options hold a corruption already; name every corruption in corruptions")
    total = len(seeds) * (1 + len(conditions))

    def run(position: int, condition: str | None) -> Evaluation:
        def count(done: int, _: int) -> None:
            if progress is not None:
                progress(position * len(seeds) + done, total)

        return evaluate(env_id, policy, seeds, env_options=env_options, corruption=condition, progress=count, **options)

    clean = run(0, None)
    corrupted = {condition: run(1 + index, condition) for index, condition in enumerate(conditions)}
    crashed = {condition: evaluation.summary.crashed for condition, evaluation in corrupted.items()}
    drops = success_drops(_outcomes(clean), _by_condition(corrupted))
    return CorruptionReport(clean, corrupted, tuple(_with_crashes(drop, crashed) for drop in drops))


def _with_crashes(drop: Drop, crashed: Mapping[str, int]) -> Drop:
    own = [
        count
        for condition, count in crashed.items()
        if condition.partition(":")[0] == drop.factor and drop.severity in (None, int(condition.partition(":")[2]))
    ]
    return dataclasses.replace(drop, crashed=sum(own))


def _conditions(corruptions: Sequence[str], severities: Sequence[int]) -> list[str]:
    pairs = []
    for name in corruptions:
        if name.partition(":")[0] not in CORRUPTIONS:
            raise UnknownNameError("corruption", name, CORRUPTIONS)
        for severity in (None,) if ":" in name or not severities else severities:
            pairs.append(checked_corruption(name, severity))
    if not pairs or len(set(pairs)) != len(pairs):
        raise LatentGymError(
            f"corruptions: expected at least one, none twice, found {', '.join(corruptions) or 'none'}"
        )
    # Severities of one corruption stand together, whatever order they were named in.
    order = {name: index for index, name in reversed(list(enumerate(name for name, _ in pairs)))}
    return [f"{name}:{severity}" for name, severity in sorted(pairs, key=lambda pair: order[pair[0]])]


def _outcomes(evaluation: Evaluation) -> NDArray[np.bool_]:
    return np.array([record.success for record in evaluation.records], np.bool_)


def _by_condition(corrupted: Mapping[str, Evaluation]) -> dict[str, NDArray[np.bool_]]:
    return {condition: _outcomes(evaluation) for condition, evaluation in corrupted.items()}


def success_drops(before: NDArray[np.bool_], after: Mapping[str, NDArray[np.bool_]]) -> tuple[Drop, ...]:
    """What each corruption costs, from outcomes on one list of initial states.

    Args:
        before: ``(N,)`` outcomes on clean frames.
        after: ``(N,)`` outcomes per ``"name:severity"``; severities of one corruption stand together.

    Returns:
        One per corruption and severity in their order, each corruption's mean over severities after its last one where
        there are several.
    """
    adjusted = dict(zip(after, holm([mcnemar(before, found) for found in after.values()]).tolist(), strict=True))
    drops: list[Drop] = []
    for factor in dict.fromkeys(condition.partition(":")[0] for condition in after):
        own = {condition: found for condition, found in after.items() if condition.partition(":")[0] == factor}
        for condition, found in own.items():
            low, high = newcombe_interval(before, found)
            severity = int(condition.partition(":")[2])
            drops.append(_drop(factor, severity, before, found[None], (low, high), adjusted[condition]))
        if len(own) > 1:
            table = np.stack(list(own.values()))
            drops.append(_drop(factor, None, before, table, _mean_interval(before, table), None))
    return tuple(drops)


def drop_rows(template: Row, drops: Sequence[Drop]) -> list[Row]:
    """Rows of the drops of one policy.

    ``success_rate`` and ``success_drop_p_value`` (exact McNemar, adjusted by Holm) per corruption and severity, and
    ``success_drop`` for these and for each corruption's mean over severities, whose condition is its name alone.

    Args:
        template: the policy's success on clean frames.
        drops: its drops.
    """
    rows = []
    for drop in drops:
        condition = drop.factor if drop.severity is None else f"{drop.factor}:{drop.severity}"
        under = dataclasses.replace(template, condition=condition, n=drop.episodes)
        if drop.p_value is not None:
            low, high = wilson_interval(drop.successes, drop.episodes)
            rows.append(dataclasses.replace(under, value=drop.success_rate, low=low, high=high))
        values: dict[str, Any] = {"value": drop.drop, "low": drop.low, "high": drop.high}
        rows.append(dataclasses.replace(under, metric="success_drop", **values))
        if drop.p_value is not None:
            values = {"value": drop.p_value, "low": None, "high": None}
            rows.append(dataclasses.replace(under, metric="success_drop_p_value", **values))
    return rows


def _drop(
    factor: str, severity: int | None, before: NDArray[np.bool_], table: NDArray[np.bool_],
    interval: tuple[float, float], p_value: float | None,
) -> Drop:  # fmt: skip
    successes, rate = int(table.sum()), float(table.mean())
    return Drop(
        factor, severity, successes, table.size, rate, float(before.mean()) - rate, *interval, p_value,
    )  # fmt: skip


def _mean_interval(before: NDArray[np.bool_], table: NDArray[np.bool_]) -> tuple[float, float]:
    """Bootstrap over initial states of the mean drop over severities, ``table`` ``(severities, N)``.

    Where every initial state loses alike, resampling them says nothing; the mean of the severities' own intervals,
    which takes them for perfectly correlated, stands in.
    """
    lost = before.astype(np.float64) - table.mean(axis=0)
    if np.ptp(lost) == 0:
        low, high = np.mean([newcombe_interval(before, found) for found in table], axis=0)
        return float(low), float(high)
    generator = numpy_generator(0, "corruption-drop")
    counts = generator.multinomial(lost.size, np.full(lost.size, 1 / lost.size), size=_REPLICATES)
    low, high = percentile_interval(counts @ lost / lost.size)
    assert low is not None
    assert high is not None
    return low, high
