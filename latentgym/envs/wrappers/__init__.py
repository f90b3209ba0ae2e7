"""Gymnasium wrappers."""

from __future__ import annotations

from latentgym.envs.wrappers.action_spec import ActionSpecWrapper
from latentgym.envs.wrappers.record_trajectories import RecordTrajectories
from latentgym.envs.wrappers.success import SuccessInfo

__all__ = ["ActionSpecWrapper", "RecordTrajectories", "SuccessInfo"]
