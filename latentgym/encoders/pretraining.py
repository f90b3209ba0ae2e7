"""Pretrain a small encoder: equal clips, steps and batch for every objective, resumable, the same bits every time."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from latentgym.artifacts import atomic_directory, content_key, read_json
from latentgym.devices import find_device
from latentgym.encoders.clip_pool import POOL_BYTES, ClipPool
from latentgym.encoders.objectives import OBJECTIVES, Objective
from latentgym.encoders.optimisation import (
    GRADIENT_NORM,
    STATE_NAME,
    load_state,
    loss_curve,
    one_thread,
    save_state,
    schedule,
)
from latentgym.encoders.small import (
    RECORD_NAME,
    is_small_encoder,
    load_small_encoder,
    save_small_encoder,
    small_encoder,
)
from latentgym.errors import LatentGymError, UnknownNameError
from latentgym.seeding import torch_generator

if TYPE_CHECKING:
    from latentgym.trajectories.store import Dataset

STEPS = 200
BATCH_SIZE = 32
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.01


def pretrain(
    objective: str,
    data: Sequence[tuple[Dataset, Sequence[int]]],
    *,
    out: str | Path,
    seed: int = 0,
    steps: int = STEPS,
    batch_size: int = BATCH_SIZE,
    checkpoints: Sequence[int] = (),
    camera: str | None = None,
    save_every: int = 50,
    pool_bytes: int = POOL_BYTES,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Train the shared trunk with one objective and save the encoder.

    Every objective sees the same clips at one ``seed``. A run that was killed continues from its last saved state (at
    most ``save_every`` steps old) and ends with the same bits; a finished run is not repeated. On the CPU it runs on
    one thread; on a GPU sums are made in no fixed order, and two runs agree up to rounding only.

    Args:
        objective: a name in :data:`~latentgym.encoders.objectives.OBJECTIVES`.
        data: pairs of a data set and the indices of its training episodes; frames are resized to 64 × 64.
        out: folder for ``encoder.json`` and ``weights.safetensors``; it also keeps the training state until the end.
        seed: seed of the initial weights, of the order of clips and of all noise.
        steps: optimiser steps.
        batch_size: clips per step, at least 2.
        checkpoints: steps after which a copy is saved under ``out/checkpoint-<step>``.
        camera: camera to read; each data set's first where ``None``.
        save_every: steps between two saved training states.
        pool_bytes: bound on decoded frames in memory.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:<index>"``, or ``"auto"``, CUDA where there is one.
        progress: called with (steps done, steps in all) after every step.

    Returns:
        ``out``; open it with :func:`~latentgym.encoders.small.load_small_encoder`.

    Raises:
        UnknownNameError: for an unknown objective.
        LatentGymError: if the data hold too few frames, an argument is out of range, there is no such device, ``out``
            holds another run, or the loss is not finite.
    """
    if objective not in OBJECTIVES:
        raise UnknownNameError("pretraining objective", objective, OBJECTIVES)
    _check_numbers(steps, batch_size, checkpoints, save_every)
    out, target = Path(out), find_device(device)
    key = content_key(
        {
            "objective": objective,
            "data": [(dataset.key, [int(i) for i in episodes]) for dataset, episodes in data],
            "seed": seed,
            "steps": steps,
            "batch_size": batch_size,
            "checkpoints": sorted(checkpoints),
            "camera": camera,
            "pool_bytes": pool_bytes,
            "device": target.type,
        }
    )
    if _is_finished(out, key):
        return out
    with one_thread():
        needs_actions = OBJECTIVES[objective].trained_on_actions
        pool = ClipPool(data, seed=seed, steps=steps, camera=camera, actions=needs_actions, pool_bytes=pool_bytes)
        seen = {dataset.key: [int(i) for i in episodes] for dataset, episodes in data} if needs_actions else {}
        run = _Run(objective, pool, out, key, seen, seed=seed, steps=steps, batch_size=batch_size, device=target)
        run.resume()
        for step in range(run.done, steps):
            run.step()
            if step + 1 in checkpoints:
                run.save_checkpoint()
            if (step + 1) % save_every == 0 and step + 1 < steps:
                run.save_state()
            if progress is not None:
                progress(step + 1, steps)
        run.finish()
    return out


class _Run:
    """A training run between two steps: objective, optimiser, count of steps and loss curve."""

    def __init__(
        self,
        objective: str,
        pool: ClipPool,
        out: Path,
        key: str,
        label_episodes: Mapping[str, Sequence[int]],
        *,
        seed: int,
        steps: int,
        batch_size: int,
        device: torch.device,
    ) -> None:
        self.pool, self.out, self.key, self.label_episodes = pool, out, key, label_episodes
        self.seed, self.steps, self.batch_size, self.device = seed, steps, batch_size, device
        # Layers draw from torch's global generator when they are built; all values are replaced, its state is kept.
        with torch.random.fork_rng(devices=[]):
            self.objective: Objective = OBJECTIVES[objective](action_size=pool.action_size)
        self.objective.initialise(seed)
        self.objective.to(device)
        trained = [parameter for parameter in self.objective.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.95))
        self.done = 0
        self.losses: list[float] = []
        self.flops_per_step = 0

    def step(self) -> None:
        """One optimiser step; the first one's floating-point operations are counted."""
        batch = self.pool.batch(self.done, self.batch_size, self.device)
        generator = torch_generator(self.seed, self.objective.name, "noise", self.done)
        counter = FlopCounterMode(display=False) if self.done == 0 else None
        with counter or contextlib.nullcontext():
            loss = self.objective.loss(batch, generator)
            if not math.isfinite(loss.item()):
                raise LatentGymError(
                    f"pretraining {self.objective.name!r}: the loss is {loss.item()} at step {self.done}; check the "
                    "recorded frames and actions, or try another seed"
                )
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
        if counter is not None:
            self.flops_per_step = counter.get_total_flops()
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * schedule(self.done, self.steps)
        torch.nn.utils.clip_grad_norm_(self.objective.parameters(), GRADIENT_NORM)
        self.optimizer.step()
        self.done += 1
        self.objective.after_step(self.done / self.steps)
        self.losses.append(loss.item())

    def save_state(self) -> None:
        """Replace the saved training state by the present one."""
        facts = {"key": self.key, "done": str(self.done), "flops_per_step": str(self.flops_per_step)}
        save_state(self.out / STATE_NAME, self.objective, self.optimizer, self.losses, facts)

    def resume(self) -> None:
        """Continue from a saved state, where there is one of this very run."""
        state = load_state(self.out / STATE_NAME, self.key, self.objective, self.optimizer)
        if state is not None:
            self.losses, facts = state
            self.done, self.flops_per_step = int(facts["done"]), int(facts["flops_per_step"])

    def save_checkpoint(self) -> None:
        """Save the encoder as it is now under ``checkpoint-<step>``."""
        with atomic_directory(self.out / f"checkpoint-{self.done}") as folder:
            self._save_encoder(folder)

    def finish(self) -> None:
        """Save the encoder and drop the training state."""
        self._save_encoder(self.out)
        (self.out / STATE_NAME).unlink(missing_ok=True)

    def _save_encoder(self, folder: Path) -> None:
        network = copy.deepcopy(self.objective.network).cpu()
        encoder = small_encoder(network, self.objective.name, seed=self.seed, step=self.done)
        save_small_encoder(encoder, folder, self._record(encoder.spec.parameters))

    @torch.no_grad()
    def _record(self, encoding: int) -> dict[str, Any]:
        everything = sum(parameter.numel() for parameter in self.objective.parameters())
        batch = self.pool.batch(self.done - 1, self.batch_size, self.device)
        features = self.objective.network(batch.frames[:, :2])
        return {
            "key": self.key,
            "objective": self.objective.name,
            "source": self.objective.source,
            "seed": self.seed,
            "steps": self.done,
            "planned_steps": self.steps,
            "batch_size": self.batch_size,
            "device": self.device.type,
            "parameters": encoding,
            "parameters_extra": everything - encoding,
            "training_flops": self.flops_per_step * self.done,
            "latent_std": features.std(dim=0).mean().item(),
            "label_episodes": self.label_episodes,
            "loss_curve": loss_curve(self.losses),
        }


def _check_numbers(steps: int, batch_size: int, checkpoints: Sequence[int], save_every: int) -> None:
    if steps < 1 or batch_size < 2 or save_every < 1:
        raise LatentGymError(
            f"pretraining needs steps ≥ 1, batch_size ≥ 2 and save_every ≥ 1; found {steps}, {batch_size}, {save_every}"
        )
    wrong = [step for step in checkpoints if not 1 <= step <= steps]
    if wrong:
        raise LatentGymError(f"checkpoints must lie between 1 and {steps} steps, found {wrong}")


def _is_finished(out: Path, key: str) -> bool:
    """Whether ``out`` holds this very run, finished and undamaged."""
    if not is_small_encoder(out):
        return False
    if read_json(out / RECORD_NAME)["training"].get("key") != key:
        raise LatentGymError(f"{out} holds an encoder of another run (other data or settings); choose another folder")
    load_small_encoder(out)
    return True
