"""The random-weight twin: the same architecture with weights that never saw data, the floor of an encoder."""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import nn

from latentgym.encoders.contract import Encoder, EncoderSpec
from latentgym.encoders.frozen import FrozenEncoder, weights_digest
from latentgym.encoders.registry import reopening_source
from latentgym.encoders.small import SmallEncoder, weights_digest_of
from latentgym.errors import LatentGymError
from latentgym.seeding import torch_generator


def has_weights(encoder: Encoder) -> bool:
    """Whether there is a twin of ``encoder``."""
    return isinstance(encoder, FrozenEncoder | SmallEncoder)


def random_twin(encoder: Encoder, seed: int = 0) -> Encoder:
    """A copy of ``encoder`` whose weights are drawn anew.

    Weights get a uniform distribution of ±1/√fan-in, embeddings (one row, or looked up) normal 0.02, biases zero, and
    scales of normalisations and layers one; running statistics are reset.

    Args:
        encoder: an encoder around one torch module.
        seed: seed of the weights.

    Raises:
        LatentGymError: if the encoder has no weights to draw.
    """
    if not isinstance(encoder, FrozenEncoder | SmallEncoder):
        raise LatentGymError(f"encoder {encoder.spec.name!r} has no weights, so it has no random-weight twin")
    twin = copy.copy(encoder)
    twin.label_episodes = {}
    if isinstance(twin, FrozenEncoder):
        module = twin.model = copy.deepcopy(twin.model)
    else:
        module = twin.network = copy.deepcopy(twin.network)
    redraw(module, torch_generator(seed, "random-twin"))
    # A small encoder is saved with its weights, and has to be found whole by its digest.
    digest = (
        weights_digest(module, {"twin": encoder.spec.weights_digest})
        if isinstance(encoder, FrozenEncoder)
        else weights_digest_of(module.state_dict())
    )
    twin.spec = dataclasses.replace(
        encoder.spec,
        name=f"{encoder.spec.name}-random",
        family="random",
        source=_source(encoder.spec, seed),
        weights_digest=digest,
        trained_on_actions=False,
    )
    return twin


def _source(spec: EncoderSpec, seed: int) -> str:
    """What :func:`latentgym.load_encoder` opens the twin by; its names know of one seed."""
    place = reopening_source(spec)
    return f"twin:{place}" if seed == 0 else f"{place}, weights drawn from seed {seed}"


@torch.no_grad()
def redraw(module: nn.Module, generator: torch.Generator) -> None:
    """Draw every parameter of ``module`` from ``generator``; see :func:`random_twin`."""
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._NormBase):
            child.reset_running_stats()
        for name, parameter in child.named_parameters(recurse=False):
            drawn = torch.empty(parameter.shape)
            if isinstance(child, nn.Embedding) or (parameter.ndim > 1 and parameter.shape[0] == 1):
                drawn.normal_(std=0.02, generator=generator)
            elif parameter.ndim > 1:
                bound = (parameter.numel() / parameter.shape[0]) ** -0.5
                drawn.uniform_(-bound, bound, generator=generator)
            else:
                drawn.fill_(0.0 if "bias" in name else 1.0)
            parameter.copy_(drawn)
