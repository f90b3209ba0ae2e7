"""The feature cache: every data set is encoded once, and what is on disk is checked before it is believed.

::

    <root>/<key>/index.json                      what the features are, and their width
    <root>/<key>/<first>-<last>.safetensors      rows of many episodes, float32, with their SHA-256

The key is a hash of everything that determines the numbers: the data set's content key, the encoder's spec (weights,
preprocessing, layer, precision), view, pooling and the version of this format.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from latentgym.artifacts import atomic_write, content_key, read_json, write_json
from latentgym.encoders.contract import Encoder, EncoderSpec
from latentgym.encoders.features import View, canonical_view, encode_episodes_layers, encode_view, row_count
from latentgym.errors import CorruptDataError, LatentGymError, rephrased

if TYPE_CHECKING:
    from latentgym.trajectories.store import Dataset

FORMAT_VERSION = 1
SHARD_BYTES = 64 * 2**20
_TENSOR = "features"


def feature_key(dataset_key: str, spec: EncoderSpec, view: View, pooling: str) -> str:
    """Key under which features are kept; different whenever the numbers may differ.

    Where weights have a digest, names and places do not matter: a folder that was moved or renamed keeps its features.
    """
    determining = dataclasses.asdict(spec)
    if spec.weights_digest:
        for field in ("name", "source", "revision", "licence", "pooling"):
            determining.pop(field)
    return content_key(
        {"format": FORMAT_VERSION, "dataset": dataset_key, "encoder": determining, "view": view, "pooling": pooling}
    )


class Features:
    """Features of a data set's episodes, read from memory-mapped shards when asked for.

    Attributes:
        dim: number of features F.
        lengths: ``(N,)`` int64, number of rows per episode.
    """

    def __init__(
        self, shards: Sequence[_Shard], dim: int, observations: NDArray[np.int64], drop: int, blocks: int = 1
    ) -> None:
        """Only :meth:`FeatureCache.get` makes these.

        Args:
            shards: the shards in the order of their episodes.
            dim: number of features stored per row.
            observations: ``(N,)`` rows stored per episode.
            drop: leading rows of every episode that this view does not have.
            blocks: equal parts of a stored row that are averaged when it is read.
        """
        self.dim = dim // blocks
        self._blocks = blocks
        self.lengths: NDArray[np.int64] = np.maximum(observations - drop, 0)
        self._shards = tuple(shards)
        self._stored = observations
        self._drop = drop
        self._open: dict[Path, Any] = {}

    def __len__(self) -> int:
        """Number of episodes, N."""
        return len(self.lengths)

    def episode(self, index: int) -> NDArray[np.float32]:
        """Features ``(n, F)`` float32 of one episode.

        Raises:
            LatentGymError: if there is no such episode.
        """
        if not 0 <= index < len(self):
            raise LatentGymError(f"features: expected an episode index from 0 to {len(self) - 1}, found {index}")
        if self.lengths[index] == 0:
            return np.empty((0, self.dim), np.float32)
        shard = next(shard for shard in self._shards if index < shard.stop)
        start = int(self._stored[shard.start : index].sum()) + self._drop
        if shard.path not in self._open:
            self._open[shard.path] = safe_open(shard.path, framework="numpy")
        rows: NDArray[np.float32] = self._open[shard.path].get_slice(_TENSOR)[start : start + int(self.lengths[index])]
        return rows if self._blocks == 1 else rows.reshape(len(rows), self._blocks, self.dim).mean(axis=1)

    def rows(self, episodes: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Features ``(n, F)`` of several episodes one after the other, and the episode of each row ``(n,)`` int64."""
        indices = np.asarray(episodes, dtype=np.int64)
        features = np.empty((int(self.lengths[indices].sum()), self.dim), np.float32)
        start = 0
        for index in indices:
            rows = self.episode(int(index))
            features[start : start + len(rows)] = rows
            start += len(rows)
        return features, np.repeat(indices, self.lengths[indices])


@dataclasses.dataclass(frozen=True)
class _Shard:
    """Rows of the episodes ``start`` … ``stop`` - 1, in one file."""

    path: Path
    start: int
    stop: int
    rows: int


@dataclasses.dataclass(frozen=True, eq=False)
class _Plan:
    """Shards of one encoder's features, their width, rows per episode, and how they are read."""

    shards: tuple[_Shard, ...]
    dim: int
    rows: NDArray[np.int64]
    drop: int
    blocks: int
    view: View
    pooling: str


class FeatureCache:
    """Content-addressed features on disk.

    A killed run loses at most the shard that it was writing (per layer). Memory stays at one shard per layer, whatever
    the data set's length.
    Views that an encoder cannot tell apart (see :func:`latentgym.encoders.features.canonical_view`) share their files.
    Several processes may use one folder: equal keys mean equal bytes, and files appear by rename.

    Args:
        root: folder of the cache, made if needed.
        shard_bytes: size that a shard is filled up to; one episode is never split.
    """

    def __init__(self, root: Path | str, *, shard_bytes: int = SHARD_BYTES) -> None:
        self.root = Path(root)
        self.shard_bytes = shard_bytes
        self._verified: set[tuple[Path, int, int]] = set()

    def get(
        self,
        dataset: Dataset,
        encoder: Encoder,
        view: View,
        *,
        pooling: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Features:
        """Features of every episode of ``dataset``, from disk as far as they are there.

        Pixel encoders read the data set's main camera. A damaged shard is encoded again, with a warning.

        Args:
            dataset: the data set.
            encoder: the encoder.
            view: what each row may see.
            pooling: see :func:`latentgym.encoders.features.pool`; the encoder's default if left out.
            progress: called with (episodes done, episodes in all) after each shard.

        Raises:
            LatentGymError: if the data set has no camera for a pixel encoder, or an encoding fails.
        """
        return self.get_layers(dataset, (encoder,), view, pooling=pooling, progress=progress)[0]

    def get_layers(
        self,
        dataset: Dataset,
        encoders: Sequence[Encoder],
        view: View,
        *,
        pooling: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Features]:
        """Features of one encoder at several layers, from one pass over what is missing; otherwise as :meth:`get`.

        Args:
            dataset: the data set.
            encoders: the encoder at each layer, from :func:`latentgym.encoders.registry.at_layers`.
            view: what each row may see.
            pooling: see :func:`latentgym.encoders.features.pool`; the encoder's default if left out.
            progress: called with (episodes done, episodes in all) after each shard of the first layer.
        """
        plans = [self._plan(dataset, encoder, view, pooling) for encoder in encoders]
        if len({plan.pooling for plan in plans}) > 1:
            return [self.get(dataset, encoder, view, pooling=pooling) for encoder in encoders]
        self._fill(dataset, encoders, plans, progress)
        return [Features(plan.shards, plan.dim, plan.rows, plan.drop, plan.blocks) for plan in plans]

    def _fill(
        self,
        dataset: Dataset,
        encoders: Sequence[Encoder],
        plans: Sequence[_Plan],
        progress: Callable[[int, int], None] | None,
    ) -> None:
        """Encode what is missing, each episode once for all layers that miss anything."""
        missing = [deque(shard for shard in plan.shards if not self._is_intact(shard, plan.dim)) for plan in plans]
        wanted = [number for number, shards in enumerate(missing) if shards]
        episodes = sorted({index for shards in missing for shard in shards for index in range(shard.start, shard.stop)})
        encoded = _encode(dataset, encoders[0], episodes, plans[0], [encoders[number].spec.layer for number in wanted])
        needed, ends = set(episodes), {shard.stop for shard in plans[0].shards}
        parts: list[list[NDArray[np.float32]]] = [[] for _ in plans]
        for index in range(len(plans[0].rows)):
            for number, rows in zip(wanted, next(encoded), strict=True) if index in needed else ():
                if not missing[number] or index < missing[number][0].start:
                    continue
                parts[number].append(rows)
                if index + 1 == missing[number][0].stop:
                    _write_shard(missing[number].popleft(), parts[number])
                    parts[number] = []
            if progress is not None and index + 1 in ends:
                progress(index + 1, len(plans[0].rows))

    def _plan(self, dataset: Dataset, encoder: Encoder, view: View, pooling: str | None) -> _Plan:
        """Where the features of one encoder are or will be, and their width."""
        if encoder.spec.modality == "pixels" and not dataset.cameras:
            raise LatentGymError(f"{dataset.path} was recorded without cameras; {encoder.spec.name!r} reads pixels")
        pooling = pooling or encoder.spec.pooling
        blocks = _cells_of_mean(encoder.spec) if pooling == "mean" else 1
        if blocks > 1:
            pooling = encoder.spec.pooling
        stored, drop = canonical_view(view, encoder.spec)
        folder = self.root / feature_key(dataset.key, encoder.spec, stored, pooling)
        dim = _read_dim(folder / "index.json")
        if dim is None:
            dim = encode_view(encoder, _observations(dataset, encoder, 0)[:1], View("single"), pooling=pooling).shape[1]
            description = {"dim": dim, "dataset": dataset.key, "encoder": encoder.spec, "view": stored}
            write_json(folder / "index.json", {**description, "pooling": pooling, "format": FORMAT_VERSION})
        rows = np.array([row_count(int(length) + 1, stored) for length in dataset.lengths], np.int64)
        shards = _shards(folder, rows, dim, self.shard_bytes)
        return _Plan(tuple(shards), dim, rows, drop, blocks, stored, pooling)

    def _is_intact(self, shard: _Shard, dim: int) -> bool:
        """Whether the shard is there and whole; each file is hashed once per cache object."""
        try:
            status = shard.path.stat()
        except FileNotFoundError:
            return False
        seen = (shard.path, status.st_mtime_ns, status.st_size)
        if seen in self._verified:
            return True
        try:
            with safe_open(shard.path, framework="numpy") as file:
                features, expected = file.get_tensor(_TENSOR), (file.metadata() or {}).get("sha256")
        except (SafetensorError, OSError) as error:
            problem = str(error)
        else:
            problem = (
                "" if expected == _digest(features) and features.shape == (shard.rows, dim) else "its digest differs"
            )
        if problem:
            warnings.warn(f"{shard.path} is damaged ({problem}); it is encoded again", RuntimeWarning, stacklevel=3)
            return False
        self._verified.add(seen)
        return True


def _cells_of_mean(spec: EncoderSpec) -> int:
    """Cells of the encoder's default grid whose average is the mean over tokens exactly; 1 where there are none."""
    kind, _, side = spec.pooling.partition(":")
    if kind != "grid" or any(count % int(side) for count in spec.grid):
        return 1
    return int(side) ** 2


def _shards(folder: Path, rows: NDArray[np.int64], dim: int, shard_bytes: int) -> list[_Shard]:
    """Whole episodes in order, each shard filled up to ``shard_bytes``."""
    limit = max(1, shard_bytes // (4 * max(1, dim)))
    bounds, filled = [0], 0
    for index, count in enumerate(rows.tolist()):
        if filled and filled + count > limit:
            bounds.append(index)
            filled = 0
        filled += count
    bounds.append(len(rows))
    return [
        _Shard(folder / f"{start:06d}-{stop - 1:06d}.safetensors", start, stop, int(rows[start:stop].sum()))
        for start, stop in itertools.pairwise(bounds)
    ]


def _encode(
    dataset: Dataset, encoder: Encoder, episodes: Sequence[int], plan: _Plan, layers: Sequence[int]
) -> Iterator[list[NDArray[np.float32]]]:
    """Rows of one episode after the other, per layer."""
    observations = (_observations(dataset, encoder, index) for index in episodes)
    done = 0
    try:
        for rows in encode_episodes_layers(encoder, observations, plan.view, layers, pooling=plan.pooling):
            yield rows
            done += 1
    except LatentGymError as error:
        raise rephrased(error, f"{dataset.path}, from episode {episodes[done]} on: {error}") from error


def _observations(dataset: Dataset, encoder: Encoder, index: int) -> NDArray[Any]:
    if encoder.spec.modality != "pixels":
        vectors: NDArray[np.float32] = getattr(dataset.episode(index, cameras=()), encoder.spec.modality)
        return vectors
    camera = dataset.cameras[0]
    return dataset.episode(index, cameras=(camera,)).frames[camera]


def _write_shard(shard: _Shard, parts: Sequence[NDArray[np.float32]]) -> None:
    features = np.concatenate(parts)
    atomic_write(shard.path, save({_TENSOR: features}, metadata={"sha256": _digest(features)}))


def _digest(features: NDArray[np.float32]) -> str:
    return hashlib.sha256(np.ascontiguousarray(features).data).hexdigest()


def _read_dim(path: Path) -> int | None:
    """Width of the features, ``None`` where the index is not there or is damaged."""
    if not path.exists():
        return None
    try:
        dim = read_json(path)["dim"]
    except (CorruptDataError, KeyError, TypeError) as error:
        warnings.warn(f"{path} is damaged ({error}); it is written again", RuntimeWarning, stacklevel=3)
        return None
    return dim if isinstance(dim, int) and dim > 0 else None
