"""Offline probes: what frozen latents say about the action, with floors, controls and intervals beside every number."""

from __future__ import annotations

from latentgym.probes.attention import AttentiveProbe, TransformerProbe
from latentgym.probes.fidelity import FidelityResult, fidelity, reconstruction_sheet
from latentgym.probes.floors import FLOORS, probe_floor, probe_floors
from latentgym.probes.inverse_dynamics import probe
from latentgym.probes.layers import LayerProfile, probe_layers, write_depth_profile
from latentgym.probes.mlp import MLPProbe
from latentgym.probes.pareto import pareto_front, pareto_membership
from latentgym.probes.report import ProbeResult
from latentgym.probes.ridge import RidgeProbe
from latentgym.probes.robustness import robustness
from latentgym.probes.robustness_gain import robustness_gain

__all__ = [
    "FLOORS",
    "AttentiveProbe",
    "FidelityResult",
    "LayerProfile",
    "MLPProbe",
    "ProbeResult",
    "RidgeProbe",
    "TransformerProbe",
    "fidelity",
    "pareto_front",
    "pareto_membership",
    "probe",
    "probe_floor",
    "probe_floors",
    "probe_layers",
    "reconstruction_sheet",
    "robustness",
    "robustness_gain",
    "write_depth_profile",
]
