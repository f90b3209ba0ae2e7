"""Readouts trained by gradient descent: all seeds and hyper-parameters of one cell at once, on batched weights."""

from __future__ import annotations

import abc
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from latentgym.devices import find_device
from latentgym.errors import LatentGymError
from latentgym.probes.estimator import as_matrix, mean_r2
from latentgym.probes.gram import floored
from latentgym.seeding import numpy_generator, torch_generator

Parameters = dict[str, Tensor]
_VALIDATION_SHARE = 0.2


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights of M members, each member's P numbers in one row, so that the optimiser passes over memory once.

    Attributes:
        flat: ``(M, P)`` float32.
        shapes: shape of each named part of a row, in order.
    """

    flat: Tensor
    shapes: dict[str, torch.Size]

    @classmethod
    def stacked(cls, drawn: Sequence[Parameters], device: torch.device) -> Weights:
        """Rows from the named weights of one member each."""
        rows = [torch.cat([values.reshape(-1) for values in one.values()]) for one in drawn]
        return cls(torch.stack(rows).to(device), {name: values.shape for name, values in drawn[0].items()})

    def zeros(self) -> Weights:
        """As many zeros."""
        return Weights(torch.zeros_like(self.flat), self.shapes)

    def copy(self) -> Weights:
        """The same numbers elsewhere."""
        return Weights(self.flat.clone(), self.shapes)

    def views(self, members: slice = slice(None)) -> Parameters:
        """Named views ``(M', …)`` of some members' rows."""
        parts = torch.split(self.flat[members], [shape.numel() for shape in self.shapes.values()], dim=1)
        return {
            name: part.view(len(part), *shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }


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
        return 1024

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
        self._vector = np.ndim(Y) == 1
        if not x.shape[-1]:
            raise LatentGymError("X: expected at least 1 feature, found 0; choose latents or data that have some")
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
        device = find_device(self.device)
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

    def _initial(self, features: Sequence[int], targets: int, device: torch.device) -> Weights:
        """Every member's weights, one generator per seed; seeds run fastest."""
        generators = [torch_generator(self.seed, f"{self.kind}-weights", member) for member in range(self.members)]
        drawn = [self._member(features, targets, generator) for generator in generators]
        return Weights.stacked(drawn * len(self._grid), device)

    def _train(self, x: Tensor, y: Tensor, x_held: Tensor, y_held: Tensor) -> None:
        weights = self._initial(x.shape[1:], y.shape[1], x.device)
        gradients = weights.zeros()
        optimizer = self._optimizer(weights, gradients)
        pairs = len(self._grid) if x.is_cuda else 1
        blocks = [
            slice(first * self.members, (first + pairs) * self.members) for first in range(0, len(self._grid), pairs)
        ]
        steps = [(weights.views(block), gradients.views(block)) for block in blocks]
        generators = [torch_generator(self.seed, f"{self.kind}-batches", member) for member in range(self.members)]
        size = min(self.batch_size, len(x))
        best = weights.copy()
        best_loss = self._losses(weights, blocks, x_held, y_held)
        best_step = np.zeros(len(best_loss), dtype=np.int64)
        for step in range(1, self.steps + 1):
            rows = torch.cat([torch.randint(len(x), (size,), generator=g) for g in generators]).to(x.device)
            # One pair of hyper-parameters at a time stays in a CPU's cache; a GPU wants everything in one launch.
            inputs, targets = (_minibatches(values, rows, self.members, pairs) for values in (x, y))
            for parameters, gradient in steps:
                self._gradients(parameters, gradient, inputs, targets)
            optimizer.step()
            if step % self.evaluate_every == 0 or step == self.steps:
                losses = self._losses(weights, blocks, x_held, y_held)
                better = losses < best_loss
                best_loss, best_step[better.cpu().numpy()] = torch.where(better, losses, best_loss), step
                best.flat[better] = weights.flat[better]
        self._select(best, best_loss.cpu().numpy(), best_step)

    def _gradients(self, parameters: Parameters, gradients: Parameters, x: Tensor, y: Tensor) -> None:
        """Write the gradients of each member's mean squared error on its rows ``x (M, n, …)`` and ``y (M, n, Q)``."""
        leaves = {name: values.detach().requires_grad_() for name, values in parameters.items()}
        loss = (self._forward(leaves, x) - y).square().mean((1, 2)).sum()
        for gradient, found in zip(gradients.values(), torch.autograd.grad(loss, list(leaves.values())), strict=True):
            gradient.copy_(found)

    def _optimizer(self, weights: Weights, gradients: Weights) -> torch.optim.Optimizer:
        """One optimiser with a parameter group per pair of hyper-parameters, on the rows of its members."""
        groups = []
        for index, (rate, decay) in enumerate(self._grid):
            members = slice(index * self.members, (index + 1) * self.members)
            rows = weights.flat[members]
            rows.grad = gradients.flat[members]
            groups.append({"params": [rows], "lr": rate, "weight_decay": decay})
        return torch.optim.AdamW(groups, fused=True)

    def _select(self, best: Weights, losses: NDArray[np.float32], steps: NDArray[np.int64]) -> None:
        """Keep the hyper-parameters with the lowest mean validation error."""
        self.validation_losses_ = losses.reshape(len(self._grid), self.members)
        chosen = int(np.argmin(self.validation_losses_.mean(1)))
        members = slice(chosen * self.members, (chosen + 1) * self.members)
        self.learning_rate_, self.weight_decay_ = self._grid[chosen]
        self.best_step_, self.validation_loss_ = steps[members], losses[members]
        self._best = Weights(best.flat[members].clone(), best.shapes).views()

    @torch.inference_mode()
    def _losses(self, weights: Weights, blocks: Sequence[slice], x: Tensor, y: Tensor) -> Tensor:
        """``(M,)`` mean squared error per member, one block of members after the other."""
        total = torch.zeros(len(weights.flat), device=x.device)
        for block in blocks:
            parameters, own = weights.views(block), total[block]
            for rows, targets in zip(*(torch.split(values, self._chunk(x)) for values in (x, y)), strict=True):
                own += (self._forward(parameters, _shared(rows, len(own))) - targets).square().mean(2).sum(1)
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
        """The seeds' mean prediction ``(n, Q)``; ``(n,)`` where the targets were a vector."""
        mean: NDArray[np.float64] = self.predict_members(X).mean(0)
        return mean[:, 0] if self._vector else mean

    def score(self, X: ArrayLike | Tensor, Y: ArrayLike | Tensor) -> float:
        """R² of :meth:`predict`, averaged over the targets that are not constant in ``Y``.

        It is that of the seeds' mean prediction; a study averages the scores of the seeds instead.
        """
        target = as_matrix(Y, "Y").numpy()
        return mean_r2(target, self.predict(X).reshape(len(target), -1))


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


def _minibatches(values: Tensor, rows: Tensor, members: int, repeats: int) -> Tensor:
    """``(repeats · S, n, …)`` rows of each of S members, the members' own running fastest."""
    drawn = values.index_select(0, rows).view(members, -1, *values.shape[1:])
    return drawn if repeats == 1 else drawn.repeat(repeats, *(1 for _ in drawn.shape[1:]))


def _shared(rows: Tensor, members: int) -> Tensor:
    return rows.expand(members, *rows.shape)
