"""Run a study: plan its cells, run what is missing, assemble the results, write the report."""

from __future__ import annotations

import io
import os
import platform
import shlex
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors.numpy import save

from latentgym.artifacts import atomic_write, content_key, disk_errors, write_json
from latentgym.encoders import Encoder, load_encoder
from latentgym.encoders.twin import has_weights, random_twin
from latentgym.envs import make_env
from latentgym.errors import LatentGymError
from latentgym.policies.conditions import WORDS
from latentgym.policies.sentences import sentence_size
from latentgym.results import Row
from latentgym.rollouts.link import LinkRow, link, write_points
from latentgym.seeding import derive_seed
from latentgym.studies.assemble import all_rows, claim_replicates, link_points, measure
from latentgym.studies.cells import open_recorded
from latentgym.studies.claims import evaluate
from latentgym.studies.config import (
    TWIN_SUFFIX,
    LoadedEncoder,
    StudyConfig,
    Suite,
    distinct_envs,
    load_config,
    parse_config,
)
from latentgym.studies.engine import CellRecord, run_cells, study_lock
from latentgym.studies.evidence import REPLICATES_NAME, Evidence, benchmark_of
from latentgym.studies.media import encoder_facts, gather_media
from latentgym.studies.plan import SuitePlan, plan_study
from latentgym.studies.progress import StudyProgress
from latentgym.studies.report import write_report
from latentgym.studies.tables import membership_rows
from latentgym.trajectories import open_dataset

SCHEMA = 1


def run_study(
    study: str | Path | StudyConfig,
    out: str | Path,
    *,
    workers: int | None = None,
    weights: Mapping[str, str] | None = None,
    seed: int | None = None,
) -> Path:
    """Run a study, or continue one that was stopped.

    Args:
        study: a shipped study's name, a TOML file, or a configuration.
        out: folder of the study; finished cells found there are reused.
        workers: worker processes, each on one thread; one per core by default.
        weights: further encoders as ``{name: folder or hub id}``.
        seed: root seed, in place of the configuration's.

    Returns:
        The path of ``report.html``; ``results.json``, ``results.parquet``, ``run.json`` and ``link_points.json``
        stand beside it.

    Raises:
        LatentGymError: on a bad configuration, an environment or encoder that cannot be had here, or a failed cell.
            What was finished before stays.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from latentgym.studies.config import parse_config
        >>> suite = {"name": "one", "envs": ["latentgym/TabletopReach-v0"], "episodes": 12, "rollouts": 0,
        ...          "image_size": 32, "pretraining_steps": 2}
        >>> study = {"name": "tiny", "objectives": ["pixel_autoencoder"], "floors": [], "references": [],
        ...          "suites": [suite], "fidelity": {"steps": 2},
        ...          "probe": {"horizons": [1], "folds": 2, "mlp_steps": 2, "replicates": 20}}
        >>> with TemporaryDirectory() as folder:
        ...     report = run_study(parse_config(study, "tiny"), folder)
        ...     report.name, sorted(path.name for path in report.parent.glob("results.*"))
        ('report.html', ['results.json', 'results.parquet'])
    """
    config = study if isinstance(study, StudyConfig) else load_config(study)
    given = config.model_dump(exclude_unset=True)
    if seed is not None:
        given["seed"] = seed
    if weights:
        given["weights"] = {**given.get("weights", {}), **weights}
    config = parse_config(given, config.name)
    reproduce = _reproduce(study, config, weights or {})
    root = Path(out)
    start_s = time.perf_counter()
    with study_lock(root):
        config, digests = _preflight(config)
        plans = plan_study(config, digests)
        cells = [cell for plan in plans for cell in plan.cells()]
        with StudyProgress(config.name, len({cell.key for cell in cells})) as progress:
            count = workers or _available_cores()
            records = run_cells(cells, root, count, progress.start, progress.done)
            progress.message("assembling results")
            with disk_errors(root):
                report = _write_results(config, plans, records, root, start_s, reproduce)
    return report


def _reproduce(study: str | Path | StudyConfig, config: StudyConfig, weights: Mapping[str, str]) -> str:
    """The call that gives the same results: a command line, or Python where a command cannot say it."""
    if not isinstance(study, StudyConfig) and not weights:
        return f"latentgym study {shlex.quote(str(study))} --seed {config.seed} -o DIR"
    if isinstance(study, StudyConfig):
        return 'run_study(StudyConfig.model_validate(json.loads(Path("run.json").read_text())["config"]), DIR)'
    return f"run_study({str(study)!r}, DIR, seed={config.seed}, weights={dict(weights)!r})"


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _preflight(config: StudyConfig) -> tuple[StudyConfig, dict[str, str]]:
    """Make every environment and load every outside encoder once, so that what is missing shows before any work.

    Returns:
        The study without the optional suites that cannot be had here, and the digest of the weights and preprocessing
        of each outside encoder and of its random-weight twin.
    """
    suites = []
    for suite in (_with_data(suite, config.references) for suite in config.suites):
        try:
            if suite.data and not suite.rollouts:
                suites.append(suite)
                continue
            told = suite.condition or config.policy.condition
            if told == "instruction" and config.policy.instruction_encoder != WORDS:
                sentence_size(config.policy.instruction_encoder)  # its weights are there
            for env_id in suite.envs:
                make_env(env_id, image_size=suite.image_size, pixels=False, **suite.env_options).close()
        except LatentGymError as error:
            if not suite.optional:
                raise
            warnings.warn(f"leaving out the optional suite {suite.name!r}: {error}", stacklevel=2)
        else:
            suites.append(suite)
    if not suites:
        raise LatentGymError("every suite of this study is optional and none can be had here")
    try:
        distinct_envs(suites)
    except ValueError as error:
        raise LatentGymError(f"{error}; data stand for the environment that they were recorded in") from error
    loaded = {name: _open_loaded(entry, config.weights_image_size) for name, entry in config.weights.items()}
    twins = {f"{name}{TWIN_SUFFIX}": random_twin(one) for name, one in loaded.items() if has_weights(one)}
    sized = {
        name: entry.model_copy(update={"image_size": loaded[name].spec.image_size or None})
        for name, entry in config.weights.items()
    }
    config = config.model_copy(update={"suites": tuple(suites), "weights": sized})
    return config, {name: content_key(encoder.spec) for name, encoder in {**loaded, **twins}.items()}


def _open_loaded(entry: LoadedEncoder, wanted: int | None) -> Encoder:
    """The encoder at the size that its entry states, else at the multiple of its stride that is nearest to ``wanted``.

    One that takes a single size keeps it.
    """
    encoder = load_encoder(entry.source, image_size=entry.image_size, layer=entry.layer)
    spec = load_encoder(entry.source).spec if entry.layer >= 0 else encoder.spec
    if entry.image_size is not None or wanted is None or spec.modality != "pixels":
        return encoder
    stride = max(1, spec.image_size // spec.grid[0])
    size = max(1, round(wanted / stride)) * stride
    try:
        return load_encoder(entry.source, image_size=size, layer=entry.layer)
    except LatentGymError:
        return encoder


def _with_data(suite: Suite, references: Sequence[str]) -> Suite:
    """A suite of given data stands for the environment that they were recorded in, if there is one."""
    if not suite.data:
        return suite
    dataset = open_dataset(suite.data, **suite.data_options)
    # The renderer is the data's own where that can be had.
    options = {name: value for name, value in suite.env_options.items() if name != "renderer"}
    changes: dict[str, Any] = {"envs": (dataset.env_id,), "env_options": options}
    if "state" in references and not dataset.uniform_state:
        raise LatentGymError(
            f"suite {suite.name!r}: the state is not equally wide in all tasks of {suite.data}, so that it cannot be "
            'probed; leave it out: references = ["proprio"]'
        )
    if suite.rollouts and "data_set" in dataset.settings and "/" not in dataset.env_id:
        warnings.warn(
            f"suite {suite.name!r}: {suite.data} holds several scenes ({dataset.env_id}), which are no one environment "
            "to roll out in; its rollouts are left out",
            stacklevel=3,
        )
        changes |= {"rollouts": 0, "chains": 0}
    return suite.model_copy(update=changes)


def _write_results(
    config: StudyConfig,
    plans: Sequence[SuitePlan],
    records: Sequence[CellRecord],
    root: Path,
    start_s: float,
    reproduce: str,
) -> Path:
    rows: list[Row] = []
    points = []
    replicates: dict[str, NDArray[np.float64]] = {}
    encoders = encoder_facts(plans, root)
    labelled = {item["name"] for item in encoders if item["trained_on_actions"]}
    parameters = {item["name"]: int(item["parameters"]) for item in encoders}
    for plan in plans:
        measured = measure(plan, root)
        rows += all_rows(plan, measured, root, config)
        rows += membership_rows(measured, plan.suite.name, config.seed)
        points += link_points(measured, config, parameters, labelled)
        replicates |= claim_replicates(measured) if config.claims else {}
    seed = derive_seed(config.seed, "link")
    linked = link(points, seed=seed, replicates=config.link.replicates) if points else []
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "study": config.name,
        "rows": [row.to_dict() for row in rows],
        "link": [_link_dict(row) for row in linked],
    }
    if config.claims:
        benchmarks = [benchmark_of(suite.model_dump()) for suite in config.suites]
        evidence = Evidence([row.to_dict() for row in rows], benchmarks, replicates, labelled)
        results["claims"] = [claim.to_dict() for claim in evaluate(evidence)]
        atomic_write(root / REPLICATES_NAME, save(replicates))
    write_json(root / "results.json", results)
    write_points(root / "link_points.json", points)
    _write_parquet(root / "results.parquet", rows)
    run = {
        "study": config.name,
        "config": config.model_dump(mode="json"),
        "wall_s": round(time.perf_counter() - start_s, 3),
        "cells_wall_s": round(sum(record.wall_s for record in records), 3),
        "cells": [vars(record) for record in records],
        "encoders": encoders,
        "provenance": _provenance(plans, root, config),
        "reproduce": reproduce,
        **gather_media(plans, root),
    }
    write_json(root / "run.json", run)
    return write_report(root)


def _provenance(plans: Sequence[SuitePlan], root: Path, config: StudyConfig) -> dict[str, Any]:
    """Where the numbers come from: versions and GL of the recordings, and the machine."""
    recorded = [open_recorded(cell.folder(root)).provenance for plan in plans for cell in plan.data.values()]
    versions = {name: version for item in recorded for name, version in item.versions.items()}
    return {
        "versions": {**versions, "torch": torch.__version__},
        "gl": recorded[0].gl,
        "seed": config.seed,
        "command": " ".join(map(shlex.quote, sys.argv)),
        "revision": recorded[0].revision,
        "machine": {"platform": platform.platform(), "cores": _available_cores(), "python": platform.python_version()},
    }


def _link_dict(row: LinkRow) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__dataclass_fields__}


def _write_parquet(path: Path, rows: Sequence[Row]) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([row.to_dict() for row in rows]), buffer)
    atomic_write(path, buffer.getvalue())
