"""Policies that frame every success rate: the expert above, constant and random actions below."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Self

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from latentgym.encoders.contract import Encoder
from latentgym.envs.behaviours import Behaviour, make_behaviour
from latentgym.envs.contract import contract_of
from latentgym.errors import LatentGymError
from latentgym.policies.checkpoint import CheckpointedPolicy, Training
from latentgym.policies.demonstrations import cloning_target
from latentgym.seeding import numpy_generator
from latentgym.trajectories.episode import ActionSpec
from latentgym.trajectories.store import Dataset


class BehaviourPolicy(CheckpointedPolicy):
    """A behaviour of the recording room in closed loop: one per row, each with a generator of its own."""

    needs_pixels = False
    needs_simulator = True
    behaviour = ""

    def __init__(self) -> None:
        self._envs: Sequence[gymnasium.Env[Any, Any]] = ()
        self._behaviours: list[Behaviour] = []
        self._started = np.zeros(0, dtype=np.bool_)
        self._size = 0

    def bind(self, envs: Sequence[gymnasium.Env[Any, Any]], deliberate: Collection[str] = ()) -> None:
        """Make one behaviour per environment.

        Raises:
            LatentGymError: if the environment does not bring what the behaviour needs.
        """
        self._envs, self._behaviours = envs, [make_behaviour(self.behaviour, env) for env in envs]
        self._size = contract_of(envs[0]).action_spec.size
        self._started = np.zeros(len(envs), dtype=np.bool_)

    def reset(self, mask: NDArray[np.bool_], seeds: Sequence[int] | None = None) -> None:
        """Prepare the rows where ``mask`` is true, whose environments have just been reset.

        Args:
            mask: ``(B,)`` bool.
            seeds: one seed per row; the row's number by default.
        """
        if len(mask) != len(self._behaviours):
            raise LatentGymError(
                f"policy {self.name!r} is bound to {len(self._behaviours)} environments, found {len(mask)} rows; "
                "call bind with the environments first"
            )
        for row in np.flatnonzero(mask):
            generator = numpy_generator(int(row) if seeds is None else seeds[row], self.name)
            self._behaviours[row].reset(self._envs[row], generator)
        self._started |= mask

    def act(self, observation: Mapping[str, NDArray[Any]], rows: NDArray[np.intp] | None = None) -> NDArray[np.float32]:
        """Actions ``(b, A)`` float32 of ``rows``; zero in those that have not started."""
        rows = np.arange(len(self._behaviours)) if rows is None else rows
        actions = np.zeros((len(rows), self._size), dtype=np.float32)
        for place, row in enumerate(rows):
            if self._started[row]:
                own = {key: values[place] for key, values in observation.items()}
                actions[place] = self._behaviours[row].act(self._envs[row], own).action
        return actions

    def record(self) -> dict[str, Any]:
        """Nothing: behaviours belong to the environment."""
        return {}

    @classmethod
    def restore(cls, record: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], encoder: Encoder | None) -> Self:
        """The policy that was saved."""
        return cls()


class ExpertPolicy(BehaviourPolicy):
    """The environment's own expert, which may look at the simulator; it shows that a task can be solved."""

    kind = behaviour = "expert"
    name = "expert"


class RandomPolicy(BehaviourPolicy):
    """The smooth random actions that data sets hold.

    Args:
        action_spec: actions that the environment must take; any by default.
    """

    kind = behaviour = "random"
    name = "random actions"

    def __init__(self, action_spec: ActionSpec | None = None) -> None:
        super().__init__()
        self._spec = action_spec

    def bind(self, envs: Sequence[gymnasium.Env[Any, Any]], deliberate: Collection[str] = ()) -> None:
        """Make one behaviour per environment.

        Raises:
            LatentGymError: if the policy was made for other actions.
        """
        found = contract_of(envs[0]).action_spec
        if self._spec not in (None, found):
            raise LatentGymError(f"policy {self.name!r} was made for other actions than {found.names}")
        super().bind(envs, deliberate)


class ConstantPolicy(CheckpointedPolicy):
    """The same action at every step.

    Args:
        action: ``(A,)``.
        training: what the action was taken from, or ``None`` for any environment of that action size.
    """

    kind = "constant"
    name = "constant action"
    needs_pixels = False
    concurrent = True

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

    def act(self, observation: Mapping[str, NDArray[Any]], rows: NDArray[np.intp] | None = None) -> NDArray[np.float32]:
        """Actions ``(b, A)`` float32 of ``rows``."""
        return np.tile(self._action, (self._rows if rows is None else len(rows), 1))

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
