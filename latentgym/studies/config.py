"""Study configuration: a TOML file or a shipped name becomes one validated, fully spelled-out object."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from latentgym.corruptions import checked_corruption
from latentgym.envs.behaviours import BEHAVIOURS
from latentgym.envs.make import check_options
from latentgym.errors import LatentGymError, UnknownNameError
from latentgym.probes.inverse_dynamics import CONTROLS, DEFAULT_CONTROLS
from latentgym.probes.robustness import STRESSES, named_condition

ADAPTED_SUFFIX = "+id"
CONTROL_SUFFIX = f"{ADAPTED_SUFFIX}-control"
TWIN_SUFFIX = "-random"
# Rows that look at no latent.
BASELINE_POLICIES = ("expert", "random", "constant")
NO_LATENT = ("constant", "previous_action", "pixel_pca")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _distinct(values: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(values)) != len(values):
        raise ValueError("each value may be listed once")
    return values


_Whole = Annotated[int, Field(ge=1)]
_Seeds = Annotated[tuple[int, ...], Field(min_length=1), AfterValidator(_distinct)]
_Steps = Annotated[tuple[_Whole, ...], AfterValidator(_distinct)]


class Suite(_Section):
    """Environments that share their pretraining runs.

    Attributes:
        name: short name, shown in the report.
        envs: environment ids.
        env_options: keyword arguments for :func:`latentgym.make_env`.
        image_size: side of the recorded frames in pixels.
        episodes: episodes recorded per environment.
        random_fraction: share of them driven by random actions.
        policy: behaviour policy of the others.
        demonstrations: training demonstrations that the cloning heads may use (fewer separate encoders better).
        rollouts: paired rollouts per policy; 0 leaves policies and rollouts out.
        pretraining_seeds: one pretraining run per family and seed.
        pretraining_steps: optimiser steps of a pretraining run.
        checkpoints: steps at which intermediate checkpoints are kept, probed and rolled out.
        policy_seeds: seeds of the cloning heads on final checkpoints; intermediate ones use the first.
        convnet_baseline: also train a policy end to end from pixels.
        condition: ``"instruction"`` for cloning heads that are told the episode's instruction, ``"none"`` for heads
            that are told nothing; as in ``policy`` by default.
        chains: short chains of CALVIN's instructions that each policy of scene D also follows, among the tasks that
            ``env_options`` names; 0 for none. Conditioned policies alone can tell which task is asked for.
        chain_length: instructions per chain.
        policies: further policies to roll out, by environment: folders of trained policies, or model files of
            Stable-Baselines3. Their rows are named after the file.
        optional: leave the suite out, with a warning, where its environments cannot be made here.
        data: folder of a data set to use in place of recording, such as a downloaded CALVIN split; its environment then
            takes the place of ``envs``, and its frames are used in their own size. Data of several scenes stand for no
            single environment: their suite goes without rollouts.
        data_options: how that folder is read, as ``--data-option`` of the command line.
    """

    name: str
    envs: tuple[str, ...] = Field(min_length=1)
    env_options: dict[str, Any] = Field(default_factory=dict)
    image_size: int = Field(64, ge=16)
    episodes: int = Field(100, ge=10)
    random_fraction: float = Field(0.5, ge=0.0, le=0.9)
    policy: str = "noisy-expert"
    demonstrations: int = Field(30, ge=1)
    rollouts: int = Field(50, ge=0)
    pretraining_seeds: _Seeds = (0,)
    pretraining_steps: int = Field(800, ge=1)
    checkpoints: _Steps = ()
    policy_seeds: _Seeds = (0,)
    convnet_baseline: bool = False
    condition: Literal["none", "instruction"] | None = None
    chains: int = Field(0, ge=0)
    chain_length: int = Field(2, ge=1, le=5)
    policies: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    optional: bool = False
    data: str = ""
    data_options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("policy")
    @classmethod
    def _known_behaviour(cls, policy: str) -> str:
        if policy not in BEHAVIOURS:
            raise UnknownNameError("behaviour policy", policy, BEHAVIOURS)
        return policy

    @field_validator("env_options")
    @classmethod
    def _no_arguments(cls, options: dict[str, Any]) -> dict[str, Any]:
        check_options(options)
        return options

    @field_validator("policies")
    @classmethod
    def _distinct_policies(cls, policies: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for env, paths in policies.items():
            if twice := _twice((*BASELINE_POLICIES, *map(policy_name, paths))):
                raise ValueError(
                    f"each policy of {env} needs a name of its own, found twice: {twice}; rename its folder"
                )
        return policies

    @field_validator("rollouts")
    @classmethod
    def _none_or_several(cls, rollouts: int) -> int:
        if rollouts == 1:
            raise ValueError("expected 0, or at least 2 for a rate with an interval")
        return rollouts

    @model_validator(mode="after")
    def _checkpoints_inside(self) -> Suite:
        outside = [step for step in self.checkpoints if not 0 < step < self.pretraining_steps]
        if outside:
            raise ValueError(f"checkpoints must lie strictly between 0 and pretraining_steps, found {outside}")
        return self

    @model_validator(mode="after")
    def _policies_of_known_envs(self) -> Suite:
        for env in self.policies:
            if env not in self.envs:
                raise UnknownNameError("environment of the suite", env, self.envs)
        if self.policies and not self.rollouts:
            raise ValueError("policies are rolled out, but rollouts is 0")
        return self

    @model_validator(mode="after")
    def _chains_of_named_tasks(self) -> Suite:
        if self.chains:
            from latentgym.envs.calvin import short_chains
            from latentgym.rollouts.calvin_chains import CHAINS_ENV

            if not self.rollouts or CHAINS_ENV not in self.envs:
                raise ValueError(f"chains are followed in {CHAINS_ENV}, which must be among envs, with rollouts")
            short_chains(self.tasks, self.chains, self.chain_length)
        return self

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that ``env_options`` names."""
        named = self.env_options.get("task") or ()
        return (named,) if isinstance(named, str) else tuple(named)


class PretrainingSettings(_Section):
    """Settings that every pretraining run shares; equal data, steps and batch make families comparable."""

    batch_size: int = Field(64, ge=2)


class AdaptationSettings(_Section):
    """Further training by inverse dynamics of the families in ``adapt``: arm, optimiser steps, windows per step.

    With ``control`` each is also trained on actions permuted across episodes, as ``<objective>+id-control``.
    """

    arm: Literal["adapter", "finetune"] = "finetune"
    steps: int = Field(100, ge=1)
    batch_size: int = Field(32, ge=2)
    control: bool = False


class ProbeSettings(_Section):
    """Offline probes: horizons in steps, ridge folds, MLP settings, replicates, controls of final checkpoints."""

    horizons: Annotated[_Steps, Field(min_length=1)] = (1, 4)
    folds: int = Field(5, ge=2)
    mlp_horizons: _Steps = (1,)
    mlp_steps: int = Field(3000, ge=1)
    mlp_seeds: int = Field(3, ge=1)
    replicates: int = Field(1000, ge=10)
    controls: tuple[str, ...] = DEFAULT_CONTROLS

    @model_validator(mode="after")
    def _mlp_at_horizons(self) -> ProbeSettings:
        others = sorted({*self.mlp_horizons} - {*self.horizons})
        if others and "mlp_horizons" in self.model_fields_set:
            raise ValueError(f"mlp_horizons must be among horizons {self.horizons}, found {others}")
        return self


class RobustnessSettings(_Section):
    """What final checkpoints are scored under; nothing by default.

    ``conditions`` are corruptions of test clips, such as ``"snow:1"``, or ``"snow"`` for severity 3; ``stresses`` of
    :data:`latentgym.probes.robustness.STRESSES` change the order of their frames.
    """

    conditions: tuple[str, ...] = ()
    stresses: tuple[str, ...] = ()

    @field_validator("conditions")
    @classmethod
    def _distinct_conditions(cls, conditions: tuple[str, ...]) -> tuple[str, ...]:
        found = tuple(map(named_condition, conditions))
        if twice := _twice(found):
            raise ValueError(f"found twice: {twice}")
        return found


class FidelitySettings(_Section):
    """The equal decoder that measures PSNR."""

    steps: int = Field(600, ge=1)
    batch_size: int = Field(32, ge=1)


class PolicySettings(_Section):
    """Behaviour cloning on frozen latents: steps, rows per step, learning rate, frames of history, components.

    Wide latents are projected onto the leading principal components of the training windows where ``components`` is
    given, which makes the heads about three times cheaper. The head on the simulator's ``state``, which holds every
    velocity, sees ``state_history`` frames: a policy with more history than it needs learns to continue what it did
    (de Haan et al., Causal confusion in imitation learning, arXiv 1905.11979).
    ``head`` is one of :data:`latentgym.policies.heads.HEADS`; ``chunk`` is the number of actions that it plans at once.
    ``condition`` tells every head a goal (in environments with an expert, which finds it) or the instruction, the
    latter through ``instruction_encoder``, and ``head_options`` are settings that only this kind of head has.
    """

    steps: int = Field(2000, ge=1)
    batch_size: int = Field(256, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    history: int = Field(3, ge=1)
    state_history: int = Field(1, ge=1)
    components: int | None = Field(None, ge=1)
    head: str = "mlp"
    chunk: int | None = Field(None, ge=1)
    condition: Literal["none", "goal", "instruction"] = "none"
    instruction_encoder: str = "all-MiniLM-L6-v2"
    head_options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("head")
    @classmethod
    def _known_head(cls, head: str) -> str:
        from latentgym.policies.heads import find_head

        # Under its full name, so that both spellings are one study.
        return find_head(head).kind

    @model_validator(mode="after")
    def _known_options(self) -> PolicySettings:
        from latentgym.policies.heads import check_head_options

        check_head_options(self.head, self.head_options)
        return self


class RolloutSettings(_Section):
    """Closed loop: rows per inference batch and videos kept per policy and outcome.

    Under each of ``corruptions``, such as ``"gaussian_noise:3"``, the policies of final checkpoints that read pixels
    start once more from the same initial states, with the first policy seed; none by default.
    """

    batch_size: int = Field(25, ge=1)
    videos: int = Field(1, ge=0)
    corruptions: tuple[str, ...] = ()

    @field_validator("corruptions")
    @classmethod
    def _distinct_corruptions(cls, corruptions: tuple[str, ...]) -> tuple[str, ...]:
        found = [f"{name}:{severity}" for name, severity in map(checked_corruption, corruptions)]
        if len(set(found)) != len(found):
            raise ValueError("each corruption may be named once per severity")
        # Severities of one corruption stand together.
        first = [condition.partition(":")[0] for condition in found]
        return tuple(sorted(found, key=lambda condition: first.index(condition.partition(":")[0])))


class LinkSettings(_Section):
    """The link between probes and success: bootstrap replicates."""

    replicates: int = Field(2000, ge=100)


class LoadedEncoder(_Section):
    """An encoder that the study loads; in a file, its ``source`` alone may stand for it.

    Attributes:
        source: folder, hub id or name, as :func:`latentgym.load_encoder` takes it.
        image_size: side that frames are resized to; by default ``weights_image_size`` as near as the encoder takes it.
        layer: block that is read, ``-1`` for the last.
    """

    source: str
    image_size: int | None = Field(None, ge=1)
    layer: int = Field(-1, ge=-1)


class StudyConfig(_Section):
    """A whole study.

    Attributes:
        name: name of the study.
        seed: root of every seed in it.
        objectives: pretraining objectives, one family each (see ``latentgym encoders``).
        floors: encoders that every table carries as floor.
        references: encoders that read the simulator or proprioception; nothing need beat them.
        weights: further encoders by folder or hub id, as ``name = "source"`` or with options, see
            :class:`LoadedEncoder`.
        weights_image_size: side that their frames are resized to, as near as each takes it; its own where ``None``.
        suites: groups of environments.
        adapt: objectives whose encoders are also trained further by inverse dynamics, as ``<objective>+id``.
        claims: also evaluate the claims of :mod:`latentgym.studies.claims`.
    """

    name: str
    seed: int = 0
    objectives: tuple[str, ...] = Field(min_length=1)
    floors: tuple[str, ...] = ("random", "pixels")
    references: tuple[str, ...] = ("proprio", "state")
    weights: dict[str, LoadedEncoder] = Field(default_factory=dict)
    weights_image_size: int | None = Field(None, ge=1)
    suites: tuple[Suite, ...] = Field(min_length=1)
    adapt: tuple[str, ...] = ()
    claims: bool = False
    pretraining: PretrainingSettings = PretrainingSettings()
    adaptation: AdaptationSettings = AdaptationSettings()
    probe: ProbeSettings = ProbeSettings()
    robustness: RobustnessSettings = RobustnessSettings()
    fidelity: FidelitySettings = FidelitySettings()
    policy: PolicySettings = PolicySettings()
    rollout: RolloutSettings = RolloutSettings()
    link: LinkSettings = LinkSettings()

    @field_validator("weights", mode="before")
    @classmethod
    def _by_source(cls, weights: Any) -> Any:
        if not isinstance(weights, dict):
            return weights
        return {name: {"source": value} if isinstance(value, str) else value for name, value in weights.items()}

    @field_validator("suites")
    @classmethod
    def _distinct_suites(cls, suites: tuple[Suite, ...]) -> tuple[Suite, ...]:
        distinct_envs(suites)
        if twice := _twice(suite.name for suite in suites):
            raise ValueError(f"each suite needs a name of its own, found twice: {twice}")
        return suites

    @model_validator(mode="after")
    def _distinct_encoders(self) -> StudyConfig:
        adapted = [f"{name}{suffix}" for name in self.adapt for suffix in (ADAPTED_SUFFIX, CONTROL_SUFFIX)]
        twins = [f"{name}{TWIN_SUFFIX}" for name in self.weights]
        given = (*self.objectives, *adapted, *self.floors, *self.references, *self.weights, *twins)
        if twice := _twice((*given, *NO_LATENT)):
            raise ValueError(f"each encoder needs a name of its own, found twice: {twice}; rename those of weights")
        return self

    @model_validator(mode="after")
    def _known_names(self) -> StudyConfig:
        from latentgym.encoders.objectives import OBJECTIVES

        for name in self.objectives:
            if name not in OBJECTIVES:
                raise UnknownNameError("pretraining objective", name, OBJECTIVES)
        for role, names, known in (
            ("objective to adapt", self.adapt, self.objectives),
            ("control", self.probe.controls, CONTROLS),
            ("temporal stress", self.robustness.stresses, STRESSES),
            ("floor encoder", self.floors, ("random", "pixels")),
            ("reference encoder", self.references, ("proprio", "state")),
        ):
            for name in names:
                if name not in known:
                    raise UnknownNameError(role, name, known)
        return self


def policy_name(path: str | Path) -> str:
    """What a given policy is called in results: its folder's name, or its file's without the suffix."""
    return Path(path).name.removesuffix(".zip")


def distinct_envs(suites: Iterable[Suite]) -> None:
    """Check that no environment stands in two suites.

    Raises:
        ValueError: if one does.
    """
    if twice := _twice(env for suite in suites for env in suite.envs):
        raise ValueError(f"each environment may stand in one suite only, found twice: {twice}")


def _twice(names: Iterable[str]) -> str:
    """The names that are there more than once."""
    return ", ".join(sorted(name for name, count in Counter(names).items() if count > 1))


def shipped_studies() -> tuple[str, ...]:
    """Names of the studies that come with the suite."""
    folder = resources.files("latentgym.studies") / "presets"
    return tuple(sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml")))


def load_config(source: str | Path) -> StudyConfig:
    """Read a study by shipped name or from a TOML file.

    Raises:
        UnknownNameError: if ``source`` is neither.
        LatentGymError: on bad TOML, an unknown key or a bad value; every problem is listed.
    """
    text = str(source)
    if text in shipped_studies():
        content = (resources.files("latentgym.studies") / "presets" / f"{text}.toml").read_text()
    elif text.endswith(".toml"):
        path = Path(source)
        if not path.is_file():
            shipped = ", ".join(shipped_studies())
            raise LatentGymError(f"no such study file: {path}; give a TOML file or one of {shipped}")
        try:
            content = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise LatentGymError(f"{text} cannot be read as UTF-8 text: {error}") from error
    else:
        raise UnknownNameError("study", text, shipped_studies(), hint="(a file's name must end in .toml)")
    try:
        data = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise LatentGymError(f"{text} is not valid TOML: {error}") from error
    return parse_config(data, text)


def parse_config(data: dict[str, Any], origin: str) -> StudyConfig:
    """Validate a configuration given as plain data; ``origin`` names it in errors."""
    try:
        return StudyConfig.model_validate(data)
    except ValidationError as error:
        found = error.errors()
        # A collection whose members are wrong is then also too short, which is no problem of its own.
        places = [item["loc"] for item in found]
        own = [
            item
            for item in found
            if item["type"] != "too_short"
            or not any(len(place) > len(item["loc"]) and place[: len(item["loc"])] == item["loc"] for place in places)
        ]
        problems = "; ".join(_explain(item["loc"], item["type"], item["msg"], item["input"]) for item in own)
        raise LatentGymError(f"{origin}: {problems}") from error


def _explain(location: tuple[int | str, ...], kind: str, message: str, found: object) -> str:
    where = ".".join(str(part) for part in location) or "study"
    if kind == "extra_forbidden":
        section = _section_at(location[:-1])
        error = UnknownNameError("key", str(location[-1]), section.model_fields)
        return f"{where}: {error}"
    return f"{where}: {message} (found {found!r})" if kind != "missing" else f"{where}: this key is required"


def _section_at(location: tuple[int | str, ...]) -> type[BaseModel]:
    """The section of the configuration that an error's location points into."""
    if not location:
        return StudyConfig
    name = str(location[0])
    listed: dict[str, type[BaseModel]] = {"suites": Suite, "weights": LoadedEncoder}
    return listed.get(name) or type(StudyConfig.model_fields[name].default)
