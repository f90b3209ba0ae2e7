"""A frozen torch module as an encoder, and the digest of its weights."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import sys
from collections.abc import Mapping
from typing import Any

import torch

from latentgym.artifacts import canonical_json
from latentgym.encoders.contract import Encoder, EncoderSpec
from latentgym.encoders.torchvision_fallback import ensure_torchvision


def weights_digest(module: torch.nn.Module, facts: Mapping[str, Any] | None = None) -> str:
    """SHA-256 over ``module``'s state, in hexadecimal.

    Args:
        module: its parameters and buffers enter with their names, dtypes and shapes, sorted by name.
        facts: whatever else determines the output, such as the architecture's configuration (JSON types).
    """
    digest = hashlib.sha256(canonical_json(facts or {}).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


# What torch allocates begins at such addresses; what is mapped from a file begins anywhere.
_ALIGNMENT = 64


def _align(tensor: torch.Tensor) -> None:
    """Move a tensor that begins elsewhere: matrix libraries round a single row differently there."""
    if tensor.device.type == "cpu" and tensor.data_ptr() % _ALIGNMENT:
        tensor.data = tensor.data.clone()


class AllRead(Exception):
    """Leaves a network by a hook once every block that was asked for is read: what follows need not be computed."""


def _blank(kind: type[FrozenEncoder], uses_torchvision: bool) -> FrozenEncoder:
    """An encoder without content, in a process that can import what its content needs."""
    if uses_torchvision:
        ensure_torchvision()
    return kind.__new__(kind)


class FrozenEncoder(Encoder):
    """An encoder around a torch module in evaluation mode whose parameters take no gradient.

    Args:
        spec: its ``dtype`` is the one that ``model`` is converted to.
        model: the network that :meth:`forward` of a subclass calls.
    """

    def __init__(self, spec: EncoderSpec, model: torch.nn.Module) -> None:
        self.spec = spec
        self.model = model.eval()
        # One by one, because TorchScript has no requires_grad_ for whole modules.
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        self.set_dtype(getattr(torch, spec.dtype))
        for tensor in (*model.parameters(), *model.buffers()):
            _align(tensor)

    def __reduce__(self) -> tuple[Any, ...]:
        # What unpickles transformers' and timm's classes imports torchvision.
        return _blank, (type(self), "torchvision" in sys.modules), self.__getstate__()

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type that the network computes in."""
        dtype: torch.dtype = getattr(torch, self.spec.dtype)
        return dtype

    def to(self, device: str | torch.device) -> Encoder:
        """Move the network to ``device`` and return the encoder."""
        self.model.to(device)
        return super().to(device)

    def set_dtype(self, dtype: torch.dtype) -> None:
        """Convert the network to ``dtype`` and note it in the spec."""
        self.model.to(dtype)
        self.spec = dataclasses.replace(self.spec, dtype=str(dtype).removeprefix("torch."))

    def try_bfloat16(self, min_cosine: float = 0.998) -> bool:
        """Convert the network to bfloat16 if that hardly changes its tokens.

        Args:
            min_cosine: smallest admissible mean cosine similarity between the tokens of one clip of noise before and
                after; published networks reach 0.9987 and more.

        Returns:
            Whether the network was converted; otherwise it is left as it was.
        """
        generator = torch.Generator().manual_seed(0)
        shape = (1, self.spec.clip_length, self.spec.image_size, self.spec.image_size, 3)
        clip = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        before, model = self.encode(clip).tokens, copy.deepcopy(self.model)
        dtype = self.dtype
        self.set_dtype(torch.bfloat16)
        after = self.forward(self.prepare(clip), self.spec.layer).tokens
        if torch.nn.functional.cosine_similarity(before, after, dim=-1).mean() >= min_cosine:
            return True
        self.model = model
        self.set_dtype(dtype)
        return False
