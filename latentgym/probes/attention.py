"""Readouts of tokens: an attentive probe and a patch-token transformer, all members on batched weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional

from latentgym.errors import LatentGymError
from latentgym.probes.estimator import as_tokens
from latentgym.probes.members import MemberProbe, Parameters, draw_linear, linear

_MLP_RATIO = 4
_CHUNK_NUMBERS = 2**21


class _TokenProbe(MemberProbe):
    """What both readouts of tokens ``(n, N, D)`` share: embedding, positions, and transformer blocks.

    Args:
        depth: number of blocks.
        width: channels of the blocks; ``None`` for those of the tokens, which are then not projected.
        heads: attention heads; the largest number of them that divides ``heads`` and ``width``.
        queries: learned query tokens.
        training: arguments of :class:`MemberProbe`.
    """

    def __init__(self, depth: int, width: int | None, heads: int, queries: int, **training: Any) -> None:
        super().__init__(**training)
        if min(depth, heads, queries, 1 if width is None else width) < 1:
            raise LatentGymError(
                f"{self.title}: depth, width, heads and queries must be at least 1, found {depth}, {width}, {heads} "
                f"and {queries}"
            )
        self.depth, self.width, self.heads, self.queries = depth, width, heads, queries

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments; ``deep`` is scikit-learn's and changes nothing."""
        return {"depth": self.depth, "width": self.width, "heads": self.heads, **super().get_params(deep)}

    def _rows(self, values: ArrayLike | Tensor, name: str) -> Tensor:
        return as_tokens(values, name)

    def _chunk(self, x: Tensor) -> int:
        # Attention keeps about a dozen activations of every token.
        return max(1, _CHUNK_NUMBERS // (12 * math.prod(x.shape[1:])))

    def _embedding(self, features: Sequence[int], generator: torch.Generator) -> Parameters:
        tokens, channels = features
        width = self.width or channels
        parameters = {
            "positions": 0.02 * torch.randn(1, tokens, width, generator=generator),
            "queries": 0.02 * torch.randn(1, self.queries, width, generator=generator),
        }
        return parameters | (draw_linear("embed", channels, width, generator) if self.width else {})

    def _embed(self, parameters: Parameters, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens ``(M, n, N, C)`` with their positions, and queries ``(M, n, K, C)``."""
        tokens = (linear(parameters, "embed", x) if self.width else x) + parameters["positions"]
        queries = parameters["queries"]
        return tokens, queries.expand(-1, x.shape[1], -1, -1)

    def _block(self, name: str, width: int, generator: torch.Generator, cross: bool = False) -> Parameters:
        """One member's pre-norm block; a cross-attention block has queries of its own making."""
        parameters: Parameters = {}
        for norm in ("norm1", "norm2"):
            parameters |= {f"{name}.{norm}.weight": torch.ones(width), f"{name}.{norm}.bias": torch.zeros(width)}
        layers = {"query": width, "keyvalue": 2 * width} if cross else {"qkv": 3 * width}
        for layer, outputs in {**layers, "project": width, "expand": _MLP_RATIO * width}.items():
            parameters |= draw_linear(f"{name}.{layer}", width, outputs, generator)
        return parameters | draw_linear(f"{name}.contract", _MLP_RATIO * width, width, generator)

    def _self_attention(self, parameters: Parameters, name: str, x: Tensor) -> Tensor:
        """A pre-norm transformer block on ``x (M, n, N, C)``."""
        q, k, v = linear(parameters, f"{name}.qkv", _norm(parameters, f"{name}.norm1", x)).chunk(3, dim=-1)
        x = x + linear(parameters, f"{name}.project", self._attend(q, k, v))
        return x + _feed_forward(parameters, name, x)

    def _cross_attention(self, parameters: Parameters, name: str, queries: Tensor, x: Tensor) -> Tensor:
        """A block in which ``queries (M, n, K, C)`` read ``x (M, n, N, C)``."""
        k, v = linear(parameters, f"{name}.keyvalue", _norm(parameters, f"{name}.norm1", x)).chunk(2, dim=-1)
        read = self._attend(linear(parameters, f"{name}.query", queries), k, v)
        queries = queries + linear(parameters, f"{name}.project", read)
        return queries + _feed_forward(parameters, name, queries)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads = math.gcd(self.heads, q.shape[-1])
        query, key, value = (x.reshape(-1, x.shape[2], heads, x.shape[3] // heads).transpose(1, 2) for x in (q, k, v))
        return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(q.shape)


class AttentiveProbe(_TokenProbe):
    """A learned query that reads tokens through self-attention and one cross-attention block, then a linear layer.

    The readout of V-JEPA 2 (arXiv 2506.09985): ``depth`` - 1 pre-norm self-attention blocks on all tokens, a
    cross-attention block whose query is learned, and a linear layer. Tokens are standardised per channel and get
    learned positions, since latents of small encoders do not say where they are. Trained by AdamW on the mean squared
    error of standardised targets; see :class:`MemberProbe` for how members train together and for what is fitted.

    Args:
        depth: number of blocks, the cross-attention block included.
        width: channels of the blocks; ``None`` for those of the tokens, which are then not projected.
        heads: attention heads; where it does not divide the width, their greatest common divisor.
        steps: number of AdamW steps.
        members: number of seeds.
        learning_rate: step size, or several to choose from on the validation rows.
        batch_size: rows per step and member, drawn with replacement.
        evaluate_every: steps between validations.
        seed: root seed of weights and minibatches.
        device: torch device, ``"auto"`` for the GPU if there is one.
        weight_decay: decoupled weight decay, or several to choose from.
        scale_floor: smallest deviation that channels are divided by, as a share of the median over channels.

    Raises:
        LatentGymError: on counts below one, learning rates that are not positive or negative weight decays.
    """

    kind = "attentive"
    title = "the attentive probe"

    def __init__(
        self,
        depth: int = 4,
        width: int | None = None,
        heads: int = 16,
        steps: int = 3000,
        members: int = 3,
        learning_rate: float | Sequence[float] = 3e-4,
        batch_size: int = 64,
        evaluate_every: int = 100,
        seed: int = 0,
        device: str = "auto",
        *,
        weight_decay: float | Sequence[float] = 0.01,
        scale_floor: float = 0.0,
    ) -> None:
        super().__init__(
            depth, width, heads, 1, steps=steps, members=members, learning_rate=learning_rate,
            weight_decay=weight_decay, batch_size=batch_size, evaluate_every=evaluate_every, seed=seed,
            device=device, scale_floor=scale_floor,
        )  # fmt: skip

    def _member(self, features: Sequence[int], targets: int, generator: torch.Generator) -> Parameters:
        parameters, width = self._embedding(features, generator), self.width or features[1]
        for index in range(self.depth):
            parameters |= self._block(str(index), width, generator, cross=index == self.depth - 1)
        return parameters | draw_linear("head", width, targets, generator)

    def _forward(self, parameters: Parameters, x: Tensor) -> Tensor:
        tokens, queries = self._embed(parameters, x)
        for index in range(self.depth - 1):
            tokens = self._self_attention(parameters, str(index), tokens)
        queries = self._cross_attention(parameters, str(self.depth - 1), queries, tokens)
        return linear(parameters, "head", queries[:, :, 0])


class TransformerProbe(_TokenProbe):
    """A transformer over patch tokens and learned query tokens; each query's output becomes one action of a chunk.

    The patch-token readout of Reconstruction or Semantics? (arXiv 2605.06388): tokens are projected to ``width``, get
    learned positions, and pass with ``queries`` learned tokens through ``depth`` pre-norm blocks; a linear layer turns
    each query into its share of the targets. Trained like :class:`AttentiveProbe`.

    Args:
        queries: query tokens k; it must divide the number of targets, which are the k actions one after the other.
        depth: number of blocks.
        width: channels of the blocks.
        heads: attention heads; where it does not divide the width, their greatest common divisor.
        steps: number of AdamW steps.
        members: number of seeds.
        learning_rate: step size, or several to choose from on the validation rows.
        batch_size: rows per step and member, drawn with replacement.
        evaluate_every: steps between validations.
        seed: root seed of weights and minibatches.
        device: torch device, ``"auto"`` for the GPU if there is one.
        weight_decay: decoupled weight decay, or several to choose from.
        scale_floor: smallest deviation that channels are divided by, as a share of the median over channels.

    Raises:
        LatentGymError: on counts below one, learning rates that are not positive, negative weight decays, or (in
            ``fit``) targets that the queries do not divide.
    """

    kind = "transformer"
    title = "the transformer probe"

    def __init__(
        self,
        queries: int = 1,
        depth: int = 6,
        width: int = 512,
        heads: int = 8,
        steps: int = 3000,
        members: int = 3,
        learning_rate: float | Sequence[float] = 3e-4,
        batch_size: int = 64,
        evaluate_every: int = 100,
        seed: int = 0,
        device: str = "auto",
        *,
        weight_decay: float | Sequence[float] = 0.01,
        scale_floor: float = 0.0,
    ) -> None:
        super().__init__(
            depth, width, heads, queries, steps=steps, members=members, learning_rate=learning_rate,
            weight_decay=weight_decay, batch_size=batch_size, evaluate_every=evaluate_every, seed=seed,
            device=device, scale_floor=scale_floor,
        )  # fmt: skip

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments; ``deep`` is scikit-learn's and changes nothing."""
        return {"queries": self.queries, **super().get_params(deep)}

    def _member(self, features: Sequence[int], targets: int, generator: torch.Generator) -> Parameters:
        if targets % self.queries:
            raise LatentGymError(f"{self.title}: {self.queries} queries do not divide {targets} targets")
        parameters, width = self._embedding(features, generator), self.width or features[1]
        for index in range(self.depth):
            parameters |= self._block(str(index), width, generator)
        parameters |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
        return parameters | draw_linear("head", width, targets // self.queries, generator)

    def _forward(self, parameters: Parameters, x: Tensor) -> Tensor:
        tokens, queries = self._embed(parameters, x)
        x = torch.cat([queries, tokens], dim=2)
        for index in range(self.depth):
            x = self._self_attention(parameters, str(index), x)
        read = _norm(parameters, "norm", x[:, :, : self.queries])
        return linear(parameters, "head", read).flatten(2)


def _norm(parameters: Parameters, name: str, x: Tensor) -> Tensor:
    """Layer normalisation with each member's own scale and shift."""
    weight, bias = (parameters[f"{name}.{part}"][:, None, None] for part in ("weight", "bias"))
    return functional.layer_norm(x, x.shape[-1:]) * weight + bias


def _feed_forward(parameters: Parameters, name: str, x: Tensor) -> Tensor:
    hidden = functional.gelu(linear(parameters, f"{name}.expand", _norm(parameters, f"{name}.norm2", x)))
    return linear(parameters, f"{name}.contract", hidden)
