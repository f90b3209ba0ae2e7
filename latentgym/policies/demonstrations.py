"""Which episodes a policy is cloned from, what it should have done in them, and how well it predicts that."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentgym.errors import LatentGymError
from latentgym.results import Row
from latentgym.seeding import numpy_generator
from latentgym.statistics import percentile_interval
from latentgym.trajectories.episode import ActionSpec, Episode
from latentgym.trajectories.store import Dataset

RANDOM_POLICY = "random"


def demonstration_episodes(dataset: Dataset, episodes: Sequence[int]) -> tuple[int, ...]:
    """The episodes whose behaviour was not random.

    Raises:
        LatentGymError: if there is none.
    """
    chosen = tuple(index for index in episodes if dataset.policies[index] != RANDOM_POLICY)
    if not chosen:
        raise LatentGymError(
            f"{dataset.path}: no demonstrations among {len(episodes)} episodes, all are random actions; record some "
            "with --policy expert or noisy-expert"
        )
    return chosen


def choose_demonstrations(dataset: Dataset, episodes: Sequence[int], count: int | None, seed: int) -> tuple[int, ...]:
    """The first ``count`` demonstrations in an order drawn from ``seed``: fewer are a subset of more.

    Args:
        dataset: the data set.
        episodes: training episodes.
        count: how many; all if ``None``.
        seed: seed of the order.

    Raises:
        LatentGymError: if there are fewer than ``count``, or ``count`` is not positive.
    """
    available = demonstration_episodes(dataset, episodes)
    if count is None:
        return available
    if not 1 <= count <= len(available):
        raise LatentGymError(
            f"{dataset.path}: expected 1 to {len(available)} demonstrations (so many training episodes are "
            f"demonstrations), found {count}; ask for fewer or record more episodes"
        )
    order = numpy_generator(seed, "demonstrations").permutation(len(available))
    return tuple(sorted(available[index] for index in order[:count]))


def cloning_target(episode: Episode) -> NDArray[np.float32]:
    """Actions ``(T, A)`` to imitate: the expert's, or the executed ones where there was no expert."""
    return episode.action if episode.expert_action is None else episode.expert_action


def clipped(actions: NDArray[np.float32], spec: ActionSpec) -> NDArray[np.float32]:
    """Actions ``(…, A)`` inside the admissible range."""
    low, high = (np.asarray(bound, dtype=np.float32) for bound in (spec.low, spec.high))
    return np.clip(actions, low, high)


def history_indices(lengths: Sequence[int], history: int) -> NDArray[np.int64]:
    """Rows ``(N, history)``, oldest first, of the window that ends at each row of concatenated episodes.

    The first row of an episode is repeated on the left.

    >>> history_indices([2, 1], 3).tolist()
    [[0, 0, 0], [0, 0, 1], [2, 2, 2]]
    """
    parts, offset = [], 0
    for length in lengths:
        window = np.arange(length)[:, None] + np.arange(1 - history, 1)[None, :]
        parts.append(np.maximum(window, 0) + offset)
        offset += length
    return np.asarray(np.concatenate(parts), dtype=np.int64)


@dataclasses.dataclass(frozen=True, eq=False)
class CloningScore:
    """How well actions are predicted on held-out demonstrations, as sums per episode that a bootstrap can add up.

    Attributes:
        names: action dimensions, A in all.
        episodes: ``(E,)`` episode indices.
        steps: ``(E,)`` number of steps.
        target_sum: ``(E, A)`` sum of the targets, measured from the training mean.
        target_square: ``(E, A)`` sum of their squares.
        squared_error: ``(E, A)`` sum of squared prediction errors.
    """

    names: tuple[str, ...]
    episodes: tuple[int, ...]
    steps: NDArray[np.float64]
    target_sum: NDArray[np.float64]
    target_square: NDArray[np.float64]
    squared_error: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        names: tuple[str, ...],
        episodes: Sequence[int],
        targets: Sequence[NDArray[np.float32]],
        predictions: Sequence[NDArray[np.float32]],
        centre: ArrayLike,
    ) -> Self:
        """Sums over one ``(T, A)`` target and prediction per episode."""
        centred = [target.astype(np.float64) - np.asarray(centre, np.float64) for target in targets]
        errors = [
            prediction.astype(np.float64) - target for prediction, target in zip(predictions, targets, strict=True)
        ]
        return cls(
            names,
            tuple(int(index) for index in episodes),
            np.array([len(target) for target in targets], np.float64),
            np.stack([target.sum(axis=0) for target in centred]),
            np.stack([(target**2).sum(axis=0) for target in centred]),
            np.stack([(error**2).sum(axis=0) for error in errors]),
        )

    def dimension_r2(self, weights: ArrayLike | None = None) -> NDArray[np.float64]:
        """R² per dimension, ``(…, A)``, with the mean of the scored episodes in SST; NaN where it is constant.

        Args:
            weights: ``(…, E)`` how often each episode counts; once each by default.
        """
        w = np.ones(len(self.steps)) if weights is None else np.asarray(weights, np.float64)
        steps = (w @ self.steps)[..., None]
        square = w @ self.target_square
        total = square - (w @ self.target_sum) ** 2 / np.maximum(steps, 1)
        varies = total > 1e-9 * np.maximum(square, 1e-12 * steps)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.where(varies, 1 - (w @ self.squared_error) / total, np.nan))

    @property
    def value(self) -> float | None:
        """Macro mean over the dimensions that vary; ``None`` where none does."""
        scores = self.dimension_r2()
        return float(np.nanmean(scores)) if np.isfinite(scores).any() else None

    def replicates(self, count: int = 1000, seed: int = 0) -> NDArray[np.float64]:
        """Macro means ``(count,)`` over resampled episodes, NaN where undefined.

        Equal seeds draw equal episodes, so that encoders scored on one split stay paired.
        """
        size = len(self.steps)
        drawn = numpy_generator(seed, "cloning", "bootstrap").multinomial(size, np.full(size, 1 / size), size=count)
        scores = self.dimension_r2(drawn)
        kept = np.isfinite(self.dimension_r2())
        defined = np.isfinite(scores) & kept
        with np.errstate(invalid="ignore"):
            return np.asarray(
                np.where(defined, scores, 0.0).sum(axis=1) / np.where(defined.any(axis=1), defined.sum(axis=1), np.nan)
            )

    def rows(self, *, env: str, encoder: str, family: str, replicates: int = 1000, seed: int = 0) -> list[Row]:
        """``cloning_r2`` with its episode-bootstrap interval, then one row for each dimension that varies."""
        low, high = percentile_interval(self.replicates(replicates, seed))
        n = len(self.steps)
        common = {"env": env, "encoder": encoder, "family": family, "metric": "cloning_r2", "readout": "policy"}
        rows = [Row(**common, dimension="macro", value=self.value, low=low, high=high, n=n)]  # type: ignore[arg-type]
        for name, score in zip(self.names, self.dimension_r2(), strict=True):
            if np.isfinite(score):
                rows.append(Row(**common, dimension=name, value=float(score), n=n))  # type: ignore[arg-type]
        return rows

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        arrays = ("steps", "target_sum", "target_square", "squared_error")
        fields = {name: getattr(self, name).tolist() for name in arrays}
        return {"names": list(self.names), "episodes": list(self.episodes), **fields}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild from JSON."""
        arrays = ("steps", "target_sum", "target_square", "squared_error")
        fields = {name: np.array(data[name], np.float64) for name in arrays}
        return cls(tuple(data["names"]), tuple(data["episodes"]), **fields)
