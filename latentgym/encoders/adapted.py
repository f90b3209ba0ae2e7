"""Encoders trained further on action labels: the adapter on a frozen trunk, the fine-tuned trunk, and both on disk.

::

    <folder>/encoder.json          arm, spec, how the base is opened, facts of the training
    <folder>/weights.safetensors   the adapter, or every tensor of the fine-tuned trunk
    <folder>/base/                 copy of the base, where it was a folder

The record comes last: a folder without it is no encoder. Fine-tuned small encoders are saved as small encoders.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from latentgym.artifacts import atomic_directory, atomic_write, content_key, file_digest, read_json, write_json
from latentgym.encoders.bare_weights import find_bare_weights
from latentgym.encoders.checkpoints import SUFFIXES
from latentgym.encoders.contract import Encoder, EncoderSpec, Latents
from latentgym.encoders.diffusion import PARTS
from latentgym.encoders.dreamer4 import checkpoint_in
from latentgym.encoders.frozen import weights_digest
from latentgym.encoders.published_files import find_checkpoint
from latentgym.encoders.small import RECORD_NAME, WEIGHTS_NAME, SmallEncoder, save_small_encoder, weights_digest_of
from latentgym.encoders.trunk import initialise
from latentgym.errors import CorruptDataError, LatentGymError, rephrased

FORMAT = "latentgym-adapted-encoder"
BASE_NAME = "base"
ARMS = ("adapter", "finetune")
MAX_HIDDEN = 256
_BLOCKS = 2
# What encoder folders are read from, beside published state dicts; anything else in one (training states, pickles) is
# not copied.
_COPIED_SUFFIXES = (".json", ".safetensors", ".txt")


class TokenAdapter(nn.Module):
    """Two residual bottlenecks per token, told the token's place; the identity at the start.

    Source: the residual bottleneck of Houlsby et al., arXiv 1902.00751, section 2.1, after the trunk rather than in it.

    Args:
        tokens: number of tokens per token time, prefix tokens included.
        width: width D of a token.
    """

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        hidden = min(MAX_HIDDEN, 2 * width)
        self.place = nn.Parameter(torch.zeros(tokens, width))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
            for _ in range(_BLOCKS)
        )

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the weights from ``generator``; each bottleneck's last layer is zero."""
        initialise(self, generator)
        for block in self.blocks:
            assert isinstance(block, nn.Sequential)
            last = block[-1]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """``(B, T', P + N, D)`` to the same shape, prefix tokens first."""
        placed = self.place
        for block in self.blocks:
            normalised = block[0](tokens) + placed  # type: ignore[index]
            tokens = tokens + block[1:](normalised)  # type: ignore[index]
        return tokens


def join(latents: Latents) -> torch.Tensor:
    """``(B, T', P + N, D)``: prefix and patch tokens."""
    return latents.tokens if latents.prefix is None else torch.cat([latents.prefix, latents.tokens], dim=2)


def part(tokens: torch.Tensor, like: Latents) -> Latents:
    """The opposite of :func:`join`, with prefix, times and layer as in ``like``."""
    prefix = 0 if like.prefix is None else like.prefix.shape[2]
    return Latents(tokens[:, :, prefix:], like.times, like.layer, tokens[:, :, :prefix] if prefix else None)


class AdaptedEncoder(Encoder):
    """A frozen encoder with a trained adapter behind its output; inner layers are the trunk's own.

    Args:
        base: the frozen encoder, read at its last layer.
        adapter: the adapter.
        spec: the spec of the whole.
    """

    def __init__(self, base: Encoder, adapter: TokenAdapter, spec: EncoderSpec) -> None:
        self.base, self.spec = base, spec
        self.adapter = adapter.eval().requires_grad_(False)
        self.device, self.concurrent = base.device, base.concurrent

    def to(self, device: str | torch.device) -> AdaptedEncoder:
        """Move the encoder to ``device`` and return it."""
        super().to(device)
        self.base.to(device)
        self.adapter.to(self.device)
        return self

    def forward(self, clip: torch.Tensor, layer: int) -> Latents:
        """See :meth:`Encoder.forward`."""
        return self.forward_layers(clip, (layer,))[0]

    def forward_layers(self, clip: torch.Tensor, layers: Sequence[int]) -> list[Latents]:
        """See :meth:`Encoder.forward_layers`."""
        found = self.base.forward_layers(clip, layers)
        outputs = (-1, self.spec.layers - 1)
        return [part(self.adapter(join(one)), one) if one.layer in outputs else one for one in found]


def trained_modules(encoder: Encoder) -> nn.ModuleDict:
    """The torch modules that an encoder is made of, by the names of its attributes."""
    return nn.ModuleDict({name: value for name, value in vars(encoder).items() if isinstance(value, nn.Module)})


def base_record(source: str, encoder: Encoder) -> dict[str, Any]:
    """How the base is opened again: a folder as a copy, anything else by its pinned source."""
    spec = encoder.spec
    hub = spec.revision and spec.source and source.partition("@")[0] == spec.source
    return {
        "source": f"{spec.source}@{spec.revision}" if hub else source,
        "image_size": spec.image_size,
        "weights_digest": spec.weights_digest,
    }


def copy_base(source: Path, folder: Path) -> dict[str, str]:
    """Copy an encoder folder to ``folder/base`` and return the SHA-256 of its files by name."""

    published = find_checkpoint(source) or find_bare_weights(source) or checkpoint_in(source).is_file()
    suffixes = {*_COPIED_SUFFIXES, *(SUFFIXES if published else ())}

    def unwanted(directory: str, names: list[str]) -> list[str]:
        kept = {name for name in names if Path(name).suffix in suffixes and not name.startswith("training-")}
        kept |= {BASE_NAME, *PARTS} & {name for name in names if (Path(directory) / name).is_dir()}
        return [name for name in names if name not in kept or name.startswith(".")]

    target = folder / BASE_NAME
    if not target.exists():
        with atomic_directory(target) as scratch:
            shutil.copytree(source, scratch, ignore=unwanted, dirs_exist_ok=True)
    return {
        path.relative_to(target).as_posix(): file_digest(path) for path in sorted(target.rglob("*")) if path.is_file()
    }


def save_adapted(
    encoder: Encoder, folder: Path, *, arm: str, base: Mapping[str, Any], training: Mapping[str, Any]
) -> None:
    """Write the weights, then the record ``encoder.json`` that makes the folder count as an encoder.

    Args:
        encoder: what :func:`latentgym.encoders.adaptation.adapt` trained; its spec is the base's.
        folder: created if needed.
        arm: ``"adapter"`` or ``"finetune"``.
        base: record of the base, see :func:`base_record`.
        training: facts of the training run; ``"label_episodes"`` says which episodes' actions were used.
    """
    suffix = ("" if arm == "adapter" else "-finetuned") + ("-control" if training["control"] else "")
    changes: dict[str, Any] = {"name": f"{encoder.spec.name}+id{suffix}", "trained_on_actions": True}
    if isinstance(encoder, SmallEncoder):
        source = f"{encoder.spec.source}; fine-tuned by inverse dynamics"
        changes |= {"weights_digest": weights_digest_of(encoder.network.state_dict()), "source": source}
        encoder.spec = dataclasses.replace(encoder.spec, **changes)
        return save_small_encoder(encoder, folder, training)
    module: nn.Module = encoder.adapter if isinstance(encoder, AdaptedEncoder) else trained_modules(encoder)
    if isinstance(encoder, AdaptedEncoder) and arm == "adapter":
        extra = sum(parameter.numel() for parameter in module.parameters())
        changes["parameters"] = encoder.spec.parameters + extra
    changes["weights_digest"] = weights_digest(module, {"base": base["weights_digest"], "arm": arm})
    weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    atomic_write(folder / WEIGHTS_NAME, safetensors.torch.save(weights))
    write_json(
        folder / RECORD_NAME,
        {
            "format": FORMAT,
            "arm": arm,
            "base": dict(base),
            "spec": {**dataclasses.asdict(encoder.spec), **changes},
            "weights": file_digest(folder / WEIGHTS_NAME),
            "training": dict(training),
        },
    )


def is_adapted_encoder(folder: Path) -> bool:
    """Whether ``folder`` holds an adapted encoder's record (it may still be damaged; loading says so)."""
    try:
        record = read_json(folder / RECORD_NAME)
    except CorruptDataError:
        return False
    return isinstance(record, dict) and record.get("format") == FORMAT


def load_adapted_encoder(folder: Path) -> Encoder:
    """Open a folder that :func:`save_adapted` wrote, on the CPU.

    Raises:
        CorruptDataError: if a file is missing, damaged or altered.
        LatentGymError: if the base cannot be opened, or is not the one that was adapted.
    """
    record = read_json(folder / RECORD_NAME)
    try:
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record["spec"].items()}
        spec = EncoderSpec(**fields)
        arm, recorded = record["arm"], record["base"]
        training, digest = record["training"], record["weights"]
    except (KeyError, TypeError, AttributeError) as error:
        raise CorruptDataError(f"{folder / RECORD_NAME} is no record of an adapted encoder: {error!r}") from error
    if not (folder / WEIGHTS_NAME).is_file() or file_digest(folder / WEIGHTS_NAME) != digest:
        raise CorruptDataError(f"{folder / WEIGHTS_NAME} is missing or differs from its recorded digest; adapt again")
    base = _open_base(folder, recorded, arm)
    encoder = base
    if arm == "adapter":
        # Their values are replaced; the state of torch's global generator is kept.
        with torch.random.fork_rng(devices=[]):
            encoder = AdaptedEncoder(base, adapter_for(base), base.spec)
    try:
        weights = safetensors.torch.load_file(folder / WEIGHTS_NAME)
        module = encoder.adapter if isinstance(encoder, AdaptedEncoder) else trained_modules(base)
        module.load_state_dict(weights)
    except (OSError, safetensors.SafetensorError, RuntimeError) as error:
        raise CorruptDataError(f"{folder / WEIGHTS_NAME} does not fit its base: {error}") from error
    encoder.spec = dataclasses.replace(spec, source=str(folder))
    encoder.label_episodes = label_episodes(training)
    return encoder


def _open_base(folder: Path, recorded: Mapping[str, Any], arm: str) -> Encoder:
    from latentgym.encoders.registry import load_encoder

    files: Mapping[str, str] | None = recorded.get("files")
    source = recorded["source"] if files is None else folder / BASE_NAME
    for name, digest in (files or {}).items():
        path = folder / BASE_NAME / name
        if not path.is_file() or file_digest(path) != digest:
            raise CorruptDataError(f"{path} is missing or differs from its recorded digest; adapt again")
    try:
        base = load_encoder(
            source,
            image_size=recorded["image_size"],
            feeding=recorded.get("feeding", "native"),
            device="cpu",
            dtype="float32",
        )
    except LatentGymError as error:
        raise rephrased(error, f"{folder} adapts the encoder {source}, which cannot be opened: {error}") from error
    if files is None and arm == "adapter" and base.spec.weights_digest != recorded["weights_digest"]:
        raise LatentGymError(f"{folder} adapts the encoder {source}, whose weights have changed since; adapt it again")
    return base


@torch.inference_mode()
def adapter_for(base: Encoder) -> TokenAdapter:
    """An adapter of the right size for ``base``, with unspecified weights."""
    spec = base.spec
    blank = torch.zeros(1, spec.clip_length, spec.image_size, spec.image_size, 3, dtype=torch.uint8)
    tokens = join(base.forward(base.prepare(blank), -1))
    with torch.inference_mode(mode=False):
        return TokenAdapter(tokens.shape[2], tokens.shape[3])


def label_episodes(training: Mapping[str, Any]) -> dict[str, frozenset[int]]:
    """Episodes whose action labels were used, by content key of their data set, from a record of a training."""
    return {key: frozenset(episodes) for key, episodes in (training.get("label_episodes") or {}).items()}


def run_key(facts: Mapping[str, Any]) -> str:
    """Key of a training run, a hash of everything that determines its result."""
    return content_key({"format": FORMAT, **facts})
