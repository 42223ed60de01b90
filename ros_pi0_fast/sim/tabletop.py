"""The simulated tabletop: one arm, a few cubes, one task at a time."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import numpy as np

from ros_pi0_fast.sim import arm
from ros_pi0_fast.sim.headless import choose_opengl
from ros_pi0_fast.sim.scene import (
    CAMERAS,
    CUBE_HALF,
    CUBES,
    MAT_HALF,
    SHOW_CAMERA,
    TIMESTEP,
    build_xml,
)
from ros_pi0_fast.sim.tasks import COLOURS, Layout, sample_layout
from ros_pi0_fast.types import Observation

choose_opengl()
import mujoco  # noqa: E402  after the choice

PARKED = np.array([-0.1, -0.3])
"""Where the cubes that a scene does not use lie, invisible: behind the arm, out of its reach."""


@dataclass(frozen=True, kw_only=True)
class TabletopConfig:
    """What is the same in all scenes, and how much the rest varies with the seed."""

    control_period: float = 0.1
    """Seconds of one `step`."""
    image_size: tuple[int, int] = (64, 64)
    """Height and width of the policy's pictures."""
    max_steps: int = 60
    """Control steps after which an episode has failed."""
    lift_height: float = 0.04
    """How far a picked cube must be above the table, m, for `lift_steps` control steps."""
    lift_steps: int = 5
    camera_jitter: float = 0.006
    """Standard deviation of the base camera's position, m; its direction jitters with it."""
    light_jitter: float = 0.12
    """Standard deviation of the brightness, as a fraction."""
    colour_jitter: float = 0.04
    home_jitter: float = 0.02
    """Of the tip's position at the start, m, in each direction."""


class Tabletop:
    """One simulated robot and its scene. Not for several threads.

    Args:
        config: what is the same in all scenes.
        seed, task: of the first scene; see `reset`.
    """

    def __init__(self, seed: int = 0, task: str | None = None,
                 config: TabletopConfig | None = None):
        self.config = config or TabletopConfig()
        self.model = mujoco.MjModel.from_xml_string(build_xml())
        self.data = mujoco.MjData(self.model)
        self._renderers: dict[tuple[int, int], mujoco.Renderer] = {}
        # Also before the interpreter ends, when OpenGL can still be called.
        self.close = weakref.finalize(self, _close, self._renderers)
        self._joints = [self.model.joint(name).qposadr[0] for name in arm.JOINTS]
        self._fingers = [self.model.joint(name).qposadr[0] for name in arm.FINGERS]
        self._cubes = [self.model.joint(name).qposadr[0] for name in CUBES]
        self._cube_of_geom = {self.model.geom(name).id: i for i, name in enumerate(CUBES)}
        self._finger_geoms = {self.model.geom(name).id for name in arm.FINGERS}
        self._base = self.model.camera(CAMERAS['base_0_rgb'])
        self._base_pose = self._base.pos.copy(), self._base.quat.copy()
        self._light = self.model.light('sun').diffuse.copy()
        self._headlight = self.model.vis.headlight.ambient.copy()
        self.reset(seed, task)

    def reset(self, seed: int, task: str | None = None) -> Layout:
        """Lay out the scene of a seed. Without a task, the seed chooses that too.

        Raises:
            ValueError: there is no task of that name.
        """
        self.layout = sample_layout(seed, task)
        self.instruction = self.layout.instruction
        rng = np.random.default_rng([seed, 1])
        mujoco.mj_resetData(self.model, self.data)
        tip = np.array(arm.HOME) + rng.uniform(-1, 1, 3) * self.config.home_jitter
        self.data.qpos[self._joints] = self.data.ctrl[:4] = arm.inverse_kinematics(tip)
        self._place_things(rng)
        self._vary_looks(rng)
        self.steps = 0
        self.first_touched: int | None = None
        """Index of the cube that the fingers touched first; None: none yet."""
        self._lifted = 0
        mujoco.mj_forward(self.model, self.data)
        return self.layout

    def _place_things(self, rng: np.random.Generator) -> None:
        layout = self.layout
        for i, address in enumerate(self._cubes):
            used = i < len(layout.cubes)
            x, y = layout.cubes[i] if used else PARKED + np.array([0.0, 0.05 * i])
            yaw = layout.yaws[i] if used else 0.0
            self.data.qpos[address:address + 7] = [
                x, y, CUBE_HALF, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
            if used:
                self._paint(CUBES[i], layout.colours[i], rng)
            else:
                self.model.geom(CUBES[i]).rgba[:] = 0
        self.model.geom('mat').pos[:2] = layout.mat
        self._paint('mat', layout.mat_colour, rng)

    def _paint(self, geom: str, colour: str, rng: np.random.Generator) -> None:
        rgb = np.array(COLOURS[colour]) + rng.normal(0, self.config.colour_jitter, 3)
        self.model.geom(geom).rgba[:] = [*np.clip(rgb, 0, 1), 1]

    def _vary_looks(self, rng: np.random.Generator) -> None:
        position, direction = self._base_pose
        self._base.pos[:] = position + rng.normal(0, self.config.camera_jitter, 3)
        quat = direction + rng.normal(0, self.config.camera_jitter, 4)
        self._base.quat[:] = quat / np.linalg.norm(quat)
        bright = np.clip(1 + rng.normal(0, self.config.light_jitter), 0.7, 1.3)
        self.model.light('sun').diffuse[:] = self._light * bright
        self.model.vis.headlight.ambient[:] = self._headlight * bright

    @property
    def joints(self) -> np.ndarray:
        """Measured joint angles float64 [4], rad."""
        return self.data.qpos[self._joints].copy()

    @property
    def gripper(self) -> float:
        """Measured gripper: 0 open to 1 closed on nothing."""
        return float(self.data.qpos[self._fingers].mean() / arm.FINGER_TRAVEL)

    @property
    def gap(self) -> float:
        """Between the fingers' inner faces, m."""
        return float(arm.OPEN_GAP - self.data.qpos[self._fingers].sum())

    @property
    def tip(self) -> np.ndarray:
        """Position of the point between the fingertips, float64 [3], m."""
        return self.data.site('tip').xpos.copy()

    def cube(self, index: int) -> np.ndarray:
        """Return the position of a cube's centre, float64 [3], m."""
        address = self._cubes[index]
        return self.data.qpos[address:address + 3].copy()

    @property
    def state(self) -> np.ndarray:
        """What the robot reports: float32 [5], joint angles (rad) and gripper (0 to 1)."""
        return np.array([*self.joints, self.gripper], np.float32)

    def observe(self) -> Observation:
        """Return what the policy may know now; the stamp is simulated time since the reset."""
        height, width = self.config.image_size
        return Observation(
            images={key: self.render(width, height, camera) for key, camera in CAMERAS.items()},
            state=self.state, instruction=self.instruction,
            stamp_ns=round(self.data.time * 1e9))

    def render(self, width: int, height: int, camera: str = SHOW_CAMERA) -> np.ndarray:
        """Return a picture uint8 RGB [height, width, 3]."""
        if (height, width) not in self._renderers:
            self._renderers[height, width] = mujoco.Renderer(self.model, height, width)
        renderer = self._renderers[height, width]
        renderer.update_scene(self.data, camera=camera)
        return renderer.render()

    def place_in_picture(self, point: np.ndarray, camera: str) -> np.ndarray:
        """Return where a point [3] (m) is in a camera's picture: float32 [2], right and down.

        0 to 1 across the picture, which is as wide as high; NaN where the point is not in it. What
        is in front of the point does not count.
        """
        seen = self.data.camera(camera)
        right, up, back = (point - seen.xpos) @ seen.xmat.reshape(3, 3)
        half = np.tan(np.deg2rad(self.model.camera(camera).fovy[0]) / 2)
        place = np.array([right, -up]) / max(-back * half, 1e-9) / 2 + 0.5
        inside = back < 0 and np.all((place >= 0) & (place < 1))
        return np.where(inside, place, np.nan).astype(np.float32)

    def step(self, action: np.ndarray) -> None:
        """Servo toward a target for one control period.

        Args:
            action: [5]: joint angles (rad) and gripper (0 open to 1 closed).

        Raises:
            ValueError: of another shape or not finite.
        """
        self.command(action)
        for _ in range(round(self.config.control_period / TIMESTEP)):
            self.advance()
        self.end_control_step()

    def command(self, action: np.ndarray) -> None:
        """Set the servos' targets; see `step`."""
        action = np.asarray(action, np.float64)
        if action.shape != (5,) or not np.all(np.isfinite(action)):
            raise ValueError(f'action: {action}, expected 5 finite numbers')
        self.data.ctrl[:4] = action[:4]
        self.data.ctrl[4:] = np.clip(action[4], 0, 1) * arm.FINGER_TRAVEL

    def advance(self) -> None:
        """Simulate one time step of the physics and note which cube is touched first."""
        mujoco.mj_step(self.model, self.data)
        if self.first_touched is None:
            for a, b in self.data.contact.geom:
                pair = {int(a), int(b)}
                if pair & self._finger_geoms and pair & self._cube_of_geom.keys():
                    self.first_touched = next(self._cube_of_geom[geom] for geom in pair
                                              if geom in self._cube_of_geom)

    def end_control_step(self) -> None:
        """Count a control step; a pick is judged by how many in a row the cube was up."""
        self.steps += 1
        height = self.cube(self.layout.target)[2] - CUBE_HALF
        self._lifted = self._lifted + 1 if height > self.config.lift_height else 0

    def success(self) -> bool:
        """Tell whether the task is done.

        reach: the named cube was the first to be touched. push: the cube's centre is over the
        mat, 5 mm inside its edge, and no finger is on it. pick: the cube has been held up.
        """
        if self.layout.task == 'reach':
            return self.first_touched == self.layout.target
        if self.layout.task == 'pick':
            return self._lifted >= self.config.lift_steps
        cube = self.cube(self.layout.target)
        over = np.max(np.abs(cube[:2] - self.layout.mat)) < MAT_HALF - 0.005
        return bool(over and self.tip[2] > 0.05)

    def over(self) -> bool:
        """Tell whether the episode has ended: done, out of time, or the wrong cube reached."""
        wrong = self.layout.task == 'reach' and self.first_touched is not None
        return self.success() or wrong or self.steps >= self.config.max_steps


def _close(renderers: dict[tuple[int, int], mujoco.Renderer]) -> None:
    """Free the renderers."""
    for renderer in renderers.values():
        renderer.close()
    renderers.clear()
