"""Training of a head on frozen latents: which windows it sees, with what targets, and how well it predicts."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from latentgym.encoders.cache import FeatureCache
from latentgym.encoders.contract import Encoder
from latentgym.encoders.features import View, canonical_view, encode_view
from latentgym.errors import LatentGymError
from latentgym.policies.checkpoint import Training
from latentgym.policies.cloning import CloningPolicy
from latentgym.policies.conditions import check_condition, instruction_features
from latentgym.policies.demonstrations import (
    RANDOM_POLICY,
    CloningScore,
    choose_demonstrations,
    clipped,
    cloning_target,
    demonstration_episodes,
    history_indices,
)
from latentgym.policies.execution import ExecutionSettings
from latentgym.policies.heads import Batch, LatentHead, find_head, make_head
from latentgym.policies.regression import fit
from latentgym.policies.sentences import DEFAULT_SENTENCE_ENCODER
from latentgym.seeding import torch_generator
from latentgym.trajectories.splits import Split, split_episodes
from latentgym.trajectories.store import Dataset

CAUSAL = View("causal")
ENSEMBLE_WEIGHT = 0.01
"""m of temporal ensembling, as in arXiv 2304.13705."""
_FINAL_GOALS = 0.5


def train_policy(
    dataset: Dataset,
    encoder: Encoder,
    *,
    head: str = "mlp",
    condition: str = "none",
    instruction_encoder: str = DEFAULT_SENTENCE_ENCODER,
    chunk: int | None = None,
    head_options: Mapping[str, Any] | None = None,
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
    """Clone the demonstrations of a data set with a head on frozen latents.

    The target is the expert's action (the executed one where no expert is recorded). Head ``"mlp"`` minimises its mean
    squared error in units of the training spread. The policy after the last step is returned: none is selected by loss
    or success.

    Args:
        dataset: recorded episodes; episodes of random actions are used by the inverse model of ``"inverse_dynamics"``
            only.
        encoder: the frozen encoder.
        head: ``"mlp"``, ``"action_chunking"`` or ``"act"`` (a transformer, with temporal ensembling),
            ``"flow_matching"`` or ``"flow"``, ``"inverse_dynamics"``; see :data:`latentgym.policies.heads.HEADS`.
        condition: what the policy is told beside what it sees: ``"none"``; ``"goal"``, the latent of an observation
            to reach (in training a later one of the same episode, half of the time its last); ``"instruction"``, the
            episode's instruction.
        instruction_encoder: what turns an instruction into numbers: ``"all-MiniLM-L6-v2"``, the folder or hub id of
            another text model, or ``"words"``, which hashes words and needs nothing installed; see
            :func:`latentgym.policies.conditions.instruction_features`.
        chunk: actions that are planned at once; 8 for ``"action_chunking"`` and ``"flow_matching"``, else 1. Flow
            matching executes half of a chunk before it plans again, the others average overlapping chunks.
        head_options: further settings of the head, such as ``{"layers": 4}`` or ``{"proposal": "goal"}``.
        split: split by episode; :func:`latentgym.trajectories.splits.split_episodes` by default.
        demonstrations: number of training demonstrations, in an order drawn from ``seed``; all by default.
        seed: seed of weights, order and choice of demonstrations; equal seeds give equal bits on one machine.
        steps: gradient steps.
        history: latents that the policy sees, the first of an episode repeated on the left.
        hidden: widths of the hidden layers, for heads that have them.
        learning_rate: Adam's at the first step; it falls to zero along a cosine.
        batch_size: windows per step.
        components: principal components of the training latents that are kept, which makes training on wide latents
            several times cheaper; all features by default.
        cache: cache of features; encoded afresh without one.

    Returns:
        The policy, with its score on the test split's demonstrations.

    Raises:
        UnknownNameError: if there is no such head, condition or option.
        LatentGymError: if there are no or too few demonstrations, an option is invalid, or training diverges.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from latentgym import load_encoder, record
        >>> with TemporaryDirectory() as folder:
        ...     data = record("latentgym/TabletopReach-v0", folder, episodes=8, image_size=32)
        ...     policy = train_policy(data, load_encoder("state"), steps=200, history=1)
        >>> policy.name, policy.training.env_id
        ('cloning on state', 'latentgym/TabletopReach-v0')
    """
    kind = find_head(head)
    check_condition(condition)
    chunk = kind.default_horizon if chunk is None else chunk
    if min(steps, history, batch_size, chunk) < 1 or (components is not None and components < 1):
        raise LatentGymError("train_policy: steps, history, batch_size, chunk and components must be at least 1")
    if min(hidden, default=1) < 1 or not 0 < learning_rate < math.inf:
        raise LatentGymError(
            f"train_policy: widths of hidden layers and learning_rate must be positive, found {list(hidden)} and "
            f"{learning_rate}"
        )
    if (head_options or {}).get("proposal") == "goal" and condition != "goal":
        raise LatentGymError(f"train_policy: proposal='goal' needs condition='goal', found {condition!r}")
    split = split or split_episodes(dataset)
    chosen = choose_demonstrations(dataset, split.train, demonstrations, seed)
    others = tuple(index for index in split.train if dataset.policies[index] == RANDOM_POLICY)
    used = (*chosen, *others) if kind.learns_from_any_action else chosen
    data = _Windows.gather(dataset, encoder, used, chosen, history, chunk, condition, instruction_encoder, cache, kind)
    if components is not None and components >= min(len(data.targets), data.latents.shape[1]):
        components = None
    shape = {
        "features": data.latents.shape[1], "components": components, "history": history,
        "actions": data.targets.shape[1], "horizon": chunk, "condition": data.condition_size(components),
    }  # fmt: skip
    network = make_head(head, shape, hidden, head_options or {})
    network.draw_weights(torch_generator(seed, "cloning", "weights"))
    network.fit_normalisation(data.latents[data.windows[:, -1]], data.targets)
    network.to(encoder.device)
    losses = _fit(network, data, steps=steps, batch_size=batch_size, learning_rate=learning_rate, seed=seed)
    held_out = demonstration_episodes(dataset, split.test)
    score = _score(network, dataset, encoder, held_out, condition, instruction_encoder, cache, seed)
    facts = {
        "seed": seed, "demonstrations": list(chosen), "windows": len(data.windows), "steps": steps,
        "batch_size": batch_size, "learning_rate": learning_rate, "loss": losses,
    }  # fmt: skip
    return CloningPolicy(
        encoder, network, _training(dataset, condition), score, facts,
        condition=condition, instruction_encoder=instruction_encoder, execution=_execution(network),
    )  # fmt: skip


def _training(dataset: Dataset, condition: str) -> Training:
    training = Training.of(dataset)
    if condition != "goal":
        return training
    return dataclasses.replace(training, settings={**training.settings, "goal": True})


def _execution(head: LatentHead) -> ExecutionSettings:
    if head.horizon == 1:
        return ExecutionSettings()
    if head.stochastic:
        # The mean of several draws may be none of them.
        return ExecutionSettings(execute=max(1, head.horizon // 2))
    return ExecutionSettings(ensemble=ENSEMBLE_WEIGHT)


@dataclasses.dataclass(frozen=True, eq=False)
class _Windows:
    """Training windows, as rows of tables: stacked in memory they would be ``history`` times as large.

    Attributes:
        latents: ``(R, F)`` of every observation, the last of each episode included.
        targets: ``(N, A)`` actions.
        intended: ``(N, A)`` actions that the demonstrators meant.
        windows: ``(N, history)`` rows of ``latents``, oldest first.
        chunks: ``(N, H)`` rows of ``targets``, the episode's last repeated.
        valid: ``(N, H)`` whether that action lies within the episode.
        demonstrated: ``(N,)`` whether the behaviour is to be imitated.
        last: ``(N,)`` row of the episode's last observation in ``latents``.
        goals: ``(R, F)`` latents of single observations, or ``None``.
        instructions: ``(N, C)``, or ``None``.
    """

    latents: NDArray[np.float32]
    targets: NDArray[np.float32]
    intended: NDArray[np.float32]
    windows: NDArray[np.int64]
    chunks: NDArray[np.int64]
    valid: NDArray[np.bool_]
    demonstrated: NDArray[np.bool_]
    last: NDArray[np.int64]
    goals: NDArray[np.float32] | None
    instructions: NDArray[np.float32] | None

    @classmethod
    def gather(
        cls, dataset: Dataset, encoder: Encoder, used: Sequence[int], imitated: Sequence[int], history: int,
        chunk: int, condition: str, instruction_encoder: str, cache: FeatureCache | None, kind: type[LatentHead],
    ) -> _Windows:  # fmt: skip
        """Windows of the episodes ``used``, of which ``imitated`` are demonstrations."""
        episodes = [dataset.episode(index, ()) for index in used]
        lengths = np.array([len(episode) for episode in episodes])
        # An inverse model is told what was executed; a policy what should have been.
        intended = [cloning_target(episode) for episode in episodes]
        targets = [episode.action for episode in episodes] if kind.learns_from_any_action else intended
        latents = latents_of(dataset, encoder, used, CAUSAL, cache)
        single = latents_of(dataset, encoder, used, View("single"), cache) if condition == "goal" else None
        texts = None
        if condition == "instruction":
            if not any(episode.instruction for episode in episodes):
                warnings.warn(
                    f"no episode of {dataset.path} has an instruction, so that the policy learns nothing of what it is "
                    "told; of CALVIN's data, episodes='language' has them",
                    stacklevel=4,
                )
            texts = instruction_features([episode.instruction for episode in episodes], instruction_encoder)
        starts = np.concatenate([[0], np.cumsum(lengths + 1)[:-1]])
        rows = np.concatenate([start + np.arange(length) for start, length in zip(starts, lengths, strict=True)])
        position = np.concatenate([np.arange(length) for length in lengths])[:, None] + np.arange(chunk)[None, :]
        length = np.repeat(lengths, lengths)[:, None]
        offset = np.repeat(np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)[:, None]
        return cls(
            latents=np.concatenate([latents[index] for index in used]),
            targets=np.concatenate(targets),
            intended=np.concatenate(intended),
            windows=history_indices((lengths + 1).tolist(), history)[rows],
            chunks=offset + np.minimum(position, length - 1),
            valid=position < length,
            demonstrated=np.repeat([index in set(imitated) for index in used], lengths),
            last=np.repeat(starts + lengths, lengths),
            goals=None if single is None else np.concatenate([single[index] for index in used]),
            instructions=None if texts is None else np.repeat(texts, lengths, axis=0),
        )

    def condition_size(self, components: int | None) -> int:
        """Width C of what the policy is told."""
        if self.instructions is not None:
            return int(self.instructions.shape[1])
        return 0 if self.goals is None else components or self.latents.shape[1]


def latents_of(
    dataset: Dataset, encoder: Encoder, episodes: Sequence[int], view: View, cache: FeatureCache | None
) -> dict[int, NDArray[np.float32]]:
    """Latents ``(T + 1, F)`` of o_0 … o_T per episode."""
    view, _ = canonical_view(view, encoder.spec)
    if cache is not None:
        features = cache.get(dataset, encoder, view)
        return {index: features.episode(index) for index in episodes}
    latents = {}
    for index in episodes:
        if encoder.spec.modality == "pixels":
            observations: NDArray[Any] = dataset.episode(index, dataset.cameras[:1]).frames[dataset.cameras[0]]
        else:
            observations = getattr(dataset.episode(index, ()), encoder.spec.modality)
        latents[index] = encode_view(encoder, observations, view)
    return latents


def _fit(
    head: LatentHead, data: _Windows, *, steps: int, batch_size: int, learning_rate: float, seed: int
) -> list[float]:
    device = head.mean.device
    inputs = head.prepare(torch.from_numpy(data.latents).to(device))
    targets, intended = (
        (torch.from_numpy(part).to(device) - head.action_mean) / head.action_scale
        for part in (data.targets, data.intended)
    )
    goals = None if data.goals is None else head.prepare(torch.from_numpy(data.goals).to(device))
    names = ("windows", "chunks", "last")
    windows, chunks, last = (torch.from_numpy(getattr(data, name)).to(device) for name in names)
    valid, demonstrated = (torch.from_numpy(part).float().to(device) for part in (data.valid, data.demonstrated))
    texts = None if data.instructions is None else torch.from_numpy(data.instructions).to(device)
    head.fit_step_scale(inputs, windows)
    noise = torch_generator(seed, "cloning", "noise")

    def draw(chosen: torch.Tensor) -> tuple[Batch, torch.Tensor]:
        chosen = chosen.to(device)
        newest = windows[chosen, -1]
        told = None if texts is None else texts[chosen]
        if goals is not None:
            told = goals[_later_rows(newest, last[chosen], noise)]
        batch = Batch(
            inputs[windows[chosen]], inputs[newest + 1], valid[chosen], demonstrated[chosen], intended[chosen], told
        )
        return batch, targets[chunks[chosen]]

    return fit(
        head,
        draw,
        rows=len(windows),
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        generator=torch_generator(seed, "cloning", "order"),
        objective=lambda batch, wanted: head.loss(batch, wanted, noise),
    )


def _later_rows(newest: torch.Tensor, last: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A row after ``newest`` ``(B,)`` up to ``last`` ``(B,)``: the last half of the time, else any."""
    final, share = (torch.rand(len(newest), generator=generator).to(newest.device) for _ in range(2))
    later = newest + 1 + (share * (last - newest)).long().clamp_max(last - newest - 1)
    return torch.where(final < _FINAL_GOALS, last, later)


@torch.inference_mode()
def _score(
    head: LatentHead,
    dataset: Dataset,
    encoder: Encoder,
    episodes: Sequence[int],
    condition: str,
    instruction_encoder: str,
    cache: FeatureCache | None,
    seed: int,
) -> CloningScore:
    spec, device, predictions, wanted = dataset.action_spec, head.mean.device, [], []
    latents = latents_of(dataset, encoder, episodes, CAUSAL, cache)
    goals = latents_of(dataset, encoder, episodes, View("single"), cache) if condition == "goal" else {}
    noise = torch_generator(seed, "cloning", "score")
    for index in episodes:
        episode = dataset.episode(index, ())
        count = len(episode)
        prepared = head.prepare(torch.from_numpy(latents[index][:-1]).to(device))
        windows = torch.from_numpy(history_indices([count], head.history)).to(device)
        told = None
        if condition == "goal":
            told = head.prepare(torch.from_numpy(goals[index][-1:]).to(device)).expand(count, -1)
        elif condition == "instruction":
            told = (
                torch.from_numpy(instruction_features([episode.instruction], instruction_encoder))
                .to(device)
                .expand(count, -1)
            )
        drawn = torch.randn(count, head.horizon, head.actions_size, generator=noise).to(device)
        actions = head.actions(prepared[windows], told, drawn if head.stochastic else None)[:, 0]
        predictions.append(clipped(actions.cpu().numpy(), spec))
        wanted.append(cloning_target(episode))
    return CloningScore.of(spec.names, episodes, wanted, predictions, head.action_mean.cpu().numpy())
