"""Gymnasium wrappers."""

from __future__ import annotations

from latentgym.envs.wrappers.action_spec import ActionSpecWrapper
from latentgym.envs.wrappers.corrupt_observation import CorruptObservation
from latentgym.envs.wrappers.goal_observation import GoalObservation
from latentgym.envs.wrappers.latent_observation import LatentObservation, VectorLatentObservation
from latentgym.envs.wrappers.record_trajectories import RecordTrajectories
from latentgym.envs.wrappers.success import SuccessInfo

__all__ = [
    "ActionSpecWrapper",
    "CorruptObservation",
    "GoalObservation",
    "LatentObservation",
    "RecordTrajectories",
    "SuccessInfo",
    "VectorLatentObservation",
]
