"""Inverse dynamics as a policy: one model proposes the next latent, another says which action leads there.

This is control by prediction in latent space (UniPi, arXiv 2302.00111, predicts frames): what is imitated is where the
demonstrator went, and the action is what a model learned from *any* behaviour, random actions included. With a goal,
the goal itself can stand in for the prediction (Ghosh et al., arXiv 1912.06088: goals are what came later).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.func import functional_call

from latentgym.errors import LatentGymError, UnknownNameError
from latentgym.policies.heads.base import MIN_STEP_SCALE, Batch, LatentHead, masked_mean
from latentgym.policies.regression import mlp

FORWARD_MODEL, GOAL = "forward_model", "goal"
PROPOSALS = (FORWARD_MODEL, GOAL)


class InverseDynamicsHead(LatentHead):
    """A forward model of the demonstrator, z_t … → z_t+1, and an inverse model (z_t, z_t+1) → a_t.

    The forward model sees the history and the condition (with a goal: its latent) and learns on demonstrations only;
    the inverse model sees two latents and learns on every training episode, with the executed action as its target.
    What follows a noisy demonstrator is mostly the noise, so the forward model is also asked that the action inferred
    from its proposal be the intended one; the inverse model does not learn from that. All losses are mean squared
    errors.

    With ``proposal="goal"`` there is no forward model: the goal's latent is the proposal, and the inverse model learns
    from the newest latent and any later one of an episode, the executed action being its target and, in demonstrations,
    the intended one.

    Args:
        hidden: widths of the hidden layers of each model.
        proposal: who proposes the latent to reach: ``"forward_model"`` or ``"goal"``.
    """

    kind = "inverse_dynamics"
    learns_from_any_action = True

    def __init__(
        self, features: int, components: int | None, history: int, hidden: Sequence[int], actions: int,
        horizon: int = 1, condition: int = 0, proposal: str = FORWARD_MODEL,
    ) -> None:  # fmt: skip
        if proposal not in PROPOSALS:
            raise UnknownNameError("proposal of head 'inverse_dynamics'", str(proposal), PROPOSALS)
        width = features if components is None else components
        if proposal == GOAL and condition != width:
            raise LatentGymError("head 'inverse_dynamics': proposal='goal' needs a goal; train with condition='goal'")
        if horizon != 1:
            raise LatentGymError(f"head 'inverse_dynamics' plans one action at a time, found chunk={horizon}")
        super().__init__(features, components, history, actions, 1, condition, hidden=list(hidden), proposal=proposal)
        self.proposal = proposal
        if proposal == FORWARD_MODEL:
            self.forward_model = mlp([history * self.width + condition, *hidden, self.width])
        self.inverse_model = mlp([2 * self.width, *hidden, actions])

    def fit_step_scale(self, prepared: torch.Tensor, windows: torch.Tensor) -> None:
        """As every head, but also with a history of one: the next latent is a step away too."""
        newest = windows[:, -1:]
        pairs = windows if self.history > 1 else torch.cat([(newest - 1).clamp_min(0), newest], dim=1)
        steps = prepared[pairs[:, -1]] - prepared[pairs[:, -2]]
        self.step_scale.copy_(steps.square().mean().sqrt().clamp_min(MIN_STEP_SCALE))

    def propose(self, history: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        """The latent ``(B, F')`` to reach, prepared as the history is: the goal, or the demonstrator's next one."""
        if self.proposal == GOAL:
            assert condition is not None
            return condition
        step: torch.Tensor = self.forward_model(self.seen(history, condition))
        return history[:, -1] + step * self.step_scale

    def infer(self, latent: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        """Standardised action ``(B, A)`` that leads from one prepared latent ``(B, F')`` to another."""
        action: torch.Tensor = self.inverse_model(self.pair(latent, following))
        return action

    def pair(self, latent: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        """Input of the inverse model ``(B, 2 F')``: a latent and the step to another, scaled if it is a single one."""
        step = following - latent
        return torch.cat([latent, step if self.proposal == GOAL else step / self.step_scale], dim=1)

    def loss(self, batch: Batch, targets: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Sum of the proposal's, the inference's and the intended action's losses; of goals the inference's alone."""
        newest = batch.history[:, -1]
        if self.proposal == GOAL:
            wanted = torch.where(batch.demonstrated[:, None] > 0, batch.intended, targets[:, 0])
            return (self.infer(newest, self.propose(batch.history, batch.condition)) - wanted).square().mean()
        proposal = self.propose(batch.history, batch.condition)
        proposed = masked_mean(((proposal - batch.following) / self.step_scale).square(), batch.demonstrated)
        inferred = (self.infer(newest, batch.following) - targets[:, 0]).square().mean()
        frozen = {name: weight.detach() for name, weight in self.inverse_model.named_parameters()}
        action = functional_call(self.inverse_model, frozen, (self.pair(newest, proposal),))
        intended = masked_mean((action - batch.intended).square(), batch.demonstrated)
        return proposed + inferred + intended

    def plan(
        self, history: torch.Tensor, condition: torch.Tensor | None = None, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Standardised actions ``(B, 1, A)``."""
        return self.infer(history[:, -1], self.propose(history, condition))[:, None]
