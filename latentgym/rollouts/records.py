"""What a rollout leaves behind: one record per seed, on request one entry per step, and where the time went."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self


@dataclasses.dataclass(frozen=True)
class StepTrace:
    """An episode step by step, T steps.

    Attributes:
        action: T actions of A numbers, as the policy gave them.
        reward: T rewards.
        success: T times ``is_success``.
        state: T + 1 times the observation ``"state"`` (empty where none is observed), the one after reset first.
        policy_latency_s: T times the seconds from an observation's arrival to the action's departure, waiting for
            company in the batch included. It depends on the machine and does not take part in comparisons.
    """

    action: tuple[tuple[float, ...], ...]
    reward: tuple[float, ...]
    success: tuple[bool, ...]
    state: tuple[tuple[float, ...], ...] = ()
    policy_latency_s: tuple[float, ...] = dataclasses.field(default=(), compare=False)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild from JSON."""
        fields: dict[str, Any] = {name: tuple(map(tuple, data[name])) for name in ("action", "state")}
        fields |= {name: tuple(data[name]) for name in ("reward", "success", "policy_latency_s")}
        return cls(**fields)


@dataclasses.dataclass(frozen=True)
class EpisodeRecord:
    """One rollout.

    Attributes:
        seed: seed that the environment was reset with.
        success: whether ``is_success`` was true at some step; never read from ``terminated``.
        steps: steps that were run.
        time_to_success: steps up to and including the first success; ``None`` without one.
        reward: sum of rewards over the steps that were run.
        error: why the episode could not be run, after two attempts; ``None`` for one that was. Such an episode counts
            as not succeeded, with 0 steps.
        trace: the episode step by step, where it was asked for.
    """

    seed: int
    success: bool
    steps: int
    time_to_success: int | None
    reward: float
    error: str | None = None
    trace: StepTrace | None = None

    @classmethod
    def crashed(cls, seed: int, error: str) -> Self:
        """The record of an episode that could not be run."""
        return cls(seed, False, 0, None, 0.0, error)

    def with_latencies(self, latencies_s: tuple[float, ...]) -> EpisodeRecord:
        """The record with the latencies of its steps in its trace."""
        if self.trace is None:
            return self
        return dataclasses.replace(self, trace=dataclasses.replace(self.trace, policy_latency_s=latencies_s))

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; ``error`` and ``trace`` only where there are any."""
        data = dataclasses.asdict(self)
        return {key: value for key, value in data.items() if key not in ("error", "trace") or value is not None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild from JSON."""
        trace = data.get("trace")
        return cls(**{**data, "trace": None if trace is None else StepTrace.from_dict(trace)})


@dataclasses.dataclass(frozen=True)
class Timing:
    """Where the time of an evaluation went; no part of its result.

    Attributes:
        workers: worker processes, 0 where environments ran in this one.
        batch_size: observations per batch of inference, padding included.
        startup_s: seconds until every environment had begun its first episode.
        wall_s: seconds from then to the last record.
        steps: environment steps, those of repeated attempts included.
        batches: batches of inference; ``steps / (batches · batch_size)`` of their rows were of use.
        policy_latency_ms: median and 95th percentile of the time from an observation's arrival to its action's
            departure, in milliseconds; ``None`` for a policy that acts inside the environments' processes.
        restarts: worker processes that had to be replaced.
        cpu_s: CPU-seconds after the start, of this process and of all workers (without those that died).
    """

    workers: int
    batch_size: int
    startup_s: float
    wall_s: float
    steps: int
    batches: int
    policy_latency_ms: tuple[float, float] | None
    restarts: int = 0
    cpu_s: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild from JSON."""
        latency = data["policy_latency_ms"]
        pairs = {"policy_latency_ms": None if latency is None else tuple(latency), "cpu_s": tuple(data["cpu_s"])}
        return cls(**{**data, **pairs})

    @property
    def steps_per_s(self) -> float:
        """Environment steps per second after the start."""
        return self.steps / self.wall_s if self.wall_s > 0 else 0.0
