"""How the report words names and numbers."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

# name shown, what it means in one line, and decimals
METRICS: dict[str, tuple[str, str, int]] = {
    "action_r2": ("action R²", "how much of the action a linear readout of two frames explains", 2),
    "action_r2_share_of_state": ("share of state", "action R² divided by that of the simulator's state", 2),
    "action_r2_random_actions": ("random-action R²", "the same where actions were drawn at random", 2),
    "single_frame_r2": ("single-frame R²", "the same from one frame: what the scene alone gives away", 2),
    "temporal_gain": ("temporal gain", "action R² minus single-frame R²", 2),
    "pearson_r": ("Pearson r", "correlation of prediction and action", 2),
    "cloning_r2": ("cloning R²", "how much of the expert's action the cloned policy explains, offline", 2),
    "psnr_db": ("PSNR (dB)", "how well one equal decoder rebuilds the frame", 1),
    "success_rate": ("success", "share of rollouts that solved the task", 2),
}
# Further proxies of the link that the main table has no column for.
PROXY_LABELS = {
    "action_r2_k4": "action R², k = 4",
    "action_r2_mlp": "action R², MLP",
    "action_r2_mean_pooled": "action R², mean-pooled",
    "selectivity": "selectivity",
    "description_length": "bits saved",
    "state_r2": "state R²",
}
STATISTICS = {
    "spearman": "Spearman ρ",
    "kendall": "Kendall τ",
    "partial_spearman": "ρ given PSNR, size",
    "pearson": "Pearson r",
    "mmrv": "MMRV ↓",
    "regret": "regret ↓",
}


def format_number(value: float | None, digits: int = 2) -> str:
    """A number with a true minus sign, ``"–"`` where undefined; never a negative zero.

    >>> format_number(-0.314), format_number(-0.001), format_number(None)
    ('−0.31', '0.00', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def format_interval(estimate: Any, digits: int = 2) -> str:
    """``"low to high"`` of an :class:`Estimate` or a row; empty where there is none.

    >>> format_interval({"low": -0.1, "high": 0.25})
    '−0.10 to 0.25'
    """
    ends = estimate if isinstance(estimate, Mapping) else dataclasses.asdict(estimate)
    if ends["low"] is None or ends["high"] is None:
        return ""
    return f"{format_number(ends['low'], digits)} to {format_number(ends['high'], digits)}"


def format_compact(value: float | None) -> str:
    """A large number in three digits: ``"118k"``, ``"2.41 × 10¹³"``.

    >>> format_compact(118_432), format_compact(2.41e13), format_compact(0)
    ('118k', '2.41 × 10¹³', '0')
    """
    if value is None:
        return "–"
    if abs(value) < 10_000:
        return f"{value:,.0f}"
    for limit, unit, scale in ((1e6, "k", 1e3), (1e9, "M", 1e6)):
        if abs(value) < limit:
            return f"{value / scale:.3g}{unit}"
    exponent = int(math.log10(abs(value)))
    return f"{value / 10**exponent:.2f} × 10{str(exponent).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def format_duration(seconds: float | None) -> str:
    """Seconds as ``"42 s"``, ``"5 min 01 s"`` or ``"1 h 52 min"``.

    >>> format_duration(301.2), format_duration(6720)
    ('5 min 01 s', '1 h 52 min')
    """
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def label_env(env_id: str) -> str:
    """A short readable name of an environment id.

    >>> label_env("latentgym/TabletopReach-v0"), label_env("metaworld/reach-v3"), label_env("all (mine)")
    ('Tabletop Reach', 'metaworld reach', 'all tasks (mine)')
    """
    env_id, mark, study = env_id.partition(" (")
    if mark:
        return f"{label_env(env_id)} ({study}"
    if env_id == "all":
        return "all tasks"
    namespace, _, name = env_id.rpartition("/")
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", re.sub(r"-v\d+$", "", name)).replace("-", " ")
    return words if namespace in ("", "latentgym") else f"{namespace} {words}"


def label_name(name: str) -> str:
    """An identifier as words."""
    return name.replace("_", " ")


def label_scope(scope: str) -> str:
    """What a link's scope means, in words."""
    known = {
        "all": "the supervised reference included",
        "all without the supervised reference": "the supervised reference left out",
        "all with intermediate checkpoints": "intermediate checkpoints added",
    }
    return known.get(scope, label_name(scope))


def label_metric(name: str) -> str:
    """A metric's or proxy's name in words."""
    return METRICS[name][0] if name in METRICS else PROXY_LABELS.get(name, label_name(name))


def label_statistic(name: str) -> str:
    """A link statistic's name in words."""
    return STATISTICS.get(name, label_name(name))
