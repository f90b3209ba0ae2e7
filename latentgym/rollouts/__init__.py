"""Rollouts: closed-loop evaluation on fixed seeds, videos, and the link between proxies and success."""

from latentgym.rollouts.calvin_chains import ChainEvaluation, ChainRecord, evaluate_chains
from latentgym.rollouts.comparison import Comparison, compare_policies
from latentgym.rollouts.corruption import CorruptionReport, Drop, evaluate_corrupted
from latentgym.rollouts.evaluate import Evaluation, Summary, evaluate, resolve_policy, rollout_seeds
from latentgym.rollouts.link import (
    LinkPoint,
    LinkResult,
    LinkRow,
    ProxyRank,
    analyse_link,
    link,
    link_studies,
    read_points,
    write_points,
)
from latentgym.rollouts.records import EpisodeRecord, StepTrace, Timing
from latentgym.rollouts.video import write_video

__all__ = [
    "ChainEvaluation",
    "ChainRecord",
    "Comparison",
    "CorruptionReport",
    "Drop",
    "EpisodeRecord",
    "Evaluation",
    "LinkPoint",
    "LinkResult",
    "LinkRow",
    "ProxyRank",
    "StepTrace",
    "Summary",
    "Timing",
    "analyse_link",
    "compare_policies",
    "evaluate",
    "evaluate_chains",
    "evaluate_corrupted",
    "link",
    "link_studies",
    "read_points",
    "resolve_policy",
    "rollout_seeds",
    "write_points",
    "write_video",
]
