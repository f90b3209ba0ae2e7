"""Flow matching over action chunks: a velocity field carries noise to actions (Lipman et al., arXiv 2210.02747)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from latentgym.errors import LatentGymError
from latentgym.policies.heads.base import Batch, LatentHead, masked_mean
from latentgym.policies.regression import mlp

_TIME_FEATURES = 16


class FlowMatchingHead(LatentHead):
    """Learns the velocity a − ε on the straight line (1 − τ) ε + τ a, and integrates it from noise by Euler's method.

    Unlike a regression it can represent several good actions in one state. Noise comes from the caller, one generator
    per episode, so that plans do not depend on who else is planning.

    Args:
        hidden: widths of the velocity network's hidden layers.
        integration_steps: Euler steps from τ = 0 to 1.
    """

    kind = "flow_matching"
    default_horizon = 8
    stochastic = True

    def __init__(
        self, features: int, components: int | None, history: int, hidden: Sequence[int], actions: int,
        horizon: int = 8, condition: int = 0, integration_steps: int = 10,
    ) -> None:  # fmt: skip
        if not isinstance(integration_steps, int) or integration_steps < 1:
            raise LatentGymError(
                f"head 'flow_matching': integration_steps must be a whole number from 1 on, not {integration_steps!r}"
            )
        options = {"hidden": list(hidden), "integration_steps": integration_steps}
        super().__init__(features, components, history, actions, horizon, condition, **options)
        self.integration_steps = integration_steps
        plan = horizon * actions
        self.network = mlp([history * self.width + condition + plan + _TIME_FEATURES, *hidden, plan])

    def velocity(self, seen: torch.Tensor, point: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """Velocity ``(B, H, A)`` at points ``(B, H, A)`` and times ``(B,)`` in [0, 1]."""
        frequencies = 2.0 ** torch.arange(_TIME_FEATURES // 2, device=time.device)
        angles = time[:, None] * frequencies * math.pi / 2
        inputs = torch.cat([seen, point.flatten(1), angles.sin(), angles.cos()], dim=1)
        field: torch.Tensor = self.network(inputs)
        return field.view_as(point)

    def loss(self, batch: Batch, targets: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Mean squared error of the velocity over the actions within the episode."""
        noise = torch.randn(targets.shape, generator=generator).to(targets.device)
        time = torch.rand(len(targets), generator=generator).to(targets.device)
        point = noise + time[:, None, None] * (targets - noise)
        found = self.velocity(self.seen(batch.history, batch.condition), point, time)
        return masked_mean((found - (targets - noise)).square(), batch.valid)

    def plan(
        self, history: torch.Tensor, condition: torch.Tensor | None = None, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Standardised actions ``(B, H, A)`` that the noise is carried to."""
        assert noise is not None
        seen, point = self.seen(history, condition), noise
        for step in range(self.integration_steps):
            time = torch.full((len(history),), step / self.integration_steps, device=history.device)
            point = point + self.velocity(seen, point, time) / self.integration_steps
        return point
