"""LIBERO's 130 tasks (Liu et al., 2023, arXiv 2306.03310), and a split of them into 104 to train on and 26 held out.

Published work on latents splits LIBERO's tasks 104 : 26, but which tasks were held out could not be had. This split was
fixed before anything was measured on it: in each suite the tasks are ranked by a hash of their names, and the first
fifth is held out: two of each suite of ten, 18 of LIBERO-90.
"""

from __future__ import annotations

import functools
import json
from importlib.resources import files

from latentgym.seeding import derive_seed

_HELD_OUT_SHARE = 5  # one in five


@functools.cache
def libero_tasks() -> dict[str, str]:
    """Suite of every task, in the benchmark's order; the names of tasks are unique over all suites.

    >>> len(libero_tasks()), libero_tasks()["put_the_bowl_on_the_plate"]
    (130, 'libero_goal')
    """
    table = json.loads(files(__package__).joinpath("libero_tasks.json").read_text())
    return {task: suite for suite, tasks in table.items() for task in tasks}


@functools.cache
def libero_task_split() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The 104 tasks to train on and the 26 held out, each in the benchmark's order.

    For :func:`latentgym.trajectories.split_tasks`; ``open_dataset(folder, split="tasks")`` marks the held-out ones, so
    that they are the test part of every split.

    >>> train, held_out = libero_task_split()
    >>> len(train), len(held_out), sum(libero_tasks()[task] == "libero_90" for task in held_out)
    (104, 26, 18)
    """
    held_out: set[str] = set()
    suites = dict.fromkeys(libero_tasks().values())
    for suite in suites:
        tasks = [task for task, home in libero_tasks().items() if home == suite]
        ranked = sorted(tasks, key=lambda task: derive_seed(0, "libero-tasks", task))
        held_out |= set(ranked[: len(tasks) // _HELD_OUT_SHARE])
    train = tuple(task for task in libero_tasks() if task not in held_out)
    return train, tuple(task for task in libero_tasks() if task in held_out)


def libero_instruction(task: str) -> str:
    """The sentence that a task's name stands for.

    >>> libero_instruction("KITCHEN_SCENE10_close_the_top_drawer_of_the_cabinet")
    'close the top drawer of the cabinet'
    """
    words = task.split("_")
    scene = next((index for index, word in enumerate(words) if word.startswith("SCENE")), -1)
    return " ".join(words[scene + 1 :])
