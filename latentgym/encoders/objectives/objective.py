"""What a pretraining objective is: an encoding network, throw-away parts beside it, and a loss on clips."""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar

import torch
from torch import nn

from latentgym.encoders.trunk import EncodingNetwork, initialise, initialise_trunk
from latentgym.seeding import torch_generator

CLIP_FRAMES = 4


@dataclasses.dataclass(frozen=True)
class Batch:
    """Clips for one step; every objective sees the same ones at one seed and step, and uses what it needs of them.

    Attributes:
        frames: ``(B, 4, 3, 64, 64)`` float32, consecutive normalised frames.
        actions: ``(B, 3, A)`` float32, standardised; ``None`` for objectives that are not trained on actions.
    """

    frames: torch.Tensor
    actions: torch.Tensor | None = None


class Objective(nn.Module, abc.ABC):
    """A pretraining objective.

    A subclass names its encoding network and its source, builds its extra modules in ``__init__`` and returns a scalar
    from :meth:`loss`. All randomness comes from the generator that it is given, which draws on the CPU so that
    the noise is the same on every device.

    Attributes:
        name: name of the objective, and of the family.
        source: paper and equation.
        network_type: class of the part that is kept for encoding.
        trained_on_actions: whether the loss reads action labels.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    network_type: ClassVar[type[EncodingNetwork]]
    trained_on_actions: ClassVar[bool] = False

    def __init__(self, action_size: int = 0) -> None:
        super().__init__()
        self.action_size = action_size
        self.network = self.network_type()

    @abc.abstractmethod
    def loss(self, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """Scalar training loss of a batch."""

    def initialise(self, seed: int) -> None:
        """Draw all parameters from ``seed``; the trunk's start is the same for every objective."""
        initialise(self, torch_generator(seed, self.name))
        initialise_trunk(self.network.trunk, seed)

    def after_step(self, progress: float) -> None:
        """Hook after every optimiser step; ``progress`` runs from 0 to 1. Moving averages are updated here."""
