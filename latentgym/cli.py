"""The command line: one thin function per verb."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.table import Table
from typer.exceptions import TyperException

from latentgym.errors import LatentGymError
from latentgym.results import Row

if TYPE_CHECKING:
    from latentgym.rollouts import LinkResult

INTERRUPTED = 130
"""Exit status after Ctrl-C."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Does this frozen latent carry the action, and does that carry over to control?",
)
data_app = typer.Typer(no_args_is_help=True, help="Look after recorded data.")
assets_app = typer.Typer(no_args_is_help=True, help="Fetch what simulators need and packages do not bring.")
check_app = typer.Typer(no_args_is_help=True, help="Check an environment or encoder against its contract.")
app.add_typer(data_app, name="data")
app.add_typer(check_app, name="check")
app.add_typer(assets_app, name="assets")

Data = Annotated[Path, typer.Argument(help="Folder of a recorded data set.")]
Out = Annotated[Path, typer.Option("-o", "--out", help="Folder to write to.")]
Seed = Annotated[int, typer.Option(help="Root seed; equal seeds give equal bits.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Encoder = Annotated[str, typer.Option("--encoder", help="Registered name, folder, or hub id.")]
DataOption = Annotated[
    list[str],
    typer.Option(
        help="key=value of how a CALVIN folder or HDF5 demonstrations are read, such as split=tasks; repeatable."
    ),
]
Workers = Annotated[int, typer.Option(min=1, help="Worker processes.")]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:<index>, or auto.")]


Assets = Annotated[Path | None, typer.Option(help="Folder of CALVIN's assets, in place of CALVIN_ENV_ROOT.")]


def main() -> None:
    """Run the command line; bad input ends in one line on standard error and exit status 2."""
    sys.exit(_run())


def _run() -> int:
    try:
        status = app(standalone_mode=False)
        if status != INTERRUPTED:
            return status if isinstance(status, int) else 0
    except LatentGymError as error:
        print(f"latentgym: {error}", file=sys.stderr)
        return 2
    except TyperException as error:
        print(f"latentgym: {error.format_message()}; see: latentgym --help", file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        pass
    print("latentgym: interrupted; finished work is kept, run the same command again to continue", file=sys.stderr)
    return INTERRUPTED


def _options(pairs: list[str], option: str = "--option") -> dict[str, Any]:
    """``key=value`` pairs with JSON values; a value that is no JSON is text."""
    options: dict[str, Any] = {}
    for pair in pairs:
        key, sign, text = pair.partition("=")
        if not sign:
            raise LatentGymError(f"{option} takes key=value, found {pair!r}")
        try:
            options[key] = json.loads(text)
        except ValueError:
            options[key] = text
    return options


def _use_assets(folder: Path | None) -> None:
    """Let this process and its workers find CALVIN's assets in ``folder``."""
    if folder is not None:
        os.environ["CALVIN_ENV_ROOT"] = str(folder.resolve())


def _print_table(title: str, rows: list[dict[str, Any]], columns: list[str]) -> None:
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=1, sort_keys=True))


@app.command()
def record(
    env: Annotated[str, typer.Argument(help="Environment id, such as latentgym/TabletopReach-v0.")],
    out: Out,
    episodes: Annotated[int, typer.Option(min=1)] = 100,
    policy: Annotated[str, typer.Option(help="expert, noisy-expert or random.")] = "noisy-expert",
    seed: Seed = 0,
    num_envs: Annotated[int, typer.Option(min=1, help="Processes; the data do not depend on it.")] = 1,
    random_fraction: Annotated[float, typer.Option(help="Share of episodes driven by random actions.")] = 0.0,
    image_size: Annotated[int | None, typer.Option(help="Side of the frames in pixels; 64, CALVIN 200.")] = None,
    option: Annotated[list[str], typer.Option(help="key=value for the environment; repeatable.")] = [],  # noqa: B006
    assets: Assets = None,
) -> None:
    """Record trajectories; an interrupted recording continues where it stopped."""
    _use_assets(assets)
    from latentgym.envs.recording import record as record_episodes
    from latentgym.progress import track_counts

    with track_counts(f"recording {env}", episodes) as progress:
        dataset = record_episodes(
            env,
            out,
            episodes=episodes,
            policy=policy,
            seed=seed,
            num_envs=num_envs,
            random_fraction=random_fraction,
            image_size=image_size,
            env_options=_options(option),
            progress=progress,
        )
    print(f"{len(dataset)} episodes, {int(dataset.lengths.sum())} steps in {out}")


@data_app.command("check")
def data_check(data: Data, data_option: DataOption = []) -> None:  # noqa: B006
    """Read every file of a data set and list all problems at once."""
    from latentgym.progress import track_counts
    from latentgym.trajectories import inspect_dataset

    with track_counts("checking", None) as progress:
        report = inspect_dataset(data, progress=progress, **_options(data_option, "--data-option"))
    for note in report.notes:
        print(note)
    for problem in report.problems:
        print(problem, file=sys.stderr)
    if report.problems:
        raise LatentGymError(f"{data}: {len(report.problems)} problem(s)")
    print(f"{data}: no problems")


@data_app.command("convert")
def data_convert(
    source: Annotated[Path, typer.Argument(help="Folder of a CALVIN data set, or of one converted from CALVIN.")],
    out: Out,
    to: Annotated[str, typer.Option("--format", help="native or calvin.")] = "native",
    segment_steps: Annotated[int, typer.Option(min=1, help="Longest episode of the native data set, in steps.")] = 64,
) -> None:
    """Turn a CALVIN data set into a native one, or back, without losing a bit; can be interrupted and continued."""
    from latentgym.progress import track_counts
    from latentgym.trajectories.formats.calvin_conversion import convert

    with track_counts("converting", None) as progress:
        count = convert(source, out, to, segment_steps=segment_steps, progress=progress)
    print(f"{count} episodes in {out}")


@app.command()
def encode(
    data: Data,
    encoder: Encoder,
    out: Out,
    view: Annotated[str, typer.Option(help="single, causal, or clip:K (frames t to t+K).")] = "causal",
    data_option: DataOption = [],  # noqa: B006
) -> None:
    """Encode a data set once into a feature cache; what is there already is not computed again."""
    from latentgym.encoders import FeatureCache, View, load_encoder
    from latentgym.progress import track_counts
    from latentgym.trajectories import open_dataset

    dataset = open_dataset(data, **_options(data_option, "--data-option"))
    with track_counts("encoding", len(dataset)) as progress:
        features = FeatureCache(out).get(dataset, load_encoder(encoder), View.parse(view), progress=progress)
    print(f"{len(dataset)} episodes, {features.dim} numbers per row, in {out}")


@app.command()
def pretrain(
    objective: Annotated[str, typer.Argument(help="Pretraining objective; see: latentgym encoders.")],
    data: Annotated[list[Path], typer.Argument(help="Folders of recorded data sets.")],
    out: Out,
    seed: Seed = 0,
    steps: Annotated[int, typer.Option(min=1)] = 800,
    batch_size: Annotated[int, typer.Option(min=2)] = 64,
    checkpoint: Annotated[list[int], typer.Option(help="Step of an intermediate checkpoint; repeatable.")] = [],  # noqa: B006
    device: DeviceOption = "cpu",
    data_option: DataOption = [],  # noqa: B006
) -> None:
    """Pretrain a small encoder on the training episodes of one or more data sets."""
    from latentgym.encoders.pretraining import pretrain as run_pretraining
    from latentgym.progress import track_counts
    from latentgym.trajectories import open_dataset, split_episodes

    datasets = [open_dataset(path, **_options(data_option, "--data-option")) for path in data]
    pairs = [(dataset, split_episodes(dataset, seed=seed).train) for dataset in datasets]
    with track_counts(f"pretraining {objective}", steps) as progress:
        folder = run_pretraining(
            objective, pairs, out=out, seed=seed, steps=steps, batch_size=batch_size,
            checkpoints=checkpoint, device=device, progress=progress,
        )  # fmt: skip
    print(f"encoder in {folder}")


@app.command()
def adapt(
    encoder: Annotated[str, typer.Argument(help="Registered name, folder, or hub id.")],
    data: Data,
    out: Out,
    arm: Annotated[str, typer.Option(help="adapter (frozen trunk) or finetune (whole trunk).")] = "adapter",
    control: Annotated[bool, typer.Option("--control", help="Permute the actions across episodes.")] = False,
    steps: Annotated[int, typer.Option(min=1)] = 300,
    seed: Seed = 0,
    horizon: Annotated[int, typer.Option(min=1, help="Horizon k in steps.")] = 1,
    batch_size: Annotated[int, typer.Option(min=2)] = 32,
    image_size: Annotated[int | None, typer.Option(help="Side of the frames in pixels; the encoder's own.")] = None,
    split_seed: Annotated[int | None, typer.Option(help="Seed of the split; that of --seed if left out.")] = None,
    trunk_learning_rate: Annotated[float, typer.Option(help="Peak learning rate of a fine-tuned trunk.")] = 1e-4,
    device: DeviceOption = "auto",
    data_option: DataOption = [],  # noqa: B006
) -> None:
    """Train an encoder further by inverse dynamics on the training episodes; the result loads by its folder."""
    from latentgym.encoders.adaptation import adapt as run_adaptation
    from latentgym.progress import track_counts
    from latentgym.trajectories import open_dataset, split_episodes

    dataset = open_dataset(data, **_options(data_option, "--data-option"))
    split = split_episodes(dataset, seed=seed if split_seed is None else split_seed)
    with track_counts(f"adapting {encoder}", steps) as progress:
        folder = run_adaptation(
            encoder, dataset, out=out, arm=arm, control=control, steps=steps, seed=seed, k=horizon,
            batch_size=batch_size, split=split, image_size=image_size,
            trunk_learning_rate=trunk_learning_rate, device=device, progress=progress,
        )  # fmt: skip
    print(f"encoder in {folder}")


@app.command()
def probe(
    data: Data,
    encoder: Annotated[list[str], typer.Option("--encoder", help="Name, folder or hub id; repeatable.")],
    seed: Seed = 0,
    horizon: Annotated[list[int], typer.Option(help="Horizon k in steps; repeatable.")] = [1, 4],  # noqa: B006
    readout: Annotated[
        list[str], typer.Option(help="ridge, ridge_mean, mlp, attentive or transformer; repeatable.")
    ] = ["ridge", "ridge_mean", "mlp"],  # noqa: B006
    input: Annotated[list[str], typer.Option(help="pair, difference, single or window; repeatable.")] = [  # noqa: B006
        "pair",
        "single",
    ],
    target: Annotated[list[str], typer.Option(help="mean, first or chunk; repeatable.")] = ["mean", "first"],  # noqa: B006
    description_length: Annotated[
        bool, typer.Option("--description-length", help="Add code lengths and the sample-efficiency curve.")
    ] = False,
    cache: Annotated[Path | None, typer.Option(help="Feature cache to use and fill.")] = None,
    data_option: DataOption = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Probe frozen latents for the action, with every floor and an interval beside each number."""
    from latentgym.encoders import FeatureCache
    from latentgym.probes import probe as run_probe
    from latentgym.probes import probe_floors
    from latentgym.trajectories import open_dataset, split_episodes

    dataset = open_dataset(data, **_options(data_option, "--data-option"))
    settings: dict[str, Any] = {"split": split_episodes(dataset, seed=seed), "horizons": tuple(horizon)}
    features = FeatureCache(cache) if cache else None
    rows = list(probe_floors(dataset, **settings))
    floors = [name for name in ("random", "pixels", "proprio", "state") if name not in encoder]
    for source in [*encoder, *floors]:
        result = run_probe(
            dataset,
            source,
            **settings,
            readouts=tuple(readout),
            inputs=cast(Any, tuple(input)),
            targets=tuple(target),
            description_length=description_length,
            seed=seed,
            cache=features,
        )
        rows += result.rows
    _print_rows(str(data), rows, as_json)


def _print_rows(title: str, rows: Sequence[Row], as_json: bool) -> None:
    """Every row as JSON, or the macro means as a table."""
    if as_json:
        _print_json([row.to_dict() for row in rows])
        return
    shown = [row.to_dict() for row in rows if row.dimension == "macro"]
    columns = ["encoder", "family", "metric", "readout", "input", "k", "subset", "value", "low", "high", "n"]
    extra = [name for name in ("layer", "condition") if any(row[name] is not None for row in shown)]
    _print_table(title, shown, columns[:3] + extra + columns[3:])


@app.command()
def layers(
    data: Data,
    encoder: Annotated[list[str], typer.Option("--encoder", help="Name, folder or hub id; repeatable.")],
    plot: Annotated[Path | None, typer.Option(help="HTML file for the depth profile.")] = None,
    seed: Seed = 0,
    horizon: Annotated[int, typer.Option(min=1, help="Horizon k in steps.")] = 1,
    cache: Annotated[Path | None, typer.Option(help="Feature cache to use and fill.")] = None,
    data_option: DataOption = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Probe every block of an encoder, from one pass over the frames, and draw its depth profile."""
    from latentgym.encoders import FeatureCache
    from latentgym.probes import probe_layers, write_depth_profile
    from latentgym.trajectories import open_dataset

    dataset, rows = open_dataset(data, **_options(data_option, "--data-option")), []
    features = FeatureCache(cache) if cache else None
    for source in encoder:
        rows += probe_layers(dataset, source, k=horizon, seed=seed, cache=features).rows
    if plot is not None:
        write_depth_profile(plot, rows)
    _print_rows(str(data), rows, as_json)


@app.command()
def robustness(
    data: Data,
    encoder: Annotated[list[str], typer.Option("--encoder", help="Name, folder or hub id; repeatable.")],
    condition: Annotated[
        list[str] | None, typer.Option(help="Corruption and severity, such as snow:3; repeatable.")
    ] = None,
    readout: Annotated[list[str], typer.Option(help="ridge or mlp; repeatable.")] = ["ridge"],  # noqa: B006
    per_frame: Annotated[bool, typer.Option("--per-frame", help="Draw noise anew for every frame.")] = False,
    seed: Seed = 0,
    horizon: Annotated[int, typer.Option(min=1, help="Horizon k in steps.")] = 1,
    cache: Annotated[Path | None, typer.Option(help="Feature cache to use and fill.")] = None,
    data_option: DataOption = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Test readouts of clean latents on corrupted clips and under temporal stress."""
    from latentgym.encoders import FeatureCache
    from latentgym.probes import robustness as run_robustness
    from latentgym.probes.robustness import DEFAULT_CONDITIONS
    from latentgym.trajectories import open_dataset

    dataset, rows = open_dataset(data, **_options(data_option, "--data-option")), []
    features = FeatureCache(cache) if cache else None
    for source in encoder:
        rows += run_robustness(
            dataset,
            source,
            k=horizon,
            conditions=tuple(condition or DEFAULT_CONDITIONS),
            readouts=tuple(readout),
            mode="per_frame" if per_frame else "static",
            seed=seed,
            cache=features,
        ).rows
    _print_rows(str(data), rows, as_json)


@app.command()
def train(
    data: Data,
    encoder: Encoder,
    out: Out,
    seed: Seed = 0,
    steps: Annotated[int, typer.Option(min=1)] = 2000,
    demonstrations: Annotated[int | None, typer.Option(help="Training demonstrations to use; all by default.")] = None,
    head: Annotated[str, typer.Option(help="mlp, act, flow or inverse_dynamics.")] = "mlp",
    condition: Annotated[str, typer.Option(help="What it is told: none, goal or instruction.")] = "none",
    instruction_encoder: Annotated[
        str, typer.Option(help="Sentence encoder: all-MiniLM-L6-v2, a folder or hub id, or words.")
    ] = "all-MiniLM-L6-v2",
    chunk: Annotated[int | None, typer.Option(min=1, help="Actions planned at once; the head's own default.")] = None,
    history: Annotated[int, typer.Option(min=1, help="Latents that it sees.")] = 3,
    head_option: Annotated[list[str], typer.Option(help="key=value for the head; repeatable.")] = [],  # noqa: B006
    data_option: DataOption = [],  # noqa: B006
) -> None:
    """Train a policy head on frozen latents to imitate demonstrations."""
    from latentgym.encoders import load_encoder
    from latentgym.policies import train_policy
    from latentgym.trajectories import open_dataset

    dataset = open_dataset(data, **_options(data_option, "--data-option"))
    policy = train_policy(
        dataset, load_encoder(encoder), head=head, condition=condition, instruction_encoder=instruction_encoder,
        chunk=chunk, history=history, head_options=_options(head_option, "--head-option"),
        seed=seed, steps=steps, demonstrations=demonstrations,
    )  # fmt: skip
    policy.save(out)
    print(f"policy in {out}; cloning R² on held-out demonstrations {_cell(policy.cloning_r2)}")


@app.command("train-rl")
def train_rl(
    env: Annotated[str, typer.Argument(help="Environment id.")],
    encoder: Encoder,
    out: Out,
    algorithm: Annotated[
        str, typer.Option(help="ppo, sac or td3; the last two use hindsight where goals are.")
    ] = "sac",
    steps: Annotated[int, typer.Option(min=1, help="Environment steps.")] = 50_000,
    seed: Seed = 0,
    history: Annotated[int, typer.Option(min=1, help="Latents that it sees.")] = 1,
    keep: Annotated[list[str], typer.Option(help="Vector seen beside the latents, such as proprio; repeatable.")] = [],  # noqa: B006
    normalize: Annotated[bool, typer.Option(help="Standardise observations.")] = True,
    checkpoint_every: Annotated[int | None, typer.Option(min=1, help="Steps between evaluations.")] = None,
    episodes: Annotated[int, typer.Option(min=1, help="Episodes of each evaluation, the last included.")] = 50,
    option: Annotated[list[str], typer.Option(help="key=value for the environment; repeatable.")] = [],  # noqa: B006
    algorithm_option: Annotated[list[str], typer.Option(help="key=value for the algorithm; repeatable.")] = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Learn a policy from rewards on frozen latents, and evaluate it."""
    from latentgym.policies import reinforcement
    from latentgym.progress import track_counts
    from latentgym.rollouts import evaluate, rollout_seeds

    if out.exists():
        raise LatentGymError(f"{out} exists already; choose another folder for the policy, or remove it first")
    seeds = rollout_seeds(seed, env, episodes)

    def measure(_: int, policy: Any) -> dict[str, Any]:
        summary = evaluate(env, policy, seeds, env_options=_options(option)).summary
        return {name: getattr(summary, name) for name in ("successes", "episodes", "low", "high", "mean_reward")}

    with track_counts(f"learning {env}", steps) as progress:
        policy = reinforcement.train_rl(
            env, encoder, algorithm=algorithm, steps=steps, seed=seed, history=history, keep=keep, normalize=normalize,
            env_options=_options(option), algorithm_options=_options(algorithm_option, "--algorithm-option"),
            checkpoint_every=checkpoint_every, on_checkpoint=measure, progress=progress,
        )  # fmt: skip
    policy.save(out)
    evaluation = evaluate(env, policy, seeds, env_options=_options(option))
    if as_json:
        _print_json({"policy": str(out), "training": policy.facts, "evaluation": evaluation.to_dict()})
        return
    print(f"policy in {out}")
    print(evaluation.describe())


@app.command()
def rollout(
    env: Annotated[str, typer.Argument(help="Environment id, or calvin-chains for CALVIN's evaluation.")],
    policy: Annotated[str, typer.Option(help="Folder of a trained policy, or expert, or random.")],
    episodes: Annotated[int, typer.Option(min=1)] = 100,
    chains: Annotated[int, typer.Option(min=1, max=1000, help="How many of CALVIN's thousand chains.")] = 1000,
    seed: Seed = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes that step environments; 0 for none.")] = 0,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Observations per batch of inference.")] = None,
    video: Annotated[Path | None, typer.Option(help="Folder for videos of successes and failures.")] = None,
    videos: Annotated[int, typer.Option(min=0, help="Videos kept of each outcome.")] = 3,
    corruption: Annotated[
        list[str], typer.Option(help="Also roll out under it, such as snow or snow:3; repeatable.")
    ] = [],  # noqa: B006
    severity: Annotated[list[int], typer.Option(help="Severity of corruptions, from 1; repeatable.")] = [],  # noqa: B006
    option: Annotated[list[str], typer.Option(help="key=value for the environment; repeatable.")] = [],  # noqa: B006
    per_step: Annotated[bool, typer.Option("--per-step", help="Keep every step in --json.")] = False,
    software: Annotated[
        str, typer.Option(help="Another simulator or renderer than in training: warn, refuse or ignore.")
    ] = "warn",
    assets: Assets = None,
    as_json: Json = False,
) -> None:
    """Roll a policy out on a fixed list of seeds and count successes."""
    _use_assets(assets)
    from latentgym.progress import track_counts
    from latentgym.rollouts import evaluate, evaluate_corrupted, resolve_policy, rollout_seeds

    if env == "calvin-chains":
        if video is not None:
            raise LatentGymError("calvin-chains writes no videos; leave out --video")
        _rollout_chains(policy, chains, seed, max(1, workers), _options(option), as_json)
        return
    if corruption or severity:
        if video is not None:
            raise LatentGymError(
                "--video goes with clean rollouts; film corrupted ones with --option corruption=NAME:S"
            )
        with track_counts(f"rolling out on {env}", None) as progress:
            report = evaluate_corrupted(
                env, resolve_policy(policy), rollout_seeds(seed, env, episodes), corruptions=corruption,
                severities=severity, env_options=_options(option), progress=progress, workers=workers,
                batch_size=batch_size, per_step=per_step, software=software,
            )  # fmt: skip
        if as_json:
            _print_json(report.to_dict())
        else:
            print(report.describe())
        return
    with track_counts(f"rolling out on {env}", episodes) as progress:
        evaluation = evaluate(
            env,
            resolve_policy(policy),
            rollout_seeds(seed, env, episodes),
            workers=workers,
            batch_size=batch_size,
            env_options=_options(option),
            video_dir=video,
            videos=(videos, videos),
            per_step=per_step,
            software=software,
            progress=progress,
        )
    if as_json:
        _print_json(evaluation.to_dict())
        return
    print(evaluation.describe())


def _rollout_chains(policy: str, chains: int, seed: int, workers: int, options: dict[str, Any], as_json: bool) -> None:
    """CALVIN's evaluation: the first ``chains`` of its thousand chains of five instructions."""
    from dataclasses import asdict

    from latentgym.progress import track_counts
    from latentgym.rollouts import evaluate_chains, resolve_policy

    with track_counts("rolling out on CALVIN's chains", chains) as progress:
        evaluation = evaluate_chains(
            resolve_policy(policy), chains, seed=seed, workers=workers, env_options=options, progress=progress
        )
    if as_json:
        _print_json(evaluation.to_dict())
        return
    print(evaluation.describe())
    rows = [{"task": task, **asdict(rate)} for task, rate in evaluation.tasks.items()]
    _print_table("per task", rows, ["task", "successes", "trials", "rate", "low", "high"])


@app.command()
def compare(
    env: Annotated[str, typer.Argument(help="Environment id.")],
    first: Annotated[str, typer.Argument(help="Folder of a trained policy, or expert, or random.")],
    second: Annotated[str, typer.Argument(help="Another, on the same initial states.")],
    maximum: Annotated[int, typer.Option(min=1, help="Most initial states, declared before the first.")] = 100,
    level: Annotated[float, typer.Option(help="Confidence level of the verdict over all looks.")] = 0.95,
    seed: Seed = 0,
    workers: Workers = 1,
    option: Annotated[list[str], typer.Option(help="key=value for the environment; repeatable.")] = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Find out which of two policies is better, with as few rollouts as it takes."""
    from dataclasses import asdict

    from latentgym.progress import track_counts
    from latentgym.rollouts import compare_policies, resolve_policy

    with track_counts(f"comparing on {env}", maximum) as progress:
        found = compare_policies(
            env, resolve_policy(first), resolve_policy(second), maximum=maximum, level=level, seed=seed,
            workers=workers, env_options=_options(option), progress=progress,
        )  # fmt: skip
    if as_json:
        _print_json(asdict(found))
        return
    print(found.describe())


@app.command()
def link(
    results: Annotated[list[Path], typer.Argument(help="Study folders, or their link_points.json.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Page to write; link.html, or none with --json.")
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Ask how well each proxy predicts task success, over one or more studies; write a page to look into it."""
    from latentgym.studies.link_page import link_folders, write_link_page

    found = link_folders(*results, seed=seed)
    page = None if as_json and out is None else write_link_page(found, out or Path("link.html"))
    if as_json:
        _print_json(found.to_dict())
        return
    for scope in dict.fromkeys(item.scope for item in found.result.ranking):
        _print_table(f"proxies by how well they predict success: {scope}", *_ranking(found.result, scope))
    print(f"page: {page}")


def _ranking(result: LinkResult, scope: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows and columns of the proxies' ranking over all tasks."""
    statistics = ("spearman", "kendall", "pearson", "mmrv", "regret", "partial_spearman")
    envs = [row.env for row in result.rows]
    place = "all" if "all" in envs else envs[0]
    cells = {(row.proxy, row.statistic): row for row in result.rows if (row.env, row.scope) == (place, scope)}
    rows: list[dict[str, Any]] = []
    for item in (item for item in result.ranking if item.scope == scope):
        spread = "" if item.low is None else f"{item.low} to {item.high}"
        rho = cells.get((item.proxy, "spearman"))
        interval = "" if rho is None or rho.low is None else f"{rho.low:.2f} to {rho.high:.2f}"
        row: dict[str, Any] = {"rank": item.rank, "range": spread, "proxy": item.proxy, "interval": interval}
        row |= {name: cells[item.proxy, name].value for name in statistics if (item.proxy, name) in cells}
        rows.append(row | {"verdict": None if rho is None else rho.verdict})
    return rows, ["rank", "range", "proxy", "spearman", "interval", *statistics[1:], "verdict"]


@app.command()
def power(
    effect: Annotated[float, typer.Option(help="Smallest difference of success rates that matters, such as 0.1.")],
    rate: Annotated[float, typer.Option(help="Success rate of the first policy.")] = 0.5,
    target: Annotated[float, typer.Option("--power", help="Probability of finding the difference.")] = 0.8,
    level: Annotated[float, typer.Option(help="Confidence level of the two-sided test.")] = 0.95,
    paired: Annotated[bool, typer.Option("--paired", help="Both policies start from the same initial states.")] = False,
    correlation: Annotated[float, typer.Option(help="Correlation between the outcomes of a pair.")] = 0.0,
    as_json: Json = False,
) -> None:
    """Say how many episodes it takes to tell two success rates apart."""
    from dataclasses import asdict

    from latentgym.statistics import required_episodes

    plan = required_episodes(effect, rate=rate, power=target, level=level, paired=paired, correlation=correlation)
    if as_json:
        _print_json(asdict(plan))
        return
    test = f"exact McNemar on pairs, correlation {correlation:g}" if paired else "Barnard, independent episodes"
    print(f"{plan.episodes} episodes per policy find {rate:g} against {rate + effect:g}")
    print(f"with probability {plan.power:.3f} at the {level:.0%} level ({test}; {plan.method})")


@app.command()
def study(
    source: Annotated[str, typer.Argument(help="quickstart, smoke, standard, paper, or a TOML file.")],
    out: Out,
    seed: Annotated[int | None, typer.Option(help="Root seed, in place of the configuration's.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes; one per core by default.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Folder of pretrained encoders, one folder each.")] = None,
) -> None:
    """Run a whole study, or continue one that was stopped, and write its report."""
    from latentgym.encoders import find_encoders
    from latentgym.studies.study import run_study

    found, skipped = find_encoders(weights) if weights else ({}, {})
    for name, reason in skipped.items():
        print(f"leaving out {name}: {reason}", file=sys.stderr)
    report = run_study(source, out, seed=seed, workers=workers, weights=found)
    print(f"report: {report}")


@app.command()
def claims(
    results: Annotated[list[Path], typer.Argument(help="Folders of finished studies.")],
    as_json: Json = False,
) -> None:
    """Evaluate the pre-declared claims on finished studies."""
    from latentgym.studies.claims import claims_of

    rows = [claim.to_dict() for claim in claims_of(*results)]
    if as_json:
        _print_json(rows)
        return
    columns = ["claim", "scope", "benchmark", "part", "value", "low", "high", "n_runs", "verdict", "reason"]
    _print_table("claims", rows, columns)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="Folder of a finished study.")]) -> None:
    """Write a finished study's report again."""
    from latentgym.studies.report import write_report

    print(f"report: {write_report(folder)}")


@app.command()
def encoders(
    name: Annotated[str | None, typer.Argument(help="Explain this one.")] = None, as_json: Json = False
) -> None:
    """List encoders and pretraining objectives by family, or explain one."""
    from latentgym.encoders import describe_encoder, list_encoders

    if name is not None:
        found = describe_encoder(name)
        print(json.dumps(found, indent=1) if as_json else "\n".join(f"{key}: {item}" for key, item in found.items()))
        return
    rows = list_encoders()
    if as_json:
        _print_json(rows)
        return
    _print_table("encoders", rows, ["name", "family", "source", "licence", "parameters", "weights", "description"])


@assets_app.command("calvin")
def assets_calvin(
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder to make; the user's cache by default.")
    ] = None,
    source: Annotated[
        list[str],
        typer.Option(
            help="Folder or local git clone of mees/calvin_env, and of mees/calvin for its sentences; repeatable; by "
            "default both on GitHub."
        ),
    ] = [],  # noqa: B006
) -> None:
    """Fetch CALVIN's scenes at the pinned revision, every file checked."""
    from latentgym.envs.calvin.assets import default_folder, fetch_assets, instructions
    from latentgym.progress import track_counts

    with track_counts("fetching CALVIN's assets", None) as progress:
        folder = fetch_assets(out, source, progress=progress)
    if not instructions(folder):
        print("the source holds no instruction sentences; tasks will be named in plain words", file=sys.stderr)
    print(f"CALVIN's assets are in {folder}")
    if folder != default_folder():
        print(f"tell latentgym: export CALVIN_ENV_ROOT={folder.resolve()}")


@check_app.command("env")
def check_environment(
    env: Annotated[str, typer.Argument(help="Environment id.")],
    option: Annotated[list[str], typer.Option(help="key=value for the environment; repeatable.")] = [],  # noqa: B006
    assets: Assets = None,
) -> None:
    """Check an environment against the contract; all problems at once."""
    _use_assets(assets)
    from latentgym.envs.conformance import check_env

    _report_problems(env, check_env(env, **_options(option)))


@check_app.command("encoder")
def check_encoder_contract(
    encoder: Annotated[str, typer.Argument(help="Name, folder or hub id.")], as_json: Json = False
) -> None:
    """Check an encoder against the contract, all problems at once, and time it."""
    from latentgym.encoders import load_encoder
    from latentgym.encoders.conformance import check_encoder, frames_per_second

    opened = load_encoder(encoder)
    problems = check_encoder(opened)
    speed = None if problems else round(frames_per_second(opened), 1)
    if as_json:
        print(json.dumps({"encoder": encoder, "problems": problems, "frames_per_second": speed}, indent=1))
        if problems:
            raise typer.Exit(1)
        return
    _report_problems(encoder, problems)
    print(f"{speed} frames/s on {opened.device}")


def _report_problems(name: str, problems: list[str]) -> None:
    if problems:
        raise LatentGymError(f"{name} breaks the contract:\n" + "\n".join(f"  - {problem}" for problem in problems))
    print(f"{name} keeps the contract")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what works on this machine, what does not, and how to mend it."""
    from latentgym.envs.doctor import describe, diagnose

    findings = diagnose()
    if as_json:
        _print_json(findings)
        return
    print(describe(findings))
