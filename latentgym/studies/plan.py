"""From a configuration to its cells: what is recorded, trained, probed and rolled out, and what depends on what."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from latentgym.artifacts import content_key, file_digest
from latentgym.errors import LatentGymError
from latentgym.rollouts.calvin_chains import CHAINS_ENV
from latentgym.studies.config import (
    ADAPTED_SUFFIX,
    BASELINE_POLICIES,
    CONTROL_SUFFIX,
    TWIN_SUFFIX,
    PolicySettings,
    StudyConfig,
    Suite,
    policy_name,
)
from latentgym.studies.engine import Cell
from latentgym.trajectories import open_dataset


@dataclasses.dataclass(frozen=True)
class EncoderUse:
    """One encoder as a study uses it.

    Attributes:
        name: name in the results.
        seed: pretraining seed (0 for encoders that the study does not train).
        checkpoint: pretraining step of an intermediate checkpoint, ``None`` for the final one.
        source: what :func:`latentgym.load_encoder` loads, ``None`` for encoders that the study trains.
        image_size: side that a loaded encoder's frames are resized to, its own where ``None``.
        layer: block of a loaded encoder that is read.
        digest: digest of the source's weights, so that changed weights change the key.
        cell: pretraining cell that makes it, ``None`` for a loaded one.
    """

    name: str
    seed: int = 0
    checkpoint: int | None = None
    source: str | None = None
    image_size: int | None = None
    layer: int = -1
    digest: str = ""
    cell: Cell | None = None

    @property
    def params(self) -> dict[str, Any]:
        """What determines the encoder, beside the cell that trains it."""
        return {
            "name": self.name,
            "seed": self.seed,
            "checkpoint": self.checkpoint,
            "source": self.source,
            "image_size": self.image_size,
            "layer": self.layer,
            "digest": self.digest,
        }

    @property
    def inputs(self) -> dict[str, Cell]:
        """The pretraining cell, labelled ``encoder``, if there is one."""
        return {} if self.cell is None else {"encoder": self.cell}

    @property
    def label(self) -> str:
        """Short text for progress displays."""
        step = "" if self.checkpoint is None else f" at step {self.checkpoint}"
        return f"{self.name} (seed {self.seed}{step})"


@dataclasses.dataclass
class SuitePlan:
    """Cells of one suite, by what they produce."""

    suite: Suite
    data: dict[str, Cell] = dataclasses.field(default_factory=dict)
    uses: list[EncoderUse] = dataclasses.field(default_factory=list)
    fidelity: list[tuple[EncoderUse, Cell]] = dataclasses.field(default_factory=list)
    offline: list[tuple[EncoderUse, str, Cell]] = dataclasses.field(default_factory=list)
    rollouts: list[tuple[EncoderUse, str, int, Cell]] = dataclasses.field(default_factory=list)
    floors: list[tuple[str, Cell]] = dataclasses.field(default_factory=list)
    baselines: list[tuple[str, str, int | None, Cell]] = dataclasses.field(default_factory=list)
    corrupted: list[tuple[EncoderUse, str, int, str, Cell]] = dataclasses.field(default_factory=list)
    chains: list[tuple[EncoderUse | str, Cell]] = dataclasses.field(default_factory=list)

    def cells(self) -> Iterator[Cell]:
        """Every cell after its inputs: recordings, pretraining, then the rest encoder by encoder."""
        yield from self.data.values()
        yield from (use.cell for use in self.uses if use.cell is not None)
        yield from (cell for *_, cell in self.floors)
        yield from (cell for *_, cell in self.baselines for cell in (*cell.inputs.values(), cell))
        yield from (cell for *_, cell in self.offline)
        yield from (cell for *_, cell in self.rollouts)
        yield from (cell for *_, cell in self.corrupted)
        yield from (cell for _, cell in self.chains)
        yield from (cell for *_, cell in self.fidelity)


def plan_study(config: StudyConfig, digests: Mapping[str, str]) -> list[SuitePlan]:
    """Lay out every cell of a study.

    Args:
        config: the study.
        digests: weights digest of each entry of ``config.weights``, and of its random-weight twin where it has one.
    """
    return [_plan_suite(config, suite, digests) for suite in config.suites]


def _plan_suite(config: StudyConfig, suite: Suite, digests: Mapping[str, str]) -> SuitePlan:
    plan = SuitePlan(suite)
    plan.data = {env: _record_cell(config, suite, env) for env in suite.envs}
    plan.uses = [*_trained(config, suite, plan.data), *_loaded(config, suite, digests)]
    for use in plan.uses:
        if use.checkpoint is None and use.name not in config.references:
            plan.fidelity.append((use, _fidelity_cell(config, suite, plan.data, use)))
        for env in suite.envs:
            offline = _offline_cell(config, suite, env, plan.data[env], use)
            plan.offline.append((use, env, offline))
            for policy_seed in _policy_seeds(suite, use):
                cell = _rollout_cell(config, suite, env, f"policies/{policy_seed}", use.label, {"policy": offline})
                plan.rollouts.append((use, env, policy_seed, cell))
                if policy_seed == suite.policy_seeds[0]:
                    for condition, under in _corrupted_cells(config, use, cell):
                        plan.corrupted.append((use, env, policy_seed, condition, under))
            if _follows_chains(suite, env) and use.checkpoint is None:
                name = f"policies/{suite.policy_seeds[0]}"
                plan.chains.append((use, _chains_cell(config, suite, name, use.label, {"policy": offline})))
    for env in suite.envs:
        plan.floors.append((env, _floors_cell(config, env, plan.data[env])))
        plan.baselines += _baselines(config, suite, env, plan.data[env]) if suite.rollouts else ()
        for policy in BASELINE_POLICIES if _follows_chains(suite, env) else ():
            cell = _chains_cell(config, suite, policy, f"{policy} policy", {"data": plan.data[env]})
            plan.chains.append((f"{policy} policy", cell))
    return plan


def _policy_seeds(suite: Suite, use: EncoderUse) -> tuple[int, ...]:
    if not suite.rollouts:
        return ()
    return suite.policy_seeds if use.checkpoint is None else suite.policy_seeds[:1]


def _record_cell(config: StudyConfig, suite: Suite, env: str) -> Cell:
    if suite.data:
        dataset = open_dataset(suite.data, **suite.data_options)
        given = {"env": env, "data": str(dataset.path.resolve()), "options": suite.data_options, "key": dataset.key}
        return Cell("data", f"open {suite.data}", given)
    params = {
        "env": env,
        "seed": config.seed,
        **suite.model_dump(include={"env_options", "image_size", "episodes", "random_fraction", "policy"}),
    }
    return Cell("record", f"record {env}", params)


def _trained(config: StudyConfig, suite: Suite, data: Mapping[str, Cell]) -> Iterator[EncoderUse]:
    """Final checkpoints of every run first, then intermediate ones and those trained further on actions."""
    cells = {
        (objective, seed): Cell(
            "pretrain",
            f"pretrain {objective} (seed {seed}, {suite.name})",
            {
                "objective": objective,
                "seed": seed,
                "study_seed": config.seed,
                "steps": suite.pretraining_steps,
                "checkpoints": list(suite.checkpoints),
                "batch_size": config.pretraining.batch_size,
            },
            data,
        )
        for seed in suite.pretraining_seeds
        for objective in config.objectives
    }
    for checkpoint in (None, *suite.checkpoints):
        for (objective, seed), cell in cells.items():
            yield EncoderUse(objective, seed, checkpoint, cell=cell)
    for (objective, seed), cell in cells.items():
        if objective not in config.adapt:
            continue
        settings = config.adaptation.model_dump(exclude={"control"})
        for control in (False, True) if config.adaptation.control else (False,):
            params = {"seed": seed, "study_seed": config.seed, **settings, "control": control}
            label = f"adapt {objective} (seed {seed}, {suite.name}{', control' if control else ''})"
            name = f"{objective}{CONTROL_SUFFIX if control else ADAPTED_SUFFIX}"
            yield EncoderUse(name, seed, cell=Cell("adapt", label, params, {**data, "encoder": cell}))


def _loaded(config: StudyConfig, suite: Suite, digests: Mapping[str, str]) -> Iterator[EncoderUse]:
    for name in config.floors:
        seeds = suite.pretraining_seeds if name == "random" else (0,)
        yield from (EncoderUse(name, seed, source=name) for seed in seeds)
    for name in config.references:
        yield EncoderUse(name, source=name)
    for name, entry in config.weights.items():
        places = ((name, entry.source), (f"{name}{TWIN_SUFFIX}", f"twin:{entry.source}"))
        for label, source in places:
            if label in digests:
                yield EncoderUse(
                    label, source=source, image_size=entry.image_size, layer=entry.layer, digest=digests[label]
                )


def _fidelity_cell(config: StudyConfig, suite: Suite, data: Mapping[str, Cell], use: EncoderUse) -> Cell:
    params = {
        "suite": suite.name,
        "encoder": use.params,
        "seed": config.seed,
        "replicates": config.probe.replicates,
        **config.fidelity.model_dump(),
    }
    return Cell("fidelity", f"decode {use.label}", params, {**data, **use.inputs})


def _offline_cell(config: StudyConfig, suite: Suite, env: str, data: Cell, use: EncoderUse) -> Cell:
    params = {
        "env": env,
        "encoder": use.params,
        "seed": config.seed,
        **_probe_params(config, use),
        "policy": _policy_params(config, suite, use),
        "policy_seeds": list(_policy_seeds(suite, use)),
        "demonstrations": suite.demonstrations,
    }
    asked = any(config.robustness.model_dump().values())
    if asked and use.checkpoint is None and use.name not in config.references:
        params["robustness"] = config.robustness.model_dump(mode="json")
    verb = "probe and clone" if suite.rollouts else "probe"
    return Cell("offline", f"{verb} {use.label} on {env}", params, {"data": data, **use.inputs})


def _probe_params(config: StudyConfig, use: EncoderUse) -> dict[str, Any]:
    """Intermediate checkpoints are points of a learning curve: without the MLP, and without controls."""
    settings = config.probe.model_dump(mode="json")
    controls = settings.pop("controls")
    if use.checkpoint is None:
        return {"probe": settings, "controls": controls}
    return {"probe": {**settings, "mlp_horizons": []}, "controls": []}


def _policy_params(config: StudyConfig, suite: Suite, use: EncoderUse) -> dict[str, Any]:
    """Equal heads for every encoder, save the history of the one that reads the simulator's state."""
    settings = {**config.policy.model_dump(), "condition": suite.condition or config.policy.condition}
    state_history = settings.pop("state_history")
    if settings["condition"] != "instruction":
        del settings["instruction_encoder"]
    # What every study had before there was a choice is left out, so that finished cells keep their keys.
    fields = PolicySettings.model_fields
    for name in ("head", "chunk", "condition", "head_options"):
        if settings[name] == fields[name].get_default(call_default_factory=True):
            del settings[name]
    return {**settings, "history": state_history} if use.source == "state" else settings


def _floors_cell(config: StudyConfig, env: str, data: Cell) -> Cell:
    params = {"env": env, "seed": config.seed, "probe": config.probe.model_dump(mode="json")}
    return Cell("floors", f"floors of {env}", params, {"data": data})


def _frame_size(suite: Suite) -> int | None:
    """Side of the frames that policies were trained on; ``None`` for the environment's own, where data state none."""
    if not suite.data:
        return suite.image_size
    size = open_dataset(suite.data, **suite.data_options).settings.get("image_size")
    return size if isinstance(size, int) else None


def _rollout_cell(
    config: StudyConfig, suite: Suite, env: str, policy: str, label: str, inputs: Mapping[str, Cell]
) -> Cell:
    params = {
        "env": env,
        "env_options": dict(suite.env_options),
        "image_size": _frame_size(suite),
        "policy": policy,
        "seed": config.seed,
        "rollouts": suite.rollouts,
        **config.rollout.model_dump(exclude={"corruptions"}),
    }
    return Cell("rollout", f"roll out {label} on {env}", params, inputs)


def _corrupted_cells(config: StudyConfig, use: EncoderUse, clean: Cell) -> Iterator[tuple[str, Cell]]:
    """The rollouts of a final checkpoint's policy again, under each corruption; what reads no pixels has none."""
    if use.checkpoint is None and use.name not in config.references:
        for corruption in config.rollout.corruptions:
            params = {**clean.params, "corruption": corruption, "videos": 0}
            yield corruption, Cell("rollout", f"{clean.name} under {corruption}", params, clean.inputs)


def _follows_chains(suite: Suite, env: str) -> bool:
    return suite.chains > 0 and suite.rollouts > 0 and env == CHAINS_ENV


def _chains_cell(config: StudyConfig, suite: Suite, policy: str, label: str, inputs: Mapping[str, Cell]) -> Cell:
    """Chains last as long per instruction as the episodes of single tasks."""
    options = {name: value for name, value in suite.env_options.items() if name not in ("task", "horizon")}
    params = {
        "env_options": options,
        "image_size": _frame_size(suite),
        "policy": policy,
        "seed": config.seed,
        "tasks": list(suite.tasks),
        "chains": suite.chains,
        "length": suite.chain_length,
        "steps": suite.env_options.get("horizon"),
    }
    return Cell("chains", f"chains of {label}", params, inputs)


def _baselines(config: StudyConfig, suite: Suite, env: str, data: Cell) -> Iterator[tuple[str, str, int | None, Cell]]:
    for policy in BASELINE_POLICIES:
        yield policy, env, None, _rollout_cell(config, suite, env, policy, f"{policy} policy", {"data": data})
    for path in map(Path, suite.policies.get(env, ())):
        name = policy_name(path)
        given = _rollout_cell(config, suite, env, str(path), f"policy {name}", {})
        params = {**given.params, "digest": _policy_digest(path)}
        yield name, env, None, dataclasses.replace(given, params=params)
    for seed in suite.policy_seeds if suite.convnet_baseline else ():
        params = {
            "env": env,
            "seed": config.seed,
            "policy_seed": seed,
            "demonstrations": suite.demonstrations,
            "steps": config.policy.steps,
        }
        trained = Cell("convnet", f"train ConvNet end to end on {env} (seed {seed})", params, {"data": data})
        name = "convnet end to end"
        yield name, env, seed, _rollout_cell(config, suite, env, f"policies/{seed}", name, {"policy": trained})


def _policy_digest(path: Path) -> str:
    """Digest of a policy's files, so that another policy at the same place changes the cell's key."""
    if not path.exists():
        raise LatentGymError(f"there is no policy {path}; give the folder of a trained policy, or a model file (.zip)")
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return content_key([(file.name, file_digest(file)) for file in files])
