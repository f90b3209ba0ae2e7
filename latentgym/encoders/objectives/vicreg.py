"""Variance-invariance-covariance regularisation: the terms that keep joint embeddings from collapsing.

Source: Bardes, Ponce, LeCun, *VICReg*, arXiv 2105.04906, equations 1 to 6 with the paper's weights 25, 25, 1.
"""

from __future__ import annotations

import torch
from torch import nn

from latentgym.encoders.trunk import WIDTH

INVARIANCE_WEIGHT = 25.0
VARIANCE_WEIGHT = 25.0
COVARIANCE_WEIGHT = 1.0
_EPSILON = 1e-4
_POOLED_GRID = 4


class Expander(nn.Module):
    """Grid features pooled to 4 × 4, flattened and expanded to a vector."""

    def __init__(self, outputs: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.AdaptiveAvgPool2d(_POOLED_GRID),
            nn.Flatten(),
            nn.Linear(WIDTH * _POOLED_GRID**2, outputs),
            nn.LayerNorm(outputs),
            nn.SiLU(),
            nn.Linear(outputs, outputs),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``(B, 64, 8, 8)`` to ``(B, outputs)``."""
        embedding: torch.Tensor = self.layers(features)
        return embedding


def variance_term(embedding: torch.Tensor) -> torch.Tensor:
    """Hinge that asks for a standard deviation of at least 1 per dimension of ``(B, D)`` (equation 1)."""
    deviation = (embedding.var(dim=0) + _EPSILON).sqrt()
    return torch.relu(1 - deviation).mean()


def covariance_term(embedding: torch.Tensor) -> torch.Tensor:
    """Sum of squared off-diagonal covariances of ``(B, D)`` over D (equations 3 and 4)."""
    count, width = embedding.shape
    centred = embedding - embedding.mean(dim=0)
    covariance = centred.T @ centred / (count - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / width


def spread_terms(embedding: torch.Tensor) -> torch.Tensor:
    """Weighted variance and covariance terms of one ``(B, D)`` embedding, in units of the invariance weight."""
    terms = VARIANCE_WEIGHT * variance_term(embedding) + COVARIANCE_WEIGHT * covariance_term(embedding)
    return terms / INVARIANCE_WEIGHT


def vicreg(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The VICReg loss of two ``(B, D)`` embeddings that should agree (equation 6), over the invariance weight."""
    return nn.functional.mse_loss(first, second) + spread_terms(first) + spread_terms(second)
