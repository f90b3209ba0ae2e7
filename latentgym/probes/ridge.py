"""Ridge regression as a linear readout: exact, one pass over the rows, penalty chosen by grouped cross-validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from latentgym.devices import find_device
from latentgym.errors import LatentGymError
from latentgym.probes.estimator import as_matrix, check_lengths, mean_r2
from latentgym.probes.gram import DualSystem, FoldSystem, Moments, Scaling

DEFAULT_LAMBDAS = tuple(float(10.0**power) for power in range(-1, 7))
_BUFFER_ROWS = 4096
# An unplanned stream is held back this long: one that ends before is given the folds of one fit.
_UNPLANNED_BYTES = 64 * 2**20
_COARSE = 3
# Up to so many features a fold with fewer rows than features is solved in the dual form; above, one that has fewer rows
# than this share of them.
_NARROW, _DUAL_SHARE = 512, 0.7


def grouped_folds(groups: NDArray[Any], folds: int) -> dict[Any, int]:
    """Fold of every group, balanced by rows; the assignment of scikit-learn's ``GroupKFold``.

    Args:
        groups: ``(n,)`` label of each row's group.
        folds: number of folds.

    Raises:
        LatentGymError: if there are fewer groups than folds.
    """
    labels, counts = np.unique(groups, return_counts=True)
    if len(labels) < folds:
        raise LatentGymError(
            f"cross-validation needs at least {folds} groups (episodes), one per fold, and found {len(labels)}; "
            "record more episodes (in Python, a smaller folds= does too)"
        )
    load, names = np.zeros(folds), labels.tolist()
    fold_of: dict[Any, int] = {}
    for index in np.argsort(counts, kind="stable")[::-1]:
        lightest = int(np.argmin(load))
        load[lightest] += counts[index]
        fold_of[names[index]] = lightest
    return fold_of


class RidgeProbe:
    """Linear readout with an L2 penalty: minimises ‖Y − b − X̃ W‖² + λ ‖W‖².

    X̃ are the features minus their mean, divided by their standard deviation where ``standardize`` is set; mean and
    deviation come from the rows being fitted, so in cross-validation from the rows outside the fold (a pipeline of
    scikit-learn's ``StandardScaler`` and ``Ridge``). Constant features get no weight. λ is the one with the highest
    R², averaged over targets and folds, on folds of whole groups. Where features outnumber rows the dual form is
    solved. A stream given to :meth:`partial_fit` needs memory that does not grow with its rows.

    Args:
        lambdas: penalties to choose from, in ascending order, all positive.
        standardize: divide features by their standard deviation.
        folds: number of cross-validation folds; unused when there is one λ.
        device: torch device, ``"auto"`` for the GPU if there is one.
        search: ``"grid"`` tries every λ; ``"climb"`` tries every third and walks uphill from the best of them, which
            finds the same λ where the cross-validation curve has no peak between two of these, for less work.
        scale_floor: smallest deviation that features are divided by, as a share of the median over features; above 0,
            a feature that hardly moved in training cannot be blown up by a standardisation that it then leaves.
        fold_floor: least R² that a target counts with in a fold when λ is chosen. R² has no floor of its own: a feature
            that moves in the fold alone can make one value of −100 outweigh every other.
        target_groups: column indices of the targets that share a λ, one sequence per group; default: all share one.

    Attributes:
        lambda_: chosen λ (that of the first group, where there are several).
        lambdas_: chosen λ per target group.
        cv_scores_: λ to ``(Q,)`` mean R² over folds, none below ``fold_floor``, for every λ that was tried (empty with
            one λ).
        cv_mse_: ``(Q,)`` mean squared error of the out-of-fold predictions at the chosen λ (NaN with one λ).
        coef_: ``(D, Q)`` float64 tensor, weights for features as given.
        intercept_: ``(Q,)`` float64 tensor.

    Raises:
        LatentGymError: on empty or non-positive ``lambdas`` or fewer than two folds.
    """

    def __init__(
        self,
        lambdas: Sequence[float] = DEFAULT_LAMBDAS,
        standardize: bool = True,
        folds: int = 5,
        device: str = "auto",
        *,
        search: Literal["grid", "climb"] = "grid",
        scale_floor: float = 0.0,
        fold_floor: float = -np.inf,
        target_groups: Sequence[Sequence[int]] | None = None,
    ) -> None:
        # A tuple stays the object it is, by which scikit-learn's clone knows a faithful constructor.
        lambdas = lambdas if isinstance(lambdas, tuple) else tuple(float(penalty) for penalty in lambdas)
        if not lambdas or not all(0 < penalty < np.inf for penalty in lambdas) or sorted(lambdas) != list(lambdas):
            raise LatentGymError(f"lambdas: expected positive penalties in ascending order, found {lambdas}")
        if folds < 2:
            raise LatentGymError(f"folds: expected at least 2, found {folds}")
        self.lambdas, self.standardize, self.folds, self.device = lambdas, standardize, folds, device
        self.search, self.scale_floor, self.fold_floor = search, scale_floor, fold_floor
        self.target_groups = target_groups
        self._reset()

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments; ``deep`` is scikit-learn's and changes nothing."""
        names = ("lambdas", "standardize", "folds", "device", "search", "scale_floor", "fold_floor", "target_groups")
        return {name: getattr(self, name) for name in names}

    def _reset(self) -> None:
        self._fold_of: dict[Any, int] = {}
        self._load = np.zeros(self.folds)
        self._pending: list[tuple[Tensor, Tensor, NDArray[Any]]] = []
        self._pending_rows = self._rows = 0
        self._moments: list[Moments] = []

    def fit(self, X: ArrayLike | Tensor, Y: ArrayLike | Tensor, groups: ArrayLike | None = None) -> RidgeProbe:
        """Choose λ and fit; rows are read in blocks, so a memory-mapped X is never held whole.

        Args:
            X: ``(n, D)`` features.
            Y: ``(n, Q)`` targets, or ``(n,)``.
            groups: ``(n,)`` group (episode) of each row; default: every row is its own group.

        Raises:
            LatentGymError: on mismatched or non-finite rows, or fewer groups than folds.
        """
        x, y = (values if isinstance(values, Tensor) else np.asarray(values) for values in (X, Y))
        groups = np.arange(len(x)) if groups is None else np.asarray(groups)
        check_lengths(x, y, groups)
        self.plan_folds(groups)
        for start in range(0, len(x), _BUFFER_ROWS):
            rows = slice(start, start + _BUFFER_ROWS)
            self.partial_fit(x[rows], y[rows], groups[rows])
        return self.finalize()

    def plan_folds(self, groups: ArrayLike) -> RidgeProbe:
        """Assign groups to folds before a stream starts, as ``GroupKFold`` would.

        Without a plan, a stream of up to 64 MiB gets the same folds from :meth:`finalize`; in a longer one, groups
        that come later each go to the fold with the fewest rows so far.

        Args:
            groups: group of every row that will come.
        """
        self._reset()
        if len(self.lambdas) > 1:
            self._fold_of = grouped_folds(np.asarray(groups), self.folds)
        return self

    def partial_fit(self, X: ArrayLike | Tensor, Y: ArrayLike | Tensor, groups: ArrayLike) -> RidgeProbe:
        """Take in a block of rows; arguments as in :meth:`fit`. Call :meth:`finalize` after the last block."""
        x, y, labels = as_matrix(X, "X", self._rows), as_matrix(Y, "Y", self._rows), np.asarray(groups)
        check_lengths(x, y, labels)
        if not len(x):
            return self
        if not x.shape[1]:
            raise LatentGymError("X: expected at least 1 feature, found 0; choose latents or data that have some")
        self._vector = np.ndim(Y) == 1
        device = find_device(self.device)
        x, y = x.to(device), y.to(device)
        if not self._rows:
            self._offset_x, self._offset_y = x.mean(0), y.mean(0)
        elif (x.shape[1], y.shape[1]) != (len(self._offset_x), len(self._offset_y)):
            raise LatentGymError(
                f"expected {len(self._offset_x)} features and {len(self._offset_y)} targets as in the first block, "
                f"found {x.shape[1]} and {y.shape[1]}"
            )
        self._rows += len(x)
        self._pending_rows += len(x)
        self._pending.append((x - self._offset_x, y - self._offset_y, labels))
        if self._pending_rows > self._buffer_rows(x.shape[1] + y.shape[1]):
            self._flush()
        return self

    def _buffer_rows(self, width: int) -> int:
        """Rows that are held back at most."""
        rows = max(_BUFFER_ROWS, len(self._offset_x))
        return rows if self._fold_of or len(self.lambdas) == 1 else max(rows, _UNPLANNED_BYTES // (8 * width))

    def _plan_pending(self) -> None:
        """Plan the folds of a stream that came without a plan, from the rows held back."""
        labels = np.concatenate([block[2] for block in self._pending])
        if not self._fold_of and len(self.lambdas) > 1 and len(np.unique(labels)) >= self.folds:
            self._fold_of = grouped_folds(labels, self.folds)

    def _assign(self, labels: NDArray[Any]) -> NDArray[np.int64]:
        """Fold of each row; new groups go to the fold with the fewest rows."""
        unique, first, inverse, counts = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
        fold, names = np.empty(len(unique), dtype=np.int64), unique.tolist()
        for index in np.argsort(first):
            fold[index] = self._fold_of.setdefault(names[index], int(np.argmin(self._load)))
            self._load[fold[index]] += counts[index]
        rows: NDArray[np.int64] = fold[inverse.reshape(-1)]
        return rows

    def _flush(self) -> None:
        """Turn the rows held back into moments."""
        x, y, fold = self._concatenated()
        if not self._moments:
            self._moments = [Moments.zeros(x.shape[1], y.shape[1], x.device) for _ in range(self.folds)]
        for index, moments in enumerate(self._moments):
            rows = torch.from_numpy(np.flatnonzero(fold == index)).to(x.device)
            if len(rows):
                moments.add(x[rows], y[rows])
        self._pending, self._pending_rows = [], 0

    def _concatenated(self) -> tuple[Tensor, Tensor, NDArray[np.int64]]:
        self._plan_pending()
        x, y, labels = zip(*self._pending, strict=True)
        return torch.cat(x), torch.cat(y), np.concatenate([self._assign(block) for block in labels])

    def finalize(self) -> RidgeProbe:
        """Choose λ and solve, after the last block; the sums are dropped.

        Raises:
            LatentGymError: if there were fewer than two rows, or fewer groups than folds.
        """
        if self._rows < 2:
            raise LatentGymError(f"a ridge probe needs at least 2 rows, found {self._rows}")
        searching = len(self.lambdas) > 1
        if self._pending:
            self._plan_pending()
        if searching and len(np.unique(list(self._fold_of.values()))) < self.folds:
            seen = {*self._fold_of, *(label for block in self._pending for label in block[2].tolist())}
            grouped_folds(np.array(list(seen)), self.folds)
        final, systems = self._systems(searching)
        targets = len(self._offset_y)
        columns = [list(group) for group in self.target_groups or (range(targets),)]
        self.cv_scores_: dict[float, NDArray[np.float64]] = {}
        self._cv_mse: dict[float, NDArray[np.float64]] = {}
        self.cv_mse_ = np.full(targets, np.nan)
        self.lambdas_ = tuple(self._choose(systems, group) for group in columns)
        self.lambda_ = self.lambdas_[0]
        slopes = torch.empty((len(self._offset_x), targets), dtype=torch.float64, device=self._offset_x.device)
        for penalty in set(self.lambdas_):
            chosen = [c for group, own in zip(columns, self.lambdas_, strict=True) if own == penalty for c in group]
            slopes[:, chosen] = (final.solve(penalty) / final.scale[:, None])[:, chosen]
            if searching:
                self.cv_mse_[chosen] = self._cv_mse[penalty][chosen]
        self.coef_ = slopes
        self.intercept_ = final.mean_y + self._offset_y - (final.mean_x + self._offset_x) @ slopes
        self._reset()
        return self

    @property
    def _scaling(self) -> Scaling:
        return Scaling(self.standardize, self.scale_floor)

    def _systems(self, searching: bool) -> tuple[FoldSystem | DualSystem, Sequence[FoldSystem] | Sequence[DualSystem]]:
        """The final fit and those of the folds, each in the form with the smaller matrix as long as rows are here."""
        if self._moments:
            return self._primal_systems(searching)
        x, y, fold = self._concatenated()
        rows, features = len(x), len(self._offset_x)
        trained_on = rows - np.bincount(fold, minlength=self.folds).min() if searching else rows
        # Wide folds near the square share one Gram matrix, which is cheaper; narrow ones are solved the accurate way.
        limit = features if features <= _NARROW else _DUAL_SHARE * features
        systems = self._dual_folds(x, y, fold) if searching and (trained_on < limit or rows < features) else None
        if rows < features:
            return DualSystem(x, y, None, self._offset_x, self._scaling), systems or []
        final, primal = self._primal_systems(searching and systems is None)
        return final, primal if systems is None else systems

    def _primal_systems(self, searching: bool) -> tuple[FoldSystem, list[FoldSystem]]:
        if self._pending:
            self._flush()
        for moments in self._moments:
            moments.mirror()
        total = Moments(
            sum(fold.count for fold in self._moments),
            *(sum(getattr(fold, name) for fold in self._moments) for name in ("x", "y", "xx", "xy", "yy")),
        )
        scratch = torch.empty_like(total.xx, dtype=torch.float32)
        final = FoldSystem(total, None, self._offset_x, self._scaling, scratch if searching else None)
        systems = [
            FoldSystem(total, fold, self._offset_x, self._scaling, scratch) for fold in self._moments if searching
        ]
        return final, systems

    def _dual_folds(self, x: Tensor, y: Tensor, fold: NDArray[np.int64]) -> list[DualSystem]:
        systems = []
        for index in range(self.folds):
            out = torch.from_numpy(fold == index).to(x.device)
            systems.append(DualSystem(x[~out], y[~out], (x[out], y[out]), self._offset_x, self._scaling))
        return systems

    def _choose(self, systems: Sequence[FoldSystem] | Sequence[DualSystem], columns: Sequence[int]) -> float:
        if not systems:
            return self.lambdas[0]

        def score(index: int) -> float:
            penalty = self.lambdas[index]
            if penalty not in self.cv_scores_:
                errors = [system.errors(penalty) for system in systems]
                self.cv_scores_[penalty] = _mean_over_folds([error.r2 for error in errors], self.fold_floor)
                sse = torch.stack([error.sse for error in errors]).sum(0).clamp_min(0)
                self._cv_mse[penalty] = sse.cpu().numpy() / sum(error.count for error in errors)
            own = self.cv_scores_[penalty][columns]
            return float(own[np.isfinite(own)].mean()) if np.isfinite(own).any() else -np.inf

        last = len(self.lambdas) - 1
        if self.search == "grid":
            return float(self.lambdas[max(range(last + 1), key=score)])
        # From one start alone, a curve with two peaks ends at the wrong one: states often have such.
        best = max((*range(0, last, _COARSE), last), key=score)
        for step in (1, -1):
            while 0 <= best + step < len(self.lambdas) and score(best + step) > score(best):
                best += step
        return float(self.lambdas[best])

    def predict(self, X: ArrayLike | Tensor) -> NDArray[np.float64]:
        """Predictions ``(n, Q)`` float64 for features ``(n, D)``; ``(n,)`` where the targets were a vector.

        Raises:
            LatentGymError: if the probe is not fitted, or on another number of features or non-finite ones.
        """
        if not hasattr(self, "coef_"):
            raise LatentGymError("the ridge probe is not fitted; call fit, or partial_fit and finalize, first")
        x = as_matrix(X, "X").to(self.coef_.device)
        if x.shape[1] != len(self.coef_):
            raise LatentGymError(f"expected {len(self.coef_)} features, found {x.shape[1]}")
        predictions: NDArray[np.float64] = (x @ self.coef_ + self.intercept_).cpu().numpy()
        return predictions[:, 0] if self._vector else predictions

    def score(self, X: ArrayLike | Tensor, Y: ArrayLike | Tensor) -> float:
        """R² averaged over the targets that are not constant in ``Y``."""
        target = as_matrix(Y, "Y").numpy()
        return mean_r2(target, self.predict(X).reshape(len(target), -1))


def _mean_over_folds(scores: Sequence[Tensor], floor: float) -> NDArray[np.float64]:
    """``(Q,)`` mean over the folds where a target's R² is defined, NaN where it is in none."""
    table = np.stack([score.cpu().numpy() for score in scores])
    defined = np.isfinite(table)
    table = np.maximum(table, floor)
    total = np.where(defined, table, 0).sum(0)
    return np.divide(total, defined.sum(0), out=np.full(table.shape[1], np.nan), where=defined.any(0))
