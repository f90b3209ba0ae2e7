"""Ids of the suite's own environments under Gymnasium: what runs when the package is imported."""

from __future__ import annotations

import gymnasium

TABLETOP_IDS = {f"latentgym/Tabletop{task}-v0": task for task in ("Reach", "Push", "Intercept")}
CALVIN_IDS = {f"latentgym/Calvin{scene}-v0": scene for scene in "ABCD"}


def register_envs() -> None:
    """Register the tabletop and CALVIN ids by the names of their classes; no simulator is imported."""
    for env_id, task in TABLETOP_IDS.items():
        _register(env_id, "latentgym.envs.tabletop.env:TabletopEnv", {"task": task})
    for env_id, scene in CALVIN_IDS.items():
        _register(env_id, "latentgym.envs.calvin.env:CalvinEnv", {"scene": scene})


def _register(env_id: str, entry_point: str, arguments: dict[str, str]) -> None:
    if env_id not in gymnasium.registry:
        gymnasium.register(env_id, entry_point=entry_point, kwargs=arguments)
