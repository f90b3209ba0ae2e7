"""Where environments leave observations and find actions: one slot each, in memory that processes may share."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from multiprocessing.shared_memory import SharedMemory
from typing import Any, Self

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from latentgym.errors import LatentGymError

_ALIGNMENT = 64
NOWHERE = -1
"""Entry of :attr:`Slots.current` of a worker that is not stepping."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Sizes of everything that slots hold.

    Attributes:
        slots: number of slots N.
        workers: number of processes that fill them.
        action_size: dimensions of an action A.
        entries: observation key, shape and dtype of every array.
        texts: observation keys of everything else, such as instructions.
    """

    slots: int
    workers: int
    action_size: int
    entries: tuple[tuple[str, tuple[int, ...], str], ...]
    texts: tuple[str, ...]

    @classmethod
    def of(cls, space: spaces.Space[Any], action_size: int, *, slots: int, workers: int = 1) -> Self:
        """The layout for environments of one observation space.

        Raises:
            LatentGymError: if it is no ``Dict``.
        """
        if not isinstance(space, spaces.Dict):
            raise LatentGymError(f"rollouts need observations of a Dict space, found {space}")
        arrays = {key: inner for key, inner in space.spaces.items() if inner.shape is not None and inner.dtype}
        arrays = {key: inner for key, inner in arrays.items() if not isinstance(inner, spaces.Text)}
        entries = tuple((key, tuple(inner.shape or ()), np.dtype(inner.dtype).str) for key, inner in arrays.items())
        return cls(slots, workers, action_size, entries, tuple(key for key in space.spaces if key not in arrays))

    def arrays(self) -> dict[tuple[str, str], tuple[tuple[int, ...], str]]:
        """Shape and dtype of every array, by kind and name."""
        arrays: dict[tuple[str, str], tuple[tuple[int, ...], str]] = {
            ("observation", key): ((self.slots, *shape), dtype) for key, shape, dtype in self.entries
        }
        arrays["slots", "action"] = ((self.slots, self.action_size), "<f4")
        arrays["workers", "current"] = ((self.workers,), "<i8")
        arrays["workers", "since"] = ((self.workers,), "<f8")
        return arrays


class Slots:
    """The slots of a layout; workers and the process that started them see the same memory.

    Attributes:
        observation: key to ``(N, …)``, the last observation of every slot.
        texts: key to ``(N,)`` objects; not shared, they travel in messages.
        action: ``(N, A)`` float32, the next action of every slot.
        current: ``(W,)`` int64, the slot that a worker is stepping, or :data:`NOWHERE`.
        since: ``(W,)`` float64, when it began to, in seconds of ``time.monotonic()``.
    """

    def __init__(self, layout: Layout, memory: SharedMemory | None = None) -> None:
        self.layout, self._memory = layout, memory
        self.observation: dict[str, NDArray[Any]] = {}
        self._entries = [(key, shape, np.dtype(dtype)) for key, shape, dtype in layout.entries]
        self.texts = {key: np.full(layout.slots, "", object) for key in layout.texts}
        others: dict[str, NDArray[Any]] = {}
        offset = 0
        for (kind, name), (shape, dtype) in layout.arrays().items():
            size = math.prod(shape) * np.dtype(dtype).itemsize
            shared: Any = None if memory is None else memory.buf
            buffer = np.zeros(size, np.uint8) if shared is None else np.frombuffer(shared, np.uint8, size, offset)
            target = self.observation if kind == "observation" else others
            target[name] = buffer.view(dtype).reshape(shape)
            offset += _aligned(size)
        self.action: NDArray[np.float32] = others["action"]
        self.current: NDArray[np.int64] = others["current"]
        self.since: NDArray[np.float64] = others["since"]

    @classmethod
    def share(cls, layout: Layout) -> Self:
        """Slots in new shared memory, to be freed by :meth:`close`.

        Raises:
            LatentGymError: if there is not enough.
        """
        size = sum(_aligned(math.prod(shape) * np.dtype(dtype).itemsize) for shape, dtype in layout.arrays().values())
        try:
            memory = SharedMemory(create=True, size=size)
        except OSError as error:
            raise LatentGymError(f"{size} bytes of shared memory cannot be had ({error}); use fewer workers") from error
        slots = cls(layout, memory)
        slots.current[:] = NOWHERE
        return slots

    @classmethod
    def attach(cls, layout: Layout, name: str) -> Self:
        """The slots that another process shares."""
        return cls(layout, SharedMemory(name=name))

    @property
    def name(self) -> str:
        """Name of the shared memory."""
        assert self._memory is not None
        return self._memory.name

    def put(self, slot: int, observation: Mapping[str, Any]) -> dict[str, Any]:
        """Leave an observation in a slot; whatever is no array comes back.

        Raises:
            LatentGymError: if an entry is missing or does not fit the environment's own observation space.
        """
        for key, shape, dtype in self._entries:
            value = np.asarray(observation[key]) if key in observation else None
            if value is None or value.shape != shape or not _fits(value.dtype, dtype):
                found = "nothing" if value is None else f"{value.shape} {value.dtype}"
                raise LatentGymError(
                    f"observation {key!r}: the environment's observation space says {shape} {dtype}, found {found}"
                )
            self.observation[key][slot] = value
        texts = {key: observation.get(key, "") for key in self.layout.texts}
        self.put_texts(slot, texts)
        return texts

    def put_texts(self, slot: int, texts: Mapping[str, Any]) -> None:
        """Leave what :meth:`put` gave back in another process."""
        for key, value in texts.items():
            self.texts[key][slot] = value

    def gather(self, slots: Sequence[int]) -> dict[str, NDArray[Any]]:
        """Observations of ``slots``, copied, with a leading dimension of their number."""
        index = np.asarray(slots, np.intp)
        return {key: values[index] for key, values in (self.observation | self.texts).items()}

    def close(self) -> None:
        """Free shared memory; the arrays must not be used any more."""
        if self._memory is not None:
            self._memory.unlink()
            self.detach()

    def detach(self) -> None:
        """Let go of shared memory that others go on using."""
        memory, self._memory = self._memory, None
        if memory is not None:
            self.observation, self.action, self.current, self.since = {}, *(np.empty(0) for _ in range(3))  # type: ignore[assignment]
            with contextlib.suppress(BufferError):  # somebody still looks at an array; it is freed with that
                memory.close()


def _fits(found: np.dtype[Any], stored: np.dtype[Any]) -> bool:
    return found == stored or np.can_cast(found, stored, "same_kind")


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
