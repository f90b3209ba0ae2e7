"""Description length: how many bits a readout saves when the actions are sent block by block.

Online (prequential) coding after Voita & Titov (arXiv 2003.12298), for real-valued targets: sender and receiver share
the blocks sent so far, fit the same readout to them, and code the next block under a Gaussian around its predictions.
Everything in that code, its variance included, comes from preceding blocks. The constant code does the same with the
preceding blocks' mean and variance. Differential code lengths depend on the resolution of the actions; their difference
does not. The first block costs the same in both codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from latentgym.seeding import numpy_generator

FRACTIONS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0)
"""Shares of the training episodes that the readout is fitted on, one after the other."""

# The code is no finer than this share of the preceding actions' standard deviation: a perfect readout would otherwise
# save a number of bits that only rounding bounds.
RESOLUTION = 0.01

Floats = NDArray[np.float64]


def gaussian_code_bits(errors: Floats, variance: Floats) -> Floats:
    """Bits that a Gaussian code spends on each value, up to the resolution that all codes share.

    Args:
        errors: ``(n, A)`` values minus the code's means.
        variance: ``(A,)`` variance of the code.

    Returns:
        ``(n, A)``: ½ log₂(2π σ²) + e² / (2 σ² ln 2).

    >>> unit = np.array([1 / (2 * np.pi)])
    >>> gaussian_code_bits(np.zeros((1, 1)), 4 * unit).item()
    1.0
    """
    bits: Floats = 0.5 * np.log2(2 * np.pi * variance) + np.square(errors) / (2 * variance * np.log(2))
    return bits


def bits_saved(actions: Floats, predicted: Floats, error_variance: Floats, preceding: Floats) -> Floats:
    """Bits that the readout's code saves over the constant code on one block.

    Args:
        actions: ``(n, A)`` the block.
        predicted: ``(n, A)`` predictions of a readout that was fitted on the preceding blocks.
        error_variance: ``(A,)`` its mean squared out-of-fold error on the preceding blocks.
        preceding: ``(m, A)`` actions of the preceding blocks.

    Returns:
        ``(n, A)`` float64; 0 in dimensions that were constant so far, where neither code knows a scale.
    """
    mean, variance = preceding.mean(0), preceding.var(0)
    known = variance > 1e-12 * np.square(preceding).mean(0)
    variance = np.where(known, variance, 1.0)
    error_variance = np.maximum(error_variance, RESOLUTION**2 * variance)
    constant = gaussian_code_bits(actions - mean, variance)
    return np.where(known, constant - gaussian_code_bits(actions - predicted, error_variance), 0.0)


def growing_prefixes(
    episodes: NDArray[np.int64], folds: int, seed: int, fractions: Sequence[float] = FRACTIONS
) -> list[tuple[float, NDArray[np.int64]]]:
    """Growing sets of episodes, in an order drawn from ``seed``.

    Args:
        episodes: ``(E,)`` training episodes.
        folds: episodes that the smallest set needs; fractions that give fewer are left out.
        seed: seed of the order.
        fractions: shares of the episodes, ascending, the last one 1.

    Returns:
        Fraction and ascending episodes of each set; sets of equal size are listed once, under the largest fraction.
    """
    order = episodes[numpy_generator(seed, "growing-prefixes").permutation(len(episodes))]
    sizes = {max(1, round(fraction * len(episodes))): fraction for fraction in fractions}
    return [(fraction, np.sort(order[:size])) for size, fraction in sorted(sizes.items()) if size >= folds]
