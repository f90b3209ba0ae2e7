"""Stable-Baselines3 models as policies: their actors, read without unpickling anything.

A model file of Stable-Baselines3 is a zip of JSON, in which some values are pickles, and of a state dict. Only the
plain JSON and the state dict (``torch.load(weights_only=True)``) are read here; the actor is rebuilt from the shapes of
its weights. A model that was trained on :class:`~latentgym.envs.wrappers.LatentObservation` says in its observation
space which encoder, history and environment it belongs to.
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from latentgym.encoders.contract import Encoder
from latentgym.envs.contract import contract_of
from latentgym.envs.wrappers.action_spec import action_wrappers
from latentgym.envs.wrappers.latent_space import (
    DEFAULT_CAMERA,
    GOAL_KEYS,
    LatentSettings,
    ObservationEncoder,
    encoder_in_use,
    shared_encoder,
)
from latentgym.errors import CorruptDataError, LatentGymError
from latentgym.policies.checkpoint import CheckpointedPolicy, Training, check_encoder, reopen_encoder
from latentgym.policies.regression import steady_linear
from latentgym.trajectories.episode import ActionSpec

_ACTIVATIONS = {
    "Tanh": torch.tanh,
    "ReLU": torch.relu,
    "ELU": torch.nn.functional.elu,
    "GELU": torch.nn.functional.gelu,
    "SiLU": torch.nn.functional.silu,
    "LeakyReLU": torch.nn.functional.leaky_relu,
}
# What it does to actions is known: scaling from one range to another.
_KNOWN_ACTION_WRAPPERS = ("RescaleAction",)
# Where the actor's layers are in the state dict: hidden layers, output layer, activation and squashing by default.
_ACTORS = {
    "on-policy (PPO, A2C)": ("mlp_extractor.policy_net.", "action_net", "Tanh", False),
    "SAC, TQC": ("actor.latent_pi.", "actor.mu", "ReLU", True),
    "TD3, DDPG": ("actor.mu.", None, "ReLU", True),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Actor:
    """The deterministic part of an actor: linear layers with one activation between them.

    Attributes:
        layers: weight ``(out, in)`` and bias ``(out,)`` per layer.
        activation: name of the activation, as torch.nn names it.
        squashes: whether actions are the hyperbolic tangent of the last layer, scaled to the action's range.
        mean: ``(F,)`` subtracted from observations, or ``None``.
        scale: ``(F,)`` that they are divided by.
        clip: bound of normalised observations.
        low: lower bounds of the actions that it learned, A of them; ``None`` for the environment's own.
        high: upper bounds. Where they are not the environment's, actions are scaled to its range.
    """

    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    activation: str
    squashes: bool
    mean: torch.Tensor | None = None
    scale: torch.Tensor | None = None
    clip: float = 0.0
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None

    @property
    def inputs(self) -> int:
        """Numbers that the actor reads."""
        return int(self.layers[0][0].shape[1])

    @property
    def size(self) -> int:
        """Dimensions of its actions."""
        return int(self.layers[-1][0].shape[0])

    @torch.inference_mode()
    def act(self, observation: NDArray[np.float32], spec: ActionSpec) -> NDArray[np.float32]:
        """Actions ``(B, A)`` within the range of ``spec``."""
        # A copy, since BLAS may round differently where memory is aligned differently, and NumPy's is anyhow.
        values = torch.from_numpy(observation).clone()
        if self.mean is not None and self.scale is not None:
            values = ((values - self.mean) / self.scale).clamp(-self.clip, self.clip)
        for weight, bias in self.layers[:-1]:
            values = _ACTIVATIONS[self.activation](steady_linear(values, weight, bias))
        values = steady_linear(values, *self.layers[-1])
        low, high = (np.asarray(bound, np.float32) for bound in (spec.low, spec.high))
        if self.squashes:
            return np.asarray(low + (torch.tanh(values).numpy() + 1) * (high - low) / 2, np.float32)
        own_low, own_high = (
            bound if own is None else np.asarray(own, np.float32) for own, bound in ((self.low, low), (self.high, high))
        )
        actions = np.clip(values.numpy(), own_low, own_high)
        if not np.allclose([own_low, own_high], [low, high], rtol=1e-6):
            actions = low + (actions - own_low) / (own_high - own_low) * (high - low)
        return np.asarray(actions, np.float32)


class StableBaselinesPolicy(CheckpointedPolicy):
    """The actor of a Stable-Baselines3 model, acting on frozen latents; it takes its mean action.

    Args:
        actor: the actor.
        encoder: the encoder that it was trained on.
        training: what it was trained for, or ``None`` where the model does not say.
        history: latents that it sees; ``None`` finds it from the actor's input at the first observation.
        keep: observation keys beside the latents.
        pooling: how tokens become a vector.
        camera: observation key of the frames; that of ``training``, or ``"pixels"``, by default.
        env_id: id of its environment, where that is all that is known of it.
        goals: whether it sees an achieved and a desired goal.
        facts: how it was trained, as JSON types.
    """

    kind = "stable_baselines"
    encoder: Encoder

    def __init__(
        self,
        actor: Actor,
        encoder: Encoder,
        training: Training | None = None,
        *,
        history: int | None = 1,
        keep: Sequence[str] = (),
        pooling: str | None = None,
        camera: str | None = None,
        env_id: str | None = None,
        goals: bool = False,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.facts = dict(facts or {})
        self.actor, self.encoder, self.training = actor, encoder, training
        self.history, self.keep, self.pooling, self.goals = history, tuple(keep), pooling, goals
        self.camera, self.env_id = camera or (training.camera if training else "") or DEFAULT_CAMERA, env_id
        self.name = f"reinforcement learning on {encoder.spec.name}"
        self.needs_pixels = encoder.spec.modality == "pixels"
        self.concurrent = encoder.concurrent
        self._spec = None if training is None else training.action_spec
        self._observer: ObservationEncoder | None = None
        self._fresh = np.zeros(0, np.bool_)

    @classmethod
    def from_model(cls, model: Any, encoder: Encoder | str | Path | None = None) -> Self:
        """The policy of a model in memory, such as ``stable_baselines3.PPO``, trained on ``LatentObservation``.

        Where observations were normalised by ``VecNormalize``, so they are here. Its weights are a copy: training may
        go on.

        Args:
            model: the model.
            encoder: the encoder, where the model does not name it or it cannot be found again.

        Raises:
            LatentGymError: if the model has no actor of linear layers, or does not say which latents it belongs to.
        """
        activation = (model.policy_kwargs or {}).get("activation_fn")
        facts = {
            "policy_kwargs": {} if activation is None else {"activation_fn": str(activation)},
            "use_sde": getattr(model, "use_sde", False),
            "action_space": {
                ":type:": str(type(model.action_space)),
                "low": getattr(model.action_space, "low", None),
                "high": getattr(model.action_space, "high", None),
            },
            "observation_space": {"identity": getattr(model.observation_space, "identity", None)},
        }
        actor = actor_of(model.policy.state_dict(), facts, "the model")
        # Wrappers around LatentObservation; environments in other processes cannot be asked.
        for env in getattr(getattr(model.get_env(), "unwrapped", None), "envs", [])[:1]:
            _check_wrappers(action_wrappers(env), "the model")
        normalisation = model.get_vec_normalize_env()
        if normalisation is not None:
            actor = _normalised(actor, normalisation)
        return cls._identified(actor, facts, encoder, "the model")

    @classmethod
    def from_file(
        cls, path: str | Path, encoder: Encoder | str | Path | None = None, *, normalisation: Any = None
    ) -> Self:
        """The policy of a model file, as ``model.save`` writes it. Nothing is unpickled.

        Args:
            path: the zip file.
            encoder: the encoder, where the model does not name it or it cannot be found again.
            normalisation: the ``VecNormalize`` that the model was trained behind, whose moments are not in the file;
                ``False`` if it left observations as they are. Files of PPO and A2C tell that there was one, those of
                SAC, TQC, TD3 and DDPG do not.

        Raises:
            CorruptDataError: if the file is damaged or no model.
            LatentGymError: if the model has no actor of linear layers, if no encoder is known, or if it is known
                to have been trained behind a ``VecNormalize`` that is not given.
        """
        tensors, facts = _read(Path(path))
        actor = actor_of(tensors, facts, str(path))
        # On-policy models keep the last observation as it was before normalisation, only if there was some.
        on_policy = any(name.startswith("mlp_extractor.") for name in tensors)
        if normalisation is None and on_policy and facts.get("_last_original_obs") is not None:
            raise LatentGymError(
                f"{path} was trained behind VecNormalize, whose moments are not in the file; save the policy where "
                "they are known, by StableBaselinesPolicy.from_model(model).save(folder), or open it by "
                "StableBaselinesPolicy.from_file(path, normalisation=…), False if observations were left as they are"
            )
        if normalisation is not None and normalisation is not False:
            actor = _normalised(actor, normalisation)
        return cls._identified(actor, facts, encoder, str(path))

    @classmethod
    def _identified(
        cls, actor: Actor, facts: Mapping[str, Any], encoder: Encoder | str | Path | None, label: str
    ) -> Self:
        space = facts.get("observation_space")
        identity = space.get("identity") if isinstance(space, Mapping) else None
        if identity is None:
            if encoder is None:
                raise LatentGymError(
                    f"{label} does not say which latents it was trained on; train it on "
                    "latentgym.envs.wrappers.LatentObservation with nothing around it that changes observations, or, "
                    "if it saw the latents as they are, name the encoder: load_policy(path, encoder)"
                )
            return cls(actor, shared_encoder(encoder), history=None)
        if encoder is None:
            known = identity["encoder"]
            found = encoder_in_use(known) or reopen_encoder(known, label, identity["source"])
        else:
            found = shared_encoder(encoder)
        check_encoder(found, identity["encoder"], label)
        _check_wrappers(identity.get("action_wrappers", ()), label)
        env = identity["env"]
        training = None if env is None else Training.from_dict({**env, "camera": identity["camera"], "dataset_key": ""})
        return cls(
            actor, found, training, history=identity["history"], keep=identity["keep"], pooling=identity["pooling"],
            camera=identity["camera"], env_id=identity.get("env_id"), goals=identity["goals"],
        )  # fmt: skip

    def bind(self, envs: Sequence[gymnasium.Env[Any, Any]], deliberate: Collection[str] = ()) -> None:
        """Refuse environments that the model was not trained for."""
        contract = contract_of(envs[0])
        if self.training is not None:
            self.training.check(contract, self.name, deliberate)
        elif self.env_id is not None and _plain_id(self.env_id) != _plain_id(contract.env_id):
            raise LatentGymError(
                f"policy {self.name!r} does not fit environment {contract.env_id!r}: it was trained in {self.env_id!r}"
            )
        if contract.action_spec.size != self.actor.size:
            raise LatentGymError(
                f"policy {self.name!r} puts out {self.actor.size} action dimensions, {contract.env_id} takes "
                f"{contract.action_spec.size}"
            )
        self._spec = contract.action_spec

    def reset(self, mask: NDArray[np.bool_], seeds: Sequence[int] | None = None) -> None:
        """Forget the history of the rows where ``mask`` is true."""
        mask = np.asarray(mask, np.bool_)
        if len(mask) != len(self._fresh):
            self._fresh, self._observer = np.ones(len(mask), np.bool_), None
        self._fresh[mask] = True
        if self._observer is not None:
            self._observer.forget(mask)

    def act(self, observation: Mapping[str, NDArray[Any]], rows: NDArray[np.intp] | None = None) -> NDArray[np.float32]:
        """Actions ``(b, A)`` float32 of ``rows``."""
        if self._spec is None:
            raise LatentGymError(f"policy {self.name!r}: bind it to its environments first")
        rows = np.arange(len(self._fresh)) if rows is None else rows
        if self._observer is None:
            self._observer = self._observe(observation, len(rows))
            self._observer.forget(np.ones_like(self._fresh))
        fresh, self._fresh[rows] = self._fresh[rows], False
        seen = self._observer.advance(observation, rows, fresh)
        if self.goals:
            # Stable-Baselines3 concatenates the entries of a Dict in their order, which is that of the alphabet.
            flat = [np.asarray(seen[key], np.float32) for key in (*GOAL_KEYS, "observation")]
            seen = np.concatenate(flat, axis=1)
        elif isinstance(seen, Mapping):
            seen = seen["observation"]
        return self.actor.act(seen, self._spec)

    def _observe(self, observation: Mapping[str, NDArray[Any]], count: int) -> ObservationEncoder:
        known: dict[str, spaces.Space[Any]] = {
            key: spaces.Box(0, 1, np.shape(values)[1:], values.dtype.type)
            for key, values in observation.items()
            if values.dtype != object
        }
        rows = len(self._fresh)
        settings = LatentSettings(self.encoder, self.camera, self.history or 1, self.keep, self.pooling)
        observer = ObservationEncoder(settings, spaces.Dict(known), rows)
        if self.history is None and self.actor.inputs % observer.size == 0:
            self.history = self.actor.inputs // observer.size
            return self._observe(observation, count)
        goals = sum(np.size(observation[key]) // count for key in GOAL_KEYS) if self.goals else 0
        if observer.size + goals != self.actor.inputs:
            raise LatentGymError(
                f"policy {self.name!r} reads {self.actor.inputs} numbers, the encoder {self.encoder.spec.name!r} gives "
                f"{observer.size} and {goals} of the goals; open the model with the encoder that it was trained on"
            )
        return observer

    def record(self) -> dict[str, Any]:
        """What the actor sees, and how it is built."""
        return {
            "training": self.training,
            "actor": {name: getattr(self.actor, name) for name in ("activation", "squashes", "clip", "low", "high")},
            "history": self.history,
            "keep": list(self.keep),
            "pooling": self.pooling,
            "camera": self.camera,
            "env_id": self.env_id,
            "goals": self.goals,
            "facts": self.facts,
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """Weights, and the normalisation of observations where there is one."""
        named = {f"layers.{index}.weight": weight for index, (weight, _) in enumerate(self.actor.layers)}
        named |= {f"layers.{index}.bias": bias for index, (_, bias) in enumerate(self.actor.layers)}
        if self.actor.mean is not None and self.actor.scale is not None:
            named |= {"mean": self.actor.mean, "scale": self.actor.scale}
        return named

    @classmethod
    def restore(cls, record: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], encoder: Encoder | None) -> Self:
        """The policy that was saved."""
        if encoder is None:
            raise KeyError("encoder")
        count = sum(name.endswith(".weight") for name in tensors)
        # Copies, for the same reason: tensors that lie in a file are aligned as it happens.
        layers = tuple(
            (tensors[f"layers.{n}.weight"].clone(), tensors[f"layers.{n}.bias"].clone()) for n in range(count)
        )
        actor = Actor(layers, **record["actor"], mean=tensors.get("mean"), scale=tensors.get("scale"))
        training = record["training"] and Training.from_dict(record["training"])
        names = ("history", "keep", "pooling", "goals")
        settings = {name: record[name] for name in names} | {name: record.get(name) for name in ("camera", "env_id")}
        return cls(actor, encoder, training, **settings, facts=record.get("facts", {}))


def actor_of(tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any], label: str) -> Actor:
    """Rebuild an actor from a policy's state dict.

    Args:
        tensors: the state dict.
        facts: the model's plain JSON.
        label: name of the model in errors.

    Raises:
        LatentGymError: if the actor is more than linear layers with one known activation between them.
    """
    strange = [name for name in tensors if "features_extractor." in name]
    problems = {
        f"a network of its own in front ({strange[0] if strange else ''})": bool(strange),
        "generalised state-dependent exploration (use_sde)": bool(facts.get("use_sde")),
        "actions that are no Box": "Box" not in str(_field(facts, "action_space", ":type:")),
    }
    reason = next((text for text, found in problems.items() if found), None)
    if reason:
        raise LatentGymError(
            f"{label} has {reason}; expected MlpPolicy or MultiInputPolicy on flat latents with continuous actions"
        )
    for hidden, output, activation, squashes in _ACTORS.values():
        places = [name.removeprefix(hidden).removesuffix(".weight") for name in tensors if name.startswith(hidden)]
        names = [f"{hidden}{place}" for place in sorted({int(place) for place in places if place.isdecimal()})]
        names += [] if output is None else [output]
        if names and all(f"{name}.weight" in tensors for name in names):
            layers = tuple(
                (tensors[f"{name}.weight"].cpu().clone(), tensors[f"{name}.bias"].cpu().clone()) for name in names
            )
            low, high = (_bound(_field(facts, "action_space", name)) for name in ("low", "high"))
            return Actor(layers, _activation(facts, activation, label), squashes, low=low, high=high)
    known = "; ".join(_ACTORS)
    raise LatentGymError(f"{label} has no actor that is known here: {known}; found {', '.join(list(tensors)[:5])} …")


def _activation(facts: Mapping[str, Any], default: str, label: str) -> str:
    given = _field(facts, "policy_kwargs", "activation_fn")
    name = default if given is None else re.sub(r"\W+$", "", str(given)).rpartition(".")[2]
    if name not in _ACTIVATIONS:
        raise LatentGymError(f"{label} uses the activation {given}; known here: {', '.join(_ACTIVATIONS)}")
    return name


def _plain_id(env_id: str) -> str:
    """An id without the module that registers it, which a made environment does not know."""
    return env_id.rpartition(":")[2]


def _bound(given: Any) -> tuple[float, ...] | None:
    """Bounds of actions from an array, or from what NumPy prints of one; ``None`` unless all are finite."""
    if given is None:
        return None
    values = np.array(given.strip("[]").split(), float) if isinstance(given, str) else np.asarray(given, float)
    return tuple(values.ravel().tolist()) if np.isfinite(values).all() else None


def _field(facts: Mapping[str, Any], *path: str) -> Any:
    value: Any = facts
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _check_wrappers(names: Sequence[str], label: str) -> None:
    strange = [name for name in names if name not in _KNOWN_ACTION_WRAPPERS]
    if strange:
        raise LatentGymError(
            f"{label} was trained behind {', '.join(strange)}, so that its actions are not the environment's; "
            f"known here: {', '.join(_KNOWN_ACTION_WRAPPERS)}"
        )


def _normalised(actor: Actor, normalisation: Any) -> Actor:
    if not hasattr(normalisation, "norm_obs"):
        raise LatentGymError(
            "normalisation: expected a VecNormalize of Stable-Baselines3 (VecNormalize.load opens a saved one) or "
            f"False, found {type(normalisation).__name__}"
        )
    if not normalisation.norm_obs:
        return actor
    statistics = normalisation.obs_rms
    parts = [statistics]
    if isinstance(statistics, Mapping):
        plain = sorted(set(normalisation.observation_space.spaces) - set(statistics))
        if plain:
            raise LatentGymError(
                f"VecNormalize leaves {', '.join(plain)} as they are; normalise all observations or none"
            )
        parts = [statistics[key] for key in sorted(statistics)]  # as in a concatenated observation
    mean = torch.from_numpy(np.concatenate([part.mean for part in parts]).astype(np.float32))
    variance = np.concatenate([part.var for part in parts])
    scale = torch.from_numpy(np.sqrt(variance + normalisation.epsilon).astype(np.float32))
    return dataclasses.replace(actor, mean=mean, scale=scale, clip=float(normalisation.clip_obs))


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """State dict and plain JSON of a model file."""
    try:
        with zipfile.ZipFile(path) as archive:
            facts = json.loads(archive.read("data"))
            weights = io.BytesIO(archive.read("policy.pth"))
        tensors = torch.load(weights, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise LatentGymError(f"there is no model file {path}") from error
    except Exception as error:  # damaged zips and state dicts raise anything
        raise CorruptDataError(f"{path} is no model file of Stable-Baselines3, or is damaged: {error!r}") from error
    if not isinstance(facts, dict) or not isinstance(tensors, dict):
        raise CorruptDataError(f"{path} is no model file of Stable-Baselines3: unexpected content")
    return tensors, facts
