"""Toy environments, registered by a module that worker processes can import as well."""

from __future__ import annotations

import sys
from pathlib import Path

import gymnasium

# Workers inherit the path, but not what was registered.
sys.path.insert(0, str(Path(__file__).parent))

for name in ("Clock", "Walk"):
    env_id = f"latentgym-tests/{name}-v0"
    if env_id not in gymnasium.registry:
        gymnasium.register(env_id, entry_point=f"toy_environments:{name}", max_episode_steps=40)
