"""Readouts trained by gradient descent: all seeds and hyper-parameters of one cell at once, on batched weights."""

from __future__ import annotations

import abc
import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from latentgym.errors import LatentGymError
from latentgym.probes.estimator import as_matrix, mean_r2, pick_device
from latentgym.probes.gram import floored
from latentgym.seeding import numpy_generator, torch_generator

Parameters = dict[str, Tensor]
_Views = list[tuple[Tensor, tuple[str, slice]]]
_VALIDATION_SHARE = 0.2


class MemberProbe(abc.ABC):
    """Base of readouts whose members train together; every parameter has a leading axis of M members.

    Members are ``members`` seeds for each pair of ``learning_rate`` and ``weight_decay``. Those of one seed start from
    the same weights and see the same minibatches. Each member keeps the step with its lowest validation error, among
    steps counted from 0; predictions come from the hyper-parameters with the lowest mean validation error.

    A subclass names its kind, reads its rows, draws one member's weights and maps inputs to outputs.

    Attributes:
        best_step_: ``(S,)`` step whose weights each seed kept.
        validation_loss_: ``(S,)`` its validation error in units of the target variance.
        validation_losses_: ``(H, S)`` the same of every pair of hyper-parameters.
        learning_rate_: chosen learning rate.
        weight_decay_: chosen weight decay.
    """

    kind: ClassVar[str]
    title: ClassVar[str]
    best_step_: NDArray[np.int64]

    def __init__(
        self,
        steps: int,
        members: int,
        learning_rate: float | Sequence[float],
        weight_decay: float | Sequence[float],
        batch_size: int,
        evaluate_every: int,
        seed: int,
        device: str,
        scale_floor: float,
    ) -> None:
        if min(steps, members, batch_size, evaluate_every) < 1:
            raise LatentGymError(
                f"{self.title}: steps, members, batch_size and evaluate_every must be at least 1, found {steps}, "
                f"{members}, {batch_size} and {evaluate_every}"
            )
        self.steps, self.members, self.batch_size, self.evaluate_every = steps, members, batch_size, evaluate_every
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.seed, self.device, self.scale_floor = seed, device, scale_floor
        self._grid = list(itertools.product(_several(learning_rate), _several(weight_decay)))
        if not self._grid or min(rate for rate, _ in self._grid) <= 0 or min(decay for _, decay in self._grid) < 0:
            raise LatentGymError(f"{self.title}: learning rates must be positive and weight decays not negative")

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments; ``deep`` is scikit-learn's and changes nothing."""
        names = ("steps", "members", "learning_rate", "weight_decay", "batch_size", "evaluate_every")
        return {name: getattr(self, name) for name in (*names, "seed", "device", "scale_floor")}

    @abc.abstractmethod
    def _rows(self, values: ArrayLike | Tensor, name: str) -> Tensor:
        """Checked floating-point features ``(n, …)``, channels last."""

    @abc.abstractmethod
    def _member(self, features: Sequence[int], targets: int, generator: torch.Generator) -> Parameters:
        """Initial weights of one member, for rows of that shape."""

    @abc.abstractmethod
    def _forward(self, parameters: Parameters, x: Tensor) -> Tensor:
        """``(M, n, Q)`` outputs for inputs ``(M, n, …)``."""

    def _chunk(self, x: Tensor) -> int:
        """Rows that are read at once outside training."""
        return 4096

    def fit(
        self,
        X: ArrayLike | Tensor,
        Y: ArrayLike | Tensor,
        groups: ArrayLike | None = None,
        *,
        validation: tuple[ArrayLike | Tensor, ArrayLike | Tensor] | None = None,
    ) -> Any:
        """Train on ``X (n, …)`` and ``Y (n, Q)``.

        Args:
            X: features: ``(n, D)`` for the MLP, tokens ``(n, N, D)`` for the attentive and transformer readouts.
            Y: targets.
            groups: ``(n,)`` group (episode) of each row, for the default validation split.
            validation: features and targets on which the best step is chosen; default: a fifth of the groups, which
                are then not trained on.

        Raises:
            LatentGymError: on mismatched or non-finite rows, or fewer than two groups to split.
        """
        x, y = self._rows(X, "X"), as_matrix(Y, "Y")
        if len(x) != len(y) or not len(x):
            raise LatentGymError(f"X and Y disagree or are empty: {len(x)} and {len(y)} rows")
        if validation is None:
            held = torch.from_numpy(self._held_out(np.arange(len(x)) if groups is None else np.asarray(groups), len(x)))
            x, y, x_held, y_held = x[~held], y[~held], x[held], y[held]
        else:
            x_held, y_held = self._rows(validation[0], "validation X"), as_matrix(validation[1], "validation Y")
        if (x_held.shape[1:], y_held.shape[1]) != (x.shape[1:], y.shape[1]) or not len(x_held) == len(y_held) > 0:
            raise LatentGymError(
                f"validation rows {tuple(x_held.shape)}, {tuple(y_held.shape)} do not match {tuple(x.shape)}, "
                f"{tuple(y.shape)} or are empty"
            )
        self._shape = tuple(x.shape[1:])
        self._x_scale, self._y_scale = _standardisation(x, self.scale_floor), _standardisation(y, 0.0)
        device = pick_device(self.device)
        train = (_apply(x, self._x_scale).to(device), _apply(y, self._y_scale).to(device))
        self._train(*train, _apply(x_held, self._x_scale).to(device), _apply(y_held, self._y_scale).to(device))
        return self

    def _held_out(self, groups: NDArray[Any], rows: int) -> NDArray[np.bool_]:
        if len(groups) != rows:
            raise LatentGymError(f"X and groups disagree: {rows} and {len(groups)} rows")
        labels = np.unique(groups)
        if len(labels) < 2:
            raise LatentGymError(f"{self.title} needs at least 2 groups (episodes) to validate on one of them")
        count = max(1, round(_VALIDATION_SHARE * len(labels)))
        held = numpy_generator(self.seed, f"{self.kind}-validation").permutation(len(labels))[:count]
        return np.isin(groups, labels[held])

    def _initial(self, features: Sequence[int], targets: int, device: torch.device) -> Parameters:
        """Every member's weights, one generator per seed; seeds run fastest."""
        generators = [torch_generator(self.seed, f"{self.kind}-weights", member) for member in range(self.members)]
        drawn = [self._member(features, targets, generator) for generator in generators] * len(self._grid)
        return {name: torch.stack([one[name] for one in drawn]).to(device).requires_grad_() for name in drawn[0]}

    def _train(self, x: Tensor, y: Tensor, x_held: Tensor, y_held: Tensor) -> None:
        parameters = self._initial(x.shape[1:], y.shape[1], x.device)
        optimizer, slices = self._optimizer(parameters)
        generators = [torch_generator(self.seed, f"{self.kind}-batches", member) for member in range(self.members)]
        size = min(self.batch_size, len(x))
        best = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        best_loss = self._losses(parameters, x_held, y_held)
        best_step = np.zeros(len(best_loss), dtype=np.int64)
        for step in range(1, self.steps + 1):
            rows = torch.stack([torch.randint(len(x), (size,), generator=g) for g in generators]).to(x.device)
            rows = rows.repeat(len(self._grid), 1)
            error = self._forward(parameters, x[rows]) - y[rows]
            error.square().mean((1, 2)).sum().backward()  # type: ignore[no-untyped-call]
            for part, (name, members) in slices:
                part.grad = parameters[name].grad[members]  # type: ignore[index]
            optimizer.step()
            for parameter in parameters.values():
                parameter.grad = None
            if step % self.evaluate_every == 0 or step == self.steps:
                losses = self._losses(parameters, x_held, y_held)
                better = losses < best_loss
                best_loss, best_step[better.cpu().numpy()] = torch.where(better, losses, best_loss), step
                for name, parameter in parameters.items():
                    best[name][better] = parameter.detach()[better]
        self._select(best, best_loss.cpu().numpy(), best_step)

    def _optimizer(self, parameters: Parameters) -> tuple[torch.optim.Optimizer, _Views]:
        """One optimiser with a parameter group per pair of hyper-parameters, on views of the members' weights."""
        groups, slices = [], []
        for index, (rate, decay) in enumerate(self._grid):
            members = slice(index * self.members, (index + 1) * self.members)
            views = [(parameter.detach()[members], (name, members)) for name, parameter in parameters.items()]
            groups.append({"params": [view for view, _ in views], "lr": rate, "weight_decay": decay})
            slices += views
        return torch.optim.AdamW(groups, fused=True), slices

    def _select(self, best: Parameters, losses: NDArray[np.float32], steps: NDArray[np.int64]) -> None:
        """Keep the hyper-parameters with the lowest mean validation error."""
        self.validation_losses_ = losses.reshape(len(self._grid), self.members)
        chosen = int(np.argmin(self.validation_losses_.mean(1)))
        members = slice(chosen * self.members, (chosen + 1) * self.members)
        self.learning_rate_, self.weight_decay_ = self._grid[chosen]
        self.best_step_, self.validation_loss_ = steps[members], losses[members]
        self._best = {name: parameter[members].clone() for name, parameter in best.items()}

    @torch.inference_mode()
    def _losses(self, parameters: Parameters, x: Tensor, y: Tensor) -> Tensor:
        """``(M,)`` mean squared error per member."""
        members, size = len(next(iter(parameters.values()))), self._chunk(x)
        total = torch.zeros(members, device=x.device)
        for rows, targets in zip(torch.split(x, size), torch.split(y, size), strict=True):
            total += (self._forward(parameters, _shared(rows, members)) - targets).square().mean(2).sum(1)
        return total / len(x)

    @torch.inference_mode()
    def predict_members(self, X: ArrayLike | Tensor) -> NDArray[np.float64]:
        """Each seed's predictions ``(S, n, Q)`` float64 for features ``X`` as in :meth:`fit`.

        Raises:
            LatentGymError: if the probe is not fitted, or on features of another shape or non-finite ones.
        """
        if not hasattr(self, "_best"):
            raise LatentGymError(f"{self.title} is not fitted; call fit first")
        x = self._rows(X, "X")
        if tuple(x.shape[1:]) != self._shape:
            raise LatentGymError(
                f"expected {' × '.join(map(str, self._shape))} features, found {' × '.join(map(str, x.shape[1:]))}"
            )
        device = next(iter(self._best.values())).device
        blocks = torch.split(x, self._chunk(x)) if len(x) else (x,)
        outputs = [
            self._forward(self._best, _shared(_apply(block, self._x_scale).to(device), self.members))
            for block in blocks
        ]
        mean, scale = self._y_scale
        predictions: NDArray[np.float64] = (torch.cat(outputs, dim=1).double().cpu() * scale + mean).numpy()
        return predictions

    def predict(self, X: ArrayLike | Tensor) -> NDArray[np.float64]:
        """The seeds' mean prediction ``(n, Q)``."""
        mean: NDArray[np.float64] = self.predict_members(X).mean(0)
        return mean

    def score(self, X: ArrayLike | Tensor, Y: ArrayLike | Tensor) -> float:
        """R² averaged over seeds and over the targets that are not constant in ``Y``."""
        target = as_matrix(Y, "Y").numpy()
        return float(np.mean([mean_r2(target, member) for member in self.predict_members(X)]))


def linear(parameters: Parameters, name: str, x: Tensor) -> Tensor:
    """``(M, …, out)``: each member's own layer ``name`` on its ``x (M, …, in)``."""
    weight, bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
    flat = torch.baddbmm(bias, x.reshape(len(weight), -1, x.shape[-1]), weight)
    return flat.view(*x.shape[:-1], weight.shape[-1])


def draw_linear(name: str, inputs: int, outputs: int, generator: torch.Generator) -> Parameters:
    """One member's layer: uniform ±1/√inputs weights ``(in, out)`` and zero biases ``(1, out)``."""
    weight = (torch.rand(inputs, outputs, generator=generator) * 2 - 1) * inputs**-0.5
    return {f"{name}.weight": weight, f"{name}.bias": torch.zeros(1, outputs)}


def _several(values: float | Sequence[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in np.atleast_1d(np.asarray(values, dtype=np.float64)))


def _standardisation(values: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel; a constant channel's deviation counts as one."""
    values = values.reshape(-1, values.shape[-1])
    mean, deviation = values.mean(0), values.std(0, correction=0)
    varies = deviation > 1e-7 * mean.abs().clamp_min(1e-30)
    return mean, torch.where(varies, floored(deviation, floor, varies), 1.0)


def _apply(values: Tensor, scale: tuple[Tensor, Tensor]) -> Tensor:
    return ((values - scale[0]) / scale[1]).float()


def _shared(rows: Tensor, members: int) -> Tensor:
    return rows.expand(members, *rows.shape)
