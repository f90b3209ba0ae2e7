"""Policies: heads on frozen latents, baselines, and their checkpoints."""

from latentgym.policies.baselines import ConstantPolicy, ExpertPolicy, RandomPolicy
from latentgym.policies.checkpoint import CheckpointedPolicy, load_policy
from latentgym.policies.cloning import CloningPolicy
from latentgym.policies.contract import Policy
from latentgym.policies.convnet import ConvNetPolicy, train_convnet_policy
from latentgym.policies.demonstrations import CloningScore
from latentgym.policies.learned_expert import LearnedExpert
from latentgym.policies.reinforcement import train_rl
from latentgym.policies.stable_baselines import StableBaselinesPolicy
from latentgym.policies.training import train_policy

__all__ = [
    "CheckpointedPolicy",
    "CloningPolicy",
    "CloningScore",
    "ConstantPolicy",
    "ConvNetPolicy",
    "ExpertPolicy",
    "LearnedExpert",
    "Policy",
    "RandomPolicy",
    "StableBaselinesPolicy",
    "load_policy",
    "train_convnet_policy",
    "train_policy",
    "train_rl",
]
