"""Behaviour cloning on a frozen encoder (PROTOCOL #18): any head of :mod:`latentgym.policies.heads` in closed loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Self

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from latentgym.encoders.contract import Encoder
from latentgym.encoders.features import View, encode_clips
from latentgym.encoders.streaming import LatentStream
from latentgym.envs.contract import contract_of
from latentgym.envs.wrappers.goal_observation import goal_key
from latentgym.errors import LatentGymError
from latentgym.policies.checkpoint import CheckpointedPolicy, Training
from latentgym.policies.conditions import WORDS, instruction_features
from latentgym.policies.demonstrations import CloningScore, clipped
from latentgym.policies.execution import Execution, ExecutionSettings
from latentgym.policies.heads import LatentHead, find_head
from latentgym.results import Row


class CloningPolicy(CheckpointedPolicy):
    """A frozen encoder and a head, acting in closed loop on the ``causal`` view.

    Attributes:
        encoder: the frozen encoder.
        head: the trained head.
        training: what it was trained on.
        score: prediction of held-out demonstrations.
        facts: seed, demonstrations, steps, loss curve.
        condition: ``"none"``, ``"goal"`` (the observation holds ``"goal_pixels"`` or the like, see
            :class:`~latentgym.envs.wrappers.GoalObservation`) or ``"instruction"``.
        instruction_encoder: what turns an instruction into numbers.
        execution: how plans are executed.
    """

    kind = "cloning"
    encoder: Encoder

    def __init__(
        self,
        encoder: Encoder,
        head: LatentHead,
        training: Training,
        score: CloningScore,
        facts: Mapping[str, Any],
        *,
        condition: str = "none",
        instruction_encoder: str = WORDS,
        execution: ExecutionSettings | None = None,
    ) -> None:
        self.encoder, self.head, self.training, self.score = encoder, head, training, score
        self.facts, self.condition = dict(facts), condition
        self.instruction_encoder = instruction_encoder
        self.execution = execution or ExecutionSettings()
        kind = "cloning" if head.kind == "mlp" else head.kind.replace("_", " ")
        self.name = f"{kind} on {encoder.spec.name}"
        self.needs_pixels = encoder.spec.modality == "pixels"
        self.concurrent = encoder.concurrent
        self._camera = training.camera or "pixels"
        self._instruction = ""
        self._stream = LatentStream(encoder)
        self._plans = Execution(self.execution, head.horizon, head.actions_size)
        self._history = torch.zeros(0, head.history, head.width)
        self._told = torch.zeros(0, head.condition)
        self._fresh = np.zeros(0, dtype=np.bool_)

    @property
    def cloning_r2(self) -> float | None:
        """Macro R² on the test split's demonstrations; ``None`` where no action dimension varies."""
        return self.score.value

    def rows(self, replicates: int = 1000, seed: int = 0) -> list[Row]:
        """``cloning_r2``, macro with an episode-bootstrap interval and per dimension."""
        spec = self.encoder.spec
        return self.score.rows(
            env=self.training.env_id, encoder=spec.name, family=spec.family, replicates=replicates, seed=seed
        )

    def bind(self, envs: Sequence[gymnasium.Env[Any, Any]], deliberate: Collection[str] = ()) -> None:
        """Refuse environments that the policy was not trained for."""
        contract = contract_of(envs[0])
        self.training.check(contract, self.name, deliberate)
        self._instruction = contract.instruction
        space = envs[0].observation_space
        if self.condition == "goal" and not (isinstance(space, spaces.Dict) and self._goal_key in space.spaces):
            raise LatentGymError(
                f"policy {self.name!r} follows a goal, but {contract.env_id} does not observe {self._goal_key!r}; make "
                "the environment with goal=True"
            )

    @property
    def _goal_key(self) -> str:
        modality = self.encoder.spec.modality
        return goal_key(self._camera if modality == "pixels" else modality)

    def reset(self, mask: NDArray[np.bool_], seeds: Sequence[int] | None = None) -> None:
        """Forget history and plans of the rows where ``mask`` is true; stochastic heads draw from ``seeds``."""
        mask = np.asarray(mask, dtype=np.bool_)
        if len(mask) != len(self._fresh):
            device = self.head.mean.device
            self._fresh = np.ones(len(mask), dtype=np.bool_)
            self._told = torch.zeros(len(mask), self.head.condition)
            self._history = torch.zeros(len(mask), self.head.history, self.head.width, device=device)
        self._stream.reset(mask)
        self._plans.reset(mask, seeds)
        self._fresh[mask] = True

    @torch.inference_mode()
    def act(self, observation: Mapping[str, NDArray[Any]], rows: NDArray[np.intp] | None = None) -> NDArray[np.float32]:
        """Actions ``(b, A)`` float32 of ``rows``, clipped to the action's range."""
        rows = np.arange(len(self._fresh)) if rows is None else rows
        history, told = self._remember(observation, rows)
        plan = None
        if self._plans.due[rows].any():
            device = self.head.mean.device
            noise = self._plans.noise(rows).to(device) if self.head.stochastic else None
            plan = self.head.actions(history, None if told is None else told.to(device), noise).cpu()
        return clipped(self._plans.step(plan, rows).numpy(), self.training.action_spec)

    def _remember(
        self, observation: Mapping[str, NDArray[Any]], rows: NDArray[np.intp]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The latents ``(b, h, F')`` that ``rows`` act on, and what they are told, ``(b, C)``."""
        latents = torch.from_numpy(self._stream.advance(observation, rows, self._camera))
        newest = self.head.prepare(latents.to(self.head.mean.device))[:, None]
        index, fresh = torch.from_numpy(rows), torch.from_numpy(self._fresh[rows])
        history = torch.cat([self._history[index, 1:], newest], dim=1)
        history[fresh] = newest[fresh]
        self._history[index] = history
        if self.head.condition and fresh.any():
            self._told[index[fresh]] = self._condition(observation, len(rows)).cpu()[fresh]
        self._fresh[rows] = False
        return history, self._told[index] if self.head.condition else None

    def _condition(self, observation: Mapping[str, NDArray[Any]], count: int) -> torch.Tensor:
        """What the ``count`` rows that are observed are told, ``(b, C)``."""
        if self.condition == "instruction":
            texts = observation.get("instruction", np.full(count, self._instruction, object))
            return torch.from_numpy(instruction_features([str(text) for text in texts], self.instruction_encoder))
        goals = np.asarray(observation[self._goal_key])
        clips = np.repeat(goals[:, None], self.encoder.spec.clip_length, axis=1)
        latents = encode_clips(self.encoder, clips, View("single"), batch_size=len(clips))
        return self.head.prepare(torch.from_numpy(latents).to(self.head.mean.device))

    def record(self) -> dict[str, Any]:
        """Training record, kind and shape of the head, how it is used, and score."""
        return {
            "training": self.training,
            "head": {"kind": self.head.kind, **self.head.shape},
            "condition": self.condition,
            "instruction_encoder": self.instruction_encoder,
            "execution": dataclasses.asdict(self.execution),
            "score": self.score.to_dict(),
            "facts": self.facts,
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """Weights and normalisation of the head."""
        return dict(self.head.state_dict())

    @classmethod
    def restore(cls, record: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], encoder: Encoder | None) -> Self:
        """The policy that was saved."""
        if encoder is None:
            raise KeyError("encoder")
        shape = dict(record["head"])
        head = find_head(shape.pop("kind", "mlp"))(**shape).eval()
        head.load_state_dict(dict(tensors))
        training, score = Training.from_dict(record["training"]), CloningScore.from_dict(record["score"])
        return cls(
            encoder,
            head.to(encoder.device),
            training,
            score,
            record["facts"],
            condition=record.get("condition", "none"),
            instruction_encoder=record.get("instruction_encoder", WORDS),
            execution=ExecutionSettings(**record.get("execution", {})),
        )
