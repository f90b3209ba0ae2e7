"""What each kind of cell does: one function a kind, reading its inputs' folders and writing its own."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from latentgym.artifacts import atomic_write, read_json, write_json
from latentgym.encoders import Encoder, FeatureCache, load_encoder
from latentgym.encoders.adaptation import adapt
from latentgym.encoders.pretraining import pretrain
from latentgym.encoders.small import random_small
from latentgym.envs.calvin import short_chains
from latentgym.envs.recording import record
from latentgym.errors import LatentGymError, rephrased
from latentgym.policies import Policy, load_policy, train_policy
from latentgym.policies.baselines import ConstantPolicy, ExpertPolicy, RandomPolicy
from latentgym.policies.convnet import train_convnet_policy
from latentgym.probes import fidelity, probe, probe_floor, probe_floors, robustness
from latentgym.probes.floors import FITTED_FLOORS
from latentgym.results import Row
from latentgym.rollouts import evaluate, evaluate_chains
from latentgym.seeding import derive_seed
from latentgym.trajectories import Dataset, Split, open_dataset, split_episodes

DATA_NAME = "data.json"
CHAINS_NAME = "chains.json"


@dataclasses.dataclass(frozen=True)
class Task:
    """A cell as its function sees it.

    Attributes:
        params: what determines the result.
        inputs: folders of the input cells, by label.
        out: folder to write to.
        root: the study's folder (for caches only).
    """

    params: Mapping[str, Any]
    inputs: Mapping[str, Path]
    out: Path
    root: Path

    @property
    def seed(self) -> int:
        """The study's seed."""
        return int(self.params["seed"])


def open_recorded(folder: Path) -> Dataset:
    """The data set of a finished cell, recorded by it or named by it."""
    if (folder / DATA_NAME).is_file():
        named = read_json(folder / DATA_NAME)
        return open_dataset(named["data"], **named["options"])
    try:
        return open_dataset(folder / "dataset")
    except LatentGymError as error:
        raise rephrased(error, f"{error}; to record it anew, delete {folder} and run the study again") from error


def _split_of(dataset: Dataset, seed: int) -> Split:
    """The one split of a data set that every cell of a study uses."""
    return split_episodes(dataset, seed=derive_seed(seed, "split", dataset.env_id))


def _suite_data(task: Task, seed: int) -> list[tuple[Dataset, Split]]:
    datasets = [open_recorded(path) for label, path in sorted(task.inputs.items()) if label != "encoder"]
    return [(dataset, _split_of(dataset, seed)) for dataset in datasets]


def _encoder_of(task: Task) -> Encoder:
    """The encoder that a cell works on, under the name that the study gives it."""
    use = task.params["encoder"]
    if "encoder" in task.inputs:
        folder = task.inputs["encoder"] / "encoder"
        encoder = load_encoder(folder if use["checkpoint"] is None else folder / f"checkpoint-{use['checkpoint']}")
    elif use["source"] == "random":
        encoder = random_small(derive_seed(task.seed, "pretrain", use["seed"]))
    else:
        encoder = load_encoder(use["source"], image_size=use["image_size"], layer=use["layer"])
    return encoder


def _write_rows(task: Task, rows: Sequence[Row]) -> None:
    """Write rows under the study's name, seed and checkpoint of the encoder."""
    use = task.params["encoder"]
    named = [
        dataclasses.replace(row, encoder=use["name"], seed=use["seed"], checkpoint=use["checkpoint"]) for row in rows
    ]
    write_json(task.out / "rows.json", [row.to_dict() for row in named])


def _encoder_facts(task: Task, encoder: Encoder) -> dict[str, Any]:
    """What the report's table of encoders says of one."""
    training = {}
    if "encoder" in task.inputs:
        training = read_json(task.inputs["encoder"] / "encoder" / "encoder.json")["training"]
    names = ("family", "licence", "parameters", "trained_on_actions", "temporal", "source", "weights_digest")
    return {
        **{name: getattr(encoder.spec, name) for name in names},
        "extra_parameters": training.get("parameters_extra", 0),
        "training_flops": training.get("training_flops", 0),
    }


def _write_replicates(task: Task, replicates: Mapping[str, NDArray[np.floating[Any]]]) -> None:
    arrays = {key: np.ascontiguousarray(values, np.float64) for key, values in replicates.items()}
    atomic_write(task.out / "replicates.safetensors", save(arrays))


def run_record(task: Task) -> None:
    """Record one environment's data set into ``dataset/``."""
    params = task.params
    record(
        params["env"],
        task.out / "dataset",
        episodes=params["episodes"],
        policy=params["policy"],
        seed=derive_seed(task.seed, "record", params["env"]),
        random_fraction=params["random_fraction"],
        image_size=params["image_size"],
        env_options=params["env_options"],
    )


def run_data(task: Task) -> None:
    """Name a data set that is there already; it is read in place."""
    write_json(task.out / DATA_NAME, {"data": task.params["data"], "options": dict(task.params["options"])})


def run_pretrain(task: Task) -> None:
    """Pretrain one encoder on the training episodes of the suite into ``encoder/``."""
    params = task.params
    data = [(dataset, split.train) for dataset, split in _suite_data(task, params["study_seed"])]
    pretrain(
        params["objective"],
        data,
        out=task.out / "encoder",
        seed=derive_seed(params["study_seed"], "pretrain", params["seed"]),
        steps=params["steps"],
        batch_size=params["batch_size"],
        checkpoints=params["checkpoints"],
    )


def run_adapt(task: Task) -> None:
    """Train one pretrained encoder further by inverse dynamics on the suite's training episodes, into ``encoder/``."""
    params = task.params
    adapt(
        task.inputs["encoder"] / "encoder",
        [(dataset, split.train) for dataset, split in _suite_data(task, params["study_seed"])],
        out=task.out / "encoder",
        arm=params["arm"],
        control=params["control"],
        steps=params["steps"],
        batch_size=params["batch_size"],
        seed=derive_seed(params["study_seed"], "adapt", params["seed"]),
    )


def run_fidelity(task: Task) -> None:
    """Train the equal decoder on one encoder's latents; keep PSNR, SSIM and example reconstructions."""
    params = task.params
    result = fidelity(
        _suite_data(task, task.seed),
        _encoder_of(task),
        steps=params["steps"],
        batch_size=params["batch_size"],
        seed=derive_seed(task.seed, "fidelity"),
        replicates=params["replicates"],
    )
    _write_rows(task, [dataclasses.replace(row, env=params["suite"]) for row in result.rows])
    _write_replicates(task, result.replicates)
    atomic_write(task.out / "examples.safetensors", save({"examples": np.ascontiguousarray(result.examples)}))
    facts = {"decoder_parameters": result.decoder_parameters, "latent_floats": result.latent_floats_per_frame}
    write_json(task.out / "fidelity.json", facts)


def run_offline(task: Task) -> None:
    """Probe one encoder on one data set and train its cloning heads on the same features."""
    params = task.params
    dataset = open_recorded(task.inputs["data"])
    split, encoder = _split_of(dataset, task.seed), _encoder_of(task)
    keeps_features = bool(params["encoder"]["digest"])
    cache = FeatureCache(task.root / "features" if keeps_features else task.out / "features")
    settings = params["probe"]
    result = probe(
        dataset,
        encoder,
        split=split,
        horizons=tuple(settings["horizons"]),
        folds=settings["folds"],
        mlp_horizons=tuple(settings["mlp_horizons"]),
        mlp_steps=settings["mlp_steps"],
        mlp_seeds=settings["mlp_seeds"],
        controls=tuple(params["controls"]),
        replicates=settings["replicates"],
        seed=derive_seed(task.seed, "probe", params["env"]),
        cache=cache,
    )
    rows, replicates, cloned = list(result.rows), dict(result.replicates), []
    if params.get("robustness"):
        under = robustness(
            dataset,
            encoder,
            split=split,
            conditions=tuple(params["robustness"]["conditions"]),
            stresses=tuple(params["robustness"]["stresses"]),
            seed=derive_seed(task.seed, "robustness", params["env"]),
            cache=cache,
            replicates=settings["replicates"],
            folds=settings["folds"],
        )
        # Clean scores come again with them, on the same resamples.
        rows += [row for row in under.rows if row.condition is not None]
        replicates |= {key: values for key, values in under.replicates.items() if key not in replicates}
    for policy_seed in params["policy_seeds"]:
        policy = train_policy(
            dataset,
            encoder,
            split=split,
            demonstrations=params["demonstrations"],
            seed=derive_seed(task.seed, "policy", params["env"], policy_seed),
            cache=cache,
            **params["policy"],
        )
        policy.save(task.out / "policies" / str(policy_seed))
        rows += [dataclasses.replace(row, policy_seed=policy_seed) for row in policy.rows()]
        cloned.append(policy.score.replicates(settings["replicates"], task.seed))
    _write_rows(task, rows)
    if cloned:
        replicates["cloning_r2|policy"] = np.mean(cloned, axis=0)
    _write_replicates(task, replicates)
    write_json(task.out / "encoder.json", _encoder_facts(task, encoder))
    if not keeps_features:
        shutil.rmtree(task.out / "features", ignore_errors=True)


def run_floors(task: Task) -> None:
    """Score the predictors that look at no latent: the constant, the previous action and the frames' components."""
    dataset = open_recorded(task.inputs["data"])
    settings, split = task.params["probe"], _split_of(dataset, task.seed)
    horizons, replicates = tuple(settings["horizons"]), settings["replicates"]
    rows = probe_floors(dataset, split=split, horizons=horizons, replicates=replicates)
    if dataset.cameras:
        cache = FeatureCache(task.out / "features")
        for name in FITTED_FLOORS:
            rows += probe_floor(
                dataset,
                name,
                split=split,
                horizons=horizons,
                replicates=replicates,
                folds=settings["folds"],
                cache=cache,
            ).rows
        shutil.rmtree(cache.root)
    write_json(task.out / "rows.json", [row.to_dict() for row in rows])


def run_convnet(task: Task) -> None:
    """Train the end-to-end baseline from pixels."""
    params = task.params
    dataset = open_recorded(task.inputs["data"])
    policy = train_convnet_policy(
        dataset,
        split=_split_of(dataset, task.seed),
        demonstrations=params["demonstrations"],
        seed=derive_seed(task.seed, "convnet", params["env"], params["policy_seed"]),
        steps=params["steps"],
    )
    policy.save(task.out / "policies" / str(params["policy_seed"]))


def _policy_of(task: Task) -> Policy:
    name = task.params["policy"]
    if "policy" in task.inputs:
        return load_policy(task.inputs["policy"] / name)
    if "data" not in task.inputs:
        return load_policy(name)
    dataset = open_recorded(task.inputs["data"])
    if name == "expert":
        return ExpertPolicy()
    if name == "random":
        return RandomPolicy(dataset.action_spec)
    return ConstantPolicy.fit(dataset, _split_of(dataset, task.seed).train)


def run_rollout(task: Task) -> None:
    """Roll a policy out on the environment's fixed seed list."""
    params = task.params
    size = {} if params["image_size"] is None else {"image_size": params["image_size"]}
    seeds = [derive_seed(task.seed, "rollout", params["env"], index) for index in range(params["rollouts"])]
    evaluation = evaluate(
        params["env"],
        _policy_of(task),
        seeds,
        batch_size=params["batch_size"],
        env_options={**size, **params["env_options"]},
        corruption=params.get("corruption"),
        video_dir=task.out / "videos" if params["videos"] else None,
        videos=(params["videos"], params["videos"]),
    )
    write_json(task.out / "rollouts.json", evaluation.to_dict(timing=False))


def run_chains(task: Task) -> None:
    """Let a policy follow short chains of CALVIN's instructions, the same ones for every policy."""
    params = task.params
    size = {} if params["image_size"] is None else {"image_size": params["image_size"]}
    seed = derive_seed(task.seed, "chains")
    evaluation = evaluate_chains(
        _policy_of(task),
        short_chains(params["tasks"], params["chains"], params["length"], seed),
        seed=seed,
        env_options={**size, **params["env_options"]},
        **({} if params["steps"] is None else {"steps_per_instruction": params["steps"]}),
    )
    write_json(task.out / CHAINS_NAME, evaluation.to_dict())


RUNNERS: dict[str, Callable[[Task], None]] = {
    "record": run_record,
    "data": run_data,
    "pretrain": run_pretrain,
    "adapt": run_adapt,
    "fidelity": run_fidelity,
    "offline": run_offline,
    "floors": run_floors,
    "convnet": run_convnet,
    "rollout": run_rollout,
    "chains": run_chains,
}
