"""Intervals, tests, rank statistics, bootstraps, sequential stopping and power: the ground that all rooms share."""

from latentgym.statistics.bootstrap import (
    crossed_bootstrap_interval,
    crossed_bootstrap_means,
    hierarchical_bootstrap,
    interquartile_mean,
    percentile_interval,
    success_interval,
)
from latentgym.statistics.power import Power, comparison_power, required_episodes
from latentgym.statistics.proportions import barnard, holm, mcnemar, newcombe_interval, wilson_interval
from latentgym.statistics.ranks import (
    kendall,
    mean_maximum_rank_violation,
    partial_correlation,
    pearson,
    regret,
    spearman,
    split_half_reliability,
)
from latentgym.statistics.sequential import SequentialComparison, anytime_difference_interval, anytime_interval

__all__ = [
    "Power",
    "SequentialComparison",
    "anytime_difference_interval",
    "anytime_interval",
    "barnard",
    "comparison_power",
    "crossed_bootstrap_interval",
    "crossed_bootstrap_means",
    "hierarchical_bootstrap",
    "holm",
    "interquartile_mean",
    "kendall",
    "mcnemar",
    "mean_maximum_rank_violation",
    "newcombe_interval",
    "partial_correlation",
    "pearson",
    "percentile_interval",
    "regret",
    "required_episodes",
    "spearman",
    "split_half_reliability",
    "success_interval",
    "wilson_interval",
]
