"""CALVIN (Mees et al., 2022, arXiv 2112.03227): its four scenes, 34 tasks and evaluation, without its install."""

from latentgym.envs.calvin.chains import initial_state, official_chains, short_chains
from latentgym.envs.calvin.tasks import TASKS

__all__ = ["TASKS", "initial_state", "official_chains", "short_chains"]
