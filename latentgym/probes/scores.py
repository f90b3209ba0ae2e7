"""Scores of predicted actions from per-episode sums, so that a cluster bootstrap is one matrix product."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentgym.errors import LatentGymError
from latentgym.seeding import numpy_generator
from latentgym.statistics import percentile_interval
from latentgym.trajectories.episode import ActionSpec

Array = NDArray[np.float64]
_COUNT, _Y, _YY, _P, _PP, _YP = range(6)


@dataclasses.dataclass(frozen=True, eq=False)
class Estimate:
    """A score with its bootstrap replicates.

    Attributes:
        value: the score, ``None`` where it is undefined.
        replicates: ``(R,)`` the score of each resample of episodes; NaN where a resample leaves it undefined.
    """

    value: float | None
    replicates: Array

    @property
    def interval(self) -> tuple[float | None, float | None]:
        """Percentile 95 % interval over the resamples where the score is defined."""
        return percentile_interval(self.replicates) if self.value is not None else (None, None)

    def __sub__(self, other: Estimate) -> Estimate:
        """Difference of two scores on the same resamples."""
        value = None if self.value is None or other.value is None else self.value - other.value
        return Estimate(value, self.replicates - other.replicates)


def estimate(values: Array) -> Estimate:
    """An estimate from ``(1 + R,)`` values, the first from the episodes as they are."""
    return Estimate(float(values[0]) if np.isfinite(values[0]) else None, values[1:])


def share(part: Estimate, whole: Estimate) -> Estimate | None:
    """A score divided by another on the same resamples; ``None`` unless both are defined and ``whole`` is positive."""
    if part.value is None or whole.value is None or whole.value <= 0:
        return None
    positive = np.where(whole.replicates > 0, whole.replicates, np.nan)
    return Estimate(part.value / whole.value, part.replicates / positive)


def resamples(dataset_key: str, subset: str, episodes: int, replicates: int) -> Array:
    """``(1 + R, E)`` how often each episode counts: once in row 0, then as drawn with replacement.

    The draw depends on the data set, the subset and the number of episodes alone, so that every encoder is scored on
    the same resamples and differences between encoders are paired.

    Raises:
        LatentGymError: if there is no episode.
    """
    if not episodes:
        raise LatentGymError(f"no test episode has a window of the subset {subset!r}; record more episodes")
    rng = numpy_generator(0, "bootstrap", dataset_key, subset, episodes)
    drawn = rng.multinomial(episodes, np.full(episodes, 1 / episodes), size=replicates)
    return np.concatenate([np.ones((1, episodes)), drawn.astype(np.float64)])


def episode_sums(target: Array, prediction: Array, episode: NDArray[np.int64]) -> Array:
    """``(E, M, A, 6)`` sums per episode of 1, y, y², p, p², y·p, with y and p relative to the targets' mean.

    Args:
        target: ``(n, A)`` targets y.
        prediction: ``(M, n, A)`` predictions p of M members (pass one member as ``p[None]``).
        episode: ``(n,)`` episode of each row.
    """
    if prediction.shape[1:] != target.shape or len(episode) != len(target):
        raise LatentGymError(
            f"targets {target.shape}, predictions {prediction.shape} and {len(episode)} episode labels disagree"
        )
    centre = target.mean(0)
    y, p = np.broadcast_to(target - centre, prediction.shape), prediction - centre
    return _sum_by_episode(np.stack([np.ones_like(p), y, y * y, p, p * p, y * p], axis=-1), episode)


def _sum_by_episode(terms: NDArray[Any], episode: NDArray[np.int64]) -> Array:
    """``(E, M, …)`` sums over the rows of each episode of ``terms (M, n, …)``."""
    labels, index = np.unique(episode, return_inverse=True)
    sums = np.zeros((len(labels), terms.shape[0], *terms.shape[2:]))
    np.add.at(sums, index, terms.swapaxes(0, 1))
    return sums


def constant_columns(target: Array) -> NDArray[np.bool_]:
    """``(A,)`` columns of ``target (n, A)`` that do not vary beyond float32 rounding."""
    constant: NDArray[np.bool_] = np.ptp(target, axis=0) <= 1e-6 * np.abs(target).max(axis=0)
    return constant


def _ratio(numerator: Array, denominator: Array, tolerance: Array) -> Array:
    """Quotient, NaN where the denominator does not exceed ``tolerance``."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > tolerance)


def r2_and_pearson(sums: Array) -> tuple[Array, Array]:
    """R² and Pearson r, each ``(…)``, of sums ``(…, 6)``; NaN where the targets (r: or the predictions) are constant.

    R² = 1 − Σ(y − p)² / Σ(y − ȳ)², with ȳ the mean of the rows scored.
    """
    count = np.maximum(sums[..., _COUNT], 1)
    tiny = 1e-12 * np.maximum(sums[..., _YY], np.finfo(np.float64).tiny)
    sst = sums[..., _YY] - sums[..., _Y] ** 2 / count
    spread = sums[..., _PP] - sums[..., _P] ** 2 / count
    sse = sums[..., _YY] - 2 * sums[..., _YP] + sums[..., _PP]
    covariance = sums[..., _YP] - sums[..., _Y] * sums[..., _P] / count
    r2 = 1 - _ratio(sse, sst, tiny)
    still = spread <= 1e-12 * np.maximum(sums[..., _PP], np.finfo(np.float64).tiny)
    r = _ratio(covariance, np.sqrt(np.maximum(sst * spread, 0)), np.where(still, np.inf, 0.0))
    return r2, np.clip(r, -1, 1)


def pooled_r2(target: Array, prediction: Array, episode: NDArray[np.int64], weights: Array) -> Estimate:
    """R² over all columns together, 1 − ΣΣ(y − p)² / ΣΣ(y − ȳ)², with each column's own mean of the rows scored.

    A column that hardly moves in these rows weighs little, where a mean of the columns' R² would be ruined by it.

    Args:
        target: ``(n, S)`` targets on one scale.
        prediction: ``(n, S)`` predictions.
        episode: ``(n,)`` episode of each row.
        weights: ``(1 + R, E)`` how often each episode counts.
    """
    sums = np.tensordot(weights, episode_sums(target, prediction[None], episode)[:, 0], axes=1)
    sst = sums[..., _YY] - sums[..., _Y] ** 2 / np.maximum(sums[..., _COUNT], 1)
    sse = sums[..., _YY] - 2 * sums[..., _YP] + sums[..., _PP]
    return estimate(1 - _ratio(sse.sum(-1), sst.sum(-1), 1e-12 * sums[..., _YY].sum(-1)))


def mean_defined(values: Array, axis: int) -> Array:
    """Mean over ``axis`` of the entries that are defined; NaN where none is."""
    defined = np.isfinite(values)
    total, count = np.where(defined, values, 0).sum(axis), defined.sum(axis)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def dimension_groups(spec: ActionSpec, size: int) -> dict[str, list[int]]:
    """``"macro"`` and the groups of the action's dimensions that exist, each with its columns."""
    named = {"translation": spec.translation, "rotation": spec.rotation, "gripper": spec.gripper}
    return {"macro": list(range(size)), **{name: list(columns) for name, columns in named.items() if columns}}


def action_scores(
    target: Array, prediction: Array, episode: NDArray[np.int64], spec: ActionSpec, counts: Array
) -> dict[tuple[str, str], Estimate]:
    """Every score of predicted actions, by (metric, dimension).

    Metrics are ``"r2"``, ``"pearson_r"``, ``"clipped_r2"`` (each dimension's R², not below 0) and, for grippers,
    ``"balanced_accuracy"``. Dimensions are the spec's names, its groups and ``"macro"``: plain means over dimensions
    that are not constant in ``target``; a constant dimension's own scores are undefined. Members are scored one by one
    and their scores averaged.

    Args:
        target: ``(n, A)`` actions.
        prediction: ``(M, n, A)`` predictions of M members.
        episode: ``(n,)`` episode of each row.
        spec: meaning of the action's dimensions.
        counts: ``(1 + R, E)`` from `resamples`, E the number of distinct episodes.
    """
    sums = episode_sums(target, prediction, episode)
    members, size = prediction.shape[0], target.shape[1]
    resampled = (counts @ sums.reshape(len(sums), -1)).reshape(len(counts), members, size, 6)
    r2, r = r2_and_pearson(resampled)
    r2[..., constant_columns(target)] = r[..., constant_columns(target)] = np.nan
    tables = {"r2": r2, "pearson_r": r, "clipped_r2": np.where(np.isfinite(r2), np.maximum(r2, 0), np.nan)}
    scores: dict[tuple[str, str], Estimate] = {}
    for metric, table in tables.items():
        by_dimension = mean_defined(table, 1)
        for index, name in enumerate(spec.names):
            scores[metric, name] = estimate(by_dimension[:, index])
        for name, columns in dimension_groups(spec, size).items():
            scores[metric, name] = estimate(mean_defined(by_dimension[:, columns], 1))
    if spec.gripper:
        scores["balanced_accuracy", "gripper"] = gripper_accuracy(target, prediction, episode, spec, counts)
    return scores


def gripper_accuracy(
    target: Array, prediction: Array, episode: NDArray[np.int64], spec: ActionSpec, counts: Array
) -> Estimate:
    """Mean of the two classes' recalls, a gripper action counting as high above the middle of its range.

    Arguments as in `action_scores`. Undefined where the targets show one class only.
    """
    columns = list(spec.gripper)
    middle = np.array([(spec.low[c] + spec.high[c]) / 2 for c in columns])
    high = target[:, columns] > middle
    right = (prediction[..., columns] > middle) == high
    seen = np.broadcast_to(high, right.shape)
    sums = _sum_by_episode(np.stack([right & seen, seen, right & ~seen, ~seen], axis=-1), episode)
    drawn = (counts @ sums.reshape(len(sums), -1)).reshape(len(counts), *sums.shape[1:])
    none = np.zeros_like(drawn[..., 0])
    accuracy = (_ratio(drawn[..., 0], drawn[..., 1], none) + _ratio(drawn[..., 2], drawn[..., 3], none)) / 2
    return estimate(mean_defined(mean_defined(accuracy, 1), 1))
