"""A worker process that has a copy of the policy: what its own environments observe, in batches of one size."""

from __future__ import annotations

import pickle
import time
from typing import cast

from latentgym.errors import LatentGymError
from latentgym.policies.contract import Policy
from latentgym.rollouts.actor import Actor
from latentgym.rollouts.episodes import DescribedEnv, Description, Setting
from latentgym.rollouts.slots import Slots


class Serving:
    """Serves the slots of one worker.

    Args:
        pickled: the policy.
        setting: how episodes are run.
        description: the environments.
        slots: the slots.
        batch_size: observations per batch M.

    Raises:
        LatentGymError: if the policy cannot be opened in this process.

    Attributes:
        waiting: slots whose observation has not been answered, the longest wait first.
    """

    def __init__(
        self, pickled: bytes, setting: Setting, description: Description, slots: Slots, batch_size: int
    ) -> None:
        try:
            policy = cast(Policy, pickle.loads(pickled))  # written by the program that started this process
        except Exception as error:  # whatever the policy's own parts raise
            raise LatentGymError(
                f"the policy cannot be opened in a worker process: {error!r}; define its classes in a module that can "
                "be imported, or use inference='main'"
            ) from error
        policy.bind([DescribedEnv(description)] * slots.layout.slots, setting.deliberate)
        instruction = description.contract.instruction
        self._actor = Actor(policy, slots, setting.env_id, batch_size=batch_size, instruction=instruction)
        self._slots, self._name = slots, policy.name
        self._arrived_at: dict[int, float] = {}
        self._latencies_s: dict[int, list[float]] = {}
        self._begun: dict[int, int] = {}
        self.waiting: list[int] = []
        self._batches = 0

    def begin(self, slot: int, seed: int) -> None:
        """The first observation of an episode is in its slot."""
        self._begun[slot], self._latencies_s[slot] = seed, []
        self.arrive(slot)

    def arrive(self, slot: int) -> None:
        """The next observation is in its slot."""
        self._arrived_at[slot] = time.perf_counter()
        self.waiting.append(slot)

    def answer(self) -> list[int]:
        """Act on the observations that have waited longest; their slots, which hold their actions now.

        Raises:
            LatentGymError: if the policy fails, or its actions are not what they must be.
        """
        size = self._actor.batch_size
        batch, self.waiting = self.waiting[:size], self.waiting[size:]
        begun = {slot: self._begun.pop(slot) for slot in batch if slot in self._begun}
        try:
            actions = self._actor.act(batch, begun)
        except LatentGymError:
            raise
        except Exception as error:
            raise LatentGymError(f"policy {self._name!r} failed: {error!r}; inference='main' shows where") from error
        self._batches += 1
        now = time.perf_counter()
        for slot, action in zip(batch, actions, strict=True):
            self._slots.action[slot] = action
            self._latencies_s[slot].append(now - self._arrived_at[slot])
        return batch

    def take_batches(self) -> int:
        """Number of batches since it was asked for last."""
        count, self._batches = self._batches, 0
        return count

    def latencies_s(self, slot: int) -> list[float]:
        """Seconds that each observation of the slot's episode waited for its action."""
        return self._latencies_s[slot]
