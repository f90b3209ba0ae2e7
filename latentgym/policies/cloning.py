"""Behaviour cloning on a frozen encoder (PROTOCOL #18; CortexBench, arXiv 2303.18240): an MLP on a short history."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Self

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from latentgym.encoders.cache import FeatureCache
from latentgym.encoders.contract import Encoder
from latentgym.encoders.features import View, encode_view
from latentgym.encoders.streaming import LatentStream
from latentgym.envs.contract import contract_of
from latentgym.errors import LatentGymError
from latentgym.policies.checkpoint import CheckpointedPolicy, Training
from latentgym.policies.demonstrations import (
    CloningScore,
    choose_demonstrations,
    clipped,
    cloning_target,
    demonstration_episodes,
    history_indices,
)
from latentgym.policies.regression import fit, initialise, mlp, safe_scale
from latentgym.results import Row
from latentgym.seeding import torch_generator
from latentgym.trajectories.splits import Split, split_episodes
from latentgym.trajectories.store import Dataset

CAUSAL = View("causal")

MIN_STEP_SCALE = 1e-3


class CloningHead(nn.Module):
    """Standardises latents, optionally projects them, and maps a history of them to an action.

    The network sees the newest latent and, for each older one, the scaled step to its successor: the same numbers as
    the history itself, but with motion at unit scale instead of hidden in the difference of two large values.

    Args:
        features: width F of a latent.
        components: width after projection, or ``None`` to keep F.
        history: number of latents that it sees, the newest last.
        hidden: widths of the hidden layers.
        actions: number of action dimensions A.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    projection: torch.Tensor
    action_mean: torch.Tensor
    action_scale: torch.Tensor
    step_scale: torch.Tensor

    def __init__(
        self, features: int, components: int | None, history: int, hidden: Sequence[int], actions: int
    ) -> None:
        super().__init__()
        self.history = history
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.register_buffer("projection", torch.empty(features, 0 if components is None else components))
        self.register_buffer("action_mean", torch.zeros(actions))
        self.register_buffer("action_scale", torch.ones(actions))
        self.register_buffer("step_scale", torch.ones(()))
        width = features if components is None else components
        self.network = mlp([history * width, *hidden, actions])

    def prepare(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents ``(B, F)`` as the network's input ``(B, F')``."""
        standard = (latents - self.mean) / self.scale
        return standard @ self.projection if self.projection.shape[1] else standard

    def forward(self, history: torch.Tensor) -> torch.Tensor:
        """Standardised actions ``(B, A)`` from prepared latents ``(B, history, F')``."""
        steps = (history[:, 1:] - history[:, :-1]) / self.step_scale
        actions: torch.Tensor = self.network(torch.cat([steps.flatten(1), history[:, -1]], dim=1))
        return actions

    def fit_step_scale(self, prepared: torch.Tensor, windows: torch.Tensor) -> None:
        """Set the root mean square step of prepared latents ``(n, F')`` within windows ``(N, history)`` of rows."""
        if self.history > 1:
            steps = prepared[windows[:, -1]] - prepared[windows[:, -2]]
            self.step_scale.copy_(steps.square().mean().sqrt().clamp_min(MIN_STEP_SCALE))

    def actions(self, history: torch.Tensor) -> torch.Tensor:
        """Actions ``(B, A)`` in the environment's units."""
        return self.forward(history) * self.action_scale + self.action_mean

    def fit_normalisation(self, latents: NDArray[np.float32], targets: NDArray[np.float32]) -> None:
        """Fit mean, scale and projection on training rows ``(N, F)`` and ``(N, A)``."""
        rows, wanted = latents.astype(np.float64), targets.astype(np.float64)
        fitted = {
            "mean": rows.mean(axis=0),
            "scale": safe_scale(rows),
            "action_mean": wanted.mean(axis=0),
            "action_scale": safe_scale(wanted),
        }
        if self.projection.shape[1]:
            standard = (rows - fitted["mean"]) / fitted["scale"]
            fitted["projection"] = _principal_axes(standard, self.projection.shape[1])
        for name, value in fitted.items():
            getattr(self, name).copy_(torch.from_numpy(value.astype(np.float32)))


class CloningPolicy(CheckpointedPolicy):
    """A frozen encoder and a head, acting in closed loop on the ``causal`` view.

    Attributes:
        encoder: the frozen encoder.
        head: the trained head.
        training: what it was trained on.
        score: prediction of held-out demonstrations.
        facts: seed, demonstrations, steps, loss curve.
    """

    kind = "cloning"
    encoder: Encoder

    def __init__(
        self, encoder: Encoder, head: CloningHead, training: Training, score: CloningScore, facts: Mapping[str, Any]
    ) -> None:
        self.encoder, self.head, self.training, self.score = encoder, head, training, score
        self.facts = dict(facts)
        self.name = f"cloning on {encoder.spec.name}"
        self.needs_pixels = encoder.spec.modality == "pixels"
        self._stream = LatentStream(encoder)
        self._history: torch.Tensor | None = None
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
        self.training.check(contract_of(envs[0]), self.name, deliberate)

    def reset(self, mask: NDArray[np.bool_], seeds: Sequence[int] | None = None) -> None:
        """Forget the history of the rows where ``mask`` is true."""
        mask = np.asarray(mask, dtype=np.bool_)
        self._stream.reset(mask)
        if len(mask) != len(self._fresh):
            self._fresh, self._history = np.ones(len(mask), dtype=np.bool_), None
        self._fresh |= mask

    @torch.inference_mode()
    def act(self, observation: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Actions ``(B, A)`` float32, clipped to the action's range."""
        latents = torch.from_numpy(self._stream.push(observation, self.training.camera or "pixels"))
        newest = self.head.prepare(latents.to(self.head.mean.device))[:, None]
        if self._history is None:
            self._history = newest.expand(-1, self.head.history, -1).clone()
        else:
            self._history = torch.cat([self._history[:, 1:], newest], dim=1)
            fresh = torch.from_numpy(self._fresh)
            self._history[fresh] = newest[fresh]
        self._fresh[:] = False
        spec = self.training.action_spec
        actions = self.head.actions(self._history).cpu().numpy()
        return clipped(actions, spec)

    def record(self) -> dict[str, Any]:
        """Training record, shape of the head and score."""
        widths = [layer.out_features for layer in self.head.network if isinstance(layer, nn.Linear)]
        shape = {
            "features": self.head.mean.shape[0],
            "components": self.head.projection.shape[1] or None,
            "history": self.head.history,
            "hidden": widths[:-1],
            "actions": widths[-1],
        }
        return {"training": self.training, "head": shape, "score": self.score.to_dict(), "facts": self.facts}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Weights and normalisation of the head."""
        return dict(self.head.state_dict())

    @classmethod
    def restore(cls, record: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], encoder: Encoder | None) -> Self:
        """The policy that was saved."""
        if encoder is None:
            raise KeyError("encoder")
        head = CloningHead(**record["head"]).eval()
        head.load_state_dict(dict(tensors))
        training, score = Training.from_dict(record["training"]), CloningScore.from_dict(record["score"])
        return cls(encoder, head.to(encoder.device), training, score, record["facts"])


def train_policy(
    dataset: Dataset,
    encoder: Encoder,
    *,
    split: Split | None = None,
    demonstrations: int | None = None,
    seed: int = 0,
    steps: int = 2000,
    history: int = 3,
    hidden: Sequence[int] = (256, 256, 256),
    learning_rate: float = 1e-3,
    batch_size: int = 256,
    components: int | None = None,
    cache: FeatureCache | None = None,
) -> CloningPolicy:
    """Clone the demonstrations of a data set with an MLP on frozen latents.

    The target is the expert's action (the executed one where no expert is recorded), the loss its mean squared error in
    units of the training spread. The policy after the last step is returned: none is selected by loss or success.

    Args:
        dataset: recorded episodes; episodes of random actions are not used.
        encoder: the frozen encoder.
        split: split by episode; :func:`latentgym.trajectories.splits.split_episodes` by default.
        demonstrations: number of training demonstrations, in an order drawn from ``seed``; all by default.
        seed: seed of weights, order and choice of demonstrations; equal seeds give equal bits on one machine.
        steps: gradient steps.
        history: latents that the policy sees, the first of an episode repeated on the left.
        hidden: widths of the hidden layers.
        learning_rate: Adam's at the first step; it falls to zero along a cosine.
        batch_size: windows per step.
        components: principal components of the training latents that are kept, which makes training on wide latents
            several times cheaper; all features by default.
        cache: cache of features; encoded afresh without one.

    Returns:
        The policy, with its score on the test split's demonstrations.

    Raises:
        LatentGymError: if there are no or too few demonstrations, an option is invalid, or training diverges.
    """
    if min(steps, history, batch_size) < 1 or (components is not None and components < 1):
        raise LatentGymError("train_policy: steps, history, batch_size and components must be at least 1")
    split = split or split_episodes(dataset)
    chosen = choose_demonstrations(dataset, split.train, demonstrations, seed)
    held_out = demonstration_episodes(dataset, split.test)
    latents = _causal_latents(dataset, encoder, (*chosen, *held_out), cache)
    targets = {index: cloning_target(dataset.episode(index, ())) for index in (*chosen, *held_out)}
    rows = np.concatenate([latents[index] for index in chosen])
    wanted = np.concatenate([targets[index] for index in chosen])
    if components is not None and components >= min(rows.shape):
        components = None
    head = CloningHead(rows.shape[1], components, history, hidden, wanted.shape[1])
    initialise(head, torch_generator(seed, "cloning", "weights"))
    head.fit_normalisation(rows, wanted)
    head.to(encoder.device)
    windows = history_indices([len(targets[index]) for index in chosen], history)
    losses = _fit_head(head, rows, wanted, windows, steps, batch_size, learning_rate, seed)
    score = _score(head, dataset, held_out, latents, targets)
    facts = {
        "seed": seed, "demonstrations": list(chosen), "windows": len(windows), "steps": steps,
        "batch_size": batch_size, "learning_rate": learning_rate, "loss": losses,
    }  # fmt: skip
    return CloningPolicy(encoder, head, Training.of(dataset), score, facts)


def _causal_latents(
    dataset: Dataset, encoder: Encoder, episodes: Sequence[int], cache: FeatureCache | None
) -> dict[int, NDArray[np.float32]]:
    """Latents ``(T, F)`` of o_0 … o_T-1, the observations that an action follows."""
    if cache is not None:
        features = cache.get(dataset, encoder, CAUSAL)
        return {index: features.episode(index)[:-1] for index in episodes}
    latents = {}
    for index in episodes:
        if encoder.spec.modality == "pixels":
            observations: NDArray[Any] = dataset.episode(index, dataset.cameras[:1]).frames[dataset.cameras[0]]
        else:
            observations = getattr(dataset.episode(index, ()), encoder.spec.modality)
        latents[index] = encode_view(encoder, observations, CAUSAL)[:-1]
    return latents


def _fit_head(
    head: CloningHead,
    rows: NDArray[np.float32],
    wanted: NDArray[np.float32],
    windows: NDArray[np.int64],
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> list[float]:
    device = head.mean.device
    inputs = head.prepare(torch.from_numpy(rows).to(device))
    targets = (torch.from_numpy(wanted).to(device) - head.action_mean) / head.action_scale
    # Windows are gathered step by step: stacked in memory, they would be ``history`` times as large.
    index = torch.from_numpy(windows).to(device)
    head.fit_step_scale(inputs, index)

    def draw(chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = chosen.to(device)
        return inputs[index[chosen]], targets[chosen]

    return fit(
        head,
        draw,
        rows=len(windows),
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        generator=torch_generator(seed, "cloning", "order"),
    )


@torch.inference_mode()
def _score(
    head: CloningHead,
    dataset: Dataset,
    episodes: Sequence[int],
    latents: Mapping[int, NDArray[np.float32]],
    targets: Mapping[int, NDArray[np.float32]],
) -> CloningScore:
    spec, predictions = dataset.action_spec, []
    for index in episodes:
        prepared = head.prepare(torch.from_numpy(latents[index]).to(head.mean.device))
        windows = torch.from_numpy(history_indices([len(prepared)], head.history)).to(prepared.device)
        actions = head.actions(prepared[windows]).cpu().numpy()
        predictions.append(clipped(actions, spec))
    wanted = [targets[index] for index in episodes]
    return CloningScore.of(spec.names, episodes, wanted, predictions, head.action_mean.cpu().numpy())


def _principal_axes(standard: NDArray[np.float64], components: int) -> NDArray[np.float64]:
    """Leading principal axes ``(F, C)`` of standardised rows, scaled so that a coordinate's mean variance is 1."""
    variances, axes = np.linalg.eigh(standard.T @ standard / len(standard))
    variances, axes = variances[::-1][:components], axes[:, ::-1][:, :components]
    # The sign of an eigenvector is arbitrary; fix it by its largest entry.
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    return np.asarray(axes * signs / np.sqrt(variances.mean()))
