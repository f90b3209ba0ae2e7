"""Pictures, videos, learning curves and encoder facts that a report shows, gathered from finished cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file

from latentgym.artifacts import read_json
from latentgym.errors import CorruptDataError
from latentgym.studies.cells import open_recorded
from latentgym.studies.plan import SuitePlan

UPSCALE = 3
STRIP_FRAMES = 6


def gather_media(plans: Sequence[SuitePlan], root: Path) -> dict[str, Any]:
    """Write pictures under ``media/`` and list them, the videos and the learning curves.

    Returns:
        ``frames``, ``reconstructions``, ``videos`` (paths relative to ``root``), ``rollouts`` (the folder of each
        policy's episodes) and ``curves``.
    """
    (root / "media").mkdir(exist_ok=True)
    return {
        "frames": [item for plan in plans for item in _frames(plan, root)],
        "reconstructions": [item for plan in plans for item in _reconstructions(plan, root)],
        "videos": [item for plan in plans for item in _videos(plan, root)],
        "rollouts": [item for plan in plans for item in _rollouts(plan, root)],
        "curves": {name: curve for plan in plans for name, curve in _curves(plan, root)},
    }


def encoder_facts(plans: Sequence[SuitePlan], root: Path) -> list[dict[str, Any]]:
    """Family, size and training cost of every encoder, once each."""
    facts: dict[str, dict[str, Any]] = {}
    for plan in plans:
        decoded = {use.name: read_json(cell.folder(root) / "fidelity.json") for use, cell in plan.fidelity}
        for use, _, cell in plan.offline:
            if use.name not in facts:
                item = read_json(cell.folder(root) / "encoder.json")
                item["latent_floats_per_frame"] = decoded.get(use.name, {}).get("latent_floats")
                facts[use.name] = {**item, "name": use.name}
    return list(facts.values())


def _frames(plan: SuitePlan, root: Path) -> Iterator[dict[str, str]]:
    """A strip of frames from the first demonstration of each environment."""
    for env, cell in plan.data.items():
        dataset = open_recorded(cell.folder(root))
        index = next((i for i, policy in enumerate(dataset.policies) if policy != "random"), 0)
        frames = dataset.episode(index, cameras=dataset.cameras[:1]).frames[dataset.cameras[0]]
        picked = frames[np.linspace(0, len(frames) - 1, STRIP_FRAMES).round().astype(int)]
        yield {"env": env, "path": _save_picture(np.concatenate(list(picked), axis=1), root, f"frames-{env}")}


def _reconstructions(plan: SuitePlan, root: Path) -> Iterator[dict[str, str]]:
    """Originals above what the equal decoder makes of the latents."""
    for use, cell in plan.fidelity:
        if use.seed == plan.suite.pretraining_seeds[0]:
            examples = _read_examples(cell.folder(root))
            picture = np.concatenate([np.concatenate(list(examples[:, row]), axis=1) for row in (0, 1)], axis=0)
            path = _save_picture(picture, root, f"reconstruction-{plan.suite.name}-{use.name}")
            yield {"encoder": use.name, "path": path}


def _read_examples(folder: Path) -> NDArray[np.uint8]:
    path = folder / "examples.safetensors"
    try:
        examples: NDArray[np.uint8] = load_file(path)["examples"]
    except (OSError, KeyError, SafetensorError) as error:
        raise CorruptDataError(f"{path} is damaged ({error}); delete {folder} and run the study again") from error
    return examples


def _save_picture(picture: NDArray[np.uint8], root: Path, name: str) -> str:
    large = picture.repeat(UPSCALE, axis=0).repeat(UPSCALE, axis=1)
    path = root / "media" / f"{name.replace('/', '-')}.png"
    Image.fromarray(large).save(path)
    return str(path.relative_to(root))


def _videos(plan: SuitePlan, root: Path) -> Iterator[dict[str, Any]]:
    """Videos of final checkpoints at the first pretraining and policy seed, and of the baseline policies."""
    if not plan.rollouts:
        return
    first = (plan.suite.pretraining_seeds[0], plan.suite.policy_seeds[0])
    cells = [
        (use.name, env, cell)
        for use, env, policy_seed, cell in plan.rollouts
        if use.checkpoint is None and policy_seed == first[1] and (use.seed == first[0] or use.cell is None)
    ]
    cells += [(f"{name} policy", env, cell) for name, env, _, cell in plan.baselines]
    for name, env, cell in cells:
        for video in read_json(cell.folder(root) / "rollouts.json")["videos"]:
            outcome, _, seed = Path(video).stem.partition("-")
            path = (cell.folder(root) / "videos" / video).relative_to(root)
            yield {"env": env, "encoder": name, "success": outcome == "success", "seed": int(seed), "path": str(path)}


def _rollouts(plan: SuitePlan, root: Path) -> Iterator[dict[str, Any]]:
    """Where the episodes of every policy lie, relative to ``root``."""
    for use, env, policy_seed, cell in plan.rollouts:
        policy = {"encoder": use.name, "seed": use.seed, "checkpoint": use.checkpoint, "policy_seed": policy_seed}
        yield {"env": env, **policy, "folder": str(cell.folder(root).relative_to(root))}
    for use, env, policy_seed, condition, cell in plan.corrupted:
        policy = {"encoder": use.name, "seed": use.seed, "checkpoint": None, "policy_seed": policy_seed}
        yield {"env": env, **policy, "condition": condition, "folder": str(cell.folder(root).relative_to(root))}
    for name, env, drawn, cell in plan.baselines:
        policy = {"encoder": f"{name} policy", "seed": 0, "checkpoint": None, "policy_seed": drawn}
        yield {"env": env, **policy, "folder": str(cell.folder(root).relative_to(root))}


def _curves(plan: SuitePlan, root: Path) -> Iterator[tuple[str, dict[str, list[float]]]]:
    for use in plan.uses:
        if use.cell is not None and use.checkpoint is None:
            training = read_json(use.cell.folder(root) / "encoder" / "encoder.json")["training"]
            steps, losses = zip(*training["loss_curve"], strict=True)
            name = f"{use.name}/{plan.suite.name}/seed{use.seed}"
            yield name, {"step": list(steps), "loss": list(losses)}
