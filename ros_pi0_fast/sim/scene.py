"""The tabletop as a MuJoCo model (MJCF, https://mujoco.readthedocs.io/en/stable/XMLreference.html)."""

from __future__ import annotations

from ros_pi0_fast.sim import arm

MAX_CUBES = 4
CUBE_HALF = 0.015
"""Half the edge of a cube, metres."""
MAT_HALF = 0.04
"""Half the edge of the mat, metres."""
CUBES = tuple(f'cube{i}' for i in range(MAX_CUBES))
CAMERAS = {'base_0_rgb': 'base', 'wrist_0_rgb': 'wrist'}
"""Model image key -> camera of the scene."""
SHOW_CAMERA = 'show'
"""For people."""
TIMESTEP = 0.004
SLIDING = 0.5
"""Friction of cube on table. MuJoCo takes the greater of two geoms' coefficients; the fingers grip
with 1.5, and a pushed cube jams under them once the product of both contacts' exceeds 1."""


def _cube(name: str) -> str:
    return f"""
    <body name="{name}" pos="-.15 -.2 {CUBE_HALF}"><freejoint name="{name}"/>
      <geom name="{name}" type="box" size="{CUBE_HALF} {CUBE_HALF} {CUBE_HALF}" mass=".03"
            friction="{SLIDING} .01 .0005" condim="4" solref=".008 1"/></body>"""


def _finger(name: str, side: int) -> str:
    return f"""
    <body name="{name}" pos="0 {side * arm.FINGER_TRAVEL} .05" gravcomp="1">
      <joint name="{name}" type="slide" axis="0 {-side} 0" range="0 {arm.FINGER_TRAVEL}"
             damping="5" armature=".05"/>
      <geom name="{name}" class="finger" size=".009 .004 .032" pos="0 0 .032" mass=".02"/>
    </body>"""


def build_xml() -> str:
    """Return the scene: arm at the origin facing +x, table, mat, cubes, cameras.

    The background is a floor, not a skybox, which is white in MuJoCo 3.2.
    """
    cubes = ''.join(_cube(name) for name in CUBES)
    fingers = _finger(arm.FINGERS[0], 1) + _finger(arm.FINGERS[1], -1)
    motors = ''.join(f'<position name="{name}" joint="{name}"/>' for name in arm.JOINTS)
    motors += ''.join(f'<position name="{name}" joint="{name}" kp="150" forcerange="-4 4"/>'
                      for name in arm.FINGERS)
    return f"""
<mujoco model="tabletop">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{TIMESTEP}" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <visual>
    <quality shadowsize="0" offsamples="0"/>
    <global offwidth="640" offheight="480"/>
    <headlight ambient=".45 .45 .45" diffuse=".4 .4 .4" specular="0 0 0"/>
  </visual>
  <default>
    <joint damping="1" armature=".01"/>
    <position kp="60" dampratio="1"/>
    <default class="finger">
      <geom type="box" friction="1.5 .02 .001" condim="4" rgba=".15 .15 .15 1" solref=".008 1"/>
    </default>
    <default class="link"><geom contype="0" conaffinity="0" rgba=".85 .85 .88 1"/></default>
  </default>
  <worldbody>
    <light name="sun" pos=".3 .2 1" dir="-.1 -.2 -1" castshadow="false" diffuse=".4 .4 .4"/>
    <geom name="floor" type="plane" size="6 6 1" pos="0 0 -.4" contype="0" conaffinity="0"
          rgba=".42 .48 .55 1"/>
    <geom name="table" type="box" size=".35 .4 .02" pos=".2 0 -.02" rgba=".82 .8 .76 1"
          friction="{SLIDING} .01 .0005"/>
    <geom name="mat" type="box" size="{MAT_HALF} {MAT_HALF} .0006" pos=".2 .1 .0006"
          contype="0" conaffinity="0"/>
    <camera name="base" pos=".6 0 .4" xyaxes="0 1 0 -.7 0 .71" fovy="46"/>
    <camera name="{SHOW_CAMERA}" pos=".62 -.3 .36" xyaxes=".48 .88 0 -.45 .25 .86" fovy="45"/>
    {cubes}
    <body name="turret" gravcomp="1">
      <joint name="base_yaw" axis="0 0 1" range="-1.6 1.6"/>
      <geom class="link" type="cylinder" size=".045 .05" pos="0 0 .05" rgba=".3 .3 .33 1"
            mass=".5"/>
      <body name="upper_arm" pos="0 0 {arm.SHOULDER_HEIGHT}" gravcomp="1">
        <joint name="shoulder" axis="0 1 0" range="-.7 1.6"/>
        <geom class="link" type="capsule" size=".018" fromto="0 0 0 0 0 {arm.UPPER_ARM}"
              mass=".2"/>
        <body name="forearm" pos="0 0 {arm.UPPER_ARM}" gravcomp="1">
          <joint name="elbow" axis="0 1 0" range="-.1 2.7"/>
          <geom class="link" type="capsule" size=".015" fromto="0 0 0 0 0 {arm.FOREARM}"
                mass=".15"/>
          <body name="hand" pos="0 0 {arm.FOREARM}" gravcomp="1">
            <joint name="wrist_pitch" axis="0 1 0" range="-.2 2.6"/>
            <geom class="link" type="box" size=".012 .04 .012" pos="0 0 .04" rgba=".3 .3 .33 1"
                  mass=".1"/>
            <camera name="wrist" pos="-.05 0 0" xyaxes="0 1 0 .97 0 -.25" fovy="75"/>
            <site name="tip" pos="0 0 {arm.HAND}" size=".004" rgba="0 0 0 0"/>
            {fingers}
          </body>
        </body>
      </body>
    </body>
  </worldbody>
  <actuator>{motors}</actuator>
</mujoco>"""
