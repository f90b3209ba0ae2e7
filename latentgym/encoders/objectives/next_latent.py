"""Next-latent prediction without actions: the latent of the following frames from the present one."""

from __future__ import annotations

import torch
from torch import nn

from latentgym.encoders.objectives.objective import Batch, Objective
from latentgym.encoders.objectives.vicreg import Expander, spread_terms, vicreg
from latentgym.encoders.trunk import WIDTH, ConvBlock, PairNetwork, pair


class NextLatent(Objective):
    """Predict E(o_t, o_t+1) from E(o_t−1, o_t), kept from collapse by VICReg's variance and covariance terms.

    The expanded prediction is compared with the expanded latent that follows. The terms alone are content with what
    stands still (task, goal), which is the easiest to predict (Sobal et al., section 4); so they are also asked of the
    change from one embedding to the next.
    """

    name = "next_latent"
    source = "Sobal et al., arXiv 2211.10831, section 3 (VICReg JEPA over time), without actions"
    network_type = PairNetwork

    def __init__(self, action_size: int = 0) -> None:
        super().__init__(action_size)
        self.predictor = nn.Sequential(ConvBlock(WIDTH, WIDTH), nn.Conv2d(WIDTH, WIDTH, 1))
        self.expander = Expander()

    def loss(self, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """See :meth:`Objective.loss`."""
        frames = batch.frames
        stacks = torch.cat([pair(frames[:, 0], frames[:, 1]), pair(frames[:, 1], frames[:, 2])])
        present, following = self.network.trunk(stacks).chunk(2)
        predicted = self.expander(present + self.predictor(present))
        before, after = self.expander(torch.cat([present, following])).chunk(2)
        return vicreg(predicted, after) + spread_terms(after - before)
