"""The policy's side of a rollout: micro-batches of one size, whichever environments are ready."""

from __future__ import annotations

import copy
import inspect
import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from latentgym.encoders.contract import Encoder
from latentgym.policies.contract import Policy
from latentgym.rollouts.episodes import checked_actions
from latentgym.rollouts.slots import Slots
from latentgym.seeding import derive_seed, numpy_generator

_SMALL_PARAMETERS = 5_000_000
_SMALL_BATCH, _ACCELERATOR_BATCH = 4, 16
_PROBES = 2


def is_small(policy: Policy) -> bool:
    """Whether the policy's encoder, if it has one, is so small that Python takes a good part of its time."""
    encoder: Encoder | None = getattr(policy, "encoder", None)
    return encoder is None or encoder.spec.parameters <= _SMALL_PARAMETERS


def default_batch_size(policy: Policy) -> int:
    """Observations per batch where none is asked for.

    Small networks are cheaper per observation in a batch, but a larger batch needs more environments, which take time
    to make, and more of it is padding when few episodes are left. Large networks on a CPU gain nothing from a batch.
    """
    if is_small(policy):
        return _SMALL_BATCH
    return 1 if policy.encoder.device.type == "cpu" else _ACCELERATOR_BATCH  # type: ignore[attr-defined]


def takes_rows(policy: Policy) -> bool:
    """Whether ``policy`` can serve some of its rows at a time."""
    return "rows" in inspect.signature(policy.act).parameters


class Actor:
    """Serves slots by a policy in batches of one size.

    Row i of the policy serves slot i. A batch of fewer slots is filled up with rows that serve nobody, so that every
    batch has one size and the arithmetic of one kind. What a row computes must not depend on its place in the batch or
    its company: that is tried out first, and where it does not hold, batches have the next smaller power of two for
    which it does.

    Args:
        policy: the policy, bound to its environments.
        slots: the slots.
        env_id: name of the environments in errors.
        batch_size: observations per batch M.
        threads: threads that may call :meth:`act` at once; 1 if the policy is not concurrent.
        instruction: what observed texts say where the policy is tried out.
    """

    def __init__(
        self, policy: Policy, slots: Slots, env_id: str, *, batch_size: int, threads: int = 1, instruction: str = ""
    ) -> None:
        batched = takes_rows(policy)
        self._policy: Policy = policy if batched else _Copies(policy)
        self._slots, self._env_id = slots, env_id
        self.threads = threads if policy.concurrent and batched else 1
        self._count = slots.layout.slots
        rows = self._count + self.threads * batch_size
        self._seeds = [0] * rows
        # Seed and step of the episode in every slot, for errors.
        self._places = [(0, 0)] * self._count
        self.batch_size = 1
        if batched:
            smaller = [2**power for power in reversed(range(batch_size.bit_length())) if 2**power < batch_size]
            self.batch_size = next(size for size in (batch_size, *smaller) if self._indifferent(size, instruction))
            self._policy.reset(np.ones(rows, np.bool_), self._seeds)
        if batched and self.batch_size < batch_size:
            warnings.warn(
                f"policy {policy.name!r} rounds differently at different places of a batch of {batch_size}; it is "
                f"served in batches of {self.batch_size}, so that results do not depend on timing",
                stacklevel=2,
            )

    def act(self, slots: Sequence[int], begun: Mapping[int, int], thread: int = 0) -> NDArray[np.float32]:
        """Actions ``(b, A)`` for the observations of at most M slots.

        Args:
            slots: the slots.
            begun: slot to seed of the episodes whose first observation this is.
            thread: number of the calling thread.

        Raises:
            LatentGymError: if the policy returns a wrong shape or an action that is not finite.
        """
        if begun:
            mask = np.zeros(len(self._seeds), np.bool_)
            for slot, seed in begun.items():
                mask[slot], self._seeds[slot] = True, derive_seed(seed, "policy")
                self._places[slot] = (seed, 0)
            self._policy.reset(mask, self._seeds)
        missing = self.batch_size - len(slots)
        first = self._count + thread * self.batch_size
        rows = np.array([*slots, *range(first, first + missing)], np.intp)
        actions = self._policy.act(self._slots.gather([*slots, *[slots[-1]] * missing]), rows)
        shape = (self.batch_size, self._slots.layout.action_size)
        places = [self._places[slot] for slot in slots]
        for slot, (seed, step) in zip(slots, places, strict=True):
            self._places[slot] = (seed, step + 1)
        return checked_actions(actions, shape, self._policy.name, self._env_id, places)

    def _indifferent(self, size: int, instruction: str) -> bool:
        """Whether equal observations give equal bits in every row of a batch of ``size``.

        Which order a kernel adds in depends on shapes and places, not on values, so that a few observations tell.
        """
        generator, rows = numpy_generator(0, "actor"), np.arange(self._count, self._count + size)
        self._policy.reset(np.ones(len(self._seeds), np.bool_), self._seeds)
        for _ in range(_PROBES):
            observation: dict[str, NDArray[Any]] = {
                key: np.full(size, instruction, object) for key in self._slots.layout.texts
            }
            for key, shape, dtype in self._slots.layout.entries:
                value = generator.integers(0, 256, shape) if dtype == "|u1" else generator.standard_normal(shape)
                observation[key] = np.repeat(np.asarray(value).astype(dtype)[None], size, axis=0)
            actions = self._policy.act(observation, rows)
            if not np.array_equal(actions, np.broadcast_to(actions[:1], np.shape(actions)), equal_nan=True):
                return False
        return True


class _Copies(Policy):
    """A policy that cannot serve some of its rows at a time, as one copy of one row each; networks are shared."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.name, self.needs_pixels = policy.name, policy.needs_pixels
        self._copies: dict[int, Policy] = {}

    def reset(self, mask: NDArray[np.bool_], seeds: Sequence[int] | None = None) -> None:
        for row in np.flatnonzero(mask):
            if row not in self._copies:
                # Modules and encoders keep nothing between calls, and are too large to have many of.
                shared = [
                    value for value in vars(self._policy).values() if isinstance(value, torch.nn.Module | Encoder)
                ]
                self._copies[row] = copy.deepcopy(self._policy, {id(value): value for value in shared})
            self._copies[row].reset(np.ones(1, np.bool_), None if seeds is None else [seeds[row]])

    def act(self, observation: Mapping[str, NDArray[Any]], rows: NDArray[np.intp] | None = None) -> NDArray[np.float32]:
        rows = np.array([*self._copies], np.intp) if rows is None else rows
        places = zip(itertools.count(), rows)
        parts = [
            self._copies[row].act({key: values[place : place + 1] for key, values in observation.items()})
            for place, row in places
        ]
        return np.concatenate(parts)
