"""The tabletop scene as MuJoCo XML: a gantry with a U-shaped gripper over a table, built from primitives.

World frame, metres: x points right and y away from the camera, z up, the origin at the table's centre. The gripper's
pocket opens towards the camera (-y), so a puck is pushed towards the camera and caught as it moves away from it. A dark
disc on the table below the gripper, and the post below a floating target, let one camera see heights.
"""

from __future__ import annotations

import dataclasses

WORKSPACE = ((-0.26, 0.26), (-0.26, 0.26), (0.012, 0.24))
PUCK_RADIUS = 0.028
PUCK_LIMIT = 0.6
MAX_SPEED = 0.6
TIMESTEP_S = 0.01

_GANTRY = """
    <body name="gantry_x">
      <joint name="gripper_x" type="slide" axis="1 0 0" range="{x}"/>
      <inertial pos="0 0 0" mass="0.1" diaginertia="0.0001 0.0001 0.0001"/>
      <body name="gantry_y">
        <joint name="gripper_y" type="slide" axis="0 1 0" range="{y}"/>
        <geom type="cylinder" size="0.03 0.001" pos="0 0 0.001" mass="0.1" rgba="0.1 0.1 0.15 1"/>
        <body name="gripper">
          <joint name="gripper_z" type="slide" axis="0 0 1" range="{z}"/>
          <geom type="box" size="0.071 0.008 0.022" pos="0 0.038 0.022" mass="0.2" rgba="{colour}" class="solid"/>
          <geom type="box" size="0.008 0.036 0.022" pos="-0.063 0.004 0.022" mass="0.1" rgba="{colour}" class="solid"/>
          <geom type="box" size="0.008 0.036 0.022" pos="0.063 0.004 0.022" mass="0.1" rgba="{colour}" class="solid"/>
        </body>
      </body>
    </body>"""

_PUCK = """
    <body name="puck" pos="0 0 0.015">
      <joint name="puck_x" type="slide" axis="1 0 0" range="{limit}" damping="{damping}"/>
      <joint name="puck_y" type="slide" axis="0 1 0" range="{limit}" damping="{damping}"/>
      <geom type="cylinder" size="{radius} 0.015" mass="0.1" rgba="0.9 0.1 0.1 1" class="solid"/>
    </body>"""

_GOALS = {
    "target": """
    <body name="goal" mocap="true">
      <geom type="sphere" size="0.034" rgba="0.05 0.75 0.15 1"/>
      <geom type="cylinder" size="0.009 0.2" pos="0 0 -0.2" rgba="0.05 0.45 0.1 1"/>
    </body>""",
    "pad": """
    <body name="goal" mocap="true">
      <geom type="cylinder" size="0.05 0.001" pos="0 0 0.001" rgba="0.05 0.75 0.15 1"/>
    </body>""",
    "line": """
    <body name="goal" mocap="true">
      <geom type="box" size="0.3 0.008 0.001" pos="0 0 0.001" rgba="0.05 0.75 0.15 1"/>
    </body>""",
}

_DISTRACTOR = """
    <body name="distractor" mocap="true">
      <geom type="box" size="0.028 0.028 0.028" pos="0 0 0.028" rgba="0.95 0.6 0.05 1"/>
    </body>"""

_SCENE = """
<mujoco model="tabletop">
  <option timestep="{timestep}" gravity="0 0 0" integrator="implicitfast"/>
  <visual>
    <global offwidth="{offscreen}" offheight="{offscreen}"/>
    <headlight ambient="0.45 0.45 0.45" diffuse="0.4 0.4 0.4" specular="0 0 0"/>
  </visual>
  <default>
    <geom contype="0" conaffinity="0"/>
    <default class="solid"><geom contype="1" conaffinity="1" friction="0.3" solref="0.02 3"/></default>
  </default>
  <worldbody>
    <light pos="0.4 -0.6 1.5" dir="-0.25 0.4 -1" directional="true" diffuse="0.35 0.35 0.35" specular="0.1 0.1 0.1"/>
    <camera name="main" pos="0 -0.74 0.95" xyaxes="1 0 0 0 0.789 0.614" fovy="36"/>
    <geom name="floor" type="plane" size="3 3 0.1" pos="0 0 -0.4" rgba="0.2 0.22 0.25 1"/>
    <geom name="table" type="box" size="0.36 0.36 0.2" pos="0 0 -0.2" rgba="0.8 0.8 0.82 1"/>{bodies}
  </worldbody>
  <actuator>
    <velocity joint="gripper_x" kv="200"/>
    <velocity joint="gripper_y" kv="200"/>
    <velocity joint="gripper_z" kv="200"/>
  </actuator>
</mujoco>"""


@dataclasses.dataclass(frozen=True)
class SceneSpec:
    """What stands on the table.

    Attributes:
        goal: ``"target"`` (a sphere on a post), ``"pad"`` (a disc) or ``"line"`` (a strip along x).
        puck_damping: linear damping of the puck in N s/m; ``None`` for a scene without a puck.
        distractor: whether a box without contacts stands or moves about.
        offscreen: side of the largest image that can be rendered, in pixels.
    """

    goal: str
    puck_damping: float | None = None
    distractor: bool = False
    offscreen: int = 64


def scene_xml(spec: SceneSpec) -> str:
    """The MJCF document for ``spec``."""
    x, y, z = (f"{low} {high}" for low, high in WORKSPACE)
    bodies = [_GANTRY.format(x=x, y=y, z=z, colour="0.15 0.3 0.9 1")]
    if spec.puck_damping is not None:
        limit = f"{-PUCK_LIMIT} {PUCK_LIMIT}"
        bodies.append(_PUCK.format(limit=limit, radius=PUCK_RADIUS, damping=spec.puck_damping))
    bodies.append(_GOALS[spec.goal])
    if spec.distractor:
        bodies.append(_DISTRACTOR)
    return _SCENE.format(timestep=TIMESTEP_S, offscreen=spec.offscreen, bodies="".join(bodies))
