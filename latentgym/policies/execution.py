"""From plans of several actions to one action per step: temporal ensembling, or one chunk after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from latentgym.errors import LatentGymError
from latentgym.seeding import torch_generator


@dataclasses.dataclass(frozen=True)
class ExecutionSettings:
    """How plans are executed.

    Attributes:
        execute: actions of a plan that are executed before the next one is made.
        ensemble: m of temporal ensembling (arXiv 2304.13705): a plan is made at every step, and the action is the mean
            of what all plans say of this step, weighted by exp(-m i), i = 0 for the oldest. ``None`` for no ensembling.
    """

    execute: int = 1
    ensemble: float | None = None

    def check(self, horizon: int) -> None:
        """Refuse settings that do not fit plans of ``horizon`` actions.

        Raises:
            LatentGymError: if they do not.
        """
        if not 1 <= self.execute <= horizon:
            raise LatentGymError(f"execute must be from 1 to the chunk's {horizon} actions, found {self.execute}")
        if self.ensemble is not None and (self.execute != 1 or not self.ensemble >= 0):
            raise LatentGymError(
                f"temporal ensembling plans at every step (execute=1) with a weight of at least 0, found "
                f"execute={self.execute}, ensemble={self.ensemble}"
            )


class Execution:
    """The plans that B rows are following.

    Args:
        settings: how plans are executed.
        horizon: actions per plan H.
        size: dimensions of an action A.
    """

    def __init__(self, settings: ExecutionSettings, horizon: int, size: int) -> None:
        settings.check(horizon)
        self.settings, self.horizon, self.size = settings, horizon, size
        self._generators: list[torch.Generator] = []
        self._age = np.zeros(0, np.int64)
        # Entry j of a row is the plan that was made j steps ago.
        self._plans = torch.zeros(0, horizon, horizon, size)

    def reset(self, mask: NDArray[np.bool_], seeds: Sequence[int] | None) -> None:
        """Forget the plans of the rows where ``mask`` ``(B,)`` is true; each draws from its own seed from now on."""
        rows = len(mask)
        if rows != len(self._age):
            self._age = np.zeros(rows, np.int64)
            self._plans = torch.zeros(rows, self.horizon, self.horizon, self.size)
            self._generators = [torch_generator(row, "plan") for row in range(rows)]
        for row in np.flatnonzero(mask):
            self._age[row] = 0
            self._generators[row] = torch_generator(int(row) if seeds is None else seeds[row], "plan")

    @property
    def due(self) -> NDArray[np.bool_]:
        """``(B,)`` bool, rows that need a plan now."""
        return np.asarray(self._age % self.settings.execute == 0)

    def noise(self, rows: NDArray[np.intp] | None = None) -> torch.Tensor:
        """Standard normal numbers ``(b, H, A)`` of ``rows``, drawn where a plan is due and zero elsewhere."""
        rows = np.arange(len(self._age)) if rows is None else rows
        noise = torch.zeros(len(rows), self.horizon, self.size)
        for place in np.flatnonzero(self.due[rows]):
            noise[place] = torch.randn(self.horizon, self.size, generator=self._generators[rows[place]])
        return noise

    def step(self, plan: torch.Tensor | None, rows: NDArray[np.intp] | None = None) -> torch.Tensor:
        """Actions ``(b, A)`` of this step; rows that are not named stand still.

        Args:
            plan: new plans ``(b, H, A)``, of which those that are due are taken; may be missing where none is due.
            rows: ``(b,)`` the rows that move on; all B by default.
        """
        rows = np.arange(len(self._age)) if rows is None else rows
        index = torch.from_numpy(rows)
        plans = torch.roll(self._plans[index], 1, dims=1)
        if plan is not None:
            plans[:, 0] = torch.where(torch.from_numpy(self.due[rows])[:, None, None], plan, plans[:, 0])
        self._plans[index] = plans
        ages = torch.from_numpy(self._age[rows])
        self._age[rows] += 1
        if self.settings.ensemble is None:
            since = ages % self.settings.execute
            return plans[torch.arange(len(rows)), since, since]
        return self._ensembled(plans, ages)

    def _ensembled(self, plans: torch.Tensor, ages: torch.Tensor) -> torch.Tensor:
        steps = torch.arange(self.horizon)
        said = plans[:, steps, steps]
        oldest = torch.clamp(ages, max=self.horizon - 1)
        weights = torch.exp(-self.settings.ensemble * (oldest[:, None] - steps[None, :]))  # type: ignore[operator]
        weights = torch.where(steps[None, :] <= oldest[:, None], weights, torch.zeros(()))
        return (said * weights[..., None]).sum(dim=1) / weights.sum(dim=1, keepdim=True)
