"""What every readout shares: one interface, checked rows, and the score."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from latentgym.errors import LatentGymError


class Readout(Protocol):
    """A readout of latents: ridge, MLP, attentive or transformer, or one of your own."""

    def fit(self, X: ArrayLike | Tensor, Y: ArrayLike | Tensor, groups: ArrayLike | None = None) -> Any:
        """Fit on features ``X (n, …)`` and targets ``Y (n, Q)``; ``groups (n,)`` are kept together in any split."""

    def predict(self, X: ArrayLike | Tensor) -> NDArray[np.float64]:
        """Predictions ``(n, Q)``, or ``(n,)`` where the targets were a vector."""

    def score(self, X: ArrayLike | Tensor, Y: ArrayLike | Tensor) -> float:
        """R² averaged over the targets that are not constant in ``Y``."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments."""


def all_finite(values: Tensor) -> bool:
    """Whether no entry is NaN or infinite; a finite sum says so at a fraction of the cost of looking at each."""
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())


def as_matrix(values: ArrayLike | Tensor, name: str, first_row: int = 0) -> Tensor:
    """``values`` as a finite float64 ``(n, ·)`` tensor; a vector becomes one column.

    Args:
        values: the rows.
        name: what the rows are called in an error.
        first_row: number of the first row in an error.

    Raises:
        LatentGymError: on more than two dimensions, or NaN or infinite entries.
    """
    matrix = _tensor(values).to(torch.float64)
    matrix = matrix[:, None] if matrix.ndim == 1 else matrix
    if matrix.ndim != 2:
        raise LatentGymError(f"{name}: expected (rows, columns), found shape {tuple(matrix.shape)}")
    if not all_finite(matrix):
        row, column = torch.nonzero(~torch.isfinite(matrix))[0].tolist()
        raise LatentGymError(
            f"{name}: NaN or infinite value, first at row {first_row + row}, column {column}; "
            "float16 latents overflow beyond 65504, encode in float32"
        )
    return matrix


def _tensor(values: ArrayLike | Tensor) -> Tensor:
    """A tensor of any array; torch takes no negative strides, as of ``rows[::-1]``."""
    return values if isinstance(values, Tensor) else torch.as_tensor(np.ascontiguousarray(values))


def check_lengths(x: Tensor | NDArray[Any], y: Tensor | NDArray[Any], groups: NDArray[Any]) -> None:
    """Raise an error that names the three lengths unless rows, targets and groups are equally many."""
    if not len(x) == len(y) == len(groups):
        raise LatentGymError(f"X, Y and groups disagree: {len(x)}, {len(y)} and {len(groups)} rows")


def mean_r2(target: NDArray[np.float64], prediction: NDArray[np.float64]) -> float:
    """R² averaged over the columns of ``target (n, Q)`` that are not constant.

    Raises:
        LatentGymError: on mismatched shapes, or if every column is constant.
    """
    if target.shape != prediction.shape:
        raise LatentGymError(f"targets {target.shape} and predictions {prediction.shape} have different shapes")
    varies = np.ptp(target, axis=0) > 0
    if not varies.any():
        raise LatentGymError("R² is undefined: every target column is constant")
    sse = np.square(target - prediction).sum(0)[varies]
    return float((1 - sse / np.square(target - target.mean(0)).sum(0)[varies]).mean())


def as_tokens(values: ArrayLike | Tensor, name: str) -> Tensor:
    """``values`` as a finite float32 ``(n, N, D)`` tensor.

    Raises:
        LatentGymError: on other shapes, or NaN or infinite entries (also those that only float64 can hold).
    """
    tokens = _tensor(values)
    if tokens.ndim != 3:
        raise LatentGymError(f"{name}: expected tokens of shape (rows, tokens, channels), found {tuple(tokens.shape)}")
    tokens = tokens.float()
    if not all_finite(tokens):
        row, token, _ = torch.nonzero(~torch.isfinite(tokens))[0].tolist()
        raise LatentGymError(
            f"{name}: NaN or infinite value, first at row {row}, token {token}; "
            "float16 latents overflow beyond 65504, encode in float32"
        )
    return tokens
