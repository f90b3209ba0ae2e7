"""Action chunking with a transformer (Zhao et al., arXiv 2304.13705), without its variational encoder.

The variational encoder models differences between human demonstrators; scripted experts have none, so that the latent
variable would be zero in training as it is in control.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from latentgym.errors import LatentGymError
from latentgym.policies.heads.base import Batch, LatentHead, masked_mean
from latentgym.policies.regression import linear


class ActionChunkingHead(LatentHead):
    """One token per latent of the history, and one query per action of the chunk that attends to them.

    Its loss is the mean absolute error over the chunk, as in the paper; the policy averages the overlapping chunks
    (temporal ensembling).

    Args:
        embedding: width of a token.
        heads: attention heads.
        layers: blocks of the encoder, and as many of the decoder.
    """

    kind = "action_chunking"
    default_horizon = 8

    def __init__(
        self, features: int, components: int | None, history: int, actions: int, horizon: int = 8, condition: int = 0,
        embedding: int = 128, heads: int = 4, layers: int = 2,
    ) -> None:  # fmt: skip
        if min(embedding, heads, layers) < 1 or embedding % heads:
            raise LatentGymError(
                f"head 'action_chunking': embedding ({embedding}) must be a multiple of heads ({heads}), layers "
                f"({layers}) at least 1"
            )
        options: dict[str, Any] = {"embedding": embedding, "heads": heads, "layers": layers}
        super().__init__(features, components, history, actions, horizon, condition, **options)
        tokens = history + (1 if condition else 0)
        self.newest = linear(self.width, embedding)
        self.steps = linear(self.width, embedding)
        self.told = linear(max(condition, 1), embedding)
        self.places = nn.Parameter(torch.zeros(tokens, embedding))
        self.queries = nn.Parameter(torch.zeros(horizon, embedding))
        self.encoder = nn.ModuleList(Block(embedding, heads, crosses=False) for _ in range(layers))
        self.decoder = nn.ModuleList(Block(embedding, heads, crosses=True) for _ in range(layers))
        self.norm = nn.LayerNorm(embedding)
        self.out = linear(embedding, actions)

    def draw_weights(self, generator: torch.Generator) -> None:
        """Draw linear layers as every head does, places and queries from a normal distribution of 0.02."""
        super().draw_weights(generator)
        for parameter in (self.places, self.queries):
            nn.init.normal_(parameter, std=0.02, generator=generator)

    def loss(self, batch: Batch, targets: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Mean absolute error over the actions within the episode."""
        return masked_mean((self.plan(batch.history, batch.condition) - targets).abs(), batch.valid)

    def plan(
        self, history: torch.Tensor, condition: torch.Tensor | None = None, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Standardised actions ``(B, H, A)``."""
        tokens = [self.steps(self.motion(history)), self.newest(history[:, -1:])]
        if condition is not None:
            tokens.append(self.told(condition)[:, None])
        memory = torch.cat(tokens, dim=1) + self.places
        for block in self.encoder:
            memory = block(memory, memory)
        chunk = self.queries.expand(len(history), -1, -1)
        for block in self.decoder:
            chunk = block(chunk, memory)
        planned: torch.Tensor = self.out(self.norm(chunk))
        return planned


class Block(nn.Module):
    """A transformer block with normalisation first: attention among its tokens, then to others, then an MLP."""

    def __init__(self, width: int, heads: int, *, crosses: bool) -> None:
        super().__init__()
        self.inner = Attention(width, heads)
        self.cross = Attention(width, heads) if crosses else None
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.widen, self.narrow = linear(width, 4 * width), linear(4 * width, width)

    def forward(self, tokens: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """Tokens ``(B, N, D)`` after the block; ``memory`` ``(B, M, D)`` is read by decoder blocks."""
        own = self.norms[0](tokens)
        tokens = tokens + self.inner(own, own)
        if self.cross is not None:
            tokens = tokens + self.cross(self.norms[1](tokens), memory)
        widened: torch.Tensor = self.narrow(nn.functional.gelu(self.widen(self.norms[2](tokens))))
        return tokens + widened


class Attention(nn.Module):
    """Multi-head attention of queries ``(B, N, D)`` to a memory ``(B, M, D)``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (linear(width, width) for _ in range(4))

    def forward(self, queries: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """Attended values ``(B, N, D)``."""
        parts = (self.query(queries), self.key(memory), self.value(memory))
        query, key, value = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        result: torch.Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return result
