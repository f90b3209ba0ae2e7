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

    Rollouts serve whichever environments are ready, so :meth:`act` should take ``rows``; a policy whose ``act`` does
    not is copied, one copy for each environment, and gets batches of one.

    Attributes:
        name: name shown in tables and messages.
        needs_pixels: whether it reads frames; rollouts of a policy that does not are not rendered.
        needs_simulator: whether it looks at the environments themselves, as a scripted expert does. It then acts where
            they are, in worker processes too, and must survive pickling before :meth:`bind`.
        concurrent: whether several threads may call :meth:`act` at once for different rows, after the first call has
            returned.
    """

    name: str = "policy"
    needs_pixels: bool = True
    needs_simulator: bool = False
    concurrent: bool = False

    def bind(self, envs: Sequence[gymnasium.Env[Any, Any]], deliberate: Collection[str] = ()) -> None:  # noqa: B027
        """Meet the environments that the rows will serve, before the first :meth:`reset`; nothing by default.

        Args:
            envs: B environments of one kind, row i serving ``envs[i]``. Unless the policy needs the simulator they may
                run elsewhere and state their contract and spaces only.
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
    def act(self, observation: Mapping[str, NDArray[Any]], rows: NDArray[np.intp] | None = None) -> NDArray[np.float32]:
        """Actions ``(b, A)`` float32 of the rows that are asked for; the others stand still.

        Args:
            observation: each entry of the environment's observation with a leading batch dimension: cameras
                ``(b, H, W, 3)`` uint8, ``"proprio"`` ``(b, P)`` float32, ``"state"`` ``(b, S)`` float32.
            rows: ``(b,)`` rows that the entries belong to, all different; all B rows in order by default.
        """
