"""The policy contract: batched, stateful between resets, and free of hidden randomness."""

from __future__ import annotations

import abc
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray


class Policy(abc.ABC):
    """Maps a batch of observations to a batch of actions.

    A policy serves B environments at once, row i always serving environment i. Before the first step, and whenever an
    environment starts a new episode, the caller marks its row in :meth:`reset`; the policy then forgets its history.
    A stochastic policy draws from one generator per row, seeded in :meth:`reset`.

    Attributes:
        name: name shown in tables and messages.
        needs_pixels: whether it reads frames; rollouts of a policy that does not are not rendered.
    """

    name: str = "policy"
    needs_pixels: bool = True

    def bind(self, envs: Sequence[gymnasium.Env[Any, Any]], deliberate: Collection[str] = ()) -> None:  # noqa: B027
        """Meet the environments that the rows will serve, before the first :meth:`reset`; nothing by default.

        Args:
            envs: B environments of one kind, row i serving ``envs[i]``.
            deliberate: settings that the caller chose on purpose, to which a policy does not object.

        Raises:
            LatentGymError: if the policy was made for other environments.
        """

    @abc.abstractmethod
    def reset(self, mask: NDArray[np.bool_], seeds: Sequence[int] | None = None) -> None:
        """Forget the history of the rows where ``mask`` is true.

        Args:
            mask: ``(B,)`` bool.
            seeds: one seed per row for stochastic policies; rows where ``mask`` is false are ignored.
        """

    @abc.abstractmethod
    def act(self, observation: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Actions ``(B, A)`` float32.

        Args:
            observation: each entry of the environment's observation with a leading batch dimension: cameras
                ``(B, H, W, 3)`` uint8, ``"proprio"`` ``(B, P)`` float32, ``"state"`` ``(B, S)`` float32.
        """
