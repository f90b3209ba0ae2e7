"""What every head on frozen latents shares: normalisation, the history that it sees, and what it may be told.

A head plans the next H actions from the last latents of an episode and, where it is conditioned, from a goal or an
instruction. Actions are planned and learned in units of their training spread.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from latentgym.policies.regression import initialise, safe_scale

MIN_STEP_SCALE = 1e-3


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """Training windows.

    Attributes:
        history: ``(B, h, F')`` prepared latents, the newest last.
        following: ``(B, F')`` the latent that came after.
        valid: ``(B, H)`` float32, 1 where the action of the plan lies within the episode.
        demonstrated: ``(B,)`` float32, 1 where the behaviour is to be imitated.
        intended: ``(B, A)`` standardised action that the demonstrator meant, before any noise was added to it.
        condition: ``(B, C)`` goal or instruction, or ``None``.
    """

    history: torch.Tensor
    following: torch.Tensor
    valid: torch.Tensor
    demonstrated: torch.Tensor
    intended: torch.Tensor
    condition: torch.Tensor | None = None


class LatentHead(nn.Module, abc.ABC):
    """Standardises latents, optionally projects them, and plans actions from a history of them.

    Args:
        features: width F of a latent.
        components: width after projection, or ``None`` to keep F.
        history: number of latents that it sees, the newest last.
        actions: number of action dimensions A.
        horizon: number of actions H that it plans.
        condition: width C of the goal or instruction, 0 where there is none.
        options: settings of its own, as JSON types.
    """

    kind: ClassVar[str] = ""
    default_horizon: ClassVar[int] = 1
    """Actions per plan where none is asked for."""
    stochastic: ClassVar[bool] = False
    """Whether plans are drawn: :meth:`plan` then needs noise."""
    learns_from_any_action: ClassVar[bool] = False
    """Whether episodes of random actions are of use to it."""

    mean: torch.Tensor
    scale: torch.Tensor
    projection: torch.Tensor
    action_mean: torch.Tensor
    action_scale: torch.Tensor
    step_scale: torch.Tensor

    def __init__(
        self, features: int, components: int | None, history: int, actions: int, horizon: int = 1, condition: int = 0,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.history, self.horizon, self.condition = history, horizon, condition
        self.width = features if components is None else components
        self.actions_size = actions
        self.shape = {
            "features": features, "components": components, "history": history, "actions": actions,
            "horizon": horizon, "condition": condition, **options,
        }  # fmt: skip
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.register_buffer("projection", torch.empty(features, 0 if components is None else components))
        self.register_buffer("action_mean", torch.zeros(actions))
        self.register_buffer("action_scale", torch.ones(actions))
        self.register_buffer("step_scale", torch.ones(()))

    @abc.abstractmethod
    def loss(self, batch: Batch, targets: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Training loss.

        Args:
            batch: windows.
            targets: ``(B, H, A)`` standardised actions to plan.
            generator: CPU generator of whatever the loss draws.
        """

    @abc.abstractmethod
    def plan(
        self, history: torch.Tensor, condition: torch.Tensor | None = None, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Standardised actions ``(B, H, A)``.

        Args:
            history: ``(B, h, F')`` prepared latents.
            condition: ``(B, C)``, for conditioned heads.
            noise: ``(B, H, A)`` standard normal, for stochastic heads.
        """

    def draw_weights(self, generator: torch.Generator) -> None:
        """Draw the initial weights."""
        initialise(self, generator)

    def prepare(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents ``(…, F)`` as the network's input ``(…, F')``."""
        standard = (latents - self.mean) / self.scale
        return standard @ self.projection if self.projection.shape[1] else standard

    def motion(self, history: torch.Tensor) -> torch.Tensor:
        """Scaled steps between the latents of ``(B, h, F')``: motion at unit scale, ``(B, h - 1, F')``."""
        return (history[:, 1:] - history[:, :-1]) / self.step_scale

    def seen(self, history: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        """All that a head may look at, ``(B, h · F' + C)``: steps, the newest latent, the condition."""
        parts = [self.motion(history).flatten(1), history[:, -1]]
        return torch.cat(parts if condition is None else [*parts, condition], dim=1)

    def actions(
        self, history: torch.Tensor, condition: torch.Tensor | None = None, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The plan ``(B, H, A)`` in the environment's units."""
        return self.plan(history, condition, noise) * self.action_scale + self.action_mean

    def fit_step_scale(self, prepared: torch.Tensor, windows: torch.Tensor) -> None:
        """Set the root mean square step of prepared latents ``(n, F')`` within windows ``(N, history)`` of rows."""
        if self.history > 1:
            steps = prepared[windows[:, -1]] - prepared[windows[:, -2]]
            self.step_scale.copy_(steps.square().mean().sqrt().clamp_min(MIN_STEP_SCALE))

    def fit_normalisation(self, latents: NDArray[np.float32], targets: NDArray[np.float32]) -> None:
        """Fit mean, scale and projection on training rows ``(N, F)`` and ``(N, A)``."""
        rows, wanted = latents.astype(np.float64), targets.astype(np.float64)
        fitted: Mapping[str, NDArray[np.float64]] = {
            "mean": rows.mean(axis=0),
            "scale": safe_scale(rows),
            "action_mean": wanted.mean(axis=0),
            "action_scale": safe_scale(wanted),
        }
        if self.projection.shape[1]:
            standard = (rows - fitted["mean"]) / fitted["scale"]
            fitted = {**fitted, "projection": principal_axes(standard, self.projection.shape[1])}
        for name, value in fitted.items():
            getattr(self, name).copy_(torch.from_numpy(value.astype(np.float32)))


def masked_mean(errors: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean of ``errors`` over their last dimension and over the entries that ``weights`` count."""
    per_entry = errors.mean(dim=-1)
    return (per_entry * weights).sum() / weights.sum().clamp_min(1)


def principal_axes(standard: NDArray[np.float64], components: int) -> NDArray[np.float64]:
    """Leading principal axes ``(F, C)`` of standardised rows, scaled so that a coordinate's mean variance is 1."""
    variances, axes = np.linalg.eigh(standard.T @ standard / len(standard))
    variances, axes = variances[::-1][:components], axes[:, ::-1][:, :components]
    # The sign of an eigenvector is arbitrary; fix it by its largest entry.
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    return np.asarray(axes * signs / np.sqrt(variances.mean()))
