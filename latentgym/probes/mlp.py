"""A small multilayer perceptron as readout; several seeds train at once on batched weights."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from latentgym.errors import LatentGymError
from latentgym.probes.gram import floored
from latentgym.probes.ridge import as_matrix, mean_r2, pick_device
from latentgym.seeding import numpy_generator, torch_generator

_VALIDATION_SHARE = 0.2


class MLPProbe:
    """Readout D → 256 → 128 → Q with ReLU, trained by Adam on the mean squared error of standardised targets.

    Features and targets are standardised with training statistics. Members differ by seed (initial weights and
    minibatches) and are trained together by batched matrix products; each keeps the step with its lowest validation
    error, among steps counted from 0.

    Args:
        hidden: widths of the hidden layers.
        steps: number of Adam steps.
        members: number of seeds.
        learning_rate: Adam's step size.
        batch_size: rows per step and member, drawn with replacement.
        evaluate_every: steps between validations.
        seed: root seed of weights and minibatches.
        scale_floor: smallest deviation that features are divided by, as a share of the median over features.
        device: torch device, ``"auto"`` for the GPU if there is one.

    Attributes:
        best_step_: ``(M,)`` step whose weights each member kept.
        validation_loss_: ``(M,)`` its validation error in units of the target variance.
    """

    def __init__(
        self,
        hidden: Sequence[int] = (256, 128),
        steps: int = 3000,
        members: int = 3,
        learning_rate: float = 1e-3,
        batch_size: int = 256,
        evaluate_every: int = 50,
        seed: int = 0,
        device: str = "auto",
        *,
        scale_floor: float = 0.0,
    ) -> None:
        if min(steps, members, batch_size, evaluate_every, *hidden) < 1:
            raise LatentGymError("MLPProbe: hidden, steps, members, batch_size and evaluate_every must be at least 1")
        self.hidden, self.steps, self.members, self.learning_rate = tuple(hidden), steps, members, learning_rate
        self.batch_size, self.evaluate_every, self.seed, self.device = batch_size, evaluate_every, seed, device
        self.scale_floor = scale_floor

    def get_params(self) -> dict[str, Any]:
        """The constructor's arguments."""
        fitting = ("hidden", "steps", "members", "learning_rate", "batch_size", "evaluate_every")
        return {name: getattr(self, name) for name in (*fitting, "seed", "device", "scale_floor")}

    def fit(
        self,
        X: ArrayLike | Tensor,
        Y: ArrayLike | Tensor,
        groups: ArrayLike | None = None,
        *,
        validation: tuple[ArrayLike | Tensor, ArrayLike | Tensor] | None = None,
    ) -> MLPProbe:
        """Train on ``X (n, D)`` and ``Y (n, Q)``.

        Args:
            X: features.
            Y: targets.
            groups: ``(n,)`` group (episode) of each row, for the default validation split.
            validation: features and targets on which the best step is chosen; default: a fifth of the groups, which
                are then not trained on.

        Raises:
            LatentGymError: on mismatched or non-finite rows, or fewer than two groups to split.
        """
        x, y = as_matrix(X, "X"), as_matrix(Y, "Y")
        if len(x) != len(y) or not len(x):
            raise LatentGymError(f"X and Y disagree or are empty: {len(x)} and {len(y)} rows")
        if validation is None:
            held = torch.from_numpy(self._held_out(np.arange(len(x)) if groups is None else np.asarray(groups)))
            x, y, x_held, y_held = x[~held], y[~held], x[held], y[held]
        else:
            x_held, y_held = as_matrix(validation[0], "validation X"), as_matrix(validation[1], "validation Y")
        if (x_held.shape[1], y_held.shape[1]) != (x.shape[1], y.shape[1]) or not len(x_held) == len(y_held) > 0:
            raise LatentGymError(
                f"validation rows {tuple(x_held.shape)}, {tuple(y_held.shape)} do not match {tuple(x.shape)}, "
                f"{tuple(y.shape)} or are empty"
            )
        self._x_scale, self._y_scale = _standardisation(x, self.scale_floor), _standardisation(y, 0.0)
        device = pick_device(self.device)
        train = (_apply(x, self._x_scale).to(device), _apply(y, self._y_scale).to(device))
        self._train(*train, _apply(x_held, self._x_scale).to(device), _apply(y_held, self._y_scale).to(device))
        return self

    def _held_out(self, groups: NDArray[Any]) -> NDArray[np.bool_]:
        labels = np.unique(groups)
        if len(labels) < 2:
            raise LatentGymError("an MLP probe needs at least 2 groups (episodes) to validate on one of them")
        count = max(1, round(_VALIDATION_SHARE * len(labels)))
        held = numpy_generator(self.seed, "mlp-validation").permutation(len(labels))[:count]
        return np.isin(groups, labels[held])

    def _initial(self, features: int, targets: int, device: torch.device) -> list[Tensor]:
        """Weights ``(M, in, out)`` and biases ``(M, 1, out)`` per layer, from one generator per member."""
        sizes = (features, *self.hidden, targets)
        generators = [torch_generator(self.seed, "mlp-weights", member) for member in range(self.members)]
        parameters = []
        for fan_in, fan_out in itertools.pairwise(sizes):
            bound = fan_in**-0.5
            weights = [(torch.rand(fan_in, fan_out, generator=g) * 2 - 1) * bound for g in generators]
            parameters += [torch.stack(weights).to(device), torch.zeros(self.members, 1, fan_out, device=device)]
        return [parameter.requires_grad_() for parameter in parameters]

    def _train(self, x: Tensor, y: Tensor, x_held: Tensor, y_held: Tensor) -> None:
        parameters = self._initial(x.shape[1], y.shape[1], x.device)
        optimizer = torch.optim.Adam(parameters, lr=self.learning_rate, fused=True)
        generators = [torch_generator(self.seed, "mlp-batches", member) for member in range(self.members)]
        size = min(self.batch_size, len(x))
        self._best = [parameter.detach().clone() for parameter in parameters]
        best_loss, best_step = _losses(parameters, x_held, y_held), np.zeros(self.members, dtype=np.int64)
        for step in range(1, self.steps + 1):
            rows = torch.stack([torch.randint(len(x), (size,), generator=g) for g in generators]).to(x.device)
            optimizer.zero_grad(set_to_none=True)
            (_forward(parameters, x[rows]) - y[rows]).square().mean((1, 2)).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if step % self.evaluate_every == 0 or step == self.steps:
                losses = _losses(parameters, x_held, y_held)
                better = losses < best_loss
                best_loss, best_step[better.cpu().numpy()] = torch.where(better, losses, best_loss), step
                for kept, parameter in zip(self._best, parameters, strict=True):
                    kept[better] = parameter.detach()[better]
        self.best_step_, self.validation_loss_ = best_step, best_loss.cpu().numpy()

    @torch.inference_mode()
    def predict_members(self, X: ArrayLike | Tensor) -> NDArray[np.float64]:
        """Each member's predictions ``(M, n, Q)`` float64 for features ``(n, D)``."""
        if not hasattr(self, "_best"):
            raise LatentGymError("the MLP probe is not fitted; call fit first")
        x = as_matrix(X, "X")
        if x.shape[1] != len(self._x_scale[0]):
            raise LatentGymError(f"expected {len(self._x_scale[0])} features, found {x.shape[1]}")
        inputs = _apply(x, self._x_scale).to(self._best[0].device)
        outputs = torch.cat([_forward(self._best, _shared(b, self.members)) for b in torch.split(inputs, 4096)], dim=1)
        mean, scale = self._y_scale
        predictions: NDArray[np.float64] = (outputs.double().cpu() * scale + mean).numpy()
        return predictions

    def predict(self, X: ArrayLike | Tensor) -> NDArray[np.float64]:
        """The members' mean prediction ``(n, Q)``."""
        mean: NDArray[np.float64] = self.predict_members(X).mean(0)
        return mean

    def score(self, X: ArrayLike | Tensor, Y: ArrayLike | Tensor) -> float:
        """R² averaged over members and over the targets that are not constant in ``Y``."""
        target = as_matrix(Y, "Y").numpy()
        return float(np.mean([mean_r2(target, member) for member in self.predict_members(X)]))


def _standardisation(values: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per column; a constant column's deviation counts as one."""
    mean, deviation = values.mean(0), values.std(0, correction=0)
    varies = deviation > 1e-7 * mean.abs().clamp_min(1e-30)
    return mean, torch.where(varies, floored(deviation, floor, varies), 1.0)


def _apply(values: Tensor, scale: tuple[Tensor, Tensor]) -> Tensor:
    return ((values - scale[0]) / scale[1]).float()


def _shared(rows: Tensor, members: int) -> Tensor:
    return rows.expand(members, *rows.shape)


def _forward(parameters: Sequence[Tensor], x: Tensor) -> Tensor:
    """``(M, n, Q)`` outputs for inputs ``(M, n, D)``."""
    for index in range(0, len(parameters), 2):
        x = torch.baddbmm(parameters[index + 1], functional.relu(x) if index else x, parameters[index])
    return x


@torch.inference_mode()
def _losses(parameters: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
    """``(M,)`` mean squared error per member."""
    members, total = len(parameters[0]), torch.zeros(len(parameters[0]), device=x.device)
    for rows, targets in zip(torch.split(x, 4096), torch.split(y, 4096), strict=True):
        total += (_forward(parameters, _shared(rows, members)) - targets).square().mean(2).sum(1)
    return total / len(x)
