"""Training policies and rolling them out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from latentgym.artifacts import check_output
from latentgym.cli.app import app
from latentgym.cli.arguments import (
    Assets,
    Data,
    DataOption,
    Encoder,
    Json,
    Out,
    Seed,
    SplitSeed,
    Workers,
    check_new_policy,
    open_data,
    parse_options,
    use_assets,
)
from latentgym.cli.printing import cell_text, print_json, print_table
from latentgym.errors import LatentGymError

EPISODES = 100


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
    split_seed: SplitSeed = 0,
    data_option: DataOption = [],  # noqa: B006
) -> None:
    """Train a policy head on frozen latents to imitate demonstrations."""
    from latentgym.encoders import load_encoder
    from latentgym.policies import train_policy
    from latentgym.trajectories import split_episodes

    check_new_policy(out)
    dataset = open_data(data, data_option)
    policy = train_policy(
        dataset, load_encoder(encoder), head=head, condition=condition, instruction_encoder=instruction_encoder,
        chunk=chunk, history=history, head_options=parse_options(head_option, "--head-option"),
        split=split_episodes(dataset, seed=split_seed), seed=seed, steps=steps, demonstrations=demonstrations,
    )  # fmt: skip
    policy.save(out)
    print(f"policy in {out}; cloning R² on held-out demonstrations {cell_text(policy.cloning_r2)}")


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

    check_new_policy(out)
    seeds = rollout_seeds(seed, env, episodes)

    def measure(_: int, policy: Any) -> dict[str, Any]:
        summary = evaluate(env, policy, seeds, env_options=parse_options(option)).summary
        return {name: getattr(summary, name) for name in ("successes", "episodes", "low", "high", "mean_reward")}

    with track_counts(f"learning {env}", steps) as progress:
        policy = reinforcement.train_rl(
            env, encoder, algorithm=algorithm, steps=steps, seed=seed, history=history, keep=keep, normalize=normalize,
            env_options=parse_options(option), algorithm_options=parse_options(algorithm_option, "--algorithm-option"),
            checkpoint_every=checkpoint_every, on_checkpoint=measure, progress=progress,
        )  # fmt: skip
    policy.save(out)
    evaluation = evaluate(env, policy, seeds, env_options=parse_options(option))
    if as_json:
        print_json({"policy": str(out), "training": policy.facts, "evaluation": evaluation.to_dict()})
        return
    print(f"policy in {out}")
    print(evaluation.describe())


@app.command()
def rollout(
    env: Annotated[str, typer.Argument(help="Environment id, or calvin-chains for CALVIN's evaluation.")],
    policy: Annotated[str, typer.Option(help="Folder of a trained policy, or expert, or random.")],
    episodes: Annotated[int, typer.Option(min=1)] = EPISODES,
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
    use_assets(assets)
    if video is not None:
        check_output(video)
    from latentgym.progress import track_counts
    from latentgym.rollouts import evaluate, evaluate_corrupted, resolve_policy, rollout_seeds

    if env == "calvin-chains":
        chosen = {
            "--video": video, "--corruption": corruption, "--severity": severity, "--per-step": per_step,
            "--batch-size": batch_size, "--episodes": episodes != EPISODES,
        }  # fmt: skip
        if unknown := [name for name, value in chosen.items() if value]:
            raise LatentGymError(f"calvin-chains does not take {', '.join(unknown)}; leave out what it does not take")
        _rollout_chains(policy, chains, seed, max(1, workers), parse_options(option), software, as_json)
        return
    if corruption or severity:
        if video is not None:
            raise LatentGymError(
                "--video goes with clean rollouts; film corrupted ones with --option corruption=NAME:S"
            )
        with track_counts(f"rolling out on {env}", None) as progress:
            report = evaluate_corrupted(
                env, resolve_policy(policy), rollout_seeds(seed, env, episodes), corruptions=corruption,
                severities=severity, env_options=parse_options(option), progress=progress, workers=workers,
                batch_size=batch_size, per_step=per_step, software=software,
            )  # fmt: skip
        if as_json:
            print_json(report.to_dict())
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
            env_options=parse_options(option),
            video_dir=video,
            videos=(videos, videos),
            per_step=per_step,
            software=software,
            progress=progress,
        )
    if as_json:
        print_json(evaluation.to_dict())
        return
    print(evaluation.describe())


def _rollout_chains(
    policy: str, chains: int, seed: int, workers: int, options: dict[str, Any], software: str, as_json: bool
) -> None:
    """CALVIN's evaluation: the first ``chains`` of its thousand chains of five instructions."""
    from dataclasses import asdict

    from latentgym.progress import track_counts
    from latentgym.rollouts import evaluate_chains, resolve_policy

    with track_counts("rolling out on CALVIN's chains", chains) as progress:
        evaluation = evaluate_chains(
            resolve_policy(policy), chains, seed=seed, workers=workers, env_options=options, software=software,
            progress=progress,
        )  # fmt: skip
    if as_json:
        print_json(evaluation.to_dict())
        return
    print(evaluation.describe())
    rows = [{"task": task, **asdict(rate)} for task, rate in evaluation.tasks.items()]
    print_table("per task", rows, ["task", "successes", "trials", "rate", "low", "high"])


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
            workers=workers, env_options=parse_options(option), progress=progress,
        )  # fmt: skip
    if as_json:
        print_json(asdict(found))
        return
    print(found.describe())


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
        print_json(asdict(plan))
        return
    test = f"exact McNemar on pairs, correlation {correlation:g}" if paired else "Barnard, independent episodes"
    print(f"{plan.episodes} episodes per policy find {rate:g} against {rate + effect:g}")
    print(f"with probability {plan.power:.3f} at the {level:.0%} level ({test}; {plan.method})")
