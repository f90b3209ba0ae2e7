"""Environments: the contract, the built-in tabletop family, adapters, experts, and recording."""

from latentgym.envs.contract import EnvContract, Expert, contract_of
from latentgym.envs.make import make_env, make_expert
from latentgym.envs.recording import record
from latentgym.envs.wrappers.record_trajectories import RecordTrajectories

__all__ = ["EnvContract", "Expert", "RecordTrajectories", "contract_of", "make_env", "make_expert", "record"]
