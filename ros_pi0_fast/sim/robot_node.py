"""The simulated robot as a ROS 2 node: cameras, joints, and a controller that plays chunks.

It waits for the first valid chunk, runs a number of episodes in real time, prints a table, and
ends. Everything happens in one timer of 50 Hz; physics and pictures of one tick take a few
milliseconds, and physics catches up with the clock if a tick comes late.
"""

from __future__ import annotations

import array
import contextlib
import sys
from pathlib import Path

import numpy as np
import rclpy
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from rclpy.time import Time
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String

from ros_pi0_fast.msg import ActionChunk
from ros_pi0_fast.sim import arm
from ros_pi0_fast.sim.chunk_player import ChunkPlayer, TimedChunk
from ros_pi0_fast.sim.run_report import STAGES, Film, RunReport
from ros_pi0_fast.sim.scene import CAMERAS, TIMESTEP
from ros_pi0_fast.sim.tabletop import Tabletop, TabletopConfig
from ros_pi0_fast.sim.tasks import EVALUATION_SEEDS, TASKS

TICK_HZ = 50.0
MAX_CATCH_UP = 50
"""Physics steps of one tick at most; beyond that the simulation runs slower than the clock."""
LINGER_NS = 600_000_000
"""How long a finished episode goes on, so that a person sees its end."""

_PARAMETERS = (
    ('episodes', 6, 'episodes to run before the node ends; 0: run until it is stopped'),
    ('tasks', list(TASKS), 'tasks that take turns: reach, push, pick'),
    ('seed', EVALUATION_SEEDS, 'seed of the first episode; later ones count up'),
    ('episode_seconds', 8.0, 'an episode that takes longer has failed'),
    ('image_rate_hz', 30.0, 'pictures a second of each camera'),
    ('control_rate_hz', 10.0, 'targets a second given to the servos'),
    ('start_timeout_s', 240.0, 'the node ends with an error if no valid chunk came in this time'),
    ('video', '', 'GIF to write; empty: none'),
    ('video_rate_hz', 10.0, 'frames a second of the GIF'))


class TabletopRobot(Node):
    """The simulated robot. `exit_code` is None until the run has ended."""

    def __init__(self) -> None:
        super().__init__('tabletop_robot')
        for name, default, description in _PARAMETERS:
            self.declare_parameter(
                name, default, ParameterDescriptor(description=description, read_only=True))
        self._tasks = list(self._value('tasks'))
        unknown = sorted(set(self._tasks) - set(TASKS))
        if unknown or not self._tasks:
            raise ValueError(f'tasks: found {self._tasks}, expected some of {", ".join(TASKS)}')
        self._table = Tabletop(config=TabletopConfig(
            max_steps=round(self._value('episode_seconds') * self._value('control_rate_hz'))))
        self._player = ChunkPlayer()
        self._report = RunReport()
        video = self._value('video')
        self._film = Film(Path(video), self._value('video_rate_hz')) if video else None
        self.exit_code: int | None = None
        self._episode = -1
        self._linger_until_ns: int | None = None
        self._connect()
        now = self.get_clock().now().nanoseconds
        self._started_ns = self._physics_ns = now
        self._due_ns = dict.fromkeys(('control', 'image', 'film', 'instruction'), now)
        self._next_episode(now)
        self.create_timer(1 / TICK_HZ, self._tick)
        self.get_logger().info('waiting for the first valid action chunk')

    def _value(self, name: str):
        return self.get_parameter(name).value

    def _connect(self) -> None:
        self._image_publishers = {
            key: self.create_publisher(Image, f'image/{camera}', qos_profile_sensor_data)
            for key, camera in CAMERAS.items()}
        self._joint_publisher = self.create_publisher(JointState, 'joint_states', 10)
        self._instruction_publisher = self.create_publisher(String, 'instruction', 10)
        self.create_subscription(ActionChunk, 'action_chunk', self._on_chunk, QoSProfile(depth=1))

    @property
    def _running(self) -> bool:
        """The first valid chunk has come: episodes count."""
        return self._episode >= 0

    def _next_episode(self, now_ns: int) -> None:
        index = max(self._episode, 0)
        self._table.reset(self._value('seed') + index, self._tasks[index % len(self._tasks)])
        self._player.reset(self._table.instruction, now_ns)
        self._linger_until_ns = None
        self._physics_ns = now_ns
        self._due_ns['instruction'] = now_ns

    def _on_chunk(self, message: ActionChunk) -> None:
        now_ns = self.get_clock().now().nanoseconds
        if not self._running:
            if message.valid:
                self.get_logger().info('first valid chunk; episodes begin')
                self._episode = 0
                self._next_episode(now_ns)
            return
        self._count(message, now_ns)
        if not message.valid:
            return
        if not message.absolute or message.action_dim != len(arm.ACTION_NAMES):
            self.get_logger().error(
                f'chunk refused: found {message.action_dim} '
                f'{"absolute" if message.absolute else "relative"} actions, expected '
                f'{len(arm.ACTION_NAMES)} absolute ones')
            return
        period = message.control_period.sec * 10**9 + message.control_period.nanosec
        self._player.offer(TimedChunk(
            stamp_ns=Time.from_msg(message.header.stamp).nanoseconds, period_ns=period,
            actions=np.asarray(message.actions, np.float32).reshape(
                message.horizon, message.action_dim),
            instruction=message.instruction))

    def _count(self, message: ActionChunk, now_ns: int) -> None:
        report = self._report
        report.received += 1
        report.valid += message.valid
        if not message.valid:
            seen = report.invalid_reasons
            seen[message.reason] = seen.get(message.reason, 0) + 1
        for stage in STAGES:
            report.stage_ms[stage].append(getattr(message, f'{stage}_ms'))
        stamp = Time.from_msg(message.header.stamp).nanoseconds
        report.age_ms.append((now_ns - stamp) / 1e6)

    def _due(self, what: str, rate_hz: float, now_ns: int) -> bool:
        """Tell whether something periodic is due, and note when it is due next."""
        if now_ns < self._due_ns[what]:
            return False
        period = round(1e9 / rate_hz)
        self._due_ns[what] = max(self._due_ns[what] + period, now_ns - period)
        return True

    def _tick(self) -> None:
        if self.exit_code is not None:
            return
        now = self.get_clock().now()
        self._simulate(now.nanoseconds)
        self._publish(now)
        if self._running:
            self._follow_episode(now.nanoseconds)
        elif now.nanoseconds - self._started_ns > self._value('start_timeout_s') * 1e9:
            self.get_logger().error(
                f'no valid action chunk within {self._value("start_timeout_s"):.0f} s')
            self.exit_code = 1

    def _simulate(self, now_ns: int) -> None:
        if self._due('control', self._value('control_rate_hz'), now_ns):
            action = self._player.due(now_ns)
            if action is not None:
                self._table.command(action)
            if self._running and self._linger_until_ns is None:
                self._report.controls += 1
                self._report.holds += action is None
                self._table.end_control_step()
        step_ns = round(TIMESTEP * 1e9)
        steps = min((now_ns - self._physics_ns) // step_ns, MAX_CATCH_UP)
        for _ in range(steps):
            self._table.advance()
        self._physics_ns = max(self._physics_ns + steps * step_ns,
                               now_ns - MAX_CATCH_UP * step_ns)

    def _publish(self, now: Time) -> None:
        state = self._table.state
        joints = JointState(name=list(arm.ACTION_NAMES), position=[float(x) for x in state])
        joints.header.stamp = now.to_msg()
        self._joint_publisher.publish(joints)
        if self._due('image', self._value('image_rate_hz'), now.nanoseconds):
            height, width = self._table.config.image_size
            for key, camera in CAMERAS.items():
                picture = self._table.render(width, height, camera)
                message = Image(height=height, width=width, encoding='rgb8', step=3 * width,
                                data=array.array('B', picture.tobytes()))
                message.header.stamp = now.to_msg()
                message.header.frame_id = f'{camera}_camera'
                self._image_publishers[key].publish(message)
        if self._due('instruction', 1.0, now.nanoseconds):
            self._instruction_publisher.publish(String(data=self._table.instruction))
        if self._film and self._running and self._due(
                'film', self._value('video_rate_hz'), now.nanoseconds):
            self._film.add(self._table.render(320, 240), self._table.instruction,
                           self._linger_until_ns is not None and self._table.success())

    def _follow_episode(self, now_ns: int) -> None:
        if self._linger_until_ns is None:
            if self._table.over():
                self._linger_until_ns = now_ns + LINGER_NS
                done = self._table.success()
                self._report.outcomes[self._table.layout.task].append(done)
                self.get_logger().info(
                    f'episode {self._episode + 1}: "{self._table.instruction}" '
                    f'{"done" if done else "failed"} after {self._table.steps} control steps')
        elif now_ns >= self._linger_until_ns:
            self._episode += 1
            if self._episode == self._value('episodes'):
                self.exit_code = 0
            else:
                self._next_episode(now_ns)

    def finish(self) -> None:
        """Write the GIF and print the table."""
        if self._film:
            self._film.write()
        video = self._film.path.resolve() if self._film else None
        print('\n'.join(self._report.lines(video)), flush=True)
        self._table.close()


def main() -> None:
    """Run the node until its episodes are over."""
    rclpy.init()
    node = None
    try:
        # Stopped from outside, what was seen so far is still worth its table.
        with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
            node = TabletopRobot()
            while rclpy.ok() and node.exit_code is None:
                rclpy.spin_once(node, timeout_sec=0.1)
    finally:
        if node is not None:
            node.finish()
            node.destroy_node()
        rclpy.try_shutdown()
    sys.exit(0 if node is None or node.exit_code is None else node.exit_code)


if __name__ == '__main__':
    main()
