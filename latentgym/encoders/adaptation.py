"""Train an encoder further on action labels by inverse dynamics: adapter arm, fine-tune arm, and their control."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from latentgym.artifacts import read_json
from latentgym.encoders.adapted import (
    ARMS,
    BASE_NAME,
    AdaptedEncoder,
    adapter_for,
    base_record,
    copy_base,
    part,
    run_key,
    save_adapted,
    trained_modules,
)
from latentgym.encoders.contract import Encoder, Latents
from latentgym.encoders.features import pool
from latentgym.encoders.feeding import split_feeding
from latentgym.encoders.optimisation import (
    GRADIENT_NORM,
    STATE_NAME,
    load_state,
    loss_curve,
    one_thread,
    save_state,
    schedule,
)
from latentgym.encoders.registry import find_factory, load_encoder
from latentgym.encoders.small import RECORD_NAME, WEIGHTS_NAME
from latentgym.encoders.trunk import initialise
from latentgym.encoders.window_pool import WindowBatch, WindowPool
from latentgym.errors import LatentGymError, UnknownNameError
from latentgym.seeding import torch_generator
from latentgym.trajectories.splits import split_episodes

if TYPE_CHECKING:
    from latentgym.trajectories.splits import Split
    from latentgym.trajectories.store import Dataset

SOURCE = "arXiv 2606.07687 (+ID arms, L1); Pathak et al., ICM, arXiv 1705.05363, equation 2"
STEPS = 300
BATCH_SIZE = 32
HEAD_LEARNING_RATE = 1e-3
TRUNK_LEARNING_RATE = 1e-4
WEIGHT_DECAY = 0.01
POOL_BYTES = 512 * 2**20
_HEAD_WIDTH = 256


def adapt(
    encoder: str | Path,
    data: Dataset | Sequence[tuple[Dataset, Sequence[int]]],
    *,
    out: str | Path,
    arm: str = "adapter",
    control: bool = False,
    steps: int = STEPS,
    seed: int = 0,
    k: int = 1,
    batch_size: int = BATCH_SIZE,
    split: Split | None = None,
    image_size: int | None = None,
    camera: str | None = None,
    trunk_learning_rate: float = TRUNK_LEARNING_RATE,
    save_every: int = 50,
    pool_bytes: int = POOL_BYTES,
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Train an encoder by inverse dynamics on the training episodes and save it as an encoder folder.

    Loss: L1 between the standardised mean action of the window o_t … o_t+k and a two-layer perceptron's prediction from
    [z_t ; z_t:t+k − z_t], the pooled features that probes read. The perceptron is thrown away. Validation and test
    episodes are never read. Validation of the result is a fresh probe: ``latentgym.probe(dataset, out, split=split)``.

    A run that was killed continues from its last saved state and ends with the same bits; a finished run is not
    repeated. Runs on one CPU thread. Dropout is off, and running statistics of batch normalisation stay as they are.

    Args:
        encoder: source of a pixel encoder, see :func:`latentgym.load_encoder`. A folder is copied into ``out``; a hub
            id, ``timm:`` model or registered name is opened again under its name.
        data: recorded episodes, or pairs of a data set and the indices of its training episodes.
        out: folder for ``encoder.json``, ``weights.safetensors`` and ``base/``; also keeps the training state.
        arm: ``"adapter"``, residual bottlenecks on the tokens of the frozen trunk, or ``"finetune"``, the whole trunk.
        control: give every episode the actions of another one; all else is equal.
        steps: optimiser steps.
        seed: seed of new weights, windows and the control's permutation.
        k: horizon in steps.
        batch_size: windows per step, at least 2.
        split: parts of a single data set; :func:`latentgym.trajectories.split_episodes` with ``seed`` by default.
        image_size: side in pixels that frames are resized to; the encoder's own by default.
        camera: camera to read, the data set's first by default.
        trunk_learning_rate: peak learning rate of a fine-tuned trunk.
        save_every: steps between two saved training states.
        pool_bytes: bound on frames (fine-tune) or tokens (adapter) in memory.
        device: torch device.
        progress: called with (steps done, steps in all) after every step.

    Returns:
        ``out``.

    Raises:
        UnknownNameError: for an unknown arm.
        LatentGymError: if the encoder reads no pixels or has no weights to fine-tune, the data do not fit, an argument
            is out of range, ``out`` holds something else, or the loss is not finite.
    """
    if arm not in ARMS:
        raise UnknownNameError("arm", arm, ARMS)
    _check_numbers(steps, batch_size, k, save_every, trunk_learning_rate)
    source, out = str(encoder), Path(out)
    pairs = _training_part(data, split, seed)
    base = load_encoder(source, image_size=image_size, device=device, dtype="float32")
    if base.spec.modality != "pixels":
        raise LatentGymError(f"encoder {base.spec.name!r} reads {base.spec.modality}, not pixels: nothing to adapt")
    facts = {
        "encoder": base.spec.weights_digest or base.spec.name,
        "image_size": base.spec.image_size,
        "label_episodes": _labels(base, pairs),
        "arm": arm,
        "control": control,
        "planned_steps": steps,
        "seed": seed,
        "horizon": k,
        "batch_size": batch_size,
        "camera": camera,
        "trunk_learning_rate": trunk_learning_rate,
        "pool_bytes": pool_bytes,
    }
    facts["key"] = run_key(facts)
    if _is_finished(out, str(facts["key"])):
        return out
    with one_thread():
        pool_of = WindowPool(
            base, pairs, k=k, tokens=arm == "adapter", control=control, camera=camera, seed=seed,
            steps=steps, pool_bytes=pool_bytes,
        )  # fmt: skip
        run = _Run(base, pool_of, out, facts)
        run.resume()
        for step in range(run.done, steps):
            run.step()
            if (step + 1) % save_every == 0 and step + 1 < steps:
                run.save_state()
            if progress is not None:
                progress(step + 1, steps)
        run.finish(source)
    return out


class Head(nn.Module):
    """Standardised action from [z_t ; z_t:t+k − z_t], each scaled by its spread in the first batch.

    Args:
        features: number of features F of a clip.
        action_size: number of action dimensions.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, features: int, action_size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(2 * features))
        self.register_buffer("scale", torch.ones(2 * features))
        self.layers = nn.Sequential(
            nn.Linear(2 * features, _HEAD_WIDTH), nn.SiLU(), nn.Linear(_HEAD_WIDTH, action_size)
        )

    @torch.no_grad()
    def measure(self, single: torch.Tensor, clip: torch.Tensor) -> None:
        """Take mean and overall spread of both inputs from a batch; one spread each keeps their geometry."""
        for half, values in zip(torch.arange(self.mean.numel()).chunk(2), (single, clip - single), strict=True):
            self.mean[half] = values.mean(dim=0)
            self.scale[half] = values.std(dim=0).square().mean().sqrt().clamp(min=1e-6)

    def forward(self, single: torch.Tensor, clip: torch.Tensor) -> torch.Tensor:
        """``(B, F)`` twice to ``(B, A)``."""
        inputs = torch.cat([single, clip - single], dim=1)
        predicted: torch.Tensor = self.layers((inputs - self.mean) / self.scale)
        return predicted


class _Run:
    """A training run between two steps."""

    def __init__(self, base: Encoder, windows: WindowPool, out: Path, facts: dict[str, Any]) -> None:
        self.base, self.windows, self.out, self.facts = base, windows, out, facts
        self.seed, self.steps = int(facts["seed"]), int(facts["planned_steps"])
        self.done = 0
        self.losses: list[float] = []
        # Layers draw from torch's global generator when they are built; all values are replaced, its state is kept.
        with torch.random.fork_rng(devices=[]):
            self.adapter = adapter_for(base) if facts["arm"] == "adapter" else None
            self._like = self._blank()
            self.head = Head(self._features(self._like).shape[1], windows.action_size)
        trunk = self._trunk()
        generator = torch_generator(self.seed, "adapt")
        if self.adapter is not None:
            self.adapter.initialise(generator)
        initialise(self.head, torch_generator(self.seed, "adapt", "head"))
        self.trained = nn.ModuleDict({"trunk": trunk, "adapter": self.adapter or nn.Identity(), "head": self.head})
        self.trained.to(base.device)
        rates = {"trunk": float(facts["trunk_learning_rate"]), "adapter": HEAD_LEARNING_RATE}
        groups = [
            {"params": [*module.parameters()], "rate": rates.get(name, HEAD_LEARNING_RATE)}
            for name, module in self.trained.items()
        ]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=HEAD_LEARNING_RATE, weight_decay=WEIGHT_DECAY
        )

    def _trunk(self) -> nn.Module:
        """What the fine-tune arm trains; nothing for the adapter arm."""
        if self.adapter is not None:
            return nn.Identity()
        trunk = trained_modules(self.base)
        if not any(parameter.is_floating_point() for parameter in trunk.parameters()):
            raise LatentGymError(
                f"encoder {self.base.spec.name!r} has no weights to fine-tune; train the adapter arm in place of it"
            )
        trunk.requires_grad_(True)
        if not self._blank().tokens.requires_grad:
            raise LatentGymError(
                f"encoder {self.base.spec.name!r} passes no gradient to its weights and cannot be fine-tuned; train "
                "the adapter arm in place of it"
            )
        return trunk

    def _blank(self) -> Latents:
        spec = self.base.spec
        blank = torch.zeros(1, spec.clip_length, spec.image_size, spec.image_size, 3, dtype=torch.uint8)
        return self.base.forward(self.base.prepare(blank), -1)

    def _features(self, latents: Latents) -> torch.Tensor:
        """``(B, F)`` what a probe reads of a clip: pooled tokens, averaged over token times."""
        spec = self.base.spec
        return pool(latents, spec.pooling, grid=spec.grid if latents.tokens.shape[2] > 1 else None).mean(dim=1)

    def _encode(self, batch: WindowBatch) -> tuple[torch.Tensor, torch.Tensor]:
        both = torch.cat([batch.single, batch.clip])
        if self.adapter is None:
            latents = self.base.forward(self.base.prepare(both), -1)
        else:
            latents = part(self.adapter(both.to(self.base.device)), self._like)
        single, clip = self._features(latents).chunk(2)
        return single, clip

    def step(self) -> None:
        """One optimiser step."""
        batch = self.windows.batch(self.done, int(self.facts["batch_size"]))
        single, clip = self._encode(batch)
        if self.done == 0:
            self.head.measure(single, clip)
        loss = (self.head(single, clip) - batch.target.to(single.device)).abs().mean()
        if not math.isfinite(loss.item()):
            raise LatentGymError(
                f"adapting {self.base.spec.name!r}: the loss is {loss.item()} at step {self.done}; lower "
                "trunk_learning_rate, or check the recorded frames"
            )
        self.optimizer.zero_grad()
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * schedule(self.done, self.steps)
        torch.nn.utils.clip_grad_norm_(self.trained.parameters(), GRADIENT_NORM)
        self.optimizer.step()
        self.done += 1
        self.losses.append(loss.item())

    def save_state(self) -> None:
        """Replace the saved training state by the present one."""
        facts = {"key": str(self.facts["key"]), "done": str(self.done)}
        save_state(self.out / STATE_NAME, self.trained, self.optimizer, self.losses, facts)

    def resume(self) -> None:
        """Continue from a saved state, where there is one of this very run."""
        state = load_state(self.out / STATE_NAME, str(self.facts["key"]), self.trained, self.optimizer)
        if state is not None:
            self.losses, facts = state
            self.done = int(facts["done"])

    def finish(self, source: str) -> None:
        """Save the encoder and drop the training state."""
        base = base_record(source, self.base)
        place, feeding = split_feeding(source)
        folder = Path(place).expanduser()
        if find_factory(place.partition(":")[0]) is None and folder.is_dir():
            base |= {"files": copy_base(folder, self.out), "feeding": feeding}
        encoder = self.base
        if self.adapter is not None:
            encoder = AdaptedEncoder(self.base, self.adapter, self.base.spec)
        training = {
            **self.facts,
            "objective": "inverse_dynamics",
            "source": SOURCE,
            "base": self.base.spec.name,
            "steps": self.done,
            "parameters_extra": sum(parameter.numel() for parameter in self.head.parameters()),
            "loss_curve": loss_curve(self.losses),
        }
        save_adapted(encoder, self.out, arm=str(self.facts["arm"]), base=base, training=training)
        (self.out / STATE_NAME).unlink(missing_ok=True)


def _labels(base: Encoder, pairs: Sequence[tuple[Dataset, Sequence[int]]]) -> dict[str, list[int]]:
    """Episodes whose actions train the encoder, or have trained its base, by the key of their data set."""
    known = {key: set(episodes) for key, episodes in base.label_episodes.items()}
    for dataset, episodes in pairs:
        known.setdefault(dataset.key, set()).update(int(index) for index in episodes)
    return {key: sorted(episodes) for key, episodes in known.items()}


def _training_part(
    data: Dataset | Sequence[tuple[Dataset, Sequence[int]]], split: Split | None, seed: int
) -> list[tuple[Dataset, Sequence[int]]]:
    if isinstance(data, Sequence):
        if split is not None:
            raise LatentGymError(
                "adapt: pass pairs of a data set and its training episodes, or one data set and a split"
            )
        return list(data)
    return [(data, (split or split_episodes(data, seed=seed)).train)]


def _check_numbers(steps: int, batch_size: int, k: int, save_every: int, rate: float) -> None:
    if steps < 1 or batch_size < 2 or k < 1 or save_every < 1 or not 0 < rate < math.inf:
        raise LatentGymError(
            "adapt needs steps ≥ 1, batch_size ≥ 2, k ≥ 1, save_every ≥ 1 and a positive trunk_learning_rate; found "
            f"{steps}, {batch_size}, {k}, {save_every}, {rate}"
        )


def _is_finished(out: Path, key: str) -> bool:
    """Whether ``out`` holds this very run, finished and undamaged.

    Raises:
        LatentGymError: if it holds anything that is no part of this run.
    """
    if not out.exists():
        return False
    if (out / RECORD_NAME).is_file():
        record = read_json(out / RECORD_NAME)
        if not isinstance(record, dict) or (record.get("training") or {}).get("key") != key:
            raise LatentGymError(f"{out} holds another encoder (other data or settings); choose another folder")
        load_encoder(out, device="cpu")
        return True
    known = {STATE_NAME, WEIGHTS_NAME, BASE_NAME}
    foreign = [] if not out.is_dir() else [p.name for p in out.iterdir() if p.name not in known and p.name[0] != "."]
    if foreign or not out.is_dir():
        found = ", ".join(foreign[:3]) or "it is a file"
        raise LatentGymError(f"{out} holds something else ({found}); choose a new folder")
    return False
