"""Does a frozen visual latent carry the action, and does that carry over to control?

Importing the package registers its environments with Gymnasium. The public names below are loaded on first use, so
that ``import latentgym`` stays light:

>>> import latentgym
>>> sorted(latentgym.__all__)  # doctest: +NORMALIZE_WHITESPACE
['__version__', 'evaluate', 'link', 'load_encoder', 'make_env', 'open_dataset', 'probe', 'record', 'run_study',
 'train_policy']
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from latentgym.registration import register_envs

if TYPE_CHECKING:
    from latentgym.encoders.registry import load_encoder
    from latentgym.envs.make import make_env
    from latentgym.envs.recording import record
    from latentgym.policies.training import train_policy
    from latentgym.probes.inverse_dynamics import probe
    from latentgym.rollouts.evaluate import evaluate
    from latentgym.rollouts.link import link
    from latentgym.studies.study import run_study
    from latentgym.trajectories.store import open_dataset

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "evaluate",
    "link",
    "load_encoder",
    "make_env",
    "open_dataset",
    "probe",
    "record",
    "run_study",
    "train_policy",
]

register_envs()

_HOMES = {
    "evaluate": "latentgym.rollouts.evaluate",
    "link": "latentgym.rollouts.link",
    "load_encoder": "latentgym.encoders.registry",
    "make_env": "latentgym.envs.make",
    "open_dataset": "latentgym.trajectories.store",
    "probe": "latentgym.probes.inverse_dynamics",
    "record": "latentgym.envs.recording",
    "run_study": "latentgym.studies.study",
    "train_policy": "latentgym.policies.training",
}


def __getattr__(name: str) -> object:
    """Load a public name from its room on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names and submodules loaded so far, for completion."""
    return sorted({*globals(), *__all__})
