"""What the environment asks of a simulator: ours and the original both provide it."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from latentgym.envs.calvin.snapshot import Snapshot


class Simulator(Protocol):
    """What the environment asks of a simulator; :class:`~latentgym.envs.calvin.world.World` is ours."""

    def reset(
        self,
        rng: np.random.Generator,
        robot_obs: NDArray[np.float64] | None = None,
        scene_obs: NDArray[np.float64] | None = None,
    ) -> None:
        """Load the world anew and bring it into a state."""

    def step(self, action: NDArray[np.floating[Any]], *, relative: bool = True) -> None:
        """Simulate one control step."""

    def robot_obs(self) -> NDArray[np.float64]:
        """``(15,)``."""

    def scene_obs(self) -> NDArray[np.float64]:
        """``(24,)``."""

    def snapshot(self) -> Snapshot:
        """What the task oracle looks at."""

    def target_pose(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Position and Euler angles of the robot's target, for experts."""

    def link_box(self, link: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Box around one link of the table, for experts."""

    def render(self, camera: str) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Frame and depth of one camera."""

    def close(self) -> None:
        """Free what it holds."""
