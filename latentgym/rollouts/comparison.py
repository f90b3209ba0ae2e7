"""Two policies on shared initial states, for as long as it takes: a comparison that may stop early without cheating."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from latentgym.errors import LatentGymError
from latentgym.policies import Policy
from latentgym.rollouts.evaluate import evaluate, resolve_policy, rollout_seeds
from latentgym.statistics import SequentialComparison, anytime_difference_interval
from latentgym.statistics.sequential import Verdict


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What a comparison found when it stopped.

    Attributes:
        env_id: environment id.
        policies: names of the first and of the second policy.
        verdict: ``"first"`` or ``"second"``, the better one, or ``"undecided"``.
        pairs: initial states on which both were tried.
        maximum: how many there could have been, declared before the first.
        successes: successes of the first and of the second policy.
        difference: success rate of the first minus that of the second.
        low: lower end of the difference's interval, which holds however early the comparison stopped. It would hold
            without a maximum too, and is therefore wider than the verdict: it may hold 0 where one is better.
        high: upper end.
        level: confidence level of verdict and interval.
        crashed: episodes of the first and of the second policy that crashed twice; they count as not succeeded.
        error: what the first of these failed with.
    """

    env_id: str
    policies: tuple[str, str]
    verdict: Verdict
    pairs: int
    maximum: int
    successes: tuple[int, int]
    difference: float
    low: float
    high: float
    level: float
    crashed: tuple[int, int] = (0, 0)
    error: str | None = None

    def describe(self) -> str:
        """The result in two lines, and a third if episodes crashed."""
        first, second = (f"{successes} of {self.pairs}" for successes in self.successes)
        better = {"first": "the first is better", "second": "the second is better"}.get(self.verdict, "undecided")
        interval = f"{self.level:.0%} interval {100 * self.low:+.0f} to {100 * self.high:+.0f}, valid at every look"
        return (
            f"{self.policies[0]} {first}, {self.policies[1]} {second} in {self.env_id}: {better} after {self.pairs} of "
            f"at most {self.maximum} initial states\ndifference {100 * self.difference:+.0f} points ({interval})"
            f"{self._crashes()}"
        )

    def _crashes(self) -> str:
        if not any(self.crashed):
            return ""
        first, second = self.crashed
        return f"\n{first} episodes of the first and {second} of the second crashed and count as failed: {self.error}"


def compare_policies(
    env_id: str,
    first: Policy,
    second: Policy,
    *,
    maximum: int = 100,
    block: int = 10,
    seed: int = 0,
    level: float = 0.95,
    env_options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Comparison:
    """Roll two policies out on the same initial states until one is found better, or ``maximum`` is reached.

    Pairs are looked at one by one in the order of the seeds, so that the result does not depend on ``block``; see
    :class:`~latentgym.statistics.SequentialComparison` for the test and why looking costs nothing.

    Args:
        env_id: environment id.
        first: a policy.
        second: another.
        maximum: largest number of initial states, declared beforehand: it determines how early the test may stop.
        block: initial states that are rolled out between two looks.
        seed: root seed of the initial states, those of :func:`~latentgym.rollouts.rollout_seeds`.
        level: confidence level.
        env_options: options of :func:`latentgym.make_env`.
        progress: called with (pairs done, ``maximum``).
        **options: further arguments of :func:`latentgym.rollouts.evaluate`.

    Raises:
        LatentGymError: on a ``maximum`` too small for any decision, a ``block`` below 1, or what
            :func:`~latentgym.rollouts.evaluate` refuses.

    Example:
        >>> from latentgym.policies import ExpertPolicy, RandomPolicy
        >>> found = compare_policies("latentgym/TabletopReach-v0", ExpertPolicy(), RandomPolicy(), maximum=20, block=5)
        >>> found.verdict, found.pairs < 20
        ('first', True)
    """
    if block < 1:
        raise LatentGymError(f"compare: block must be at least 1, found {block}")
    first, second = resolve_policy(first), resolve_policy(second)
    test = SequentialComparison(maximum, level)
    seeds = rollout_seeds(seed, env_id, maximum)
    outcomes: tuple[list[bool], list[bool]] = ([], [])
    errors: tuple[list[str], list[str]] = ([], [])
    while test.verdict == "continue":
        chosen = seeds[test.pairs : test.pairs + block]
        found = [evaluate(env_id, one, chosen, env_options=env_options, **options) for one in (first, second)]
        for ours, theirs in zip(found[0].records, found[1].records, strict=True):
            outcomes[0].append(ours.success)
            outcomes[1].append(theirs.success)
            for place, record in enumerate((ours, theirs)):
                if record.error is not None:
                    errors[place].append(record.error)
            if test.update(first=ours.success, second=theirs.success) != "continue":
                break
        if progress is not None:
            progress(test.pairs, maximum)
    successes = (sum(outcomes[0]), sum(outcomes[1]))
    low, high = anytime_difference_interval(*outcomes, level=level)
    difference = (successes[0] - successes[1]) / test.pairs
    names = (first.name, second.name)
    crashed, error = (len(errors[0]), len(errors[1])), next(iter(errors[0] + errors[1]), None)
    return Comparison(
        env_id, names, test.verdict, test.pairs, maximum, successes, difference, low, high, level, crashed, error
    )
