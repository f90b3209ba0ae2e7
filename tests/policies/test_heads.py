from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentgym.encoders import load_encoder
from latentgym.envs import make_env
from latentgym.envs.recording import record
from latentgym.errors import LatentGymError, UnknownNameError
from latentgym.policies import CloningPolicy, load_policy, train_policy
from latentgym.policies.heads import HEADS, FlowMatchingHead, InverseDynamicsHead
from latentgym.rollouts import evaluate, resolve_policy
from latentgym.trajectories import Dataset

ENV_ID = "latentgym/TabletopReach-v0"
SMALL = {"mlp": {}, "action_chunking": {"embedding": 16, "layers": 1}, "flow_matching": {}, "inverse_dynamics": {}}
SMALL |= {"act": SMALL["action_chunking"], "flow": {}}


def trained(dataset: Dataset, head: str, **options: Any) -> CloningPolicy:
    settings = {"steps": 4, "hidden": (16,), "batch_size": 32, "head_options": SMALL[head], **options}
    return train_policy(dataset, load_encoder("state"), head=head, **settings)


def act(policy: CloningPolicy, dataset: Dataset, rows: int = 3, seed: int = 0, steps: int = 5) -> np.ndarray:
    """Actions of the first row in closed loop on recorded observations."""
    episode = dataset.episode(0)
    policy.reset(np.ones(rows, bool), [seed, *range(50, 49 + rows)])
    goals = {"goal_state": np.repeat(episode.state[-1:], rows, axis=0)}
    return np.stack(
        [
            policy.act({"state": np.repeat(episode.state[step : step + 1], rows, axis=0), **goals})[0]
            for step in range(steps)
        ]
    )


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("condition", ["none", "goal", "instruction"])
def test_a_saved_head_acts_as_before(dataset: Dataset, head: str, condition: str, tmp_path: Path) -> None:
    policy = trained(dataset, head, condition=condition, components=4)
    again = load_policy(policy.save(tmp_path / "policy"))
    assert isinstance(again, CloningPolicy)
    assert (again.condition, again.execution, again.name) == (policy.condition, policy.execution, policy.name)
    np.testing.assert_array_equal(act(again, dataset), act(policy, dataset))


@pytest.mark.parametrize("head", HEADS)
def test_a_saved_head_rolls_out_as_before_and_refuses_what_it_was_not_made_for(
    dataset: Dataset, head: str, tmp_path: Path
) -> None:
    policy = trained(dataset, head)
    again = load_policy(policy.save(tmp_path / "policy"))
    options: dict[str, Any] = {"seeds": range(3), "batch_size": 2, "env_options": {"horizon": 5}}
    records = evaluate(ENV_ID, again, **options).records
    assert records == evaluate(ENV_ID, policy, **options).records
    assert records == resolved(tmp_path / "policy", options)
    with pytest.raises(LatentGymError, match="env_id: trained on"):
        evaluate("latentgym/TabletopPush-v0", again, **options)
    with pytest.raises(LatentGymError, match="distractor"):
        again.bind([make_env(ENV_ID, pixels=False, distractor="static")])
    with pytest.raises(LatentGymError, match="does not fit encoder 'proprio'"):
        load_policy(tmp_path / "policy", "proprio")


def resolved(path: Path, options: dict[str, Any]) -> Any:
    return evaluate(ENV_ID, resolve_policy(path), **options).records


def test_heads_have_short_names(dataset: Dataset) -> None:
    assert trained(dataset, "action_chunking").head.shape == trained(dataset, "act").head.shape
    assert trained(dataset, "flow").head.kind == "flow_matching"


@pytest.mark.parametrize("head", HEADS)
def test_equal_seeds_give_equal_bits(dataset: Dataset, head: str) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    one, two = trained(dataset, head, condition="goal"), trained(dataset, head, condition="goal")
    assert torch.equal(torch.rand(2), expected), "global randomness was used"
    assert all(torch.equal(tensor, two.tensors()[name]) for name, tensor in one.tensors().items())


@pytest.mark.parametrize("head", HEADS)
def test_a_rows_actions_depend_on_its_own_episode_and_seed(dataset: Dataset, head: str) -> None:
    policy = trained(dataset, head)
    first = act(policy, dataset, seed=1)
    np.testing.assert_array_equal(act(policy, dataset, seed=1), first)
    assert np.array_equal(act(policy, dataset, seed=2), first) == (head != "flow_matching")


def test_a_condition_is_obeyed(dataset: Dataset) -> None:
    policy = trained(dataset, "mlp", condition="goal", steps=50)
    policy.reset(np.ones(2, bool))
    state = dataset.episode(0).state
    goals = np.stack([state[-1], dataset.episode(1).state[-1]])
    actions = policy.act({"state": np.repeat(state[:1], 2, axis=0), "goal_state": goals})
    assert not np.allclose(actions[0], actions[1])


def test_a_goal_policy_needs_a_goal(dataset: Dataset) -> None:
    policy = trained(dataset, "mlp", condition="goal")
    with pytest.raises(LatentGymError, match="goal=True"):
        policy.bind([make_env(ENV_ID, pixels=False)])
    policy.bind([make_env(ENV_ID, pixels=False, goal=True)])
    summary = evaluate(ENV_ID, policy, seeds=range(2), env_options={"horizon": 5}).summary
    assert summary.episodes == 2


def test_the_inverse_model_learns_from_random_actions_too(dataset: Dataset) -> None:
    plain, inverse = trained(dataset, "mlp"), trained(dataset, "inverse_dynamics")
    assert inverse.facts["demonstrations"] == plain.facts["demonstrations"]
    assert inverse.facts["windows"] > plain.facts["windows"]


def test_the_inverse_model_recovers_the_action_between_two_states(dataset: Dataset) -> None:
    policy = trained(dataset, "inverse_dynamics", steps=400, hidden=(64, 64))
    head, episode = policy.head, dataset.episode(policy.score.episodes[0])
    assert isinstance(head, InverseDynamicsHead)
    latents = head.prepare(torch.from_numpy(episode.state))
    found = head.infer(latents[:-1], latents[1:]) * head.action_scale + head.action_mean
    unexplained = (found.detach().numpy() - episode.action).var(axis=0) / episode.action.var(axis=0)
    assert unexplained.mean() < 0.3
    assert unexplained.max() < 0.5


def test_a_goal_can_be_the_proposal(dataset: Dataset, tmp_path: Path) -> None:
    policy = trained(dataset, "inverse_dynamics", condition="goal", head_options={"proposal": "goal"}, steps=300)
    head, episode = policy.head, dataset.episode(policy.score.episodes[0])
    assert isinstance(head, InverseDynamicsHead) and not hasattr(head, "forward_model")
    history = head.prepare(torch.from_numpy(episode.state[:3]))[None]
    goal = head.prepare(torch.from_numpy(episode.state[-1:]))
    assert torch.equal(head.propose(history, goal), goal)
    assert torch.equal(head.plan(history, goal)[:, 0], head.infer(history[:, -1], goal))
    again = load_policy(policy.save(tmp_path / "policy"))
    np.testing.assert_array_equal(act(again, dataset), act(policy, dataset))  # type: ignore[arg-type]
    # Every training episode teaches, and one that ends to the left is answered by going left.
    assert policy.facts["windows"] > trained(dataset, "mlp").facts["windows"]
    with pytest.raises(LatentGymError, match="condition='goal'"):
        trained(dataset, "inverse_dynamics", head_options={"proposal": "goal"})
    with pytest.raises(UnknownNameError, match="did you mean 'goal'"):
        trained(dataset, "inverse_dynamics", condition="goal", head_options={"proposal": "gaol"})


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Enough demonstrations to solve the task from its state."""
    folder = tmp_path_factory.mktemp("noisy") / "reach"
    return record(ENV_ID, folder, episodes=60, policy="noisy-expert", random_fraction=0.2, seed=1)


@pytest.mark.slow
def test_a_goal_as_proposal_solves_reach_from_the_state(noisy: Dataset) -> None:
    options: dict[str, Any] = {"condition": "goal", "head_options": {"proposal": "goal"}}
    policy = train_policy(noisy, load_encoder("state"), head="inverse_dynamics", steps=600, history=1, **options)
    assert evaluate(ENV_ID, policy, seeds=range(20), batch_size=20).summary.successes >= 16


def test_flow_matching_represents_two_good_actions() -> None:
    """Where half of the demonstrators go left and half right, plans go left or right; a mean would stand still."""
    from latentgym.policies.heads import Batch

    head = FlowMatchingHead(1, None, 1, (64, 64), 1, horizon=1)
    head.draw_weights(torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(head.parameters(), 3e-3)
    one = torch.ones(256, 1)
    for _ in range(400):
        targets = torch.randint(0, 2, (256, 1, 1), generator=generator) * 2.0 - 1
        loss = head.loss(Batch(one[:, None], one, one, one[:, 0], targets[:, 0]), targets, generator)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    plans = head.plan(one[:, None], None, torch.randn(256, 1, 1, generator=generator)).detach().flatten()
    assert (plans.abs() - 1).abs().median() < 0.15
    assert 0.3 < (plans > 0).float().mean() < 0.7


def test_bad_choices_are_refused(dataset: Dataset) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'action_chunking'"):
        train_policy(dataset, load_encoder("state"), head="action_chunks")
    with pytest.raises(UnknownNameError, match="condition"):
        train_policy(dataset, load_encoder("state"), condition="goals")
    with pytest.raises(UnknownNameError, match="option of head 'mlp'"):
        train_policy(dataset, load_encoder("state"), head_options={"layers": 2})
    with pytest.raises(LatentGymError, match="one action at a time"):
        train_policy(dataset, load_encoder("state"), head="inverse_dynamics", chunk=4)
    with pytest.raises(LatentGymError, match="multiple of heads"):
        train_policy(dataset, load_encoder("state"), head="action_chunking", head_options={"embedding": 10})


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_every_head_solves_reach_from_the_state(head: str, noisy: Dataset) -> None:
    options = {"embedding": 64} if head == "action_chunking" else {}
    policy = train_policy(noisy, load_encoder("state"), head=head, steps=600, history=1, head_options=options)
    assert evaluate(ENV_ID, policy, seeds=range(20), batch_size=20).summary.successes >= 16
