"""Wrappers that are written down in the environment's spec, and travel to other processes as that spec."""

from __future__ import annotations

from typing import Any, SupportsIndex

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import RecordConstructorArgs


class RebuiltFromSpec(RecordConstructorArgs):
    """Makes a wrapper part of ``env.spec`` and pickles the whole environment as that spec.

    Simulators and GL contexts cannot be pickled. What arrives in another process is therefore an environment made anew
    by ``gymnasium.make(env.spec)``: equal in every argument, and to be reset first. An environment without a spec, or
    with a wrapper that is not in it, is pickled member by member, where its members allow that.
    """

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        spec: EnvSpec | None = getattr(self, "spec", None)
        if spec is None or any(wrapper.kwargs is None for wrapper in spec.additional_wrappers):
            return super().__reduce_ex__(protocol)
        return rebuild, (spec,)


def rebuild(spec: EnvSpec) -> gymnasium.Env[Any, Any]:
    """The environment that ``spec`` describes, with its wrappers."""
    # Registers the suite's own ids, which a fresh process has not done yet.
    import latentgym.envs.make  # noqa: F401

    return gymnasium.make(spec)
