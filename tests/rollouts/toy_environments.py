"""Environments that end early, late, badly or not at all; importable by the worker processes of rollouts."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np


class Clock(gymnasium.Env[Any, Any]):
    """Succeeds at once for even seeds, and fails late for odd ones; ends with ``terminated`` whatever happened."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    observation_space = gymnasium.spaces.Box(-1e6, 1e6, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self._seed, self._time = seed or 0, 0
        return np.float32([self._seed, 0]), {"is_success": False}

    def step(self, action: Any) -> Any:
        self._time += 1
        success = self._seed % 2 == 0 and self._time == 1 + self._seed % 3
        over = self._time == 10 + self._seed % 5
        return np.float32([self._seed, self._time]), 1.0, over, False, {"is_success": success}

    def render(self) -> Any:
        return np.full((64, 64, 3), 20 * self._time % 256, np.uint8)


class Walk(gymnasium.Env[Any, Any]):
    """A point that actions move, with noise drawn from the seed; succeeds once it is 1.5 from where it began.

    Args:
        render_mode: ignored.
        faults: seed as text to what goes wrong at its fourth step, or ``"start"`` to what goes wrong where one is made:
            ``"kill"``, ``"hang"`` or ``"raise"``, with ``" once"`` only at the first attempt.
        folder: where attempts leave a mark.
        step_s: seconds that a step takes.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    observation_space = gymnasium.spaces.Box(-1e6, 1e6, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(
        self,
        render_mode: str | None = None,
        faults: Mapping[str, str] | None = None,
        folder: str = "",
        step_s: float = 0.0,
    ) -> None:
        self.render_mode, self._faults, self._folder, self._step_s = render_mode, faults or {}, folder, step_s
        self._fail("start")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self._seed, self._time, self._place = seed or 0, 0, np.zeros(2, np.float32)
        return self._observation(), {"is_success": False}

    def step(self, action: Any) -> Any:
        self._time += 1
        if self._time == 4:
            self._fail(str(self._seed))
        time.sleep(self._step_s)
        self._place += 0.3 * action + 0.1 * self.np_random.standard_normal(2).astype(np.float32)
        success = bool(np.linalg.norm(self._place) > 1.5)
        over = self._time == 8 + self._seed % 9
        return self._observation(), float(self._place[0]), over, False, {"is_success": success}

    def render(self) -> Any:
        return np.full((64, 64, 3), 20 * self._time % 256, np.uint8)

    def _observation(self) -> Any:
        return np.float32([*self._place, self._time])

    def _fail(self, place: str) -> None:
        fault, mark = self._faults.get(place, ""), Path(self._folder) / place
        if not fault or (fault.endswith("once") and mark.exists()):
            return
        assert self._folder, "faults leave marks: give them a folder"
        mark.touch()
        if fault.startswith("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if fault.startswith("hang"):
            time.sleep(1000)
        raise RuntimeError("the simulator is unstable")
