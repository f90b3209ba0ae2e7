"""Offline probes: what frozen latents say about the action, with floors, controls and intervals beside every number."""

from __future__ import annotations

from latentgym.probes.attention import AttentiveProbe, TransformerProbe
from latentgym.probes.fidelity import FidelityResult, fidelity
from latentgym.probes.floors import FLOORS, probe_floor, probe_floors
from latentgym.probes.inverse_dynamics import probe
from latentgym.probes.mlp import MLPProbe
from latentgym.probes.report import ProbeResult
from latentgym.probes.ridge import RidgeProbe
from latentgym.probes.robustness import robustness

__all__ = [
    "FLOORS",
    "AttentiveProbe",
    "FidelityResult",
    "MLPProbe",
    "ProbeResult",
    "RidgeProbe",
    "TransformerProbe",
    "fidelity",
    "probe",
    "probe_floor",
    "probe_floors",
    "robustness",
]
