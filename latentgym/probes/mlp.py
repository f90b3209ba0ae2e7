"""A small multilayer perceptron as readout."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from latentgym.errors import LatentGymError
from latentgym.probes.estimator import as_matrix
from latentgym.probes.members import MemberProbe, Parameters, draw_linear


class MLPProbe(MemberProbe):
    """Readout D → 256 → 128 → Q with ReLU, trained by Adam on the mean squared error of standardised targets.

    Features and targets are standardised with training statistics. See :class:`MemberProbe` for how seeds and
    hyper-parameters are trained together and which weights are kept, and for the fitted attributes.

    Args:
        hidden: widths of the hidden layers.
        steps: number of Adam steps.
        members: number of seeds.
        learning_rate: Adam's step size, or several to choose from on the validation rows.
        batch_size: rows per step and member, drawn with replacement.
        evaluate_every: steps between validations.
        seed: root seed of weights and minibatches.
        device: torch device, ``"auto"`` for the GPU if there is one.
        weight_decay: decoupled weight decay, or several to choose from.
        scale_floor: smallest deviation that features are divided by, as a share of the median over features.

    Raises:
        LatentGymError: on counts below one, learning rates that are not positive or negative weight decays.
    """

    kind = "mlp"
    title = "the MLP probe"

    def __init__(
        self,
        hidden: Sequence[int] = (256, 128),
        steps: int = 3000,
        members: int = 3,
        learning_rate: float | Sequence[float] = 1e-3,
        batch_size: int = 256,
        evaluate_every: int = 50,
        seed: int = 0,
        device: str = "auto",
        *,
        weight_decay: float | Sequence[float] = 0.0,
        scale_floor: float = 0.0,
    ) -> None:
        super().__init__(
            steps, members, learning_rate, weight_decay, batch_size, evaluate_every, seed, device, scale_floor
        )
        if hidden and min(hidden) < 1:
            raise LatentGymError(f"{self.title}: hidden widths must be at least 1, found {tuple(hidden)}")
        self.hidden = tuple(hidden)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments; ``deep`` is scikit-learn's and changes nothing."""
        return {"hidden": self.hidden, **super().get_params(deep)}

    def _rows(self, values: ArrayLike | Tensor, name: str) -> Tensor:
        return as_matrix(values, name)

    def _member(self, features: Sequence[int], targets: int, generator: torch.Generator) -> Parameters:
        parameters: Parameters = {}
        for index, (inputs, outputs) in enumerate(itertools.pairwise((*features, *self.hidden, targets))):
            parameters |= {name: part.T for name, part in draw_linear(str(index), inputs, outputs, generator).items()}
        return parameters

    def _forward(self, parameters: Parameters, x: Tensor) -> Tensor:
        return self._activations(parameters, x)[-1].mT

    def _activations(self, parameters: Parameters, x: Tensor) -> list[Tensor]:
        """``(M, width, n)`` inputs, hidden layers and outputs; products with few outputs are fastest this way round."""
        found = [x.mT]
        for index in range(len(self.hidden) + 1):
            out = torch.bmm(parameters[f"{index}.weight"], found[-1]).add_(parameters[f"{index}.bias"])
            found.append(out.relu_() if index < len(self.hidden) else out)
        return found

    @torch.no_grad()
    def _gradients(self, parameters: Parameters, gradients: Parameters, x: Tensor, y: Tensor) -> None:
        # Backpropagation written out: recording a graph takes as long as a third of the products.
        found = self._activations(parameters, x)
        error = (found[-1] - y.mT).mul_(2 / (y.shape[1] * y.shape[2]))
        for index in reversed(range(len(self.hidden) + 1)):
            torch.bmm(error, found[index].mT, out=gradients[f"{index}.weight"])
            torch.sum(error, 2, keepdim=True, out=gradients[f"{index}.bias"])
            if index:
                error = torch.bmm(parameters[f"{index}.weight"].mT, error)
                torch.ops.aten.threshold_backward.grad_input(error, found[index], 0, grad_input=error)
