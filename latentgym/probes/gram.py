"""Centred second moments per fold, from one pass over the rows, and the ridge systems that they define.

With features ``x`` and targets ``y`` shifted by the first block's mean, each fold keeps its count, sums and products
in float64. Training statistics of a fold are the total minus that fold, so every penalty, fold and target is solved
without seeing a row twice, and memory does not grow with the number of rows.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from latentgym.errors import LatentGymError

_COLUMN_BLOCKS = 8
_REFINEMENTS = 8
_RESIDUAL = 1e-9
_CHOLESKY_BLOCK = 256
_EPS = float(torch.finfo(torch.float64).eps)


@dataclasses.dataclass
class Moments:
    """Sums over a set of rows of shifted features x ``(D,)`` and targets y ``(Q,)``, all float64.

    Attributes:
        count: number of rows.
        x: ``(D,)`` sum of x.
        y: ``(Q,)`` sum of y.
        xx: ``(D, D)`` sum of x xᵀ.
        xy: ``(D, Q)`` sum of x yᵀ.
        yy: ``(Q,)`` sum of y².
    """

    count: int
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor

    @classmethod
    def zeros(cls, features: int, targets: int, device: torch.device) -> Moments:
        """Moments of no rows."""
        shapes = ((features,), (targets,), (features, features), (features, targets), (targets,))
        return cls(0, *(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add rows ``x (n, D)`` and ``y (n, Q)``; of ``xx`` only the lower block triangle is filled (see `mirror`)."""
        self.count += len(x)
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.xy += x.T @ y
        self.yy += y.square().sum(0)
        # A symmetric product needs the lower triangle alone: block columns do 9/16 of a full product's work.
        width = -(-x.shape[1] // _COLUMN_BLOCKS)
        for start in range(0, x.shape[1], width):
            stop = min(start + width, x.shape[1])
            self.xx[start:stop, :stop].addmm_(x[:, start:stop].T, x[:, :stop])

    def mirror(self) -> None:
        """Complete ``xx`` from its lower triangle."""
        width = 256
        for start in range(0, len(self.xx), width):
            stop = start + width
            block = self.xx[start:stop, start:stop]
            block.copy_(block.tril() + block.tril(-1).T)
            self.xx[start:stop, stop:] = self.xx[stop:, start:stop].T

    def minus(self, other: Moments) -> Moments:
        """Moments of the rows that are here and not in ``other``; ``xx`` is left out (an empty tensor)."""
        empty = self.xx.new_empty((0, 0))
        return Moments(
            self.count - other.count, self.x - other.x, self.y - other.y, empty, self.xy - other.xy, self.yy - other.yy
        )


@dataclasses.dataclass(frozen=True)
class FoldError:
    """What a fit leaves unexplained on the ``count`` rows of a fold, per target.

    Attributes:
        count: number of rows.
        sse: ``(Q,)`` sum of squared errors.
        sst: ``(Q,)`` sum of squared deviations from the fold's own mean.
        square: ``(Q,)`` sum of squares, which the rounding of ``sst`` is relative to.
    """

    count: int
    sse: Tensor
    sst: Tensor
    square: Tensor

    @property
    def r2(self) -> Tensor:
        """``(Q,)`` R², NaN where the target is constant up to the rounding of its sum of squares."""
        return torch.where(self.sst > 1e-12 * self.square, 1 - self.sse / self.sst, torch.nan)


@dataclasses.dataclass(frozen=True)
class Scaling:
    """How features are scaled before the penalty applies.

    Attributes:
        standardize: divide by the standard deviation.
        floor: smallest divisor, as a share of the median standard deviation of the features that vary.
    """

    standardize: bool = True
    floor: float = 0.0

    def divisors(self, mean: Tensor, square: Tensor, magnitude: Tensor, offset: Tensor, count: int) -> Tensor:
        """Divisor ``(D,)`` of every feature; infinite for constant ones, which get no weight.

        Args:
            mean: ``(D,)`` mean of the shifted features.
            square: ``(D,)`` mean square of the shifted features.
            magnitude: ``(D,)`` mean square of the sums that ``square`` is a difference of: it has their rounding.
            offset: ``(D,)`` shift, so that ``mean + offset`` is the mean of the features as given.
            count: number of rows.
        """
        variance = (square - mean.square()).clamp_min(0)
        # scikit-learn's bound on the rounding error of a constant column's variance, and that of a difference of sums.
        bound = (count * (mean + offset) * _EPS).square() + count * _EPS * variance
        constant = variance <= torch.maximum(bound, 1e-13 * magnitude)
        scale = variance.sqrt() if self.standardize else torch.ones_like(variance)
        return floored(scale, self.floor, ~constant).masked_fill(constant, torch.inf)


def floored(deviation: Tensor, floor: float, varies: Tensor) -> Tensor:
    """``deviation (D,)``, at least ``floor`` times the median over the features that vary."""
    if not floor or not bool(varies.any()):
        return deviation
    return deviation.clamp_min(floor * deviation[varies].median())


class FoldSystem:
    """The normal equations of the rows outside one fold, in standardised coordinates, and the score on that fold.

    Args:
        total: moments of all rows, ``xx`` mirrored.
        fold: moments of the rows held out (``None`` for the final fit on all rows).
        offset: ``(D,)`` shift of the features.
        scaling: how features are scaled, with the statistics of the rows outside the fold.
        scratch: ``(D, D)`` float32 to factorise in, shared by all fits: fresh pages cost more than copying does.
    """

    def __init__(
        self,
        total: Moments,
        fold: Moments | None,
        offset: Tensor,
        scaling: Scaling,
        scratch: Tensor | None = None,
    ) -> None:
        self.total, self.fold = total, fold
        self.train = total.minus(fold) if fold is not None else total
        count = self.train.count
        self.mean_x, self.mean_y = self.train.x / count, self.train.y / count
        magnitude = total.xx.diagonal() / count
        square = magnitude - fold.xx.diagonal() / count if fold is not None else magnitude
        self.scale = scaling.divisors(self.mean_x, square, magnitude, offset, count)
        self.rhs = (self.train.xy - torch.outer(self.train.x, self.mean_y)) / self.scale[:, None]
        self.scratch = scratch
        self.rough = self.matrix().float() if scratch is not None else None

    def matrix(self) -> Tensor:
        """``(D, D)`` float64 Gram matrix of the centred, standardised rows."""
        matrix = self.total.xx - self.fold.xx if self.fold is not None else self.total.xx.clone()
        matrix.addr_(self.mean_x, self.mean_x, alpha=-self.train.count)
        return matrix.div_(self.scale[:, None]).div_(self.scale)

    def product(self, vectors: Tensor) -> Tensor:
        """``matrix() @ vectors`` for ``(D, Q)`` vectors, without forming the matrix."""
        scaled = vectors / self.scale[:, None]
        result = self.total.xx @ scaled
        if self.fold is not None:
            result -= self.fold.xx @ scaled
        result -= self.train.count * torch.outer(self.mean_x, self.mean_x @ scaled)
        return result / self.scale[:, None]

    def solve(self, penalty: float) -> Tensor:
        """Weights ``(D, Q)`` in standardised coordinates, accurate to double precision."""
        if self.rough is not None and self.scratch is not None:
            weights = self._solve_mixed(self.scratch.copy_(self.rough), penalty)
            if weights is not None:
                return weights
        return cholesky_solve(self.matrix(), self.rhs, penalty)

    def _solve_mixed(self, matrix: Tensor, penalty: float) -> Tensor | None:
        """Single-precision Cholesky with residuals in double; ``None`` where the system is too ill-conditioned."""
        matrix.diagonal().add_(penalty)
        if not cholesky_(matrix):
            return None
        size = self.rhs.norm(dim=0).clamp_min(torch.finfo(torch.float64).tiny)
        weights = substitute(matrix, self.rhs.float()).double()
        # The final fit is refined until the residual before the last step was small; the folds' only choose.
        order = 1 if self.fold is None else 2
        for _ in range(_REFINEMENTS):
            residual = self.rhs - self.product(weights) - penalty * weights
            weights += substitute(matrix, residual.float()).double()
            # Each refinement shrinks the residual by the same factor again, so its square is what this one leaves.
            if bool(((residual.norm(dim=0) / size) ** order <= _RESIDUAL).all()):
                return weights
        return None

    def errors(self, penalty: float) -> FoldError:
        """Errors on the rows of the fold, from its moments alone."""
        assert self.fold is not None
        fold, slopes = self.fold, self.solve(penalty) / self.scale[:, None]
        constant = self.mean_y - self.mean_x @ slopes
        sse = (
            fold.yy
            + fold.count * constant.square()
            + (slopes * (fold.xx @ slopes)).sum(0)
            - 2 * constant * fold.y
            - 2 * (slopes * fold.xy).sum(0)
            + 2 * constant * (fold.x @ slopes)
        )
        return FoldError(fold.count, sse, fold.yy - fold.y.square() / fold.count, fold.yy)


class DualSystem:
    """The same problem from the rows themselves, for fewer rows than features: an ``(n, n)`` kernel matrix.

    Args:
        x: ``(n, D)`` shifted float64 features of the training rows.
        y: ``(n, Q)`` shifted float64 targets.
        held_out: features and targets of the fold, or ``None`` for the final fit.
        offset: ``(D,)`` shift of the features.
        scaling: how features are scaled.
    """

    def __init__(
        self, x: Tensor, y: Tensor, held_out: tuple[Tensor, Tensor] | None, offset: Tensor, scaling: Scaling
    ) -> None:
        self.mean_x, self.mean_y = x.mean(0), y.mean(0)
        centred = x - self.mean_x
        square = centred.square().mean(0)
        zero = torch.zeros_like(square)
        self.scale = scaling.divisors(zero, square, square, self.mean_x + offset, len(x))
        self.x, self.y = centred.div_(self.scale), y - self.mean_y
        self.kernel = _lower_kernel(self.x)
        self.held_out = held_out
        if held_out is not None:
            self.cross = ((held_out[0] - self.mean_x) / self.scale) @ self.x.T

    def solve(self, penalty: float) -> Tensor:
        """Weights ``(D, Q)`` in standardised coordinates."""
        return self.x.T @ cholesky_solve(self.kernel, self.y, penalty)

    def errors(self, penalty: float) -> FoldError:
        """Errors on the held-out rows."""
        assert self.held_out is not None
        target = self.held_out[1]
        error = target - self.mean_y - self.cross @ cholesky_solve(self.kernel, self.y, penalty)
        sst = (target - target.mean(0)).square().sum(0)
        return FoldError(len(target), error.square().sum(0), sst, target.square().sum(0))


def _lower_kernel(x: Tensor) -> Tensor:
    """``x xᵀ`` of rows ``(n, D)``, of which only the lower block triangle is filled: Cholesky reads no more."""
    kernel = x.new_empty((len(x), len(x)))
    width = -(-len(x) // _COLUMN_BLOCKS)
    for start in range(0, len(x), width):
        stop = min(start + width, len(x))
        torch.mm(x[start:stop], x[:stop].T, out=kernel[start:stop, :stop])
    return kernel


def cholesky_(matrix: Tensor) -> bool:
    """Overwrite the lower triangle of ``matrix`` with its Cholesky factor; false if it is not positive definite.

    In place and by blocks: a library call on the whole matrix spends half of its time copying and masking.
    """
    size = len(matrix)
    for start in range(0, size, _CHOLESKY_BLOCK):
        stop = min(start + _CHOLESKY_BLOCK, size)
        factor, failed = torch.linalg.cholesky_ex(matrix[start:stop, start:stop])
        if failed:
            return False
        matrix[start:stop, start:stop] = factor
        identity = torch.eye(stop - start, dtype=matrix.dtype, device=matrix.device)
        panel = matrix[stop:, start:stop] @ torch.linalg.solve_triangular(factor, identity, upper=False).T
        matrix[stop:, start:stop] = panel
        for left in range(stop, size, 2 * _CHOLESKY_BLOCK):
            right = min(left + 2 * _CHOLESKY_BLOCK, size)
            matrix[left:, left:right].addmm_(panel[left - stop :], panel[left - stop : right - stop].T, alpha=-1)
    return True


def substitute(factor: Tensor, rhs: Tensor) -> Tensor:
    """``(L Lᵀ)⁻¹ rhs`` for the factor L in the lower triangle of ``factor``."""
    forward = torch.linalg.solve_triangular(factor, rhs, upper=False)
    solution: Tensor = torch.linalg.solve_triangular(factor.mT, forward, upper=True)
    return solution


def cholesky_solve(matrix: Tensor, rhs: Tensor, penalty: float) -> Tensor:
    """``(matrix + penalty · I)⁻¹ rhs`` in double precision.

    Raises:
        LatentGymError: if the penalty is too small for the matrix to be positive definite.
    """
    shifted = matrix.clone()
    shifted.diagonal().add_(penalty)
    if not cholesky_(shifted):
        raise LatentGymError(
            f"ridge: the features are collinear and λ = {penalty:g} is too small to solve for; "
            "leave out features that repeat others (in Python, larger lambdas= do too)"
        )
    return substitute(shifted, rhs)
