"""The end-to-end baseline: a ConvNet cloned from pixels, from scratch, with random-shift augmentation."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Self

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from latentgym.encoders.contract import Encoder
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

NAME = "convnet"
_CHANNELS = 32
_LAYERS = 4


class ConvNet(nn.Module):
    """Four strided convolutions on a stack of frames, then an MLP (DrQ's trunk, arXiv 2004.13649).

    Args:
        image_size: side S in pixels, at least 32.
        history: number of frames, the newest last.
        actions: number of action dimensions A.
    """

    action_mean: torch.Tensor
    action_scale: torch.Tensor

    def __init__(self, image_size: int, history: int, actions: int) -> None:
        super().__init__()
        self.image_size, self.history = image_size, history
        layers: list[nn.Module] = []
        channels, side = 3 * history, image_size
        for _ in range(_LAYERS):
            convolution = nn.utils.skip_init(nn.Conv2d, channels, _CHANNELS, 3, stride=2)  # type: ignore[no-untyped-call]
            layers += [convolution, nn.ReLU()]
            channels, side = _CHANNELS, (side - 3) // 2 + 1
        self.trunk = nn.Sequential(*layers, nn.Flatten())
        self.head = mlp([channels * side * side, 256, 256, actions])
        self.register_buffer("action_mean", torch.zeros(actions))
        self.register_buffer("action_scale", torch.ones(actions))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Standardised actions ``(B, A)`` from ``(B, history, S, S, 3)`` uint8."""
        pixels = frames.permute(0, 1, 4, 2, 3).flatten(1, 2).float() / 255 - 0.5
        actions: torch.Tensor = self.head(self.trunk(pixels))
        return actions

    def actions(self, frames: torch.Tensor) -> torch.Tensor:
        """Actions ``(B, A)`` in the environment's units."""
        return self.forward(frames) * self.action_scale + self.action_mean


class ConvNetPolicy(CheckpointedPolicy):
    """A ConvNet acting in closed loop on the last frames.

    Attributes:
        network: the trained network.
        training: what it was trained on.
        score: prediction of held-out demonstrations.
        facts: seed, demonstrations, steps, loss curve.
    """

    kind = NAME
    name = NAME
    concurrent = True

    def __init__(self, network: ConvNet, training: Training, score: CloningScore, facts: Mapping[str, Any]) -> None:
        self.network, self.training, self.score, self.facts = network, training, score, dict(facts)
        self._frames = torch.zeros(0, dtype=torch.uint8)
        self._fresh = np.zeros(0, dtype=np.bool_)

    @property
    def cloning_r2(self) -> float | None:
        """Macro R² on the test split's demonstrations; ``None`` where no action dimension varies."""
        return self.score.value

    def rows(self, replicates: int = 1000, seed: int = 0) -> list[Row]:
        """``cloning_r2``, macro with an episode-bootstrap interval and per dimension."""
        return self.score.rows(
            env=self.training.env_id, encoder=NAME, family="reference", replicates=replicates, seed=seed
        )

    def bind(self, envs: Sequence[gymnasium.Env[Any, Any]], deliberate: Collection[str] = ()) -> None:
        """Refuse environments that the policy was not trained for."""
        self.training.check(contract_of(envs[0]), self.name, deliberate)

    def reset(self, mask: NDArray[np.bool_], seeds: Sequence[int] | None = None) -> None:
        """Forget the frames of the rows where ``mask`` is true."""
        if len(mask) != len(self._fresh):
            size, history = self.network.image_size, self.network.history
            self._fresh = np.ones(len(mask), dtype=np.bool_)
            self._frames = torch.zeros(len(mask), history, size, size, 3, dtype=torch.uint8)
        self._fresh[np.asarray(mask, dtype=np.bool_)] = True

    @torch.inference_mode()
    def act(self, observation: Mapping[str, NDArray[Any]], rows: NDArray[np.intp] | None = None) -> NDArray[np.float32]:
        """Actions ``(b, A)`` float32 of ``rows``, clipped to the action's range."""
        rows = np.arange(len(self._fresh)) if rows is None else rows
        camera, spec = self.training.camera, self.training.action_spec
        if camera not in observation:
            raise LatentGymError(f"policy {self.name!r} reads observation[{camera!r}], found {sorted(observation)}")
        newest = _resized(observation[camera], self.network.image_size)[:, None]
        index, fresh = torch.from_numpy(rows), torch.from_numpy(self._fresh[rows])
        frames = torch.cat([self._frames[index, 1:], newest], dim=1)
        frames[fresh] = newest[fresh]
        self._frames[index] = frames
        self._fresh[rows] = False
        actions = self.network.actions(frames.to(self.network.action_mean.device)).cpu().numpy()
        return clipped(actions, spec)

    def record(self) -> dict[str, Any]:
        """Training record, shape of the network and score."""
        shape = {
            "image_size": self.network.image_size,
            "history": self.network.history,
            "actions": self.network.action_mean.shape[0],
        }
        return {"training": self.training, "network": shape, "score": self.score.to_dict(), "facts": self.facts}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Weights and normalisation."""
        return dict(self.network.state_dict())

    @classmethod
    def restore(cls, record: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], encoder: Encoder | None) -> Self:
        """The policy that was saved."""
        network = ConvNet(**record["network"]).eval()
        network.load_state_dict(dict(tensors))
        training, score = Training.from_dict(record["training"]), CloningScore.from_dict(record["score"])
        return cls(network, training, score, record["facts"])


def train_convnet_policy(
    dataset: Dataset,
    *,
    split: Split | None = None,
    demonstrations: int | None = None,
    seed: int = 0,
    steps: int = 2000,
    history: int = 3,
    image_size: int = 64,
    shift: int = 4,
    learning_rate: float = 1e-3,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
) -> ConvNetPolicy:
    """Clone demonstrations from pixels with a ConvNet from scratch.

    Args:
        dataset: recorded episodes; episodes of random actions are not used.
        split: split by episode; :func:`latentgym.trajectories.splits.split_episodes` by default.
        demonstrations: number of training demonstrations, in an order drawn from ``seed``; all by default.
        seed: seed of weights, order, augmentation and choice of demonstrations.
        steps: gradient steps.
        history: frames that the policy sees, the first of an episode repeated on the left.
        image_size: side in pixels that frames are resized to.
        shift: largest random shift in pixels, one per window (DrQ, arXiv 2004.13649).
        learning_rate: Adam's at the first step; it falls to zero along a cosine.
        batch_size: windows per step.
        device: where to train.

    Raises:
        LatentGymError: if there are no frames, no or too few demonstrations, or training diverges.
    """
    if not dataset.cameras:
        raise LatentGymError(f"{dataset.path} has no camera; a ConvNet policy needs frames")
    if image_size < 32 or min(steps, history, batch_size) < 1 or shift < 0:
        raise LatentGymError("train_convnet_policy: image_size >= 32, positive steps, history and batch_size expected")
    split = split or split_episodes(dataset)
    chosen = choose_demonstrations(dataset, split.train, demonstrations, seed)
    frames, wanted = _frames_and_targets(dataset, chosen, image_size)
    targets = np.concatenate(wanted)
    network = ConvNet(image_size, history, targets.shape[1])
    initialise(network, torch_generator(seed, NAME, "weights"), gain=math.sqrt(6))
    network.action_mean.copy_(torch.from_numpy(targets.mean(axis=0, dtype=np.float64)))
    network.action_scale.copy_(torch.from_numpy(safe_scale(targets.astype(np.float64))))
    network.to(device)
    pixels = torch.cat(frames).to(device)
    index = torch.from_numpy(history_indices([len(part) for part in wanted], history)).to(device)
    goal = (torch.from_numpy(targets).to(device) - network.action_mean) / network.action_scale
    shifts = torch_generator(seed, NAME, "shifts")

    def draw(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        offsets = torch.randint(0, 2 * shift + 1, (len(rows), 2), generator=shifts).to(device)
        return _shifted(pixels[index[rows.to(device)]], offsets, shift), goal[rows.to(device)]

    losses = fit(
        network, draw, rows=len(index), steps=steps, batch_size=batch_size,
        learning_rate=learning_rate, generator=torch_generator(seed, NAME, "order"),
    )  # fmt: skip
    score = _score(network, dataset, demonstration_episodes(dataset, split.test))
    facts = {"seed": seed, "demonstrations": list(chosen), "steps": steps, "batch_size": batch_size, "loss": losses}
    return ConvNetPolicy(network, Training.of(dataset), score, facts)


def _frames_and_targets(
    dataset: Dataset, episodes: Sequence[int], image_size: int
) -> tuple[list[torch.Tensor], list[NDArray[np.float32]]]:
    frames, targets = [], []
    for index in episodes:
        episode = dataset.episode(index, dataset.cameras[:1])
        frames.append(_resized(episode.frames[dataset.cameras[0]][:-1], image_size))
        targets.append(cloning_target(episode))
    return frames, targets


def _resized(frames: NDArray[np.uint8], image_size: int) -> torch.Tensor:
    """Frames ``(n, H, W, 3)`` uint8 as ``(n, S, S, 3)`` uint8."""
    pixels = torch.from_numpy(np.ascontiguousarray(frames))
    if tuple(pixels.shape[1:3]) == (image_size, image_size):
        return pixels
    resized = nn.functional.interpolate(
        pixels.permute(0, 3, 1, 2).float(), size=(image_size, image_size), mode="bilinear", antialias=True
    )
    return resized.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _shifted(frames: torch.Tensor, offsets: torch.Tensor, shift: int) -> torch.Tensor:
    """``(B, h, S, S, 3)`` frames moved by up to ``shift`` pixels, edges repeated; one offset ``(B, 2)`` per window."""
    size = frames.shape[2]
    steps = torch.arange(size, device=frames.device)
    rows, columns = ((steps + offsets[:, axis, None] - shift).clamp(0, size - 1) for axis in (0, 1))
    batch = torch.arange(len(frames), device=frames.device)[:, None, None]
    # Advanced indices come first in the result: (B, S, S, h, 3).
    moved = frames.permute(0, 2, 3, 1, 4)[batch, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2, 4)


@torch.inference_mode()
def _score(network: ConvNet, dataset: Dataset, episodes: Sequence[int]) -> CloningScore:
    spec, predictions, wanted = dataset.action_spec, [], []
    for index in episodes:
        (frames,), (target,) = _frames_and_targets(dataset, [index], network.image_size)
        windows = torch.from_numpy(history_indices([len(target)], network.history))
        actions = network.actions(frames[windows].to(network.action_mean.device)).cpu().numpy()
        predictions.append(clipped(actions, spec))
        wanted.append(target)
    return CloningScore.of(spec.names, episodes, wanted, predictions, network.action_mean.cpu().numpy())
