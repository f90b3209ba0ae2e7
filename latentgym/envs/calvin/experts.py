"""Scripted experts for CALVIN's tasks: short plans in terms of what the simulator knows, made of relative actions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from latentgym.envs.calvin.hand import CLOSED, OPEN, REST_YAW, Hand, Motion, wrapped
from latentgym.envs.calvin.scene import BLOCKS
from latentgym.errors import LatentGymError

_ABOVE_M = 0.62
_TABLE_BLOCK_Z = 0.46
_ALONG_Y_YAW = 0.0
_SWITCH_TILT = 0.7


def _lifted_away(hand: Hand) -> Motion:
    """Straight up to where nothing is in the way."""
    x, y, z = hand.position
    if z < _ABOVE_M - 0.01:
        yield from hand.go((x, y, _ABOVE_M), near_m=0.02)


def _over(hand: Hand, x: float, y: float, yaw: float, z: float = _ABOVE_M) -> Motion:
    """Over a place, by way of a safe height."""
    yield from _lifted_away(hand)
    yield from hand.go((x, y, z), yaw, near_m=0.01)


def open_drawer(hand: Hand) -> Motion:
    """Grip the handle from above and pull."""
    yield from _drag_drawer(hand, -0.24)


def close_drawer(hand: Hand) -> Motion:
    """Push the handle from the front."""
    low, high = hand.link("drawer_link")
    x, y = (low[0] + high[0]) / 2, low[1]
    hand.gripper = CLOSED
    yield from _over(hand, x, y - 0.06, REST_YAW)
    yield from hand.go((x, y - 0.06, 0.37), REST_YAW, near_m=0.01)
    yield from hand.go((x, y + hand.drawer + 0.02, 0.37), REST_YAW, speed=0.5)


def _drag_drawer(hand: Hand, dy: float) -> Motion:
    low, high = hand.link("drawer_link")
    x, y, z = (low[0] + high[0]) / 2, low[1] + 0.02, 0.387
    hand.gripper = OPEN
    yield from _over(hand, x, y, _ALONG_Y_YAW)
    yield from hand.go((x, y, z), _ALONG_Y_YAW)
    yield from hand.grip(CLOSED)
    yield from hand.go((x, y + dy, z), _ALONG_Y_YAW, speed=0.5)
    yield from hand.grip(OPEN)


def move_slider(hand: Hand, left: bool) -> Motion:
    """Straddle the handle from above and pull it along."""
    low, high = hand.link("slide_link")
    x, y, z = (low[0] + high[0]) / 2, low[1] + 0.045, 0.55
    hand.gripper = OPEN
    yield from _over(hand, x, y, REST_YAW)
    yield from hand.go((x, y, z), REST_YAW)
    x += hand.slider - 0.3 if left else hand.slider + 0.02
    yield from hand.go((x, y, z), REST_YAW, speed=0.5)


def press_button(hand: Hand) -> Motion:
    """Down onto the button and up again."""
    low, high = hand.link("button_link")
    x, y = (low[:2] + high[:2]) / 2
    hand.gripper = CLOSED
    yield from _over(hand, x, y, REST_YAW, 0.53)
    before = hand.led
    for _ in range(40):
        if hand.led != before:
            break
        yield hand.towards((x, y, 0.43), REST_YAW, 0.5)
    yield from hand.go((x, y, 0.55), REST_YAW, near_m=0.02)


_UP_THE_SLOPE = np.array([0.0, 0.5, 0.866])
_OFF_THE_SLOPE = np.array([0.0, -0.866, 0.5])


def move_switch(hand: Hand, on: bool) -> Motion:
    """Push the lever's bar up or down its slope with the closed fingers, hand tilted towards it."""
    low, high = hand.link("switch_link")
    bar = np.array([(low[0] + high[0]) / 2, low[1] + 0.024, low[2] + 0.043])
    sign = 1 if on else -1
    beside = bar - sign * 0.06 * _UP_THE_SLOPE
    before = hand.lightbulb
    hand.gripper = CLOSED
    yield from _lifted_away(hand)
    hand.tilt = _SWITCH_TILT
    yield from hand.go(beside + 0.1 * _OFF_THE_SLOPE, REST_YAW, near_m=0.015)
    yield from hand.go(beside, REST_YAW, near_m=0.01)
    for _ in range(60):
        if hand.lightbulb != before:
            break
        yield hand.towards(bar + sign * 0.14 * _UP_THE_SLOPE, REST_YAW, 0.4)
    yield from hand.go(hand.position + 0.1 * _OFF_THE_SLOPE, REST_YAW, near_m=0.03)
    hand.tilt = 0.0


def _grasp_yaw(hand: Hand, colour: str) -> float:
    """Fingers across the block's narrow side, as close to the rest yaw as that allows."""
    along = hand.block(colour)[5]
    if hand.block_length(colour) < 0.05:
        return wrapped(along, REST_YAW, np.pi / 2)
    # Fingers close along yaw - 90°, so across the long side means yaw along it.
    return wrapped(along, REST_YAW, np.pi)


def _grasp(hand: Hand, colour: str, yaw: float, above_m: float = _ABOVE_M) -> Motion:
    x, y, z = hand.block(colour)[:3]
    hand.gripper = OPEN
    yield from _over(hand, x, y, yaw, above_m)
    yield from hand.go((x, y, z), yaw, near_m=0.005)
    yield from hand.grip(CLOSED)


def lift_block(hand: Hand, colour: str) -> Motion:
    """Grasp a block from above and raise it."""
    x, y, z = hand.block(colour)[:3]
    yield from _grasp(hand, colour, _grasp_yaw(hand, colour), max(_ABOVE_M, z + 0.1))
    yield from hand.go((x, y, z + 0.12), near_m=0.01, speed=0.5)


def take_in_hand(env: Any, colour: str) -> bool:
    """Lift a block before an episode begins; whether the hand then holds it and touches nothing else.

    Args:
        env: the unwrapped environment, its simulator just reset.
        colour: which block.
    """
    simulator = env.simulator
    for action in lift_block(Hand(env), colour):
        simulator.step(action)
    now = simulator.snapshot()
    block = now.blocks[f"block_{colour}"]
    return bool(now.robot_touches == {block.uid} and block.touched == {now.robot})


def push_block(hand: Hand, colour: str, direction: int) -> Motion:
    """Push a block along x with the closed fingers."""
    x, y, z = hand.block(colour)[:3]
    start = x - direction * (hand.block_length(colour) / 2 + 0.05)
    hand.gripper = CLOSED
    yield from _over(hand, start, y, REST_YAW)
    yield from hand.go((start, y, z), REST_YAW)
    yield from hand.go((x + direction * 0.12, y, z), REST_YAW, speed=0.4)


def rotate_block(hand: Hand, colour: str, degrees: float) -> Motion:
    """Grasp a block and turn it on the spot."""
    turn = np.radians(degrees)
    period = np.pi / 2 if hand.block_length(colour) < 0.05 else np.pi
    yaw = wrapped(hand.block(colour)[5], REST_YAW - turn / 2, period)
    yield from _grasp(hand, colour, yaw)
    yield from hand.go(hand.target, yaw + turn, speed=0.5)
    yield from hand.grip(OPEN)


def place_in_drawer(hand: Hand) -> Motion:
    """Lower the held block into the open drawer and let go."""
    low, high = hand.link("drawer_link")
    x, y = (low[0] + high[0]) / 2, low[1] + 0.11
    hand.gripper = CLOSED
    yield from _over(hand, x, y, REST_YAW, _ABOVE_M)
    yield from hand.go((x, y, 0.42), REST_YAW, speed=0.5)
    yield from hand.grip(OPEN)
    yield from hand.go((x, y, _ABOVE_M), REST_YAW)


def place_in_slider(hand: Hand) -> Motion:
    """Lower the held block onto the shelf where the door leaves it open."""
    low, high = hand.link("plank_link")
    door = hand.link("slide_link")
    left_open = door[0][0] - low[0] > high[0] - door[1][0]
    x = (low[0] + door[0][0]) / 2 if left_open else (door[1][0] + high[0]) / 2
    y = 0.09
    hand.gripper = CLOSED
    yield from _over(hand, x, y, REST_YAW, 0.70)
    yield from hand.go((x, y, 0.47), REST_YAW, speed=0.5)
    yield from hand.grip(OPEN)
    yield from hand.go((x, y, 0.70), REST_YAW)


def stack_block(hand: Hand) -> Motion:
    """Put the held block onto another that lies on the table."""
    held = hand.held() or BLOCKS[0]
    others = [colour for colour in BLOCKS if colour != held]
    base = min(others, key=lambda colour: abs(hand.block(colour)[1] + 0.1))
    x, y, z = hand.block(base)[:3]
    yaw = wrapped(hand.block(base)[5], REST_YAW, np.pi)
    hand.gripper = CLOSED
    yield from _over(hand, x, y, yaw, z + 0.16)
    x, y, z = hand.block(base)[:3]
    offset = hand.block(held)[:3] - hand.position
    yield from hand.go((x - offset[0], y - offset[1], z + 0.042 - offset[2]), yaw, near_m=0.004, speed=0.3)
    yield from hand.grip(OPEN)
    yield from hand.go((x, y, z + 0.2), yaw)


def unstack_block(hand: Hand) -> Motion:
    """Take the upper block and put it down beside."""
    top = max(BLOCKS, key=lambda colour: hand.block(colour)[2])
    yield from lift_block(hand, top)


def push_into_drawer(hand: Hand) -> Motion:
    """Sweep the block that lies on the table over its edge into the open drawer."""
    colour = min(BLOCKS, key=lambda name: hand.block(name)[1])
    x, y, z = hand.block(colour)[:3]
    hand.gripper = CLOSED
    yield from _over(hand, x, y + 0.08, REST_YAW)
    yield from hand.go((x, y + 0.08, z), REST_YAW)
    yield from hand.go((x, -0.24, z), REST_YAW, speed=0.4)
    yield from _lifted_away(hand)


Plan = Callable[[Hand], Motion]


def _plan_of(task: str) -> Plan:
    simple: dict[str, Plan] = {
        "open_drawer": open_drawer,
        "close_drawer": close_drawer,
        "move_slider_left": lambda hand: move_slider(hand, True),
        "move_slider_right": lambda hand: move_slider(hand, False),
        "turn_on_led": press_button,
        "turn_off_led": press_button,
        "turn_on_lightbulb": lambda hand: move_switch(hand, True),
        "turn_off_lightbulb": lambda hand: move_switch(hand, False),
        "place_in_drawer": place_in_drawer,
        "place_in_slider": place_in_slider,
        "stack_block": stack_block,
        "unstack_block": unstack_block,
        "push_into_drawer": push_into_drawer,
    }
    if task in simple:
        return simple[task]
    verb, colour, _, how = task.split("_")
    sign = 1 if how == "right" else -1
    if verb == "rotate":
        return lambda hand: rotate_block(hand, colour, -75.0 * sign)
    if verb == "push":
        return lambda hand: push_block(hand, colour, sign)
    return lambda hand: lift_block(hand, colour)


class CalvinExpert:
    """Does whatever task its environment is at: again from the start where a try has failed, then holds still."""

    def reset(self, env: gymnasium.Env[Any, Any], rng: np.random.Generator) -> None:
        """Plan for the task that ``env`` is at; nothing is drawn from ``rng``.

        Raises:
            LatentGymError: if it is at none.
        """
        inner: Any = env.unwrapped
        if inner.task is None:
            raise LatentGymError(
                f"{inner.env_id}: the expert needs a task: make the environment with task='open_drawer', or reset it "
                "with options={'task': ...}"
            )
        self._hand = Hand(inner)
        self._hand.gripper = float(inner.simulator.robot_obs()[14])
        self._plan = _plan_of(inner.task)
        self._motion = self._plan(self._hand)

    def act(self, env: gymnasium.Env[Any, Any], observation: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The action ``(7,)`` float32 for the current state."""
        inner: Any = env.unwrapped
        for _ in range(2):
            action = next(self._motion, None)
            if action is not None:
                return action
            if inner.is_solved:
                break
            self._motion = self._plan(self._hand)
        return self._hand.towards(self._hand.target, None)
