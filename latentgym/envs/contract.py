"""The environment contract, in one dataclass and three rules.

An environment fits the suite when it is a Gymnasium environment that

1. is fully determined by ``reset(seed=s)``: same seed and same actions give the same states, rewards and frames;
2. observes a ``gymnasium.spaces.Dict`` with one upright ``(H, W, 3)`` uint8 RGB entry per camera, a ``"proprio"``
   float32 vector and, where the simulator grants it, a privileged ``"state"`` float32 vector;
3. puts a boolean ``is_success`` into the info of every step. Success is never read from ``terminated``.

It states the rest in an :class:`EnvContract`, found as the attribute ``contract`` of the unwrapped environment
(``env.get_wrapper_attr("contract")``). Two further methods are optional: ``sim_state() -> (Q,) float64`` with
``set_sim_state(state)``, from which frames can be rendered again, and ``make_expert() -> Expert``.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from latentgym.errors import LatentGymError
from latentgym.trajectories.episode import ActionSpec


@dataclasses.dataclass(frozen=True)
class EnvContract:
    """What the suite must know of an environment beyond its spaces.

    Attributes:
        env_id: the id under which it was made.
        suite: ``"tabletop"``, ``"metaworld"``, ``"robosuite"``, ``"calvin"``, ``"gymnasium"`` …
        action_spec: meaning of the action's dimensions.
        cameras: observation keys that hold frames, the main camera first.
        control_hz: actions per second of simulated time.
        horizon: steps after which an episode is truncated.
        instruction: language instruction, empty where there is none.
        settings: whatever else determines the data: image size, render quality, action repeat …
    """

    env_id: str
    suite: str
    action_spec: ActionSpec
    cameras: tuple[str, ...]
    control_hz: float
    horizon: int
    instruction: str = ""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


class Expert(Protocol):
    """A scripted or learned behaviour that may look at the simulator's state."""

    def reset(self, env: gymnasium.Env[Any, Any], rng: np.random.Generator) -> None:
        """Prepare for the episode that ``env`` has just been reset to; all randomness comes from ``rng``."""

    def act(self, env: gymnasium.Env[Any, Any], observation: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Return the action ``(A,)`` float32 for the current state, inside the action space."""


def contract_of(env: gymnasium.Env[Any, Any]) -> EnvContract:
    """The contract that ``env`` states.

    Raises:
        LatentGymError: if it states none.
    """
    try:
        contract = env.get_wrapper_attr("contract")
    except AttributeError:
        contract = None
    if not isinstance(contract, EnvContract):
        raise LatentGymError(
            f"{env} states no EnvContract; make it with latentgym.make_env, which adapts any Gymnasium id, "
            "or set the attribute 'contract' on the environment"
        )
    return contract
