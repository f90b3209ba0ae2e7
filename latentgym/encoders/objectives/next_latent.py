"""Next-latent prediction without actions: the latent of the following frames from the present one."""

from __future__ import annotations

import torch
from torch import nn

from latentgym.encoders.objectives.objective import Batch, Objective
from latentgym.encoders.objectives.vicreg import dense_embedding, vicreg
from latentgym.encoders.trunk import WIDTH, ConvBlock, PairNetwork, pair


class NextLatent(Objective):
    """Predict E(o_t+1, o_t+2) from E(o_t−1, o_t), kept from collapse by VICReg's variance and covariance terms.

    The terms act on the channels at every place of the grid (dense, as in VICRegL), each place centred over the batch:
    what never changes in a fixed scene can neither fill the variance nor be a prediction.
    """

    name = "next_latent"
    source = (
        "Sobal et al., arXiv 2211.10831, section 3 (VICReg JEPA over time), without actions; "
        "dense terms after Bardes et al., VICRegL, arXiv 2210.01571"
    )
    network_type = PairNetwork

    def __init__(self, action_size: int = 0) -> None:
        super().__init__(action_size)
        self.predictor = nn.Sequential(ConvBlock(WIDTH, WIDTH), nn.Conv2d(WIDTH, WIDTH, 1))

    def loss(self, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """See :meth:`Objective.loss`."""
        frames = batch.frames
        stacks = torch.cat([pair(frames[:, 0], frames[:, 1]), pair(frames[:, 2], frames[:, 3])])
        present, following = self.network.trunk(stacks).chunk(2)
        predicted = present + self.predictor(present)
        return vicreg(dense_embedding(predicted), dense_embedding(following))
