"""The supervised reference: the action between two frames, from the labels."""

from __future__ import annotations

import torch
from torch import nn

from latentgym.encoders.objectives.objective import Batch, Objective
from latentgym.encoders.trunk import WIDTH, PairNetwork, pair
from latentgym.errors import LatentGymError

_POOLED_GRID = 4


class InverseDynamics(Objective):
    """L1 between the standardised action a_t and its prediction from E(o_t, o_t+1); the head is thrown away."""

    name = "inverse_dynamics"
    source = "arXiv 2606.07687 (+ID arm, L1); Pathak et al., ICM, arXiv 1705.05363, equation 2"
    network_type = PairNetwork
    trained_on_actions = True

    def __init__(self, action_size: int = 0) -> None:
        super().__init__(action_size)
        if action_size < 1:
            raise LatentGymError(f"inverse_dynamics needs actions of at least one dimension, found {action_size}")
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(_POOLED_GRID),
            nn.Flatten(),
            nn.Linear(WIDTH * _POOLED_GRID**2, 128),
            nn.SiLU(),
            nn.Linear(128, action_size),
        )

    def loss(self, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """See :meth:`Objective.loss`."""
        if batch.actions is None:
            raise LatentGymError("inverse_dynamics needs a batch with actions, found none")
        features = self.network.trunk(pair(batch.frames[:, 0], batch.frames[:, 1]))
        return nn.functional.l1_loss(self.head(features), batch.actions[:, 0])
