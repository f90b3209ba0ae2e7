"""Policies on disk: a folder of ``policy.json`` and ``weights.safetensors`` that says what it was made for."""

from __future__ import annotations

import abc
import dataclasses
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import safetensors
import safetensors.torch
import torch

from latentgym.artifacts import atomic_directory, atomic_write, file_digest, read_json, write_json
from latentgym.encoders.contract import Encoder, EncoderSpec
from latentgym.encoders.feeding import split_feeding
from latentgym.encoders.registry import load_encoder, reopening_source
from latentgym.encoders.small import SmallEncoder, save_small_encoder
from latentgym.envs.contract import EnvContract
from latentgym.envs.provenance import Software
from latentgym.errors import CorruptDataError, LatentGymError, UnknownNameError
from latentgym.policies.contract import Policy
from latentgym.trajectories.episode import ActionSpec
from latentgym.trajectories.store import Dataset

SCHEMA = 1
RECORD_NAME = "policy.json"
WEIGHTS_NAME = "weights.safetensors"
ENCODER_NAME = "encoder"
# Settings of an environment that change neither what a policy sees nor what its actions mean.
_IRRELEVANT = frozenset({"pixels", "horizon", "state_names"})
# Settings that change the look only: another one is allowed, and said.
_WARNED = frozenset({"renderer"})
# Settings that say what follows from the others, how data were read, or what each caller decides.
_NO_OPTIONS = frozenset({"pixels", "state_names", "suite", "data_set"})


@dataclasses.dataclass(frozen=True)
class Training:
    """What a policy was trained on, and what it therefore fits.

    Attributes:
        env_id: id of the environment.
        action_spec: meaning of the actions that it puts out.
        control_hz: actions per second.
        camera: observation key that pixels are read from, empty where none is.
        settings: settings of the environment (image size, render quality, distractor …).
        dataset_key: content key of the data set.
        software: simulator versions and GL strings that the data were recorded with; ``None`` where they are not known.
        env_ids: ids of its environments, where the data are of several tasks.
    """

    env_id: str
    action_spec: ActionSpec
    control_hz: float
    camera: str
    settings: Mapping[str, Any]
    dataset_key: str
    software: Software | None = None
    env_ids: tuple[str, ...] = ()

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """What training on ``dataset`` fits a policy for."""
        camera = dataset.observed_as(dataset.cameras[0]) if dataset.cameras else ""
        return cls(
            dataset.env_id, dataset.action_spec, dataset.control_hz, camera, dict(dataset.settings), dataset.key,
            Software.of(dataset.provenance), tuple(dataset.env_ids),
        )  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild from JSON.

        Raises:
            KeyError, TypeError: if ``data`` holds something else.
        """
        software = data.get("software")
        if not isinstance(data["settings"], Mapping) or not isinstance(data["action_spec"], Mapping):
            raise TypeError(f"training: expected settings and an action spec, found {data!r}")
        return cls(
            **{
                **data,
                "action_spec": ActionSpec.from_dict(data["action_spec"]),
                "software": None if software is None else Software(**software),
                "env_ids": tuple(data.get("env_ids", ())),
            }
        )

    def covers(self, env_id: str) -> bool:
        """Whether the data are of this environment; LIBERO-PRO's changes of a LIBERO task count as that task."""
        parts = env_id.split("/")
        plain = f"libero/{parts[-1]}" if parts[0] == "libero" else env_id
        return bool({env_id, plain} & {self.env_id, *self.env_ids})

    def env_options(self) -> dict[str, Any]:
        """Options of ``make_env`` that make the environment as it was recorded.

        Frames of EGL are asked for as ``"auto"``: on a machine without it there are others, with a warning.
        """
        options = {name: value for name, value in self.settings.items() if name not in _NO_OPTIONS}
        return {**options, "renderer": "auto"} if options.get("renderer") == "egl" else options

    def check(self, contract: EnvContract, policy: str, deliberate: Collection[str] = ()) -> None:
        """Refuse an environment that the policy was not trained for; every difference is listed.

        Another renderer than the data's is allowed, with a warning.

        Raises:
            LatentGymError: if id, action meaning, control rate or a shared setting differs.
        """
        pairs = {
            "env_id": (contract.env_id if self.covers(contract.env_id) else self.env_id, contract.env_id),
            "action_spec": (self.action_spec, contract.action_spec),
            "control_hz": (self.control_hz, contract.control_hz),
        }
        common = (self.settings.keys() & contract.settings.keys()) - _IRRELEVANT
        for name in sorted(common & _WARNED):
            if self.settings[name] != contract.settings[name]:
                warnings.warn(
                    f"policy {policy!r} was trained on frames of {name} {self.settings[name]!r} and is evaluated under "
                    f"{contract.settings[name]!r}, whose frames look different; success may be lower for that alone",
                    stacklevel=2,
                )
        shared = common - _WARNED - set(deliberate)
        pairs = {name: pair for name, pair in pairs.items() if name not in deliberate}
        pairs |= {name: (self.settings[name], contract.settings[name]) for name in sorted(shared)}
        problems = [f"{name}: trained on {a!r}, found {b!r}" for name, (a, b) in pairs.items() if _json(a) != _json(b)]
        if problems:
            raise LatentGymError(
                f"policy {policy!r} does not fit environment {contract.env_id!r}: {'; '.join(problems)}; make the "
                "environment as its training data were recorded, or train a policy for this one"
            )


class CheckpointedPolicy(Policy):
    """A policy that can be saved and opened again; each subclass has a ``kind`` of its own."""

    kind: ClassVar[str] = ""
    kinds: ClassVar[dict[str, type[CheckpointedPolicy]]] = {}
    encoder: Encoder | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # A subclass that only inherits its kind must not take the place of its parent.
        if cls.__dict__.get("kind"):
            CheckpointedPolicy.kinds[cls.kind] = cls

    @abc.abstractmethod
    def record(self) -> dict[str, Any]:
        """Everything but tensors, as JSON types."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """Weights and normalisation."""
        return {}

    @classmethod
    @abc.abstractmethod
    def restore(
        cls, record: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], encoder: Encoder | None
    ) -> CheckpointedPolicy:
        """The policy that :meth:`record` and :meth:`tensors` describe."""

    def save(self, path: str | Path) -> Path:
        """Write the policy into a new folder, which appears whole or not at all; return its path.

        Raises:
            LatentGymError: if ``path`` exists already or cannot be written.
        """
        path = Path(path)
        if path.exists():
            raise LatentGymError(f"{path} exists already; choose another folder for the policy, or remove it first")
        with atomic_directory(path) as folder:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors().items()}
            atomic_write(folder / WEIGHTS_NAME, safetensors.torch.save(tensors))
            record: dict[str, Any] = {"schema": SCHEMA, "kind": self.kind, "policy": self.record()}
            record["weights_digest"] = file_digest(folder / WEIGHTS_NAME)
            if self.encoder is not None:
                record["encoder"] = dataclasses.asdict(self.encoder.spec)
                if isinstance(self.encoder, SmallEncoder):
                    save_small_encoder(self.encoder, folder / ENCODER_NAME)
            write_json(folder / RECORD_NAME, record)
        return path


def policy_place(path: str | Path) -> Path:
    """Where a policy lies; Stable-Baselines3 adds ``.zip`` to the names that it is given."""
    place = Path(path)
    model = place.with_name(f"{place.name}.zip") if place.name else place
    return model if not place.exists() and model.is_file() else place


def load_policy(path: str | Path, encoder: Encoder | str | Path | None = None) -> CheckpointedPolicy:
    """Open a saved policy together with the very encoder that it was trained on. Nothing is unpickled.

    Args:
        path: folder that ``save`` wrote, or a model file of Stable-Baselines3 (``.zip``).
        encoder: the encoder or its name, where it cannot be found again by its own name or source; by default it is
            opened as saved (small encoders are kept inside the folder).

    Raises:
        CorruptDataError: if a file is missing, truncated or altered.
        LatentGymError: if the encoder differs from the one that the policy was trained on.
    """
    folder = policy_place(path)
    if folder.is_file():
        from latentgym.policies.stable_baselines import StableBaselinesPolicy

        return StableBaselinesPolicy.from_file(folder, encoder)
    if isinstance(encoder, str | Path):
        encoder = load_encoder(encoder)
    if not (folder / RECORD_NAME).is_file():
        raise LatentGymError(f"{folder} holds no policy ({RECORD_NAME} is missing); make one with: latentgym train")
    record = read_json(folder / RECORD_NAME)
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise CorruptDataError(f"{folder / RECORD_NAME}: expected a policy record of schema {SCHEMA}")
    weights = folder / WEIGHTS_NAME
    if not weights.is_file() or file_digest(weights) != record.get("weights_digest"):
        raise CorruptDataError(f"{weights} is missing or differs from its recorded digest; train the policy again")
    kind = record.get("kind")
    if kind not in CheckpointedPolicy.kinds:
        raise UnknownNameError("kind of policy", str(kind), CheckpointedPolicy.kinds)
    found = _encoder_of(folder, record["encoder"], encoder) if record.get("encoder") else None
    try:
        tensors = safetensors.torch.load_file(weights)
        return CheckpointedPolicy.kinds[kind].restore(record["policy"], tensors, found)
    except (KeyError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
        raise CorruptDataError(f"{folder} is damaged: {error!r}; train the policy again") from error


def _encoder_of(folder: Path, recorded: Mapping[str, Any], encoder: Encoder | None) -> Encoder:
    if encoder is None:
        own = folder / ENCODER_NAME
        encoder = reopen_encoder(recorded, str(folder), str(own) if own.is_dir() else None)
    check_encoder(encoder, recorded, str(folder))
    return encoder


def check_encoder(encoder: Encoder, recorded: Mapping[str, Any], policy: str) -> None:
    """Refuse another encoder than the one that a policy was trained on.

    Args:
        encoder: the encoder to be used.
        recorded: fields of the spec of the policy's own encoder.
        policy: name of the policy in the error.

    Raises:
        LatentGymError: if they differ; every difference is listed.
    """
    found = dataclasses.asdict(encoder.spec)
    # Equal weights may lie elsewhere, and go by another name there.
    equal = bool(recorded.get("weights_digest")) and recorded["weights_digest"] == found["weights_digest"]
    places = ("name", "source", "revision", "licence") if equal else ()
    names = [name for name in recorded if name not in places and _json(found.get(name)) != _json(recorded[name])]
    if names:
        differences = "; ".join(f"{name}: trained on {recorded[name]!r}, found {found.get(name)!r}" for name in names)
        raise LatentGymError(
            f"policy {policy} does not fit encoder {encoder.spec.name!r}: {differences}; open it with its own encoder"
        )


def reopen_encoder(recorded: Mapping[str, Any], policy: str, source: str | None = None) -> Encoder:
    """Open the encoder that a policy was trained on again, at the layer, feeding, size and dtype that it had.

    Args:
        recorded: fields of its spec.
        policy: name of the policy in errors.
        source: what it was opened by, if that is known; otherwise its name or source.

    Raises:
        CorruptDataError: if ``recorded`` is no spec.
        LatentGymError: if it cannot be opened.
    """
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in recorded.items()
    }
    try:
        spec = EncoderSpec(**fields)
    except TypeError as error:
        raise CorruptDataError(f"policy {policy} holds no valid encoder spec: {error}") from error
    _, feeding = split_feeding(spec.name)
    source = reopening_source(spec) if source is None else split_feeding(source)[0]
    try:
        return load_encoder(
            source,
            image_size=spec.image_size if spec.modality == "pixels" else None,
            layer=spec.layer,
            feeding=feeding,
            dtype=spec.dtype,
        )
    except LatentGymError as error:
        raise LatentGymError(
            f"the encoder {spec.name!r} of policy {policy} cannot be opened from {source!r} ({error}); "
            "open it yourself and pass it: load_policy(path, encoder)"
        ) from error


def _json(value: Any) -> Any:
    """``value`` with tuples as lists, as JSON gives it back."""
    if isinstance(value, tuple | list):
        return [_json(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _json(item) for key, item in value.items()}
    return value
