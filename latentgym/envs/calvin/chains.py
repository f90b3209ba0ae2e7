"""The official evaluation: a thousand chains of five instructions, and the scene that each starts from.

Reproduces the benchmark's public evaluation code (``calvin_agent.evaluation``) number for number. It draws from NumPy's
legacy generator and seeds each scene with a hash of its description, and so must we.
"""

from __future__ import annotations

import functools
import importlib.resources
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentgym.envs.calvin.scene import BLOCKS, BUTTON, DRAWER, LED, LIGHTBULB, SLIDER, SWITCH
from latentgym.errors import LatentGymError, UnknownNameError

CHAIN_LENGTH = 5
OFFICIAL_CHAINS = 1000
_CHAINS_NAME = "official_chains.json"
InitialCondition = dict[str, Any]
Chain = tuple[InitialCondition, list[str]]

_CONDITIONS: dict[str, tuple[Any, ...]] = {
    "led": (0, 1),
    "lightbulb": (0, 1),
    "slider": ("right", "left"),
    "drawer": ("closed", "open"),
    "red_block": ("table", "slider_right", "slider_left"),
    "blue_block": ("table", "slider_right", "slider_left"),
    "pink_block": ("table", "slider_right", "slider_left"),
    "grasped": (0,),
}
_OTHER_SIDE = {"left": "right", "right": "left"}
_IN_CABINET = ("slider_right", "slider_left")

# One way to do a task: what must hold before, and what holds afterwards. A tuple means any of its values.
Way = tuple[Mapping[str, Any], Mapping[str, Any]]


def _block_ways(colour: str) -> Iterator[tuple[str, str, list[Way]]]:
    """Name, category and ways of the tasks that name one block, but for those that belong to all."""
    block = f"{colour}_block"
    free, held = {"grasped": 0}, {block: "grasped", "grasped": 1}
    on_table = {block: "table", **free}
    for side in ("right", "left"):
        yield f"rotate_{block}_{side}", "move", [(on_table, {})]
        yield f"push_{block}_{side}", "move", [(on_table, {})]
    yield f"lift_{block}_table", "lift_table", [(on_table, held)]
    cabinet: list[Way] = [
        ({block: f"slider_{side}", "slider": _OTHER_SIDE[side], **free}, held) for side in ("left", "right")
    ]
    yield f"lift_{block}_slider", "lift_slider", cabinet
    yield f"lift_{block}_drawer", "lift_drawer", [({block: "drawer", "drawer": "open", **free}, held)]


def _toggle(name: str, category: str, key: str, before: Any, after: Any) -> tuple[str, str, list[Way]]:
    return name, category, [({key: before, "grasped": 0}, {key: after})]


def _all_block_ways() -> Iterator[tuple[str, str, list[Way]]]:
    """Tasks that any block will do for."""
    blocks = [f"{colour}_block" for colour in BLOCKS]
    yield "place_in_slider", "place", [
        ({block: "grasped", "slider": side, "grasped": 1}, {block: f"slider_{side}", "grasped": 0})
        for block in blocks
        for side in ("right", "left")
    ]  # fmt: skip
    yield "place_in_drawer", "place", [
        ({block: "grasped", "drawer": "open", "grasped": 1}, {block: "drawer", "grasped": 0}) for block in blocks
    ]  # fmt: skip
    pairs = list(itertools.permutations(blocks, 2))
    stacked = [{top: "stacked_top", bottom: "stacked_bottom"} for top, bottom in pairs]
    yield "stack_block", "stack", [
        ({top: "grasped", bottom: "table", "grasped": 1}, {**effect, "grasped": 0})
        for (top, bottom), effect in zip(pairs, stacked, strict=True)
    ]  # fmt: skip
    yield "unstack_block", "unstack", [
        ({**condition, "grasped": 0}, {top: "table", bottom: "table"})
        for (top, bottom), condition in zip(pairs, stacked, strict=True)
    ]  # fmt: skip
    yield "push_into_drawer", "push_into", [
        (
            {other: _IN_CABINET for other in blocks if other != block}
            | {block: "table", "drawer": "open", "grasped": 0},
            {block: "drawer", "grasped": 0},
        )
        for block in blocks
    ]  # fmt: skip


@functools.cache
def _task_table() -> dict[str, tuple[str, list[Way]]]:
    """Task to category and ways, in the order of the official evaluation, which its draws index."""
    rows = [row for colour in BLOCKS for row in _block_ways(colour)]
    rows += [
        _toggle("move_slider_left", "slider", "slider", "right", "left"),
        _toggle("move_slider_right", "slider", "slider", "left", "right"),
        _toggle("open_drawer", "drawer", "drawer", "closed", "open"),
        _toggle("close_drawer", "drawer", "drawer", "open", "closed"),
        _toggle("turn_on_lightbulb", "light", "lightbulb", 0, 1),
        _toggle("turn_off_lightbulb", "light", "lightbulb", 1, 0),
        _toggle("turn_on_led", "light", "led", 0, 1),
        _toggle("turn_off_led", "light", "led", 1, 0),
        *_all_block_ways(),
    ]
    table = {name: (category, ways) for name, category, ways in rows}
    return {name: table[name] for name in OFFICIAL_ORDER}


OFFICIAL_ORDER: tuple[str, ...] = (
    *(f"{verb}_{block}_block_{side}" for verb in ("rotate", "push") for block in BLOCKS for side in ("right", "left")),
    *("move_slider_left", "move_slider_right", "open_drawer", "close_drawer"),
    *(f"lift_{colour}_block_{place}" for colour in BLOCKS for place in ("table", "slider", "drawer")),
    *("place_in_slider", "place_in_drawer", "stack_block", "unstack_block"),
    *("turn_on_lightbulb", "turn_off_lightbulb", "turn_on_led", "turn_off_led", "push_into_drawer"),
)
"""The 34 tasks in the order of the official evaluation."""


def next_states(state: Mapping[str, Any], task: str) -> list[InitialCondition]:
    """The symbolic states that doing ``task`` in ``state`` can lead to; empty where it cannot be done."""
    return [
        {**state, **after}
        for before, after in _task_table()[task][1]
        if all(state[key] in want if isinstance(want, tuple) else state[key] == want for key, want in before.items())
    ]


@functools.cache
def _only_next_state(state: tuple[Any, ...], task: int) -> tuple[Any, ...] | None:
    """The values of the state that a task leads to, if it can be done in exactly one way."""
    states = next_states(dict(zip(_CONDITIONS, state, strict=True)), OFFICIAL_ORDER[task])
    return tuple(states[0].values()) if len(states) == 1 else None


def _feasible(state: tuple[Any, ...] | None, tasks: Sequence[int]) -> bool:
    """Whether each task can be done in exactly one way after the one before."""
    for task in tasks:
        state = _only_next_state(state, task) if state is not None else None
        if state is None:
            return False
    return True


def _valid(state: tuple[Any, ...], tasks: Sequence[int]) -> bool:
    """Whether the tasks are feasible, no two of one category."""
    return _feasible(state, tasks) and len({_task_table()[OFFICIAL_ORDER[task]][0] for task in tasks}) == len(tasks)


@functools.cache
def initial_conditions() -> tuple[InitialCondition, ...]:
    """Every symbolic state that a chain may start from: one or two blocks on the table, at most one in each cabinet."""
    combinations = (dict(zip(_CONDITIONS, values, strict=True)) for values in itertools.product(*_CONDITIONS.values()))
    places = [(state, [state[f"{colour}_block"] for colour in BLOCKS]) for state in combinations]
    return tuple(
        state
        for state, where in places
        if where.count("table") in (1, 2) and all(where.count(place) <= 1 for place in _IN_CABINET)
    )


def _draw_chains(state: InitialCondition, count: int, seed: int) -> Iterator[Chain]:
    rng = np.random.RandomState(seed)
    values = tuple(state.values())
    while count:
        # Equal to the official choice(tasks, 5, replace=False), without making an array of texts each time.
        tasks = rng.permutation(len(OFFICIAL_ORDER))[:CHAIN_LENGTH].tolist()
        if _valid(values, tasks):
            count -= 1
            yield state, [OFFICIAL_ORDER[task] for task in tasks]


def generate_official_chains() -> list[Chain]:
    """Draw the thousand chains as the official evaluation does; millions of draws are rejected, which takes a while."""
    states = initial_conditions()
    counts = [len(part) for part in np.array_split(np.arange(OFFICIAL_CHAINS), len(states))]
    chains = [
        chain
        for seed, (state, count) in enumerate(zip(states, counts, strict=True))
        for chain in _draw_chains(state, count, seed)
    ]
    np.random.RandomState(0).shuffle(chains)  # type: ignore[arg-type]
    return chains


@functools.cache
def _thousand() -> tuple[Chain, ...]:
    """What :func:`generate_official_chains` gave: rows of an initial condition's number and five tasks' numbers."""
    states = initial_conditions()
    rows = json.loads(importlib.resources.files("latentgym.envs.calvin").joinpath(_CHAINS_NAME).read_text())
    return tuple((states[row[0]], [OFFICIAL_ORDER[task] for task in row[1:]]) for row in rows)


def official_chains(n: int = OFFICIAL_CHAINS) -> list[Chain]:
    """The first ``n`` of the thousand chains of the official evaluation.

    Args:
        n: how many, at most 1000.

    Returns:
        Pairs of an initial condition, which :func:`initial_state` turns into a scene, and five task names.

    Raises:
        LatentGymError: if ``n`` is not from 1 to 1000.
    """
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or not 1 <= n <= OFFICIAL_CHAINS:
        raise LatentGymError(f"official_chains: expected n from 1 to {OFFICIAL_CHAINS}, found {n!r}")
    return [(dict(state), list(chain)) for state, chain in _thousand()[:n]]


def short_chains(tasks: Sequence[str], n: int, length: int = 2, seed: int = 0) -> list[Chain]:
    """Chains of a few tasks only, for policies that were trained on no others.

    Drawn among all chains of ``length`` different ones of ``tasks`` that the official evaluation could draw, but that
    two may be of one category, such as opening the drawer and closing it: each task can be done, in exactly one way,
    after the one before.

    Args:
        tasks: names of tasks.
        n: how many chains.
        length: instructions per chain, at most 5.
        seed: of the draw, without replacement while there are enough.

    Raises:
        UnknownNameError: if a name is not a task.
        LatentGymError: if ``n`` or ``length`` is out of range, or no such chain exists.
    """
    names = list(dict.fromkeys(tasks))
    for name in names:
        if name not in OFFICIAL_ORDER:
            raise UnknownNameError("CALVIN task", name, OFFICIAL_ORDER)
    if n < 1 or not 1 <= length <= CHAIN_LENGTH:
        raise LatentGymError(f"short_chains: expected n of at least 1 and length from 1 to 5, found {n} and {length}")
    numbers = [OFFICIAL_ORDER.index(name) for name in names]
    possible = [
        (condition, [OFFICIAL_ORDER[task] for task in chain])
        for condition in initial_conditions()
        for chain in itertools.permutations(numbers, length)
        if _feasible(tuple(condition.values()), chain)
    ]
    if not possible:
        raise LatentGymError(f"no chain of {length} of the tasks {', '.join(names)} can be done; name more tasks")
    rng = np.random.default_rng(seed)
    drawn = rng.choice(len(possible), size=n, replace=n > len(possible))
    return [(dict(possible[index][0]), possible[index][1]) for index in drawn]


_ROBOT_OBS = (
    *(0.02586889, -0.2313129, 0.5712808, 3.09045411, -0.02908596, 1.50013585, 0.07999963),
    *(-1.21779124, 1.03987629, 2.11978254, -2.34205014, -0.87015899, 1.64119093, 0.55344928, 1.0),
)
_CABINET_PLACES = {
    "slider_left": (-2.40851662e-01, 9.24044687e-02, 4.60990009e-01),
    "slider_right": (7.03416330e-02, 9.24044687e-02, 4.60990009e-01),
}
_TABLE_PLACES = (
    (5.00000896e-02, -1.20000177e-01, 4.59990009e-01),
    (2.29995412e-01, -1.19995140e-01, 4.59990010e-01),
)
SLIDER_LEFT_M, DRAWER_OPEN_M, SWITCH_ON_RAD = 0.28, 0.22, 0.088
YAW_RANGE = (np.pi / 2 - np.pi / 8, np.pi / 2 + np.pi / 8)


def initial_state(initial_condition: Mapping[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The state that the official evaluation starts a chain from.

    Args:
        initial_condition: as in :func:`official_chains`, its keys in that order, since their order enters the seed.

    Returns:
        ``robot_obs`` ``(15,)`` and ``scene_obs`` ``(24,)`` with the blocks in scene D's order: red, blue, pink.

    Raises:
        LatentGymError: if a key is missing or unknown, or a value is none of those that the evaluation uses.
    """
    _check_condition(initial_condition)
    rng = np.random.RandomState(_official_seed(initial_condition))
    table = list(_TABLE_PLACES)
    rng.shuffle(table)
    scene = np.zeros(24)
    scene[SLIDER] = SLIDER_LEFT_M if initial_condition["slider"] == "left" else 0.0
    scene[DRAWER] = DRAWER_OPEN_M if initial_condition["drawer"] == "open" else 0.0
    scene[BUTTON] = 0.0
    scene[SWITCH] = SWITCH_ON_RAD if initial_condition["lightbulb"] == 1 else 0.0
    scene[LIGHTBULB], scene[LED] = initial_condition["lightbulb"], initial_condition["led"]
    # On the table red takes the first place, pink the second, and blue what red leaves.
    spots = {"red": table[0], "blue": table[initial_condition["red_block"] == "table"], "pink": table[1]}
    for index, colour in enumerate(BLOCKS):
        start = 6 + 6 * index
        scene[start : start + 3] = _CABINET_PLACES.get(initial_condition[f"{colour}_block"], spots[colour])
        scene[start + 5] = rng.uniform(*YAW_RANGE)
    return np.array(_ROBOT_OBS), scene


def _official_seed(initial_condition: Mapping[str, Any]) -> int:
    """The official evaluation's hash of the condition's values as text, which pyhash takes in UTF-16."""
    return _fnv1_32(str(dict(initial_condition).values()).encode("utf-16-le"))


def _fnv1_32(data: bytes) -> int:
    """32-bit FNV-1 as pyhash has it: from its seed, 0, where the definition has an offset basis."""
    value = 0
    for byte in data:
        value = (value * 0x01000193) % 2**32 ^ byte
    return value


def _check_condition(condition: Mapping[str, Any]) -> None:
    if list(condition) != list(_CONDITIONS):
        raise LatentGymError(
            f"an initial condition has the keys {', '.join(_CONDITIONS)}, in this order; found {', '.join(condition)}"
        )
    wrong = [f"{key}={value!r}" for key, value in condition.items() if value not in _CONDITIONS[key]]
    if wrong:
        raise LatentGymError(
            f"initial condition: {', '.join(wrong)} is none of the official evaluation's values; expected "
            + "; ".join(f"{key}: {' or '.join(map(repr, values))}" for key, values in _CONDITIONS.items())
        )
