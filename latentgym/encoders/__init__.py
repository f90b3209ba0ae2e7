"""Frozen encoders: the contract, the registry, features by view, the feature cache and closed-loop streaming."""

from __future__ import annotations

from latentgym.encoders.baselines import PixelEncoder, VectorEncoder
from latentgym.encoders.cache import FeatureCache, Features, feature_key
from latentgym.encoders.catalogue import describe_encoder, find_encoders, list_encoders
from latentgym.encoders.conformance import check_encoder
from latentgym.encoders.contract import Encoder, EncoderSpec, Latents
from latentgym.encoders.features import View, encode_view, pool
from latentgym.encoders.frozen import FrozenEncoder, weights_digest
from latentgym.encoders.own import ModuleEncoder, load_torchscript
from latentgym.encoders.registry import EncoderFactory, encoder_names, load_encoder, register_encoder
from latentgym.encoders.streaming import LatentStream

__all__ = [
    "Encoder",
    "EncoderFactory",
    "EncoderSpec",
    "FeatureCache",
    "Features",
    "FrozenEncoder",
    "LatentStream",
    "Latents",
    "ModuleEncoder",
    "PixelEncoder",
    "VectorEncoder",
    "View",
    "check_encoder",
    "describe_encoder",
    "encode_view",
    "encoder_names",
    "feature_key",
    "find_encoders",
    "list_encoders",
    "load_encoder",
    "load_torchscript",
    "pool",
    "register_encoder",
    "weights_digest",
]
