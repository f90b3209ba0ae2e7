"""Small encoders of one shared architecture: the trunk as an :class:`Encoder`, on disk and with random weights."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from latentgym.artifacts import atomic_write, read_json, write_json
from latentgym.encoders.contract import Encoder, EncoderSpec, Latents
from latentgym.encoders.objectives import OBJECTIVES
from latentgym.encoders.trunk import GRID, IMAGE_SIZE, WIDTH, EncodingNetwork, PairNetwork, initialise_trunk
from latentgym.errors import CorruptDataError, LatentGymError, UnknownNameError

FORMAT = "latentgym-small-encoder"
RECORD_NAME = "encoder.json"
WEIGHTS_NAME = "weights.safetensors"
POOLING = "grid:4"
RANDOM = "random"


class SmallEncoder(Encoder):
    """A frozen :class:`~latentgym.encoders.trunk.EncodingNetwork` behind the encoder contract.

    Tokens are ``(B, 1, 64, D)``, the 8 × 8 grid row by row; D is 64 at the last layer. Image families
    (``spec.temporal`` false) look at the last frame of the clip only.
    """

    concurrent = True

    def __init__(self, network: EncodingNetwork, spec: EncoderSpec) -> None:
        self.network = network.eval().requires_grad_(False)
        self.spec = spec

    def to(self, device: str | torch.device) -> SmallEncoder:
        """Move the encoder to ``device`` and return it."""
        super().to(device)
        self.network.to(self.device)
        return self

    def forward(self, clip: torch.Tensor, layer: int) -> Latents:
        """See :meth:`Encoder.forward`; errors as in :meth:`forward_layers`."""
        return self.forward_layers(clip, (layer,))[0]

    def forward_layers(self, clip: torch.Tensor, layers: Sequence[int]) -> list[Latents]:
        """See :meth:`Encoder.forward_layers`.

        Raises:
            LatentGymError: if the clip does not hold two frames or a layer does not exist.
        """
        if clip.shape[1] != self.spec.clip_length:
            raise LatentGymError(
                f"encoder {self.spec.name!r} reads clips of {self.spec.clip_length} frames, found {clip.shape[1]}; "
                "repeat a single frame to fill the clip"
            )
        for layer in layers:
            if not -self.spec.layers <= layer < self.spec.layers:
                raise LatentGymError(
                    f"encoder {self.spec.name!r} has layers 0 to {self.spec.layers - 1} (or -1 for the last), "
                    f"found {layer}"
                )
        grids = self.network.read(clip, layers)
        times = torch.tensor([self.spec.clip_length - 1], device=clip.device)
        tokens = [features.flatten(2).transpose(1, 2)[:, None] for features in grids]
        return [Latents(tokens=one, times=times, layer=layer) for one, layer in zip(tokens, layers, strict=True)]


def weights_digest_of(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, shapes and bytes of all tensors."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name}{tuple(state[name].shape)}".encode())
        digest.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def small_encoder(network: EncodingNetwork, objective: str, *, seed: int, step: int) -> SmallEncoder:
    """Wrap an encoding network that was trained for ``step`` steps of ``objective`` from ``seed``."""
    kind = OBJECTIVES.get(objective)
    spec = EncoderSpec(
        name=objective,
        family=objective,
        source=kind.source if kind else "the shared trunk at initialisation",
        revision=f"seed {seed}, step {step}",
        image_size=IMAGE_SIZE,
        clip_length=2,
        tubelet=2,
        temporal=network.temporal,
        embed_dim=WIDTH,
        grid=(GRID, GRID),
        layers=network.layers,
        pooling=POOLING,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        weights_digest=weights_digest_of(network.state_dict()),
        trained_on_actions=bool(kind and kind.trained_on_actions),
    )
    return SmallEncoder(network, spec)


def build_network(objective: str) -> EncodingNetwork:
    """The encoding network of ``objective`` (or ``"random"``) with unspecified weights.

    Raises:
        UnknownNameError: if there is no such objective.
    """
    if objective != RANDOM and objective not in OBJECTIVES:
        raise UnknownNameError("pretraining objective", objective, OBJECTIVES)
    # Layers draw from torch's global generator when they are built; their values are replaced, its state is kept.
    with torch.random.fork_rng(devices=[]):
        return PairNetwork() if objective == RANDOM else OBJECTIVES[objective].network_type()


def random_small(seed: int = 0) -> SmallEncoder:
    """The random-weight twin: the trunk on two frames with the weights that every family starts from at ``seed``."""
    network = build_network(RANDOM)
    initialise_trunk(network.trunk, seed)
    return small_encoder(network, RANDOM, seed=seed, step=0)


def save_small_encoder(encoder: SmallEncoder, folder: Path, training: Mapping[str, Any] | None = None) -> None:
    """Write weights, then the record ``encoder.json`` that makes the folder count as an encoder.

    Args:
        encoder: what to save.
        folder: created if needed.
        training: facts of the training run, kept under ``"training"``.
    """
    weights = {name: tensor.contiguous() for name, tensor in encoder.network.state_dict().items()}
    atomic_write(folder / WEIGHTS_NAME, safetensors.torch.save(weights))
    record = {"format": FORMAT, "spec": dataclasses.asdict(encoder.spec), "training": dict(training or {})}
    write_json(folder / RECORD_NAME, record)


def is_small_encoder(folder: str | Path) -> bool:
    """Whether ``folder`` holds a small encoder's record (it may still be damaged; loading says so)."""
    path = Path(folder) / RECORD_NAME
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("format") == FORMAT


def load_small_encoder(folder: str | Path) -> SmallEncoder:
    """Open a folder that :func:`save_small_encoder` or ``pretrain`` wrote.

    Raises:
        CorruptDataError: if a file is missing, damaged, or does not match its digest.
        UnknownNameError: if the objective is not known here.
    """
    folder = Path(folder)
    record = read_json(folder / RECORD_NAME)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise CorruptDataError(f"{folder / RECORD_NAME} is not the record of a small encoder (format {FORMAT!r})")
    try:
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in record["spec"].items()
        }
        spec = EncoderSpec(**fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise CorruptDataError(f"{folder / RECORD_NAME} holds no valid encoder spec: {error}") from error
    network = build_network(spec.family)
    try:
        weights = safetensors.torch.load_file(folder / WEIGHTS_NAME)
        network.load_state_dict(weights)
    except (OSError, safetensors.SafetensorError, RuntimeError) as error:
        raise CorruptDataError(f"{folder / WEIGHTS_NAME} cannot be read; train the encoder again: {error}") from error
    if weights_digest_of(weights) != spec.weights_digest:
        raise CorruptDataError(f"{folder / WEIGHTS_NAME} differs from its recorded digest; train the encoder again")
    encoder = SmallEncoder(network, spec)
    seen = record.get("training", {}).get("label_episodes") or {}
    encoder.label_episodes = {key: frozenset(episodes) for key, episodes in seen.items()}
    return encoder
