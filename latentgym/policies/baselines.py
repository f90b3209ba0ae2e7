"""Policies that frame every success rate: the expert above, constant and random actions below."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Self

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from latentgym.encoders.contract import Encoder
from latentgym.envs.contract import Expert, contract_of
from latentgym.errors import LatentGymError
from latentgym.policies.checkpoint import CheckpointedPolicy, Training
from latentgym.policies.demonstrations import cloning_target
from latentgym.seeding import numpy_generator
from latentgym.trajectories.episode import ActionSpec
from latentgym.trajectories.store import Dataset

_SMOOTHNESS = 0.8


class RandomPolicy(CheckpointedPolicy):
    """Smooth random actions: each dimension is a first-order autoregressive process over its range.

    Args:
        action_spec: meaning of the actions; taken from the environment if left out.
    """

    kind = "random"
    name = "random actions"
    needs_pixels = False

    def __init__(self, action_spec: ActionSpec | None = None) -> None:
        self._spec = action_spec
        self._generators: list[np.random.Generator] = []
        self._noise = np.zeros((0, 0))

    def bind(self, envs: Sequence[gymnasium.Env[Any, Any]], deliberate: Collection[str] = ()) -> None:
        """Learn the range of actions.

        Raises:
            LatentGymError: if the policy was made for other actions.
        """
        found = contract_of(envs[0]).action_spec
        if self._spec is not None and self._spec != found:
            raise LatentGymError(f"policy {self.name!r} was made for actions {self._spec.names}, found {found.names}")
        self._spec = found

    def reset(self, mask: NDArray[np.bool_], seeds: Sequence[int] | None = None) -> None:
        """Start a new sequence in the rows where ``mask`` is true, from ``seeds`` (0 … B-1 by default)."""
        spec = self._known_spec()
        if len(mask) != len(self._generators):
            self._generators = [np.random.default_rng(0) for _ in mask]
            self._noise = np.zeros((len(mask), spec.size))
        for row in np.flatnonzero(mask):
            self._generators[row] = numpy_generator(int(row) if seeds is None else seeds[row], "random policy")
            self._noise[row] = self._generators[row].standard_normal(spec.size)

    def act(self, observation: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Actions ``(B, A)`` float32 inside the action's range."""
        spec = self._known_spec()
        low, high = np.array(spec.low), np.array(spec.high)
        actions = np.clip((low + high) / 2 + (high - low) / 2 * 0.7 * self._noise, low, high)
        fresh = np.stack([generator.standard_normal(spec.size) for generator in self._generators])
        self._noise = _SMOOTHNESS * self._noise + np.sqrt(1 - _SMOOTHNESS**2) * fresh
        return actions.astype(np.float32)

    def _known_spec(self) -> ActionSpec:
        if self._spec is None:
            raise LatentGymError("RandomPolicy: pass an action_spec, or bind it to environments first")
        if not np.isfinite([self._spec.low, self._spec.high]).all():
            raise LatentGymError("RandomPolicy: random actions need a bounded action range")
        return self._spec

    def record(self) -> dict[str, Any]:
        """The action's meaning."""
        return {"action_spec": self._spec}

    @classmethod
    def restore(cls, record: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], encoder: Encoder | None) -> Self:
        """The policy that was saved."""
        spec = record["action_spec"]
        return cls(None if spec is None else ActionSpec.from_dict(spec))


class ConstantPolicy(CheckpointedPolicy):
    """The same action at every step.

    Args:
        action: ``(A,)``.
        training: what the action was taken from, or ``None`` for any environment of that action size.
    """

    kind = "constant"
    name = "constant action"
    needs_pixels = False

    def __init__(self, action: NDArray[np.floating[Any]], training: Training | None = None) -> None:
        self._action = np.asarray(action, dtype=np.float32)
        self._training = training
        self._rows = 0

    @classmethod
    def fit(cls, dataset: Dataset, episodes: Sequence[int]) -> Self:
        """The mean action to imitate over all steps of ``episodes``."""
        targets = np.concatenate([cloning_target(dataset.episode(index, ())) for index in episodes])
        return cls(targets.mean(axis=0, dtype=np.float64), Training.of(dataset))

    def bind(self, envs: Sequence[gymnasium.Env[Any, Any]], deliberate: Collection[str] = ()) -> None:
        """Refuse environments that the action does not belong to."""
        contract = contract_of(envs[0])
        if self._training is not None:
            self._training.check(contract, self.name, deliberate)
        elif contract.action_spec.size != len(self._action):
            raise LatentGymError(
                f"policy {self.name!r} has {len(self._action)} action dimensions, {contract.env_id} takes "
                f"{contract.action_spec.size}"
            )

    def reset(self, mask: NDArray[np.bool_], seeds: Sequence[int] | None = None) -> None:
        """Nothing to forget."""
        self._rows = len(mask)

    def act(self, observation: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Actions ``(B, A)`` float32."""
        return np.tile(self._action, (self._rows, 1))

    def record(self) -> dict[str, Any]:
        """What the action was taken from."""
        return {"training": self._training}

    def tensors(self) -> dict[str, torch.Tensor]:
        """The action."""
        return {"action": torch.from_numpy(self._action)}

    @classmethod
    def restore(cls, record: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], encoder: Encoder | None) -> Self:
        """The policy that was saved."""
        training = record["training"]
        return cls(tensors["action"].numpy(), None if training is None else Training.from_dict(training))


class ExpertPolicy(CheckpointedPolicy):
    """The environment's own expert, which may look at the simulator; it shows that a task can be solved."""

    kind = "expert"
    name = "expert"
    needs_pixels = False

    def __init__(self) -> None:
        self._envs: Sequence[gymnasium.Env[Any, Any]] = ()
        self._experts: list[Expert] = []
        self._started = np.zeros(0, dtype=np.bool_)
        self._size = 0

    def bind(self, envs: Sequence[gymnasium.Env[Any, Any]], deliberate: Collection[str] = ()) -> None:
        """Make one expert per environment.

        Raises:
            LatentGymError: if the environment has none.
        """
        from latentgym.envs.make import make_expert

        self._envs, self._experts = envs, [make_expert(env) for env in envs]
        self._size = contract_of(envs[0]).action_spec.size
        self._started = np.zeros(len(envs), dtype=np.bool_)

    def reset(self, mask: NDArray[np.bool_], seeds: Sequence[int] | None = None) -> None:
        """Prepare the experts of the rows where ``mask`` is true; their environments have just been reset."""
        if len(mask) != len(self._experts):
            raise LatentGymError(
                f"policy 'expert' is bound to {len(self._experts)} environments, found {len(mask)} rows"
            )
        for row in np.flatnonzero(mask):
            generator = numpy_generator(int(row) if seeds is None else seeds[row], "expert")
            self._experts[row].reset(self._envs[row], generator)
        self._started |= mask

    def act(self, observation: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Actions ``(B, A)`` float32; zero in rows that have not started."""
        actions = np.zeros((len(self._experts), self._size), dtype=np.float32)
        for row in np.flatnonzero(self._started):
            own = {key: values[row] for key, values in observation.items()}
            actions[row] = self._experts[row].act(self._envs[row], own)
        return actions

    def record(self) -> dict[str, Any]:
        """Nothing: the expert belongs to the environment."""
        return {}

    @classmethod
    def restore(cls, record: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], encoder: Encoder | None) -> Self:
        """The policy that was saved."""
        return cls()
